"""Folders to build in: beside what is being made, locked as long as the build lives, gone afterwards.

What is whole gets its name outside of its workspace, so that nothing half-made ever has a name that somebody reads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A locked folder beside ``target``, gone afterwards; those of dead builds go first. Raises OSError."""
    remove_dead(target.parent, f".{target.name}.*.building")
    folder, lock = _make(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def remove_dead(folder: Path, pattern: str) -> None:
    """Remove the workspaces of builds that are not at work any more, of the names that match. Raises OSError."""
    for stale in folder.glob(pattern):
        if (lock := _lock(stale)) is not None:
            shutil.rmtree(stale)
            os.close(lock)


def _make(target: Path) -> tuple[Path, int]:
    while True:
        folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.building")
        folder.mkdir(0o700)
        # Somebody who removes dead workspaces may have been quicker than we with the lock.
        if (lock := _lock(folder)) is not None:
            return folder, lock


def _lock(folder: Path) -> int | None:
    """The descriptor that holds the folder's lock, which ends with its process; None when it is taken, or the folder gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    if os.fstat(fd).st_nlink == 0:
        os.close(fd)
        return None
    return fd


def publish(made: Path, path: Path) -> None:
    """Give a finished disk its name, once it is safely on the disk below; never in the place of another.

    By linking: renaming would replace a disk that another launcher on the same volume has made and uses meanwhile.
    Raises FileExistsError, or another OSError.
    """
    sync(made)
    try:
        path.hardlink_to(made)
    except PermissionError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        made.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """What the file or folder holds is safely on the disk below. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
