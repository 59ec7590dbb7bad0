"""The VM's disks and its kernel: which files they are, and how those come to be.

What somebody already prepared is used as it is and never rebuilt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from launcher.errors import HostUnfit, SpecInvalid
from launcher.plan.claims import plan_claim
from launcher.plan.containerdisk import plan_container_disk
from launcher.plan.disks import DiskPlan, check_file, direct_io, folder_for, give, overlay_disk, raw_disk
from launcher.plan.images import usable
from launcher.plan.rootdisk import plan_root_disk
from launcher.plan.seed import seed_files
from launcher.plan.types import BuildSeed, ExtractKernel, GiveToVmm, MakeFolder
from launcher.plan.vmconfig import PayloadConfig
from launcher.spec.types import CloudInitVolume, ContainerDiskVolume, ContainerRootfsVolume, DataVolumeVolume, PvcVolume

if TYPE_CHECKING:
    from launcher.facts import HostFacts
    from launcher.plan.types import Action, GuestDisk
    from launcher.plan.vmconfig import DiskConfig
    from launcher.spec.types import Disk, Kernel, VmSpec

# rust-hypervisor-firmware issues 333 and 382
_OLD_LOADERS = "hypervisor-fw does not boot newer images (Debian 13, Ubuntu 24.04): CLOUDHV.fd boots these too"

CMDLINE = "$.spec.instance.kernel.cmdline"

_PRINTABLE = re.compile(r"[ -~]*")  # all that rust-vmm's linux-loader takes in a command line
# cloud-hypervisor's arch/src/aarch64: 2048, less a NUL and " earlycon=pl011,mmio,0x09000000". On x86-64 a command line may
# have 65536, which no request has room for.
_ARM64_CMDLINE_BYTES = 2048 - 32


@dataclass(frozen=True, slots=True)
class PayloadPlan:
    config: PayloadConfig
    actions: tuple[Action, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DisksPlan:
    configs: tuple[DiskConfig, ...]
    disks: tuple[GuestDisk, ...]
    actions: tuple[Action, ...]
    groups: tuple[int, ...] = ()  # supplementary groups that let the VMM open them
    warnings: tuple[str, ...] = ()


def plan_payload(kernel: Kernel | None, facts: HostFacts) -> PayloadPlan:
    """The kernel with its command line, verbatim; without one, a firmware that boots the first disk that can be booted.

    Raises SpecInvalid for a command line that the VMM would not take, ImageInvalid when there is no kernel this machine can
    boot, HostUnfit when there is no firmware.
    """
    paths = facts.paths
    if kernel is None:
        return _plan_firmware(facts)
    _check_cmdline(kernel.cmdline, facts.arch)
    if facts.prepared_kernel:
        give = GiveToVmm(
            paths.prepared_kernel, facts.vmm_uid, facts.vmm_gid, write=False, reason="the VMM loads the prepared kernel"
        )
        return PayloadPlan(PayloadConfig(str(paths.prepared_kernel), kernel.cmdline), (give,))
    image = usable(facts.kernel_image, paths.kernel_image, kernel.image, f"or prepare {paths.prepared_kernel}")
    initramfs = paths.initramfs if image.initramfs else None
    return PayloadPlan(
        PayloadConfig(str(paths.kernel), kernel.cmdline, str(initramfs) if initramfs else None),
        (
            # The VMM's uid reads it there, so the folder is open to all.
            MakeFolder(paths.boot_dir, 0o755, 0, 0, "the VMM loads the kernel from here"),
            ExtractKernel(paths.kernel_image, paths.kernel, initramfs, f"the VM boots the kernel of {kernel.image}"),
        ),
    )


def _plan_firmware(facts: HostFacts) -> PayloadPlan:
    found = facts.firmware
    if found is None or found.path is None or found.problem:
        problem = found.problem if found else None
        raise HostUnfit(
            problem or "the VM has no kernel, and the facts do not tell of a firmware",
            hint=found.hint if found else "they were made for a VM with a kernel: make them anew",
        )
    why = "the VMM loads the firmware, which boots the VM from its disks"
    give = GiveToVmm(found.path, facts.vmm_uid, facts.vmm_gid, write=False, reason=why)
    warnings = (_OLD_LOADERS,) if found.path.name == "hypervisor-fw" else ()
    return PayloadPlan(PayloadConfig(firmware=str(found.path)), (give,), warnings)


def _check_cmdline(cmdline: str, arch: str) -> None:
    if not _PRINTABLE.fullmatch(cmdline):
        raise SpecInvalid.at(CMDLINE, "a kernel command line is one line of printable ASCII")
    if arch == "aarch64" and len(cmdline) > _ARM64_CMDLINE_BYTES:
        raise SpecInvalid.at(CMDLINE, f"it has {len(cmdline)} bytes, on arm64 there is room for {_ARM64_CMDLINE_BYTES}")


def plan_disks(spec: VmSpec, facts: HostFacts) -> DisksPlan:
    """The disks in the spec's order, which is the order the guest sees them in.

    Raises ImageInvalid for an unusable image, StorageFailed for an unusable disk.
    """
    plans = [_plan_disk(disk, spec, facts) for disk in spec.instance.disks]
    return DisksPlan(
        configs=tuple(plan.config for plan in plans if plan.config),
        disks=tuple(plan.disk for plan in plans if plan.disk),
        actions=tuple(action for plan in plans for action in plan.actions),
        groups=tuple(group for plan in plans for group in plan.groups),
        warnings=tuple(warning for plan in plans for warning in plan.warnings),
    )


def _plan_disk(disk: Disk, spec: VmSpec, facts: HostFacts) -> DiskPlan:
    match spec.volume(disk.name):
        case ContainerRootfsVolume() as volume:
            return _plan_rootfs(disk, volume, facts)
        case CloudInitVolume() as volume:
            return _plan_seed(volume, spec, facts)
        case PvcVolume() | DataVolumeVolume() as volume:
            return plan_claim(disk, volume, facts)
        case ContainerDiskVolume() as volume:
            return plan_container_disk(disk, volume, facts)
        case other:
            assert_never(other)


def _plan_rootfs(disk: Disk, volume: ContainerRootfsVolume, facts: HostFacts) -> DiskPlan:
    name, found = volume.name, facts.disk(volume.name)
    warnings = check_file(disk, found.file) if found.file else ()
    root = plan_root_disk(volume, facts)
    folder = folder_for(root.path, found) if root.actions else ()
    if root.base:
        config, seen = overlay_disk(name, root.path, root.base, read_only=disk.read_only)
        why = f"the VMM reads from it what disk {name} has not overwritten"
        base = (GiveToVmm(root.base, facts.vmm_uid, facts.vmm_gid, write=False, reason=why),)
        return DiskPlan(config, seen, (*folder, *root.actions, give(config, facts), *base), warnings=warnings)
    direct, io = direct_io(found.direct)
    if root.shared:
        direct, io = False, "through the page cache: with direct I/O a reflink may show sectors of 4096 bytes"
    config, seen = raw_disk(name, root.path, read_only=disk.read_only, direct=direct, io=io)
    return DiskPlan(config, seen, (*folder, *root.actions, give(config, facts)), warnings=warnings)


def _plan_seed(volume: CloudInitVolume, spec: VmSpec, facts: HostFacts) -> DiskPlan:
    name, path, found = volume.name, facts.paths.seed_disk(volume.name), facts.disk(volume.name)
    actions: tuple[Action, ...] = ()
    if found.cloud_init_ours or not found.cloud_init_iso:
        files = seed_files(spec, volume, facts)
        actions = (
            *folder_for(path, found),
            BuildSeed(name, path, files, f"disk {name} configures the guest by cloud-init"),
        )
    config, seen = raw_disk(name, path, read_only=True, direct=False, io="through the page cache: a seed is small")
    return DiskPlan(config, seen, (*actions, give(config, facts)))
