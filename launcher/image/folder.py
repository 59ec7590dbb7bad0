"""A directory on the host as an image's root, read without ever leaving it.

Every step from the root is one open of one name without following a symlink, so that neither a link nor a folder that is
swapped while we read leads anywhere else. Links are resolved by ``tree.resolve``, inside the image.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.image.tar import NO_XATTRS, show
from launcher.image.tree import Entry, Kind, components

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from launcher.image.limits import Limits
    from launcher.image.tree import Node

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
# Labels and overlay marks belong to the host's file system, not to the image.
_HOST_XATTRS = ("security.selinux", "security.ima", "security.evm", "trusted.overlay.")


class Folder:
    """The root of a directory image. Holds one descriptor until ``close``."""

    def __init__(self, path: Path, what: str, limits: Limits) -> None:
        self.what = what
        self._limits = limits
        self._entries = 0  # listed so far
        self._links: dict[tuple[int, int], Entry] = {}  # inodes with several names, by device and inode number
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageInvalid(f"{what}: cannot be opened: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._fd)

    @property
    def root(self) -> FolderDirectory:
        """The image's root. Raises ImageInvalid when it cannot be read."""
        try:
            return FolderDirectory(self, "", self._describe(self._fd, ".", ""))
        except OSError as error:
            raise self.failed("", error) from error

    def open_directory(self, path: str) -> int:
        """A new O_PATH descriptor of a directory, no symlink followed. Raises OSError."""
        fd = os.dup(self._fd)
        for name in components(path):
            try:
                below = os.open(name, _STEP, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def open_file(self, entry: Entry) -> int:
        """A new descriptor for reading a regular file. Raises ImageInvalid when it is none any more."""
        path, _, name = entry.origin.rpartition("/")
        try:
            above = self.open_directory(path)
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
            finally:
                os.close(above)
        except OSError as error:
            raise self.failed(entry.origin, error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageInvalid(f"{self.what}: {entry.origin} changed while it was read")
        return fd

    def count(self, names: list[str], directory: str) -> None:
        """Raise ImageInvalid when the names of one more directory are too many."""
        self._entries += len(names)
        if self._entries > self._limits.entries:
            raise self._limits.exceeded("entries", f"{self.what}, at {show('/' + directory)}: too many entries")

    def failed(self, path: str, error: OSError) -> ImageInvalid:
        return ImageInvalid(f"{self.what}: /{path} cannot be read: {error.strerror}")

    def node(self, above: int, directory: str, name: str) -> Node | None:
        """The child ``name`` of the directory open as ``above``; None when there is none."""
        path = f"{directory}/{name}" if directory else name
        try:
            entry = self._describe(above, name, path)
        except FileNotFoundError:
            return None
        return FolderDirectory(self, path, entry) if entry.kind is Kind.DIRECTORY else entry

    def _describe(self, above: int, name: str, path: str) -> Entry:
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
        kind = _KINDS[stat.S_IFMT(found.st_mode)]
        key = (found.st_dev, found.st_ino)
        if kind is not Kind.DIRECTORY and found.st_nlink > 1 and key in self._links:
            return self._links[key]
        entry = Entry(
            kind=kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime_ns=found.st_mtime_ns,
            size=found.st_size if kind is Kind.FILE else 0,
            target=os.readlink(name, dir_fd=above) if kind is Kind.SYMLINK else "",
            device=(os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in {Kind.CHAR, Kind.BLOCK} else (0, 0),
            xattrs=_xattrs(f"/proc/self/fd/{above}/{name}"),
            origin=path,
            linked=kind is not Kind.DIRECTORY and found.st_nlink > 1,
        )
        if entry.linked:
            self._links[key] = entry
        return entry


class FolderDirectory:
    """A directory of a ``Folder``, read from the disk each time it is asked."""

    __slots__ = ("_folder", "_path", "meta")

    def __init__(self, folder: Folder, path: str, meta: Entry) -> None:
        self._folder = folder
        self._path = path
        self.meta = meta

    def get(self, name: str) -> Node | None:
        try:
            above = self._folder.open_directory(self._path)
            try:
                return self._folder.node(above, self._path, name)
            finally:
                os.close(above)
        except OSError as error:
            raise self._folder.failed(f"{self._path}/{name}".lstrip("/"), error) from error

    def items(self) -> Iterator[tuple[str, Node]]:
        try:
            above = self._folder.open_directory(self._path)
            try:
                listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=above)
                try:
                    names = os.listdir(listed)  # noqa: PTH208  # by descriptor: a path could lead elsewhere by now
                finally:
                    os.close(listed)
                self._folder.count(names, self._path)
                for name in names:
                    node = self._folder.node(above, self._path, name)
                    if node is not None:
                        yield name, node
            finally:
                os.close(above)
        except OSError as error:
            raise self._folder.failed(self._path, error) from error


def _xattrs(path: str) -> Mapping[str, bytes]:
    """The extended attributes of a file that are the image's own; none where the file system has no such thing."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return NO_XATTRS
    if not names:
        return NO_XATTRS
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if not name.startswith(_HOST_XATTRS)}
