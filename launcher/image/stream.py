"""A merged tree as one canonical tar stream: what mke2fs reads.

Every directory comes before what it holds, a file before its hard links, nothing twice; data is copied from the layers
chunk by chunk, in the order it lies there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.image import limits, tar
from launcher.image.tar import show
from launcher.image.tree import Entry, Kind, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launcher.image.limits import Limits
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
    files: tuple[tuple[str, Entry], ...]  # in the order their data lies in the image
    others: tuple[tuple[str, Entry], ...]  # symlinks, devices, fifos
    links: tuple[tuple[str, str, Entry], ...]  # path, the inode's first path, the inode
    sockets: int  # left out: a socket means nothing without the process that listens

    def inodes(self) -> Iterator[tuple[str, Entry]]:
        """Every inode once, with its first path."""
        yield from self.directories
        yield from self.files
        yield from self.others


def flatten(root: Directory, what: str, limits: Limits = limits.DEFAULT) -> FlatTree:
    """Sort a tree's names by what the stream does with them. Raises ImageInvalid when it holds nothing, or too much."""
    directories, files, others, links = [(".", root.meta)], [], [], []
    first: dict[Entry, str] = {}  # of the inodes with several names
    sockets = size = names = 0
    for path, node in walk(root):
        names += len(path)
        if names > 2 * limits.metadata:  # a directory's name counts for all below it
            raise limits.exceeded("metadata", f"{what}, {show(path)}: too many bytes of names")
        if not isinstance(node, Entry):
            directories.append((path, node.meta))
        elif node.kind is Kind.SOCKET:
            sockets += 1
        elif node in first:
            links.append((path, first[node], node))
        else:
            if node.linked:
                first[node] = path
            if node.kind is not Kind.FILE:
                others.append((path, node))
                continue
            files.append((path, node))
            size += node.size
            if size > limits.bytes:
                raise limits.exceeded(
                    "bytes", f"{what}, entry {show(path)}: too large together with the rest, in bytes"
                )
    if not (len(directories) > 1 or files or others):
        raise ImageInvalid(f"{what}: is empty", hint="it should hold the guest's root file system")
    files.sort(key=lambda file: (file[1].layer, file[1].offset))
    return FlatTree(tuple(directories), tuple(files), tuple(others), tuple(links), sockets)


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
        xattrs={name: value for name, value in entry.xattrs.items() if name in xattrs}
        if entry.xattrs
        else tar.NO_XATTRS,
    )


def tar_stream(
    image: Image, flat: FlatTree, xattrs: frozenset[str], on_advance: Callable[[int, int], None] = lambda _, __: None
) -> Iterator[bytes | memoryview]:
    """The whole stream in chunks; of the extended attributes, those named in ``xattrs``.

    ``on_advance`` hears of the files' data that has gone out, in bytes, and of how many more entries.
    """
    on_advance(0, len(flat.directories) + len(flat.others))
    for path, entry in (*flat.directories, *flat.others):
        yield tar.encode_header(_member(path, entry, xattrs))
    for (path, _), (entry, chunks) in zip(flat.files, image.contents(entry for _, entry in flat.files), strict=True):
        yield tar.encode_header(_member(path, entry, xattrs))
        on_advance(0, 1)
        for chunk in chunks:
            yield chunk
            on_advance(len(chunk), 0)
        yield tar.padding(entry.size)
    for path, target, entry in flat.links:
        # With the inode's metadata: mke2fs writes what the last header of an inode says.
        yield tar.encode_header(replace(_member(path, entry, xattrs), type=tar.LINK, size=0, linkname=target))
    yield tar.END
