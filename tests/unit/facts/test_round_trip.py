from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.codec import from_json, to_json
from launcher.facts import Address, DeviceFacts, HostFacts, ImageFacts, Link, Neighbour, Route
from launcher.paths import Paths
from tests.unit.plan.made import FACTS

EVERYTHING = replace(
    FACTS,
    hugepages=((2 << 20, 512), (1 << 30, 0)),
    paths=Paths(Path("/run/vm"), Path("/images"), Path("/disks")),
    vmm=replace(FACTS.vmm, emulated=True, problem="p", hint="h"),
    vmm_uid=0,
    vmm_gid=0,
    kvm=DeviceFacts(0, 995, 0o660, "there is no /dev/kvm"),
    prepared_kernel=True,
    kernel_image=ImageFacts("kernel", problem="broken", hint="mend it"),
    network=replace(
        FACTS.network,
        has_dummy=False,
        links=(
            Link(
                "eth0",
                7,
                "veth",
                "0a:58:0a:f4:01:05",
                1500,
                up=False,
                master="br",
                alias="complete",
                addresses=(
                    Address(6, "fe80::1", 64, peer="fe80::2", broadcast=None, label="eth0:1", scope=253, flags=4),
                ),
                routes=(Route(4, "0.0.0.0/0", onlink=True, metric=3, tos=1, kind=6, metrics=(("RTAX_MTU", 1400),)),),
                neighbours=(Neighbour(4, "169.254.1.1", "ee:ee:ee:ee:ee:ee"),),
            ),
        ),
    ),
    receive_migration=True,
)


@pytest.mark.parametrize("facts", [FACTS, EVERYTHING, HostFacts("aarch64", 65536, ())])
def test_facts_come_back_through_json_text(facts: HostFacts) -> None:
    assert from_json(HostFacts, json.loads(json.dumps(to_json(facts)))) == facts


def test_what_was_not_seen_is_not_found() -> None:
    assert FACTS.image("other") is None
    assert not FACTS.disk("other").folder
    assert FACTS.network.link("eth9") is None
