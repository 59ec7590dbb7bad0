"""Files and folders with exact modes and owners, whatever the umask; every failure told with its path and remedy."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit, LauncherError, StorageFailed
from launcher.host.folders import make_parents

if TYPE_CHECKING:
    from collections.abc import Iterator

_HINTS = {
    errno.EACCES: "run the launcher as root, with the capabilities it asks for",
    errno.EDQUOT: "raise the quota",
    errno.EEXIST: "another launcher made it meanwhile: a volume for one VM cannot be shared",
    errno.EFBIG: "the file system there cannot hold so large a file: choose a smaller size, or mount another there",
    errno.ENOSPC: "make room, or mount a larger volume there",
    errno.ENOTDIR: "something else is there: move it away",
    errno.EPERM: "run the launcher as root, with the capabilities it asks for",
    errno.EROFS: "mount a writable volume there, such as an emptyDir",
}


@contextmanager
def telling(what: str, path: Path, kind: type[LauncherError] = StorageFailed) -> Iterator[None]:
    """Turn an OSError of the block into ``kind``: ``cannot <what> <path>: <why>``, with the remedy where one is known."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        raise kind(f"cannot {what} {path}: {error.strerror or error}", hint=hint) from error


def make_folder(path: Path, mode: int, uid: int, gid: int) -> None:
    """The folder is there, with this mode and owner; missing parents are made, open to all. Raises HostUnfit."""
    with telling("make folder", path, HostUnfit):
        make_parents(path)
        # Made closed, so that nobody gets in before it has its owner.
        with suppress(FileExistsError):
            path.mkdir(0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            have = os.fstat(fd)
            if (have.st_uid, have.st_gid) != (uid, gid):
                os.fchown(fd, uid, gid)
            if stat.S_IMODE(have.st_mode) != mode:
                os.fchmod(fd, mode)
        finally:
            os.close(fd)


def write_file(path: Path, content: bytes, mode: int) -> None:
    """The file has this content and mode: readers see the old one or the new one whole. Raises HostUnfit.

    A file that is so already is left alone. Half-written ones of a killed run, ``.<name>.<hex>.new``, go first.
    """
    with telling("write", path, HostUnfit):
        for stale in path.parent.glob(f".{path.name}.*.new"):
            stale.unlink(missing_ok=True)
        if _is_already(path, content, mode):
            return
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                os.fchmod(fd, mode)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _is_already(path: Path, content: bytes, mode: int) -> bool:
    try:
        have = path.lstat()
        return stat.S_ISREG(have.st_mode) and stat.S_IMODE(have.st_mode) == mode and path.read_bytes() == content
    except FileNotFoundError:
        return False


def give(path: Path, uid: int, gid: int, *, write: bool) -> None:
    """``uid`` can open the file or device node: it becomes the owner unless the mode lets it in. Raises StorageFailed."""
    needed = 0o6 if write else 0o4
    with telling("give to the VMM", path):
        # O_PATH opens nothing: a device stays asleep, a link is not followed.
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            have = os.fstat(fd)
            if stat.S_ISLNK(have.st_mode):
                raise StorageFailed(f"{path} is a symbolic link", hint="put the file itself there")
            if have.st_mode & needed == needed or (have.st_uid == uid and have.st_mode >> 6 & needed == needed):
                return
            itself = Path(f"/proc/self/fd/{fd}")  # for the calls that refuse an O_PATH descriptor
            if have.st_uid != uid:
                os.chown(itself, uid, gid)
            if have.st_mode >> 6 & needed != needed:
                itself.chmod(stat.S_IMODE(have.st_mode) | needed << 6)
        finally:
            os.close(fd)
