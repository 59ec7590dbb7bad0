"""Disks that somebody else made and keeps: persistent volume claims and data volumes, as files or block devices.

Raw, whatever is in them, and never changed by us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.errors import StorageFailed
from launcher.plan.disks import DiskPlan, check_file, direct_io, let_in, raw_disk
from launcher.spec.types import PvcVolume

if TYPE_CHECKING:
    from launcher.facts import HostFacts
    from launcher.spec.types import DataVolumeVolume, Disk


def plan_claim(disk: Disk, volume: PvcVolume | DataVolumeVolume, facts: HostFacts) -> DiskPlan:
    """The disk where the pod mounts the claim; a hot-pluggable one that is not there comes later.

    Raises StorageFailed when it is not there or cannot be used.
    """
    found = facts.disk(disk.name)
    if found.file is None:
        return _missing(disk, volume, facts)
    warnings = check_file(disk, found.file)
    if found.file.format != "raw":
        raise StorageFailed(
            f"disk {disk.name}: {found.file.path} begins like a {found.file.format} image, and the disk of a claim is raw",
            hint="convert it: qemu-img convert -O raw",
        )
    groups, actions = let_in(disk, found.file, facts)
    direct, io = direct_io(found.direct, found.file.sector)
    config, seen = raw_disk(disk.name, found.file.path, read_only=disk.read_only, direct=direct, io=io)
    return DiskPlan(config, seen, actions, groups, warnings)


def _missing(disk: Disk, volume: PvcVolume | DataVolumeVolume, facts: HostFacts) -> DiskPlan:
    device, file = facts.paths.volume(disk.name), facts.paths.claim_disk(disk.name)
    claim = f"the claim {volume.claim_name}" if isinstance(volume, PvcVolume) else f"the claim {volume.volume_name}"
    if volume.hotpluggable:
        where = " nor ".join(map(str, facts.paths.hotplugged(disk.name)))
        return DiskPlan(
            warnings=(f"disk {disk.name}: there is neither {where} yet: the VM starts without the disk of {claim}",)
        )
    if disk.name in facts.block_volumes:
        raise StorageFailed(
            f"disk {disk.name}: there is no block device {device}, and $BLOCK_VOLUMES calls the volume one",
            hint=f"give the container {claim} under volumeDevices, with devicePath {device}",
        )
    raise StorageFailed(
        f"disk {disk.name}: there is neither a block device {device} nor a file {file}",
        hint=f"mount {claim} there (volumeMounts, or volumeDevices for a block volume)",
    )
