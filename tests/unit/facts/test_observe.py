from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import launcher.host.observe
from launcher.errors import HostUnfit
from launcher.facts import SecretFacts
from launcher.host.observe import (
    VmmChoice,
    effective_capabilities,
    observe,
    observe_device,
)
from launcher.host.observe_files import observe_secret
from launcher.paths import Paths
from tests.unit.plan.made import SPEC

if TYPE_CHECKING:
    from launcher.facts import HostFacts
    from launcher.spec.types import VmSpec


def accept(_binary: str, answer: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", answer)))


def look(tmp_path: Path, vmm: VmmChoice, spec: VmSpec | None = SPEC) -> HostFacts:
    """The VMM is of our own uid: pytest's folder is closed to others."""
    paths = Paths(tmp_path / "run", tmp_path / "images", tmp_path / "disks")
    return observe(spec, paths, vmm, judge=accept, vmm_uid=os.getuid(), vmm_gid=os.getgid())


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_empty_machine_is_seen_as_it_is(tmp_path: Path) -> None:
    facts = look(tmp_path, VmmChoice(tmp_path / "none"))
    assert facts.arch == os.uname().machine
    assert facts.cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert (facts.vmm_uid, facts.vmm_gid) == (os.getuid(), os.getgid())
    assert facts.vmm.problem == f"there is no program {tmp_path / 'none'}"
    assert (facts.kernel_image, facts.images, facts.prepared_kernel) == (None, (), False)
    assert [(disk.volume, disk.folder) for disk in facts.disks] == [("root", False), ("seed", False)]
    assert not list(tmp_path.iterdir())


def test_what_is_prepared_is_seen_and_its_image_not_opened(tmp_path: Path) -> None:
    for name in ("root/rootfs.raw", "seed/cloud-init.iso", "virtink-kernel/vmlinux"):
        path = tmp_path / "disks" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    (tmp_path / "images").mkdir()
    for name in ("root", "kernel"):
        (tmp_path / "images" / name).write_bytes(b"neither image is looked at")
    facts = look(tmp_path, VmmChoice(tmp_path / "none"))
    assert facts.prepared_kernel
    assert facts.disk("root").rootfs_raw
    assert facts.disk("seed").cloud_init_iso
    assert not facts.disk("seed").cloud_init_ours
    assert (facts.kernel_image, facts.images) == (None, ())


def test_a_secret_is_seen_by_size_and_digest_alone(tmp_path: Path) -> None:
    value = tmp_path / "disks/virtink-cloud-init-user-data/value"
    value.parent.mkdir(parents=True)
    (value.parent / "..data").write_text("#cloud-config\npassword: hunter2\n")
    value.symlink_to("..data")  # as the kubelet has it
    (tmp_path / "disks/virtink-cloud-init-network-data/value").mkdir(parents=True)
    facts = look(tmp_path, VmmChoice(tmp_path / "none"))
    digest = hashlib.sha256(value.read_bytes()).hexdigest()
    assert facts.user_data_secret == SecretFacts(32, digest)
    assert facts.network_data_secret is not None
    assert "Is a directory" in (facts.network_data_secret.problem or "")
    assert "hunter2" not in repr(facts)


@pytest.mark.parametrize("size", [1048576, 1048577])
def test_a_secret_too_large_for_a_seed_is_a_problem(tmp_path: Path, size: int) -> None:
    value = tmp_path / "value"
    value.write_bytes(b"x" * size)
    found = observe_secret(value)
    assert found is not None
    assert (found.problem is None) == (size == 1048576)
    assert found.problem is None or found.problem == f"{value} has more than 1048576 bytes"


def test_a_secret_that_is_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "value")
    assert observe_secret(tmp_path / "value") == SecretFacts(problem=f"{tmp_path / 'value'} is not a file")


def test_an_unusable_image_is_a_problem_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/root").write_bytes(b"")
    (tmp_path / "images/kernel").mkdir()
    (tmp_path / "images/kernel/vmlinux").write_text("this is a text file\n" * 300)
    facts = look(tmp_path, VmmChoice(tmp_path / "none"))
    assert facts.kernel_image is not None
    assert "text file" in (facts.kernel_image.problem or "")
    root = facts.image("root")
    assert root is not None
    assert "empty" in (root.problem or "")


def test_a_kernel_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "images/kernel").mkdir(parents=True)
    (tmp_path / "images/kernel/initramfs").write_bytes(b"any")
    if os.uname().machine == "x86_64":
        kernel = bytearray(4 << 20)
        kernel[0x1FE:0x200], kernel[0x202:0x206], kernel[0x211] = b"\x55\xaa", b"HdrS", 1
        expected = "bzimage"
    else:
        kernel = bytearray(4096)
        kernel[0x38:0x3C] = b"ARM\x64"
        expected = "arm64-image"
    (tmp_path / "images/kernel/vmlinux").write_bytes(kernel)
    image = look(tmp_path, VmmChoice(tmp_path / "none")).kernel_image
    assert image is not None
    assert (image.problem, image.kernel, image.initramfs) == (None, expected, True)


def test_without_a_spec_everything_there_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/kernel").mkdir()
    (tmp_path / "disks/b").mkdir(parents=True)
    facts = look(tmp_path, VmmChoice(tmp_path / "none"), spec=None)
    assert [image.name for image in facts.images] == ["a"]
    assert [disk.volume for disk in facts.disks] == ["b"]
    assert facts.kernel_image is not None
    assert "has no /vmlinux" in (facts.kernel_image.problem or "")


def test_the_vmms_version_is_asked_for(tmp_path: Path) -> None:
    binary = program(tmp_path / "vmm", 'test "$1" = --version && echo 53.0.1')
    vmm = look(tmp_path, VmmChoice(binary)).vmm
    assert (vmm.path, vmm.version, vmm.problem, vmm.emulated) == (str(binary), (53, 0, 1), None, False)


def test_a_vmm_that_fails_is_a_problem_with_its_own_words(tmp_path: Path) -> None:
    binary = program(tmp_path / "vmm", "echo no such thing >&2; exit 3")
    vmm = look(tmp_path, VmmChoice(binary)).vmm
    assert vmm.version == ()
    assert "ended with status 3: no such thing" in (vmm.problem or "")


def test_a_vmm_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's child holds our pipes: killing the shell alone would leave us waiting for it."""
    monkeypatch.setattr(launcher.host.observe, "_VERSION_TIMEOUT", 0.2)
    binary = program(tmp_path / "vmm", "sleep 1000")
    vmm = look(tmp_path, VmmChoice(binary)).vmm
    assert vmm.problem == f"{binary} --version did not answer within 0.2 s"
    assert vmm.hint


def test_a_vmm_that_is_no_program_is_told_from_a_missing_one(tmp_path: Path) -> None:
    program(tmp_path / "vmm", "echo 53").chmod(0o644)
    assert look(tmp_path, VmmChoice(tmp_path / "vmm")).vmm.problem == f"{tmp_path}/vmm is not executable"
    assert look(tmp_path, VmmChoice(tmp_path)).vmm.problem == f"{tmp_path} is not a program"


def test_a_vmm_of_a_wrong_version_is_a_problem_with_its_remedy(tmp_path: Path) -> None:
    def refuse(binary: str, _answer: str) -> tuple[int, ...]:
        raise HostUnfit(f"{binary} is too old", hint="a newer one")

    binary = program(tmp_path / "vmm", "echo 1.0")
    paths = Paths(tmp_path, tmp_path, tmp_path)
    vmm = observe(SPEC, paths, VmmChoice(binary), judge=refuse, vmm_uid=0, vmm_gid=0).vmm
    assert (vmm.problem, vmm.hint) == (f"{binary} is too old", "a newer one")


def test_emulation_does_not_look_at_kvm(tmp_path: Path) -> None:
    facts = look(tmp_path, VmmChoice(emulate=True))
    assert facts.vmm.emulated
    assert facts.kvm.problem is None


def test_devices_are_seen_with_owner_and_mode() -> None:
    null = observe_device(Path("/dev/null"))
    have = Path("/dev/null").stat()
    assert (null.uid, null.gid, null.mode, null.problem) == (have.st_uid, have.st_gid, stat.S_IMODE(have.st_mode), None)


def test_a_device_that_is_not_what_it_should_be_says_so(tmp_path: Path) -> None:
    assert observe_device(tmp_path / "kvm").problem == f"there is no {tmp_path / 'kvm'}"
    (tmp_path / "file").write_bytes(b"")
    assert observe_device(tmp_path / "file").problem == f"{tmp_path / 'file'} is not a device"
    assert observe_device(Path("/dev/null"), lambda _: "is no KVM").problem == "/dev/null is no KVM"


def test_capabilities_have_names() -> None:
    status = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000001401\nCapBnd:\t0\n"
    assert effective_capabilities(status) == ("chown", "net_admin", "net_bind_service")
    assert effective_capabilities("") == ()
    assert effective_capabilities("CapEff:\t0000020000000000\n") == ()


def test_looking_does_not_depend_on_the_order_of_names(tmp_path: Path) -> None:
    reordered = replace(SPEC, volumes=SPEC.volumes[::-1])
    facts = look(tmp_path, VmmChoice(tmp_path / "none"), reordered)
    assert [disk.volume for disk in facts.disks] == ["seed", "root"]
