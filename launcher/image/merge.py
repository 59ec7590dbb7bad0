"""The merge of layers into one tree, held in memory.

It follows the image specification (opencontainers/image-spec, layer.md) in the order of the layer, as umoci and containerd
do: a whiteout hides what lower layers hold, and nothing of its own layer; an entry replaces what has its name, except that
a directory keeps its children when a directory comes over it; a hard link refers to what its target is at that moment;
symlinks on the way to an entry are followed inside the tree. An absolute path is one from the tree's root: nothing else
could be meant. No tool writes a ``..`` into an entry's path: that is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.image import tar
from launcher.image.tar import show
from launcher.image.tree import Entry, Kind, components, follow, hop

if TYPE_CHECKING:
    from collections.abc import Iterable

    from launcher.image.limits import Limits
    from launcher.image.tree import Node

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
AUFS_METADATA = ".wh..wh."  # left by aufs, meant for nobody else
_KINDS = {
    tar.FILE: Kind.FILE,
    tar.DIRECTORY: Kind.DIRECTORY,
    tar.SYMLINK: Kind.SYMLINK,
    tar.CHAR: Kind.CHAR,
    tar.BLOCKDEV: Kind.BLOCK,
    tar.FIFO: Kind.FIFO,
}


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


class Merge:
    """Layers applied one upon the other, from the lowest up; ``root`` is what they make so far."""

    def __init__(self, limits: Limits) -> None:
        self.root = _implied()
        self._limits = limits
        self._entries = 0
        self._metadata = 0
        # What the layer at work has put where, with the directories above it: its whiteouts spare that.
        self._upper: dict[MergedDirectory, set[str]] = {}
        self._cleared: set[MergedDirectory] = set()  # where nothing of a lower layer is left
        self._lowest = True
        self._at = "", ""  # what is merged, and which entry of it

    def apply(self, layer: int, members: Iterable[tar.Member], what: str) -> None:
        """Put one layer on top. ``what`` names the layer in errors."""
        for member in members:
            self._at = what, member.name
            self._count(1 + len(member.segments or ()))
            xattrs = sum(len(name) + len(value) for name, value in member.xattrs.items()) if member.xattrs else 0
            self._count_metadata(len(member.name) + len(member.linkname) + xattrs)
            parts = self._parts(member.name)
            if ".wh." not in member.name:
                self._put(layer, parts, member)
            elif any(part.startswith(AUFS_METADATA) and part != OPAQUE for part in parts):
                continue
            elif parts[-1].startswith(WHITEOUT):
                self._whiteout(parts)
            else:
                self._put(layer, parts, member)
        self._upper, self._cleared = {}, set()
        self._lowest = False

    @property
    def _place(self) -> str:
        """How errors call the entry at hand."""
        what, name = self._at
        return f"{what}, entry {show(name)}"

    def _count(self, more: int) -> None:
        self._entries += more
        if self._entries > self._limits.entries:
            raise self._limits.exceeded("entries", f"{self._place}: too many entries")

    def _count_metadata(self, more: int) -> None:
        self._metadata += more
        if self._metadata > self._limits.metadata:
            raise self._limits.exceeded("metadata", f"{self._place}: too many bytes of names, links and attributes")

    def _whiteout(self, parts: list[str]) -> None:
        *above, name = parts
        parent = None if self._lowest else self._directory(above, create=False)
        if parent is None:
            return
        if name == OPAQUE:
            self._hide_all(parent)
            return
        name = name.removeprefix(WHITEOUT)
        if name not in self._upper.get(parent, ()):
            parent.children.pop(name, None)
        elif isinstance(child := parent.children[name], MergedDirectory):
            self._hide_all(child)

    def _hide_all(self, top: MergedDirectory) -> None:
        """Take what is of lower layers out of a directory, and out of those in it that this layer has been to."""
        todo = [top]
        while todo:
            directory = todo.pop()
            if directory in self._cleared:
                continue
            self._cleared.add(directory)
            ours = self._upper.get(directory, ())
            directory.children = {name: node for name, node in directory.children.items() if name in ours}
            todo += [node for node in directory.children.values() if isinstance(node, MergedDirectory)]

    def _directory(self, parts: list[str], *, create: bool) -> MergedDirectory | None:
        """The directory ``parts`` lead to, through symlinks; made on the way, and noted as ours, when ``create``."""
        stack = [self.root]
        names: list[str] = []  # of the directories above the first
        todo = parts[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del stack[max(1, len(stack) - 1) :]
                del names[len(stack) - 1 :]
                continue
            node = stack[-1].children.get(part)
            if node is None and create:
                self._count(1)
                node = stack[-1].children[part] = _implied()
            if isinstance(node, MergedDirectory):
                stack.append(node)
                names.append(part)
            elif node is not None and node.kind is Kind.SYMLINK:
                hops = hop(hops, self._place)
                self._count_metadata(len(node.target))
                follow(node, stack, todo)
                del names[len(stack) - 1 :]
            elif create:
                raise ImageInvalid(f"{self._place}: {show(part)} on its way is no directory")
            else:
                return None
        if create and not self._lowest:
            for directory, name in zip(stack, names, strict=False):
                self._upper.setdefault(directory, set()).add(name)
        return stack[-1]

    def _put(self, layer: int, parts: list[str], member: tar.Member) -> None:
        if not parts:
            if member.type != tar.DIRECTORY:
                raise ImageInvalid(f"{self._place}: the root of the image is no directory")
            self.root.meta = _entry(layer, member)
            return
        *above, name = parts
        parent = self._directory(above, create=True)
        if parent is None:
            raise AssertionError("a created directory exists")
        if member.type == tar.LINK:
            parent.children[name] = self._link_target(member)
        elif member.type == tar.DIRECTORY:
            old = parent.children.get(name)
            if isinstance(old, MergedDirectory):
                old.meta = _entry(layer, member)
            else:
                parent.children[name] = MergedDirectory(_entry(layer, member))
        else:
            parent.children[name] = _entry(layer, member)
        if not self._lowest:
            self._upper.setdefault(parent, set()).add(name)

    def _link_target(self, member: tar.Member) -> Entry:
        *above, name = self._parts(member.linkname) or [""]
        directory = self._directory(above, create=False)
        target = directory.children.get(name) if directory else None
        if not isinstance(target, Entry):
            problem = "does not exist" if target is None else "is a directory"
            raise ImageInvalid(f"{self._place}: is a hard link to {show(member.linkname)}, which {problem}")
        target.linked = True
        return target

    def _parts(self, path: str) -> list[str]:
        parts = components(path)
        if ".." in parts:
            raise ImageInvalid(f"{self._place}: its path {show(path)} leads out of the image")
        return parts


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
        segments=member.segments,
    )
