"""Root disks: an image's tree as a sparse raw ext4 file.

Built in a folder beside the disk and renamed, so that a disk under its name is whole. A folder that a killed build left
is removed by the next one; a lock tells it from that of a build at work.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import stat
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import StorageFailed
from launcher.host import ext4
from launcher.host.ext4_tree import BLOCK, KEPT, plan_tree
from launcher.host.files import telling
from launcher.host.progress import Advance, Meter
from launcher.image.limits import DEFAULT, Limits
from launcher.image.source import open_image
from launcher.image.stream import flatten, tar_stream
from launcher.image.tar import show

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from launcher.host.ext4_tree import Plan
    from launcher.image.source import Image
    from launcher.image.stream import FlatTree
    from launcher.plan.types import BuildRootDisk

_log = logging.getLogger(__name__)
_MIB = 1 << 20
_NAMESPACE = uuid.UUID("5c1c6d6e-0f0a-4d0b-9b0e-4a5d3f1b7c21")  # of the names we derive file system ids from


@dataclass(frozen=True, slots=True)
class RootDisk:
    """A disk that is there: its size in bytes, whether it was built now, and what of the image could not be kept."""

    path: Path
    size: int
    built: bool
    lost: tuple[str, ...] = ()


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
    every five seconds. Raises ImageInvalid for the image, HostUnfit for
    e2fsprogs, StorageFailed when the tree does not fit (telling the size that does) or the disk cannot be written.
    """
    disk = action.disk
    with telling("build disk", disk):
        if os.path.lexists(disk):
            return RootDisk(disk, _size_of(disk), built=False)
        ext4.check_programs()
        with open_image(action.image, arch=arch, limits=limits) as image, _workspace(disk) as workspace:
            return _build(action, image, workspace, meter or Meter(_log_advance, every=5))


def _size_of(disk: Path) -> int:
    """Of a disk that somebody prepared. Raises StorageFailed when it is none, OSError when it cannot be looked at."""
    have = disk.lstat()
    if stat.S_ISLNK(have.st_mode):
        raise StorageFailed(f"{disk} is a symbolic link", hint="put the file itself there")
    if not stat.S_ISREG(have.st_mode):
        raise StorageFailed(f"{disk} is not a file", hint="a raw disk is expected there, or nothing: move it away")
    return have.st_size


def _build(action: BuildRootDisk, image: Image, workspace: Path, meter: Meter) -> RootDisk:
    disk, making = action.disk, workspace / "disk"
    meter.begin("reading the image", image.watch(meter.add))
    flat = flatten(image.tree(), image.what, image.limits)
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
        ext4.restore(making, target, plan.extras, workspace)
    lost = tuple(f"{count} {kind}" for kind, count in plan.lost.items())
    if lost:
        fields = {"image": str(image.path), "lost": ", ".join(lost)}
        _log.warning("ext4 cannot keep everything the image has", extra={"fields": fields})
    _publish(making, disk)
    return RootDisk(disk, target.size, built=True, lost=lost)


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


def _publish(making: Path, disk: Path) -> None:
    """Give a finished disk its name, once it is safely on the disk below."""
    fd = os.open(making, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    making.rename(disk)
    fd = os.open(disk.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _workspace(disk: Path) -> Iterator[Path]:
    """A locked folder beside the disk, gone afterwards; those of dead builds go first. Raises OSError."""
    for stale in disk.parent.glob(f".{disk.name}.*.building"):
        with _locked(stale) as ours:
            if ours:
                shutil.rmtree(stale)
    workspace = disk.with_name(f".{disk.name}.{secrets.token_hex(4)}.building")
    workspace.mkdir(0o700)
    with _locked(workspace):
        try:
            yield workspace
        finally:
            shutil.rmtree(workspace)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether we got the folder's lock, which ends with the process that holds it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
