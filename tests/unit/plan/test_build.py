from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.errors import HostUnfit, ImageInvalid, NetworkFailed, SpecInvalid
from launcher.facts import DeviceFacts, NetworkFacts
from launcher.plan.build import plan
from launcher.plan.types import (
    BuildRootDisk,
    BuildSeed,
    EnsureBridge,
    EnsureTap,
    ExtractKernel,
    GiveToVmm,
    MakeFolder,
    WriteFile,
)
from launcher.plan.vmconfig import BODY_LIMIT, body_size
from launcher.spec.types import Kernel, MultusNetwork, PodNetwork, VmSpec
from launcher.vmm.http import REQUEST_BODY_LIMIT
from tests.unit.plan.made import FACTS, SPEC

WITHOUT_NETWORK = replace(SPEC, instance=replace(SPEC.instance, interfaces=()), networks=())


def test_the_config_is_made_of_its_parts() -> None:
    config = plan(SPEC, FACTS).vm_config
    assert [disk.id for disk in config.disks or ()] == ["root", "seed"]
    assert [net.id for net in config.net or ()] == ["pod"]
    assert (config.serial.mode, config.serial.socket) == ("Socket", "/var/run/virtink/vmm/serial.sock")
    assert config.console.mode == "Off"
    assert config.pvpanic


def test_an_interface_named_like_a_disk_has_another_id() -> None:
    spec = replace(
        SPEC,
        instance=replace(SPEC.instance, interfaces=(replace(SPEC.instance.interfaces[0], name="root"),)),
        networks=(PodNetwork("root"),),
    )
    boot = plan(spec, FACTS)
    assert [net.id for net in boot.vm_config.net or ()] == ["root_net"]  # no disk has an underscore in its name
    assert boot.nics[0].name == "root"


def with_cmdline(cmdline: str) -> VmSpec:
    return replace(SPEC, instance=replace(SPEC.instance, kernel=Kernel("k", cmdline)))


@pytest.mark.parametrize("cmdline", ["console=ttyS0\n", "quiet\0", "naïve", "a\tb", "\ud800"])
def test_a_command_line_that_the_vmm_would_refuse_is_refused(cmdline: str) -> None:
    with pytest.raises(SpecInvalid, match="one line of printable ASCII") as caught:
        plan(with_cmdline(cmdline), FACTS)
    assert [problem.path for problem in caught.value.problems] == ["$.spec.instance.kernel.cmdline"]


def test_arm64_has_less_room_for_a_command_line() -> None:
    facts = replace(FACTS, arch="aarch64")
    plan(with_cmdline("x" * 2016), facts)
    plan(with_cmdline("x" * 2017), FACTS)
    with pytest.raises(SpecInvalid, match="2017 bytes, on arm64 there is room for 2016"):
        plan(with_cmdline("x" * 2017), facts)


def test_a_config_that_no_request_has_room_for_is_refused() -> None:
    assert BODY_LIMIT == REQUEST_BODY_LIMIT
    fits = BODY_LIMIT - body_size(plan(with_cmdline(""), FACTS).vm_config)
    assert body_size(plan(with_cmdline("x" * fits), FACTS).vm_config) == BODY_LIMIT
    with pytest.raises(SpecInvalid, match="has 51201 bytes, the VMM takes at most 51200") as caught:
        plan(with_cmdline("x" * (fits + 1)), FACTS)
    assert [problem.path for problem in caught.value.problems] == ["$.spec.instance.kernel.cmdline"]


def test_what_a_vm_has_not_stays_out_of_the_config() -> None:
    bare = replace(WITHOUT_NETWORK, instance=replace(WITHOUT_NETWORK.instance, disks=()), volumes=())
    boot = plan(bare, FACTS)
    assert (boot.vm_config.disks, boot.vm_config.net) == (None, None)
    assert (boot.helpers, boot.nics) == ((), ())


def test_the_kernel_comes_first_and_the_network_last() -> None:
    kinds = [type(action) for action in plan(SPEC, FACTS).actions]
    effects = [kind for kind in kinds if kind not in {MakeFolder, WriteFile, GiveToVmm}]
    assert effects[:4] == [ExtractKernel, BuildRootDisk, BuildSeed, EnsureBridge]
    assert EnsureTap in effects
    assert set(kinds[: kinds.index(ExtractKernel)]) == {MakeFolder}


def test_the_vmm_runs_as_its_own_uid_without_capabilities() -> None:
    facts = replace(FACTS, vmm_uid=1234, vmm_gid=5678, kvm=DeviceFacts(0, 995, 0o660))
    launch = plan(SPEC, facts).vmm
    assert (launch.binary, launch.version) == (FACTS.vmm.path, FACTS.vmm.version)
    assert (launch.confinement.uid, launch.confinement.gid, launch.confinement.groups) == (1234, 5678, (995,))
    assert launch.confinement.capabilities == ()
    folder = next(a for a in plan(SPEC, facts).actions if isinstance(a, MakeFolder) and a.path == facts.paths.vmm_dir)
    assert (folder.mode, folder.uid, folder.gid) == (0o700, 1234, 5678)


def test_an_emulated_guest_is_warned_of() -> None:
    facts = replace(FACTS, vmm=replace(FACTS.vmm, emulated=True))
    assert [warning for warning in plan(SPEC, facts).warnings if "not a security boundary" in warning]
    assert not plan(SPEC, FACTS).warnings


def test_of_several_obstacles_the_most_fundamental_is_told() -> None:
    spec = replace(SPEC, networks=(MultusNetwork("pod", "n"),))
    facts = replace(
        FACTS,
        kvm=DeviceFacts(problem="there is no /dev/kvm"),
        kernel_image=None,
        network=NetworkFacts(problem="cannot open a netlink socket", hint="mend it"),
    )
    with pytest.raises(SpecInvalid):
        plan(spec, facts)
    with pytest.raises(HostUnfit, match="/dev/kvm"):
        plan(SPEC, facts)
    facts = replace(facts, kvm=DeviceFacts())
    with pytest.raises(ImageInvalid, match="/mnt/images/kernel"):
        plan(SPEC, facts)
    facts = replace(facts, kernel_image=FACTS.kernel_image)
    with pytest.raises(NetworkFailed, match="netlink") as raised:
        plan(SPEC, facts)
    assert raised.value.hint == "mend it"
    plan(WITHOUT_NETWORK, facts)
