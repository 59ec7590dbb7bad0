"""Disks out of containerDisk images: an overlay on the image's own file, on an extracted one, or a raw copy.

docs/adr/0009-container-disks-as-overlays.md says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.errors import StorageFailed
from launcher.plan.disks import DiskPlan, check_file, direct_io, folder_for, give, overlay_disk, raw_disk
from launcher.plan.images import usable
from launcher.plan.types import MakeContainerDisk

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.facts import DiskFile, DiskImageFacts, HostFacts
    from launcher.spec.types import ContainerDiskVolume, Disk


def plan_container_disk(disk: Disk, volume: ContainerDiskVolume, facts: HostFacts) -> DiskPlan:
    """A disk that is there is used as it is. Raises ImageInvalid for an unusable image, StorageFailed for an unusable disk."""
    name, paths, found = volume.name, facts.paths, facts.disk(volume.name)
    if found.file:
        return _there(disk, volume, found.file, facts)
    path = paths.volume_image(name)
    image = usable(facts.image(name), path, volume.image, f"or prepare {paths.copied_disk(name)}")
    why = f"disk {name} is the one in {volume.image}"
    if facts.container_disk == "raw":
        make = _make(volume, paths.copied_disk(name), facts, f"{why}; a raw copy was asked for")
        direct, io = direct_io(found.direct)
        if image.disk:
            direct, io = False, "through the page cache: with direct I/O a reflink may show sectors of 4096 bytes"
        config, seen = raw_disk(name, make.disk, read_only=disk.read_only, direct=direct, io=io)
    else:
        in_place, reason = _in_place(image.disk, facts)
        base, mark = (in_place.path, in_place.mark) if in_place else (paths.disk_base(name), "")
        make = _make(volume, paths.disk_overlay(name), facts, f"{why}; {reason}", base=base, mark=mark)
        config, seen = overlay_disk(name, make.disk, base, read_only=disk.read_only)
    return DiskPlan(config, seen, (*folder_for(make.disk, found), make, give(config, facts)))


def _make(
    volume: ContainerDiskVolume, path: Path, facts: HostFacts, reason: str, *, base: Path | None = None, mark: str = ""
) -> MakeContainerDisk:
    return MakeContainerDisk(
        volume=volume.name,
        image=facts.paths.volume_image(volume.name),
        disk=path,
        base=base,
        in_place=bool(mark),
        mark=mark,
        uid=facts.vmm_uid,
        gid=facts.vmm_gid,
        reason=reason,
    )


def _in_place(disk: DiskImageFacts | None, facts: HostFacts) -> tuple[DiskImageFacts | None, str]:
    """The image's own file where the VMM can read it there, and why or why not."""
    if disk is None:
        return None, "in layers it cannot be read from where it is"
    if disk.closed:
        return None, f"a folder on the way to {disk.path} is closed to the VMM's uid"
    if (
        disk.mode & 0o4
        or (disk.uid == facts.vmm_uid and disk.mode & 0o400)
        or (disk.gid == facts.vmm_gid and disk.mode & 0o040)
    ):
        return disk, "nothing of it is copied, however large it is"
    return None, f"{disk.path} with mode {disk.mode:04o} is closed to the VMM's uid"


def _there(disk: Disk, volume: ContainerDiskVolume, file: DiskFile, facts: HostFacts) -> DiskPlan:
    name, paths = volume.name, facts.paths
    warnings = check_file(disk, file)
    if file.path == paths.copied_disk(name):
        direct, io = direct_io(facts.disk(name).direct)
        config, seen = raw_disk(name, file.path, read_only=disk.read_only, direct=direct, io=io)
        return DiskPlan(config, seen, (give(config, facts),), warnings=warnings)
    image = facts.image(name)
    own = image.disk if image else None
    if file.base is None or not (
        file.base == paths.disk_base(name) or (own and (own.path, own.mark) == (file.base, file.mark))
    ):
        raise StorageFailed(
            f"disk {name}: {file.path} is no overlay on the disk in {paths.volume_image(name)}",
            hint=f"mount the image that it was made on, or move it away: then a new disk is made of {volume.image}",
        )
    config, seen = overlay_disk(name, file.path, file.base, read_only=disk.read_only)
    return DiskPlan(config, seen, (give(config, facts),), warnings=warnings)
