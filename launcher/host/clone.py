"""Another file with the same content, as cheaply as the file system allows; and what it allows, asked without naming a file."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FICLONE = 0x40049409  # linux/fs.h
_PROBE = bytes(4096)
_CHUNK = 16 << 20  # bytes copied at a time


def data_runs(fd: int) -> Iterator[tuple[int, int]]:
    """Where the file has data: offset and length of each run between holes (lseek(2), SEEK_DATA)."""
    end, position = os.fstat(fd).st_size, 0
    while position < end:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position - start


def reflink(source: int, target: int) -> bool:
    """The empty file ``target`` shares every block of ``source``; False where the file system cannot. Copies nothing."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}:
            return False
        raise
    return True


def sparse_copy(source: int, target: int) -> int:
    """Copy the data, not the holes, into the empty file ``target``; returns how many bytes that were. Raises OSError."""
    os.ftruncate(target, os.fstat(source).st_size)
    copied = 0
    for start, length in data_runs(source):
        position = start
        while position < start + length:
            count = min(_CHUNK, start + length - position)
            done = _copy_range(source, target, position, count)
            if not done:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            position += done
            copied += done
    return copied


def _copy_range(source: int, target: int, position: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
    return os.pwrite(target, os.pread(source, count, position), position)


def can_reflink(source: Path, target: Path) -> bool:
    """Whether a file in one folder can share its blocks with one in the other. Tried with files that have no name."""
    with ExitStack() as held:
        try:
            files = []
            for folder in (source, target):
                fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
                held.callback(os.close, fd)
                files.append(fd)
            os.write(files[0], _PROBE)
            return reflink(files[0], files[1])
        except OSError:
            return False


def can_link(source: Path, target: Path) -> bool:
    """Whether a hard link may lead from one folder to the other: link(2) wants one mount, not only one file system."""
    mount = _mount_id(source)
    return mount is not None and mount == _mount_id(target)


def file_system(folder: Path) -> str:
    """What kind the folder's file system is, such as ``xfs``; empty when that cannot be told."""
    mount = _mount_id(folder)
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            if line.split(" ", 1)[0] == mount:
                return line.partition(" - ")[2].split(" ")[0]
    return ""


def _mount_id(folder: Path) -> str | None:
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = re.search(r"^mnt_id:\s+(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    except OSError:
        return None
    finally:
        os.close(fd)
    return found[1] if found else None


def nearest(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there: where it will be made."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), path)
