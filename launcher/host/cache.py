"""A folder of files that are dear to make, shared by every launcher of a node. Knows nothing of what they are.

An entry is a folder named by a digest of what it is made of: ``disk``, read-only, and ``about.json``. It is made in a
workspace and renamed, so that an entry that has its name is whole. Beside it lies its lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.host.clone import data_runs
from launcher.host.workspace import remove_dead, sync, workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)
_DISK, _ABOUT = "disk", "about.json"
_PAGE = 64 << 10  # bytes that are digested together


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache: never to be written to, and there as long as its lock is held."""

    path: Path
    built: bool  # now, by us


@contextmanager
def entry(
    folder: Path, made_of: Mapping[str, str | int], build: Callable[[Path], None], *, verify: bool = False
) -> Iterator[Entry]:
    """The entry for what ``made_of`` says, locked in the block; ``build`` makes the file where there is none yet.

    An entry whose content cannot be what was built is removed and built again: ``verify`` looks at all of it, else that is
    only done when size, time or inode changed. Others that want the same entry wait. Raises OSError, and what ``build`` does.
    """
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    place, lock = folder / key, folder / f"{key}.lock"
    with _locked(lock):
        flaw = _flaw(place, made_of, verify=verify)
        if flaw:
            _log.warning("a cached file is made again", extra={"fields": {"entry": str(place), "because": flaw}})
        if built := flaw is not None:
            _remove(place)
            try:
                _build(place, made_of, build)
            except BaseException:
                lock.unlink()  # there is nothing to lock
                raise
        os.utime(place / _ABOUT)  # when it was last used
        yield Entry(place / _DISK, built)


def _build(place: Path, made_of: Mapping[str, str | int], build: Callable[[Path], None]) -> None:
    with workspace(place) as aside:
        making = aside / "entry"
        making.mkdir(0o755)
        disk = making / _DISK
        build(disk)
        disk.chmod(0o444)
        (making / _ABOUT).write_text(json.dumps(_about(disk, made_of, content_digest(disk))))
        for path in (disk, making / _ABOUT, making):
            sync(path)
        making.rename(place)
        sync(place.parent)


def _about(disk: Path, made_of: Mapping[str, str | int], digest: str) -> dict[str, Any]:
    have = disk.stat()
    identity = [have.st_size, have.st_mtime_ns, have.st_ino]
    return {"madeOf": dict(made_of), "digest": digest, "identity": identity}


def _flaw(place: Path, made_of: Mapping[str, str | int], *, verify: bool) -> str | None:
    """Why an entry must be built: empty when it is not there yet. None when it can be used."""
    if not os.path.lexists(place):
        return ""
    try:
        about = json.loads((place / _ABOUT).read_bytes())
        told = (about["digest"], about["madeOf"], about["identity"])
    except FileNotFoundError:
        return "it is incomplete"
    except (ValueError, KeyError, TypeError):
        return "its about.json is damaged"
    disk = place / _DISK
    if disk.is_symlink() or not disk.is_file():
        return "its file is missing"
    now = _about(disk, made_of, told[0])
    if told == (now["digest"], now["madeOf"], now["identity"]) and not verify:
        return None
    try:
        if content_digest(disk) != told[0]:
            return "its content changed"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    # The same content in another inode, after a restore from a backup for example.
    aside = place / f"{_ABOUT}.new"
    aside.write_text(json.dumps(now))
    aside.replace(place / _ABOUT)
    return None


def content_digest(path: Path) -> str:
    """SHA-256 over the file's size and every 64 KiB that are not all zeros, each after its offset. Holes cost nothing.

    Where the file system keeps holes makes no difference, so a copy has the digest of its original.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        state = hashlib.sha256(struct.pack("<Q", size))
        done = 0  # pages before this one are digested
        for start, length in data_runs(fd):
            for page in range(max(start // _PAGE, done), -(-(start + length) // _PAGE)):
                data = os.pread(fd, _PAGE, page * _PAGE)
                if data.count(0) != len(data):
                    state.update(struct.pack("<Q", page * _PAGE))
                    state.update(data)
                done = page + 1
    finally:
        os.close(fd)
    return f"sha256:{state.hexdigest()}"


def evict(folder: Path, limit: int) -> None:
    """Remove the entries that were not used for longest until the rest takes ``limit`` bytes, and what dead builds left.

    An entry in use stays. So does one that something else has a hard link to: removing it would free nothing, and it
    does not count. Raises OSError.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # one at a time: two would remove more than is needed
        remove_dead(folder, ".*.building")
        entries = sorted(_entries(folder))
        excess = sum(size for _, size, _ in entries) - limit
        for _, size, place in entries:
            if excess <= 0:
                return
            lock = place.with_name(f"{place.name}.lock")
            with suppress(BlockingIOError), _locked(lock, wait=False):
                _remove(place)
                lock.unlink()
                excess -= size
                _log.info("removed from the cache", extra={"fields": {"entry": str(place), "bytes": size}})
    finally:
        os.close(fd)


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each removable entry was last used, the bytes it takes, and where it is."""
    for lock in folder.glob("*.lock"):
        place = lock.with_suffix("")
        with suppress(FileNotFoundError):  # only locked so far, or removed meanwhile
            disk, about = (place / _DISK).stat(), (place / _ABOUT).stat()
            if disk.st_nlink == 1:
                yield about.st_mtime, disk.st_blocks * 512, place


def _remove(place: Path) -> None:
    """Away at once; a removal that is killed leaves a dead workspace."""
    with suppress(FileNotFoundError), workspace(place) as aside:
        place.rename(aside / "old")


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file, made when it is missing. Raises BlockingIOError when somebody else has it and we do not wait."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(
                fd
            ).st_nlink:  # else its entry was evicted while we waited: whoever comes now makes another lock
                yield
                return
        finally:
            os.close(fd)
