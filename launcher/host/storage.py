"""Root disks: an image's tree as a sparse raw ext4 file.

Built in a folder beside the disk and renamed, so that a disk under its name is whole. A folder that a killed build left
is removed by the next one; a lock tells it from that of a build at work.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid, StorageFailed
from launcher.host import ext4
from launcher.host.ext4_tree import BLOCK, KEPT, plan_tree
from launcher.host.files import telling
from launcher.host.progress import Advance, Meter
from launcher.host.workspace import publish, workspace
from launcher.image.limits import DEFAULT, Limits
from launcher.image.source import open_image
from launcher.image.stream import flatten, tar_stream
from launcher.image.tar import show
from launcher.image.tree import Entry

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.host.ext4_tree import Plan
    from launcher.image.source import Image
    from launcher.image.stream import FlatTree
    from launcher.plan.types import BuildRootDisk

_log = logging.getLogger(__name__)
_MIB = 1 << 20
_MADE = "lost+found"  # by mke2fs, for e2fsck; it would put a file of this name in its place and leave it adrift
_NAMESPACE = uuid.UUID("5c1c6d6e-0f0a-4d0b-9b0e-4a5d3f1b7c21")  # of the names we derive file system ids from


@dataclass(frozen=True, slots=True)
class RootDisk:
    """A disk that is there: its size in bytes, whether it was built now, and what of the image could not be kept."""

    path: Path
    size: int
    built: bool
    lost: tuple[str, ...] = ()
    digest: str | None = None  # of the image it was built from


def _log_advance(advance: Advance) -> None:
    _log.info("building a root disk", extra={"fields": {"progress": str(advance)}})


def build_root_disk(
    action: BuildRootDisk,
    *,
    arch: str,
    limits: Limits = DEFAULT,
    meter: Meter | None = None,
) -> RootDisk:
    """The disk is there, with the image's tree; one that exists is left alone, whatever it holds.

    ``arch`` is the machine's: it picks from a multi-arch image. ``meter`` hears how far it is; without one, the log does
    every five seconds. Raises ImageInvalid for the image, HostUnfit for e2fsprogs, StorageFailed when the tree does not
    fit (telling the size that does) or the disk cannot be written.
    """
    disk = action.disk
    with telling("build disk", disk):
        if os.path.lexists(disk):
            return RootDisk(disk, _size_of(disk), built=False)
        ext4.check_programs()
        with open_image(action.image, arch=arch, limits=limits) as image, workspace(disk) as aside:
            return _build(action, image, aside, meter or Meter(_log_advance, every=5))


def _size_of(disk: Path) -> int:
    """Of a disk that somebody prepared. Raises StorageFailed when it is none, OSError when it cannot be looked at."""
    have = disk.lstat()
    if stat.S_ISLNK(have.st_mode):
        raise StorageFailed(f"{disk} is a symbolic link", hint="put the file itself there")
    if not stat.S_ISREG(have.st_mode):
        raise StorageFailed(f"{disk} is not a file", hint="a raw disk is expected there, or nothing: move it away")
    return have.st_size


def _build(action: BuildRootDisk, image: Image, aside: Path, meter: Meter) -> RootDisk:
    disk, making = action.disk, aside / "disk"
    meter.begin("reading the image", image.watch(meter.add))
    tree = image.tree()
    if isinstance(tree.get(_MADE), Entry):
        raise ImageInvalid(f"{image.what}: {_MADE} is no directory, as it must be on ext4", hint="take it out")
    flat = flatten(tree, image.what, image.limits)
    plan = plan_tree(flat)
    _check_directories(image, plan)
    target = ext4.Ext4(
        size=-(-action.size // BLOCK) * BLOCK,
        inodes=plan.inodes,
        uuid=str(uuid.uuid5(_NAMESPACE, f"{image.digest} {action.volume}") if image.digest else uuid.uuid4()),
        created=_newest(flat),
    )
    if target.size != action.size:
        fields = {"disk": str(disk), "asked": action.size, "size": target.size}
        _log.info("disk size rounded up to whole blocks", extra={"fields": fields})
    _check_fit(action, making, target, plan)
    _check_room(disk, plan)
    meter.begin("writing the disk", sum(entry.size for _, entry in flat.files))
    ext4.make(making, target, tar_stream(image, flat, KEPT, meter.add))
    if plan.extras:
        meter.begin("restoring attributes", 0)
        ext4.restore(making, target, plan.extras, aside)
    lost = tuple(f"{count} {kind}" for kind, count in plan.lost.items())
    if lost:
        fields = {"image": str(image.path), "lost": ", ".join(lost)}
        _log.warning("ext4 cannot keep everything the image has", extra={"fields": fields})
    publish(making, disk)
    return RootDisk(disk, target.size, built=True, lost=lost, digest=image.digest)


def _newest(flat: FlatTree) -> int:
    """The time of birth: the newest file's, so that building again gives the same bytes; one of the future is no clock."""
    now = time.time_ns()
    newest = max((entry.mtime_ns for _, entry in flat.inodes() if entry.mtime_ns <= now), default=0)
    return max(newest // 10**9, 1)


def _check_directories(image: Image, plan: Plan) -> None:
    """Raise ImageInvalid for a directory that mke2fs would take minutes for: it goes through all names for each new one."""
    path, names = plan.fullest
    if names > image.limits.directory:
        raise image.limits.exceeded("directory", f"{image.what}, directory {show(path)}: has {names} names")


def _check_fit(action: BuildRootDisk, trial: Path, target: ext4.Ext4, plan: Plan) -> None:
    """Raise StorageFailed, with the smallest size in MiB that does, unless the tree fits. mke2fs itself is asked."""
    size = target.size
    while (
        missing := plan.blocks - ext4.free_blocks(trial, ext4.Ext4(size, target.inodes, target.uuid, target.created))
    ) > 0:
        size = -(-(size + missing * BLOCK) // _MIB) * _MIB
    if size != target.size:
        mib = size // _MIB
        raise StorageFailed(
            f"the root file system in {action.image} needs a disk of {mib}Mi, volume {action.volume} has {target.size} bytes",
            hint=f"give the volume a size of {mib}Mi and what the guest is to write",
        )


def _check_room(disk: Path, plan: Plan) -> None:
    """Raise StorageFailed early when the folder cannot take even the tree's data."""
    room, needed = shutil.disk_usage(disk.parent).free, plan.blocks * BLOCK
    if needed > room:
        raise StorageFailed(
            f"no space is left for the disk {disk}: it takes {-(-needed // _MIB)}Mi, {room // _MIB}Mi are free",
            hint="make room, or mount a larger volume there",
        )
