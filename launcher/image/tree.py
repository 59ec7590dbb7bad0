"""A file tree as values, and the resolution of paths inside it.

Nothing leaves the tree: an absolute link starts at its root and ``..`` stops there. ``merge`` makes one of layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from launcher.errors import ImageInvalid
from launcher.image.tar import NO_XATTRS, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from launcher.image.tar import Segments

MAX_LINKS = 40  # symlinks followed for one path, as Linux does (path_resolution(7))


class Kind(Enum):
    """What a name stands for; the value is how a sentence calls it."""

    FILE = "a file"
    DIRECTORY = "a directory"
    SYMLINK = "a symlink"
    CHAR = "a character device"
    BLOCK = "a block device"
    FIFO = "a fifo"
    SOCKET = "a socket"


@dataclass(slots=True, eq=False)
class Entry:
    """An inode: two names that hold the same object are hard links, and then ``linked`` is set.

    ``layer`` and ``offset`` tell where the data starts in which decompressed layer; a sparse file has ``segments`` there,
    one after the other. ``origin`` is the path in a directory image. There may be a million of them: no field for comfort.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: NO_XATTRS)
    layer: int = 0
    offset: int = 0
    segments: Segments | None = None
    origin: str = ""
    linked: bool = False


class Directory(Protocol):
    """A directory of a tree; its children may be loaded when they are asked for."""

    meta: Entry

    def get(self, name: str) -> Node | None: ...

    def items(self) -> Iterable[tuple[str, Node]]: ...


Node: TypeAlias = "Entry | Directory"


def components(path: str) -> list[str]:
    """The steps of a path, without the empty ones and the dots."""
    return [part for part in path.split("/") if part not in {"", "."}]


def follow(link: Entry, stack: list[Any], todo: list[str]) -> None:
    """Take a symlink's target as the next components of the walk."""
    if link.target.startswith("/"):
        del stack[1:]
    todo.extend(reversed(components(link.target)))


def hop(hops: int, place: str) -> int:
    """Count one followed symlink; raises ImageInvalid when there were too many."""
    if hops == MAX_LINKS:
        raise ImageInvalid(f"{place} runs in a loop of symlinks")
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
                hops = hop(hops, f"{what}: {show(path)}")
                follow(node, stack, todo)
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


def walk(root: Directory) -> Iterator[tuple[str, Node]]:
    """Every name below ``root`` as ``(path, node)``, a directory before its children, siblings in order of their names."""
    todo = [("", iter(sorted(root.items(), key=_name)))]
    while todo:
        prefix, children = todo[-1]
        for name, node in children:
            path = prefix + name
            yield path, node
            if not isinstance(node, Entry):
                todo.append((f"{path}/", iter(sorted(node.items(), key=_name))))
                break
        else:
            todo.pop()


def _name(pair: tuple[str, Node]) -> str:
    return pair[0]
