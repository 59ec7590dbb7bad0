"""The hand-over and its way back, killed before every single change and started again.

Where the kernel has no dummy links those variants are skipped; the KVM machine has them:
``python -m tests.lab.kvm_machine --timeout 900 -- PYTHON -m pytest -k dummy tests/integration`` with the real path of Python.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from launcher.plan.podnic import POD_LINK, Place, holder_mark, locate, names
from tests.lab.netns import DUAL, RICH, pod_netns
from tests.lab.pod_network import HOLDER_KINDS, KILLED, KillServer, need_kind, observed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.facts import Link, NetworkFacts
    from tests.lab.netns import PodNetns

pytestmark = pytest.mark.root

NOPREFIXROUTE = 0x200


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer() as server:
        yield server


@pytest.fixture(params=HOLDER_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    need_kind(request.param)
    return str(request.param)


def seen(pod: PodNetns) -> NetworkFacts:
    with pod.entered():
        return observed()


def configuration(facts: NetworkFacts) -> Link:
    """eth0 with what a CNI could have given it: whatever is only state left out."""
    link = facts.link(POD_LINK)
    assert link
    addresses = [replace(one, flags=one.flags & NOPREFIXROUTE) for one in link.addresses]
    return replace(
        link,
        index=0,
        kind="",
        alias=None,
        addresses=tuple(sorted(addresses, key=repr)),
        routes=tuple(sorted(link.routes, key=repr)),
    )


def check_handed_over(pod: PodNetns, before: Link, kind: str) -> None:
    facts, ours = seen(pod), names(POD_LINK)
    assert locate(facts, POD_LINK)[0] is Place.HOLDER
    assert configuration(facts) == before
    held, nic, bridge, tap = map(facts.link, (POD_LINK, ours.released, ours.bridge, ours.tap))
    assert held
    assert nic
    assert bridge
    assert tap
    assert (held.kind, held.alias, held.up) == (kind, holder_mark(POD_LINK), True)
    assert facts.link(ours.stage) is None
    assert (nic.kind, nic.up, nic.master, nic.mtu, nic.addresses) == ("veth", True, ours.bridge, before.mtu, ())
    assert nic.mac != before.mac
    assert (tap.kind, tap.up, tap.master, tap.addresses) == ("tun", True, ours.bridge, ())
    assert [(address.local, address.prefix) for address in bridge.addresses] == [("169.254.200.1", 30)]
    assert bridge.up
    assert bridge.mac not in {before.mac, nic.mac}
    assert len(facts.links) == 5  # and lo: nothing else was left behind


def check_restored(pod: PodNetns, before: Link) -> None:
    facts = seen(pod)
    assert configuration(facts) == before
    assert [link.name for link in facts.links if link.name != "lo"] == [POD_LINK]
    assert "addrgenmode eui64" in pod.pod("ip", "-d", "link", "show", POD_LINK)


def test_killed_before_every_change_it_converges_both_ways(server: KillServer, kind: str) -> None:
    with pod_netns(DUAL) as pod:
        before = configuration(seen(pod))
        changes = 0
        unfinished = {"hand over", "restore"}
        while unfinished:
            for work in ("hand over", "restore"):
                status = server.run(pod.pod_name, work, kind=kind, kill_after=changes)
                assert status in {0, KILLED}
                if status == 0:
                    unfinished.discard(work)
                assert server.run(pod.pod_name, work, kind=kind) == 0
                if work == "hand over":
                    check_handed_over(pod, before, kind)
                else:
                    check_restored(pod, before)
            changes += 1
        assert changes > 25  # that many points were really tried


def test_half_a_hand_over_can_be_restored_and_half_a_restore_handed_over(server: KillServer, kind: str) -> None:
    with pod_netns(DUAL) as pod:
        before = configuration(seen(pod))
        changes, unfinished = 0, True
        while unfinished:
            unfinished = server.run(pod.pod_name, "hand over", kind=kind, kill_after=changes) == KILLED
            assert server.run(pod.pod_name, "restore", kind=kind) == 0
            check_restored(pod, before)
            assert server.run(pod.pod_name, "hand over", kind=kind) == 0
            unfinished |= server.run(pod.pod_name, "restore", kind=kind, kill_after=changes) == KILLED
            # Half restored; what is left must do as the starting point of a hand-over.
            assert server.run(pod.pod_name, "hand over", kind=kind) == 0
            check_handed_over(pod, before, kind)
            changes += 1


def test_a_second_and_third_run_change_nothing(server: KillServer, kind: str) -> None:
    with pod_netns(RICH) as pod:
        before = configuration(seen(pod))
        assert server.run(pod.pod_name, "hand over", kind=kind) == 0
        first = seen(pod)
        for _ in range(2):
            assert server.run(pod.pod_name, "hand over", kind=kind) == 0
            assert seen(pod) == first  # the same links by index, the tap's MAC included
        check_handed_over(pod, before, kind)
