"""The VM's disks and its kernel: which files they are, and how those come to be.

What somebody already prepared is used as it is and never rebuilt.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from launcher.errors import ImageInvalid, SpecInvalid
from launcher.plan.seed import seed_files
from launcher.plan.types import BuildRootDisk, BuildSeed, ExtractKernel, GiveToVmm, GuestDisk, MakeFolder
from launcher.plan.vmconfig import DiskConfig, PayloadConfig
from launcher.spec.types import CloudInitVolume, ContainerDiskVolume, ContainerRootfsVolume, DataVolumeVolume, PvcVolume

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.facts import HostFacts, ImageFacts
    from launcher.plan.types import Action
    from launcher.spec.types import Disk, Kernel, VmSpec

CMDLINE = "$.spec.instance.kernel.cmdline"

_PRINTABLE = re.compile(r"[ -~]*")  # all that rust-vmm's linux-loader takes in a command line
# cloud-hypervisor's arch/src/aarch64: 2048, less a NUL and " earlycon=pl011,mmio,0x09000000". On x86-64 a command line may
# have 65536, which no request has room for.
_ARM64_CMDLINE_BYTES = 2048 - 32
SECTOR = 512  # what disks are written for, and what the VMM shows of a file that it opens through the page cache
_SERIAL_BYTES = 20  # what virtio-blk has room for; cloud-hypervisor refuses more


@dataclass(frozen=True, slots=True)
class PayloadPlan:
    config: PayloadConfig
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class DisksPlan:
    configs: tuple[DiskConfig, ...]
    disks: tuple[GuestDisk, ...]
    actions: tuple[Action, ...]


def plan_payload(kernel: Kernel, facts: HostFacts) -> PayloadPlan:
    """The kernel with its command line, verbatim. Raises SpecInvalid for a command line that the VMM would not take, ImageInvalid
    when there is no kernel this machine can boot.
    """
    paths = facts.paths
    _check_cmdline(kernel.cmdline, facts.arch)
    if facts.prepared_kernel:
        give = GiveToVmm(
            paths.prepared_kernel, facts.vmm_uid, facts.vmm_gid, write=False, reason="the VMM loads the prepared kernel"
        )
        return PayloadPlan(PayloadConfig(str(paths.prepared_kernel), kernel.cmdline), (give,))
    image = _usable(facts.kernel_image, paths.kernel_image, kernel.image, f"or prepare {paths.prepared_kernel}")
    initramfs = paths.initramfs if image.initramfs else None
    return PayloadPlan(
        PayloadConfig(str(paths.kernel), kernel.cmdline, str(initramfs) if initramfs else None),
        (
            # The VMM's uid reads it there, so the folder is open to all.
            MakeFolder(paths.boot_dir, 0o755, 0, 0, "the VMM loads the kernel from here"),
            ExtractKernel(paths.kernel_image, paths.kernel, initramfs, f"the VM boots the kernel of {kernel.image}"),
        ),
    )


def _check_cmdline(cmdline: str, arch: str) -> None:
    if not _PRINTABLE.fullmatch(cmdline):
        raise SpecInvalid.at(CMDLINE, "a kernel command line is one line of printable ASCII")
    if arch == "aarch64" and len(cmdline) > _ARM64_CMDLINE_BYTES:
        raise SpecInvalid.at(CMDLINE, f"it has {len(cmdline)} bytes, on arm64 there is room for {_ARM64_CMDLINE_BYTES}")


def plan_disks(spec: VmSpec, facts: HostFacts) -> DisksPlan:
    """The disks in the spec's order, which is the order the guest sees them in. Raises ImageInvalid for an unusable image."""
    configs: list[DiskConfig] = []
    disks: list[GuestDisk] = []
    actions: list[Action] = []
    for disk in spec.instance.disks:
        config, seen, steps = _plan_disk(disk, spec, facts)
        configs.append(config)
        disks.append(seen)
        actions += steps
    return DisksPlan(tuple(configs), tuple(disks), tuple(actions))


def _plan_disk(disk: Disk, spec: VmSpec, facts: HostFacts) -> tuple[DiskConfig, GuestDisk, list[Action]]:
    found = facts.disk(disk.name)
    actions: list[Action] = []
    match spec.volume(disk.name):
        case ContainerRootfsVolume(name, reference, size):
            path, read_only = facts.paths.rootfs_disk(name), disk.read_only
            direct, io = direct_io(found.direct)
            if not found.rootfs_raw:
                image = facts.paths.volume_image(name)
                _usable(facts.image(name), image, reference, f"or prepare {path}")
                actions.append(
                    BuildRootDisk(name, image, path, size, f"disk {name} has the root file system of {reference}")
                )
        case CloudInitVolume(name) as volume:
            path, read_only = facts.paths.seed_disk(name), True
            direct, io = False, "through the page cache: a seed is small"
            if found.cloud_init_ours or not found.cloud_init_iso:
                files = seed_files(spec, volume, facts)
                actions.append(BuildSeed(name, path, files, f"disk {name} configures the guest by cloud-init"))
        case ContainerDiskVolume() | PvcVolume() | DataVolumeVolume():
            raise AssertionError("build refuses these before any disk is planned")
        case other:
            assert_never(other)
    if actions and not found.folder:
        actions.insert(0, MakeFolder(path.parent, 0o755, 0, 0, f"nothing is mounted for the volume {name}"))
    why = f"the VMM opens disk {name}"
    actions.append(GiveToVmm(path, facts.vmm_uid, facts.vmm_gid, write=not read_only, reason=why))
    config = DiskConfig(disk.name, str(path), read_only, "Raw", _serial(disk.name), direct or None)
    return config, GuestDisk(disk.name, path, "raw", read_only, io), actions


def direct_io(block: int) -> tuple[bool, str]:
    """Whether the VMM shall open a raw disk past the page cache, and why. ``block`` is ``DiskFacts.direct``.

    The VMM shows the guest sectors of that size (cloud-hypervisor issue 8477): disks are written for 512 bytes.
    """
    if not block:
        return False, "through the page cache: direct I/O is not possible there"
    if block > SECTOR:
        return (
            False,
            f"through the page cache: with direct I/O the guest would see sectors of {block} bytes, not {SECTOR}",
        )
    return True, f"direct I/O: it is possible there, in blocks of {block} bytes"


def _usable(image: ImageFacts | None, path: Path, reference: str, otherwise: str) -> ImageFacts:
    if image is None:
        raise ImageInvalid(f"there is no image at {path}", hint=f"mount {reference} there, {otherwise}")
    if image.problem:
        raise ImageInvalid(f"{image.problem}; the spec wants {reference} there", hint=image.hint)
    return image


def _serial(name: str) -> str:
    """A name for /dev/disk/by-id/virtio-…; a long one is cut and told apart by a hash."""
    if len(name.encode()) <= _SERIAL_BYTES:
        return name
    return f"{name[:11]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
