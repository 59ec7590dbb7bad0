"""A merged tree as one canonical tar stream: what mke2fs reads.

Every directory comes before what it holds, a file before its hard links, nothing twice; data is copied from the layers
chunk by chunk, in the order it lies there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.image import tar
from launcher.image.tree import Entry, Kind, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from launcher.image.source import Image
    from launcher.image.tree import Directory

_TYPES = {
    Kind.FILE: tar.FILE,
    Kind.DIRECTORY: tar.DIRECTORY,
    Kind.SYMLINK: tar.SYMLINK,
    Kind.CHAR: tar.CHAR,
    Kind.BLOCK: tar.BLOCKDEV,
    Kind.FIFO: tar.FIFO,
}


@dataclass(frozen=True, slots=True)
class FlatTree:
    """A tree as lists. Paths are relative to its root, which is ``.``; every inode is listed once, with its first path."""

    directories: tuple[tuple[str, Entry], ...]  # the root first
    files: Mapping[Entry, str]
    others: tuple[tuple[str, Entry], ...]  # symlinks, devices, fifos
    links: tuple[tuple[str, str, Entry], ...]  # path, the inode's first path, the inode
    sockets: int  # left out: a socket means nothing without the process that listens

    def inodes(self) -> Iterator[tuple[str, Entry]]:
        """Every inode once, with its first path."""
        yield from self.directories
        yield from ((path, entry) for entry, path in self.files.items())
        yield from self.others


def flatten(root: Directory, what: str) -> FlatTree:
    """Sort a tree's names by what the stream does with them. Raises ImageInvalid when it holds nothing."""
    directories, others, links = [(".", root.meta)], [], []
    first: dict[Entry, str] = {}
    files: dict[Entry, str] = {}
    sockets = 0
    for path, node in walk(root):
        if not isinstance(node, Entry):
            directories.append((path, node.meta))
        elif node.kind is Kind.SOCKET:
            sockets += 1
        elif node in first:
            links.append((path, first[node], node))
        else:
            first[node] = path
            if node.kind is Kind.FILE:
                files[node] = path
            else:
                others.append((path, node))
    if len(directories) == 1 and not first:
        raise ImageInvalid(f"{what}: is empty", hint="it should hold the guest's root file system")
    return FlatTree(tuple(directories), files, tuple(others), tuple(links), sockets)


def _member(path: str, entry: Entry, xattrs: frozenset[str]) -> tar.Member:
    return tar.Member(
        name=f"{path}/" if entry.kind is Kind.DIRECTORY else path,
        type=_TYPES[entry.kind],
        mode=0o777 if entry.kind is Kind.SYMLINK else entry.mode,  # as Linux has it; archives differ
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        size=entry.size,
        linkname=entry.target,
        device=entry.device,
        xattrs={name: value for name, value in entry.xattrs.items() if name in xattrs} if entry.xattrs else {},
    )


def tar_stream(image: Image, flat: FlatTree, xattrs: frozenset[str]) -> Iterator[bytes | memoryview]:
    """The whole stream in chunks; of the extended attributes, those named in ``xattrs``."""
    for path, entry in (*flat.directories, *flat.others):
        yield tar.encode_header(_member(path, entry, xattrs))
    for entry, chunks in image.contents(flat.files):
        yield tar.encode_header(_member(flat.files[entry], entry, xattrs))
        yield from chunks
        yield tar.padding(entry.size)
    for path, target, entry in flat.links:
        # With the inode's metadata: mke2fs writes what the last header of an inode says.
        yield tar.encode_header(replace(_member(path, entry, xattrs), type=tar.LINK, size=0, linkname=target))
    yield tar.END
