from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.errors import HostUnfit, SpecInvalid
from launcher.facts import DeviceFacts
from launcher.paths import Paths
from launcher.plan.fitness import CAPABILITIES, check_machine, refuse_unsupported
from launcher.spec.types import (
    CloudInitVolume,
    ContainerDiskVolume,
    FileSystem,
    Interface,
    MasqueradeBinding,
    MultusNetwork,
    PodNetwork,
    PvcVolume,
    SecretRef,
    SriovBinding,
    VdpaBinding,
    VhostUserBinding,
    VmSpec,
)
from tests.unit.plan.made import FACTS, SPEC

if TYPE_CHECKING:
    from launcher.facts import HostFacts
    from launcher.spec.types import Binding


def refused(spec: VmSpec, facts: HostFacts = FACTS) -> list[str]:
    with pytest.raises(SpecInvalid) as raised:
        refuse_unsupported(spec, facts)
    lines = raised.value.message.splitlines()
    assert str(raised.value) == raised.value.message
    assert all(line.startswith("not supported yet: $") and line.endswith(")") for line in lines)
    return [line.removeprefix("not supported yet: ").split(" (")[0] for line in lines]


def bound(binding: Binding) -> VmSpec:
    interface = Interface("pod", "52:54:00:11:22:33", binding)
    return replace(SPEC, instance=replace(SPEC.instance, interfaces=(interface,)))


def test_the_golden_path_is_supported() -> None:
    refuse_unsupported(SPEC, FACTS)


def test_user_data_and_network_data_may_each_come_from_a_secret_of_its_own() -> None:
    volumes = (
        CloudInitVolume("a", SecretRef("u"), b"version: 2"),
        CloudInitVolume("b", b"#cloud-config", SecretRef("n")),
        CloudInitVolume("c", b"#cloud-config"),
    )
    refuse_unsupported(replace(SPEC, volumes=volumes), FACTS)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (
            replace(SPEC, instance=replace(SPEC.instance, disks=(), file_systems=(FileSystem("root"),))),
            "$.spec.instance.fileSystems[0]",
        ),
        (bound(MasqueradeBinding()), "$.spec.instance.interfaces[0].masquerade"),
        (bound(SriovBinding()), "$.spec.instance.interfaces[0].sriov"),
        (bound(VdpaBinding()), "$.spec.instance.interfaces[0].vdpa"),
        (bound(VhostUserBinding()), "$.spec.instance.interfaces[0].vhostUser"),
        (
            replace(SPEC, volumes=tuple(CloudInitVolume(name, user_data=SecretRef("s")) for name in "ab")),
            "$.spec.volumes[1].cloudInit.userDataSecretName",
        ),
        (
            replace(SPEC, volumes=tuple(CloudInitVolume(name, network_data=SecretRef(name)) for name in "ab")),
            "$.spec.volumes[1].cloudInit.networkDataSecretName",
        ),
        (replace(SPEC, networks=(MultusNetwork("pod", "net1"),)), "$.spec.networks[0].multus"),
        (replace(SPEC, networks=(PodNetwork("pod"), PodNetwork("again"))), "$.spec.networks[1].pod"),
    ],
)
def test_what_comes_later_is_refused_by_its_path(spec: VmSpec, path: str) -> None:
    assert refused(spec) == [path]


def test_a_migration_target_is_refused() -> None:
    assert refused(SPEC, replace(FACTS, receive_migration=True)) == ["$RECEIVE_MIGRATION"]


def test_everything_unsupported_is_told_at_once_in_document_order() -> None:
    spec = replace(
        bound(MasqueradeBinding()),
        volumes=(PvcVolume("root", "c"), ContainerDiskVolume("seed", "i")),
        networks=(MultusNetwork("pod", "n"),),
    )
    assert refused(spec) == [
        "$.spec.instance.interfaces[0].masquerade",
        "$.spec.networks[0].multus",
    ]


def test_a_suitable_machine_passes() -> None:
    check_machine(SPEC, FACTS)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_missing_capability_is_named_with_what_needs_it(capability: str) -> None:
    left = tuple(name for name in CAPABILITIES if name != capability)
    with pytest.raises(HostUnfit) as raised:
        check_machine(SPEC, replace(FACTS, capabilities=left))
    assert capability.upper() in raised.value.message
    assert CAPABILITIES[capability] in raised.value.message


def test_all_missing_capabilities_are_named_at_once() -> None:
    with pytest.raises(HostUnfit) as raised:
        check_machine(SPEC, replace(FACTS, capabilities=()))
    assert all(name.upper() in raised.value.message for name in CAPABILITIES)


def test_without_kvm_the_emulator_is_the_remedy() -> None:
    facts = replace(FACTS, kvm=DeviceFacts(problem="there is no /dev/kvm"))
    with pytest.raises(HostUnfit, match="there is no /dev/kvm") as raised:
        check_machine(SPEC, facts)
    assert "--emulate" in (raised.value.hint or "")
    check_machine(SPEC, replace(facts, vmm=replace(facts.vmm, emulated=True)))


def test_tun_is_needed_by_interfaces_only() -> None:
    facts = replace(FACTS, tun=DeviceFacts(problem="there is no /dev/net/tun"))
    with pytest.raises(HostUnfit, match="there is no /dev/net/tun"):
        check_machine(SPEC, facts)
    check_machine(replace(SPEC, instance=replace(SPEC.instance, interfaces=())), facts)


def test_a_vmm_that_cannot_be_used_is_told_as_it_was_found() -> None:
    facts = replace(FACTS, vmm=replace(FACTS.vmm, problem="cloud-hypervisor is not on PATH", hint="see --vmm"))
    with pytest.raises(HostUnfit, match="not on PATH") as raised:
        check_machine(SPEC, facts)
    assert raised.value.hint == "see --vmm"


def test_a_run_directory_too_long_for_its_sockets_is_refused() -> None:
    def facts(length: int) -> HostFacts:
        return replace(FACTS, paths=Paths(run_dir=Path("/" + "é" * (length // 2))))

    check_machine(SPEC, facts(90))  # 91 bytes and /vmm/serial.sock
    with pytest.raises(HostUnfit, match="2 bytes too long for the sockets"):
        check_machine(SPEC, facts(92))


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(HostUnfit, match="riscv64"):
        check_machine(SPEC, replace(FACTS, arch="riscv64"))


def test_dnsmasq_is_needed_by_interfaces_only() -> None:
    facts = replace(FACTS, dnsmasq=None)
    with pytest.raises(HostUnfit, match="dnsmasq is not installed"):
        check_machine(SPEC, facts)
    check_machine(replace(SPEC, instance=replace(SPEC.instance, interfaces=())), facts)
