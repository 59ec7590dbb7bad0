"""A file tree as values, the resolution of paths inside it, and the merge of layers into it.

The merge follows the image specification (opencontainers/image-spec, layer.md): whiteouts hide what lower layers hold,
whatever their place in the layer; an entry replaces what has its name, except that a directory keeps its children when
a directory comes over it; a hard link refers to what its target is at that moment. Nothing leaves the tree: an absolute
link starts at its root and ``..`` stops there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeAlias

from launcher.errors import ImageInvalid
from launcher.image import tar
from launcher.image.tar import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_LINKS = 40  # symlinks followed for one path, as Linux does (path_resolution(7))
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
AUFS_METADATA = ".wh..wh."  # left by aufs, meant for nobody else


class Kind(Enum):
    """What a name stands for; the value is how a sentence calls it."""

    FILE = "a file"
    DIRECTORY = "a directory"
    SYMLINK = "a symlink"
    CHAR = "a character device"
    BLOCK = "a block device"
    FIFO = "a fifo"
    SOCKET = "a socket"


_KINDS = {
    tar.FILE: Kind.FILE,
    tar.DIRECTORY: Kind.DIRECTORY,
    tar.SYMLINK: Kind.SYMLINK,
    tar.CHAR: Kind.CHAR,
    tar.BLOCKDEV: Kind.BLOCK,
    tar.FIFO: Kind.FIFO,
}


@dataclass(slots=True, eq=False)
class Entry:
    """An inode: two names that hold the same object are hard links. ``layer`` and ``offset`` tell where the data starts
    in which decompressed layer; ``origin`` is the name it had there, or its path in a directory image.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    layer: int = 0
    offset: int = 0
    origin: str = ""


class Directory(Protocol):
    """A directory of a tree; its children may be loaded when they are asked for."""

    meta: Entry

    def get(self, name: str) -> Node | None: ...

    def items(self) -> Iterable[tuple[str, Node]]: ...


Node: TypeAlias = "Entry | Directory"


class MergedDirectory:
    """A directory held in memory."""

    __slots__ = ("children", "meta")

    def __init__(self, meta: Entry) -> None:
        self.meta = meta
        self.children: dict[str, Entry | MergedDirectory] = {}

    def get(self, name: str) -> Node | None:
        return self.children.get(name)

    def items(self) -> Iterable[tuple[str, Node]]:
        return self.children.items()


def _implied() -> MergedDirectory:
    """A directory no layer describes but an entry below it needs."""
    return MergedDirectory(Entry(Kind.DIRECTORY, 0o755, 0, 0, 0))


def components(path: str) -> list[str]:
    """The steps of a path, without the empty ones and the dots."""
    return [part for part in path.split("/") if part not in {"", "."}]


def _follow(link: Entry, stack: list[MergedDirectory] | list[Directory], todo: list[str]) -> None:
    """Take a symlink's target as the next components of the walk."""
    if link.target.startswith("/"):
        del stack[1:]
    todo.extend(reversed(components(link.target)))


def _hop(hops: int, what: str, path: str) -> int:
    """Count one followed symlink; raises ImageInvalid when there were too many."""
    if hops == MAX_LINKS:
        raise ImageInvalid(f"{what}: {show(path)} runs in a loop of symlinks")
    return hops + 1


def resolve(root: Directory, path: str, what: str) -> Node | None:
    """What ``path`` names, every symlink followed inside the tree; None when it is not there.

    Raises ImageInvalid for a loop, and for a symlink that points to nothing.
    """
    stack: list[Directory] = [root]
    todo = components(path)[::-1]
    hops = 0
    while todo:
        name = todo.pop()
        if name == "..":
            del stack[max(1, len(stack) - 1) :]
            continue
        node = stack[-1].get(name)
        if isinstance(node, Entry):
            if node.kind is Kind.SYMLINK:
                link = node.target
                hops = _hop(hops, what, path)
                _follow(node, stack, todo)
                continue
            if not todo:
                return node
            node = None
        if node is None:
            if hops:
                raise ImageInvalid(f"{what}: {show(path)} is a symlink to {show(link)}, which the image does not have")
            return None
        stack.append(node)
    return stack[-1]


class Merge:
    """Layers applied one upon the other, from the lowest up."""

    def __init__(self) -> None:
        self.root = _implied()

    def apply(self, layer: int, members: Iterable[tar.Member], what: str) -> None:
        """Put one layer on top. ``what`` names the layer in errors."""
        entries = []
        for member in members:
            parts = self._parts(member.name, member.name, what)
            if parts and parts[-1].startswith(WHITEOUT):
                self._whiteout(parts, what)
            else:
                entries.append((parts, member))
        for parts, member in entries:
            self._put(layer, parts, member, what)

    @staticmethod
    def _parts(path: str, name: str, what: str) -> list[str]:
        parts = components(path)
        if path.startswith("/") or ".." in parts:
            raise ImageInvalid(f"{what}, entry {show(name)}: its path {show(path)} leads out of the image")
        long = next((part for part in parts if len(tar.raw(part)) > 255), None)
        if long:
            raise ImageInvalid(f"{what}, entry {show(name)}: a file name has more than 255 bytes")
        return parts

    def _whiteout(self, parts: list[str], what: str) -> None:
        *above, name = parts
        parent = self._directory(above, what, "/".join(parts), create=False)
        if parent is None:
            return
        if name == OPAQUE:
            parent.children.clear()
        elif not name.startswith(AUFS_METADATA):
            parent.children.pop(name.removeprefix(WHITEOUT), None)

    def _directory(self, parts: list[str], what: str, name: str, *, create: bool) -> MergedDirectory | None:
        """The directory ``parts`` lead to, through symlinks; made on the way when ``create``."""
        stack = [self.root]
        todo = parts[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del stack[max(1, len(stack) - 1) :]
                continue
            node = stack[-1].children.get(part)
            if node is None and create:
                node = stack[-1].children[part] = _implied()
            if isinstance(node, MergedDirectory):
                stack.append(node)
            elif node is not None and node.kind is Kind.SYMLINK:
                hops = _hop(hops, what, name)
                _follow(node, stack, todo)
            elif create:
                raise ImageInvalid(f"{what}, entry {show(name)}: {show(part)} on its way is no directory")
            else:
                return None
        return stack[-1]

    def _put(self, layer: int, parts: list[str], member: tar.Member, what: str) -> None:
        if not parts:
            if member.type != tar.DIRECTORY:
                raise ImageInvalid(f"{what}, entry {show(member.name)}: the root of the image is no directory")
            self.root.meta = _entry(layer, member)
            return
        *above, name = parts
        parent = self._directory(above, what, member.name, create=True)
        if parent is None:
            raise AssertionError("a created directory exists")
        if member.type == tar.LINK:
            parent.children[name] = self._link_target(member, what)
        elif member.type == tar.DIRECTORY:
            old = parent.children.get(name)
            if isinstance(old, MergedDirectory):
                old.meta = _entry(layer, member)
            else:
                parent.children[name] = MergedDirectory(_entry(layer, member))
        else:
            parent.children[name] = _entry(layer, member)

    def _link_target(self, member: tar.Member, what: str) -> Entry:
        *above, name = self._parts(member.linkname, member.name, what) or [""]
        directory = self._directory(above, what, member.name, create=False)
        target = directory.children.get(name) if directory else None
        if not isinstance(target, Entry):
            problem = "does not exist" if target is None else "is a directory"
            raise ImageInvalid(
                f"{what}, entry {show(member.name)}: is a hard link to {show(member.linkname)}, which {problem}"
            )
        return target


def _entry(layer: int, member: tar.Member) -> Entry:
    return Entry(
        kind=_KINDS[member.type],
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        mtime_ns=member.mtime_ns,
        size=member.size,
        target=member.linkname,
        device=member.device,
        xattrs=member.xattrs,
        layer=layer,
        offset=member.offset,
        origin=member.name,
    )


def walk(root: Directory) -> Iterator[tuple[str, Node]]:
    """Every name below ``root`` as ``(path, node)``, a directory before its children, siblings in order of their names."""
    todo: list[tuple[str, Node]] = [("", root)]
    while todo:
        path, node = todo.pop()
        if path:
            yield path, node
        if not isinstance(node, Entry):
            prefix = f"{path}/" if path else ""
            todo.extend(
                sorted(((prefix + name, child) for name, child in node.items()), reverse=True, key=lambda pair: pair[0])
            )
