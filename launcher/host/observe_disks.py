"""Looking at disks that are there already. Nothing is written, and nothing is locked."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, assert_never

from launcher.facts import DiskFacts, DiskFile
from launcher.host.direct import block_below, block_of
from launcher.host.locks import held_lock, holder
from launcher.host.overlay import overlay_base
from launcher.host.seed import is_ours
from launcher.spec.types import CloudInitVolume, ContainerDiskVolume, ContainerRootfsVolume, DataVolumeVolume, PvcVolume

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.paths import Paths
    from launcher.spec.types import Volume

# linux/fs.h
_BLKROGET = 0x125E
_BLKSSZGET = 0x1268

_GPT = b"EFI PART"  # UEFI specification 5.3.2: it begins the second sector, whatever a sector's size
_QCOW2 = b"QFI\xfb"
_SECTORS = (512, 4096)


def observe_disk(paths: Paths, name: str, volume: Volume | None = None) -> DiskFacts:
    """What is there of a volume; without the volume, whatever kind of disk it is."""
    seed = paths.seed_disk(name)
    candidates = _candidates(paths, name, volume)
    file = next((found for path in candidates if (found := _observe_file(path))), None)
    return DiskFacts(
        name,
        folder=_is(stat.S_ISDIR, paths.volume(name)),
        rootfs_raw=_is(stat.S_ISREG, paths.rootfs_disk(name)),
        file=file,
        direct=0 if file and file.problem else _direct(file.path if file else paths.rootfs_disk(name)),
        cloud_init_iso=_is(stat.S_ISREG, seed),
        cloud_init_ours=is_ours(seed),
    )


def _candidates(paths: Paths, name: str, volume: Volume | None) -> tuple[Path, ...]:
    """Where the volume's disk may be, the first that is there wins."""
    match volume:
        case ContainerRootfsVolume():
            return (paths.rootfs_disk(name),)
        case CloudInitVolume():
            return ()
        case ContainerDiskVolume():
            return (paths.copied_disk(name), paths.disk_overlay(name))
        case PvcVolume() | DataVolumeVolume():
            mounted = (paths.volume(name), paths.claim_disk(name))
            return (*mounted, *paths.hotplugged(name)) if volume.hotpluggable else mounted
        case None:
            ours = (paths.rootfs_disk(name), paths.copied_disk(name), paths.disk_overlay(name))
            return (paths.volume(name), *ours, paths.claim_disk(name), *paths.hotplugged(name))
        case other:
            assert_never(other)


def _is(kind: object, path: Path) -> bool:
    try:
        return bool(kind(path.stat().st_mode))  # type: ignore[operator]  # one of stat's S_ISxxx
    except OSError:
        return False


def _observe_file(path: Path) -> DiskFile | None:
    """A file or block device; None when nothing or a folder is there."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return None
    if stat.S_ISLNK(mode):
        return DiskFile(path, problem="is a symbolic link", hint="put the file itself there")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        return DiskFile(path, problem="is neither a file nor a block device")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _look(path, fd)
        finally:
            os.close(fd)
    except OSError as error:
        return DiskFile(path, block=stat.S_ISBLK(mode), problem=f"cannot be read: {error.strerror}")


def _look(path: Path, fd: int) -> DiskFile:
    node = os.fstat(fd)
    block = stat.S_ISBLK(node.st_mode)
    head = os.pread(fd, 2 * _SECTORS[-1], 0)
    lock = held_lock(fd)
    overlay = path.suffix == ".qcow2" and head.startswith(_QCOW2)
    base = overlay_base(head) if overlay else None
    return DiskFile(
        path,
        block=block,
        size=os.lseek(fd, 0, os.SEEK_END),
        format="qcow2" if head.startswith(_QCOW2) else "raw",
        uid=node.st_uid,
        gid=node.st_gid,
        mode=stat.S_IMODE(node.st_mode),
        sector=_ioctl(fd, _BLKSSZGET) if block else _SECTORS[0],
        table=next((size for size in _SECTORS if head.startswith(_GPT, size)), 0),
        read_only=bool(_ioctl(fd, _BLKROGET)) if block else bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY),
        base=base,
        mark=_mark(path) if overlay else "",
        lock=lock,
        holder=holder(fd) if lock else None,
        problem=f"reads from {base}, which is not there" if base and not base.is_file() else None,
        hint="put back what belongs to it: the guest's data are of no use without" if base else None,
    )


def _mark(overlay: Path) -> str:
    """What stands beside an overlay on an image's own file, so that it is never laid over another one."""
    try:
        return overlay.with_suffix(".mark").read_text(errors="replace")
    except OSError:
        return ""


def _ioctl(fd: int, request: int) -> int:
    (value,) = struct.unpack("i", fcntl.ioctl(fd, request, struct.pack("i", 0)))
    return int(value)


def _direct(disk: Path) -> int:
    """``DiskFacts.direct`` of a disk that is there, or will be made there once its folder is."""
    try:
        fd = os.open(disk, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return block_below(next(folder for folder in disk.parents if folder.exists()))
    except OSError:
        return 0
    try:
        return block_of(fd)
    finally:
        os.close(fd)
