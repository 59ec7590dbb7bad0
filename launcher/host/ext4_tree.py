"""What a file tree takes up on ext4, and what mke2fs leaves out of it. Pure arithmetic.

Layout: Documentation/filesystems/ext4 (dynamic.rst: directory entries, extent tree, extended attributes). mke2fs keeps
of a tar owners, modes, whole seconds, links, devices and ``security.capability`` (e2fsprogs, misc/create_inode_libarchive.c).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.image.tar import raw
from launcher.image.tree import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.image.stream import FlatTree
    from launcher.image.tree import Entry

BLOCK = 4096
INODE = 256
CAPABILITY = "security.capability"
KEPT = frozenset({CAPABILITY})
_RESERVED_INODES = 11  # ten, and lost+found
_XATTR_IN_INODE = 80  # bytes an inode of 256 has for them, less the headers
_XATTR_LIMIT = 4000  # bytes that fit into inode and one block, with some margin
_XATTR_NAME = re.compile(r"(?:user|trusted|security)\.[!#-~]{1,200}|system\.posix_acl_(?:access|default)")
_TEXT_ACL = {"SCHILY.acl.access": "system.posix_acl_access", "SCHILY.acl.default": "system.posix_acl_default"}
_ACL_TAGS = {
    ("user", False): 1,
    ("user", True): 2,
    ("group", False): 4,
    ("group", True): 8,
    ("mask", False): 16,
    ("other", False): 32,
}


@dataclass(frozen=True, slots=True)
class Extra:
    """What is to be restored on one inode: extended attributes, and on-disk fields by debugfs's names."""

    path: str  # relative to the root, which is "."
    xattrs: Mapping[str, bytes]
    fields: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """``blocks`` of 4096 bytes and ``inodes`` the tree takes; what to restore; how many of each kind are lost; the
    directory with most names, and how many.
    """

    blocks: int
    inodes: int
    extras: tuple[Extra, ...]
    lost: Mapping[str, int]
    fullest: tuple[str, int] = (".", 0)


def plan_tree(flat: FlatTree) -> Plan:
    """Measure a tree and sort out what mke2fs would drop."""
    directories = _directories(flat)
    blocks = sum(directory.blocks_with_tree for directory in directories.values())
    fullest = max(directories, key=lambda path: directories[path].names)
    inodes = _RESERVED_INODES
    extras = []
    lost = {"extended attributes": 0, "sub-second times": 0, "sockets": flat.sockets}
    for path, entry in flat.inodes():
        inodes += 1
        if entry.kind is Kind.FILE:
            blocks += _file_blocks(entry)
        elif entry.kind is Kind.SYMLINK and len(raw(entry.target)) >= 60:
            blocks += 1
        times = time_fields(entry.mtime_ns)
        xattrs, dropped = _xattrs(entry) if entry.xattrs else ({}, 0)
        lost["extended attributes"] += dropped
        if sum(_xattr_size(name, value) for name, value in xattrs.items()) > _XATTR_IN_INODE:
            blocks += 1
        others = {name: value for name, value in xattrs.items() if name not in KEPT}
        if not others and not times:
            continue
        if not _scriptable(path):
            lost["extended attributes"] += len(others)
            lost["sub-second times"] += bool(times)
            continue
        extras.append(Extra(path, others, times))
    lost = {kind: count for kind, count in lost.items() if count}
    return Plan(blocks, inodes, tuple(extras), lost, (fullest, directories[fullest].names))


def _file_blocks(entry: Entry) -> int:
    """Blocks of a file's data, holes left out as mke2fs does, and of its extent tree."""
    if entry.segments is None:
        return _with_extents(-(-entry.size // BLOCK), 0)
    blocks = end = runs = 0
    for offset, length in entry.segments:
        first, last = max(offset // BLOCK, end), -(-(offset + length) // BLOCK)
        runs += first > end
        blocks += last - first
        end = last
    return _with_extents(blocks, runs)


def _with_extents(blocks: int, runs: int) -> int:
    """Blocks of data and of the extent tree: an extent has at most 32768 blocks, four fit into the inode, 340 a block."""
    extents = -(-blocks // 32768) * 2 + runs  # group metadata lies in between
    return blocks + (-(-extents // 340) if extents > 4 else 0)


@dataclass(slots=True)
class _Directory:
    """A linear directory that grows: an entry has eight bytes and its name, and does not cross a block's end."""

    blocks: int = 1
    room: int = BLOCK - 12 - 24  # checksum; "." and ".."
    names: int = 0

    def add(self, name: str) -> None:
        size = -(-(8 + len(raw(name))) // 4) * 4
        if size > self.room:
            self.blocks, self.room = self.blocks + 1, BLOCK - 12
        self.room -= size
        self.names += 1

    @property
    def blocks_with_tree(self) -> int:
        return self.blocks + (-(-self.blocks // 340) if self.blocks > 4 else 0)


def _directories(flat: FlatTree) -> dict[str, _Directory]:
    directories = {path: _Directory() for path, _ in flat.directories}
    for names in (flat.directories[1:], flat.others, flat.files, flat.links):
        for path, *_ in names:
            above, _, name = path.rpartition("/")
            directories[above or "."].add(name)
    return directories


def time_fields(nanoseconds: int) -> tuple[tuple[str, int], ...]:
    """The fields of an mtime that mke2fs gets wrong: it writes 32 bits of seconds; 34, and 30 of nanoseconds, there are."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    seconds = min(max(seconds, -(1 << 31)), (1 << 34) - (1 << 31) - 1)
    low = seconds & 0xFFFFFFFF
    epoch = (seconds - (low - (1 << 32) if low >> 31 else low)) >> 32
    extra = (("mtime_extra", fraction << 2 | epoch),) if fraction or epoch else ()
    return (("mtime", low), *extra) if epoch else extra


def _xattr_size(name: str, value: bytes) -> int:
    return 16 + -(-len(name.partition(".")[2]) // 4) * 4 + -(-len(value) // 4) * 4


def _xattrs(entry: Entry) -> tuple[dict[str, bytes], int]:
    """The attributes ext4 can hold, smallest first, and how many it cannot."""
    wanted: dict[str, bytes] = {}
    lost = 0
    for name, value in entry.xattrs.items():
        if name in _TEXT_ACL:
            if _TEXT_ACL[name] in entry.xattrs:
                continue
            acl = acl_from_text(value)
            if acl is None:
                lost += 1
            elif acl:
                wanted[_TEXT_ACL[name]] = acl
        elif _XATTR_NAME.fullmatch(name):
            wanted[name] = value
        else:
            lost += 1
    kept: dict[str, bytes] = {}
    used = 0
    for name, value in sorted(wanted.items(), key=lambda pair: (pair[0] not in KEPT, len(pair[1]), pair[0])):
        used += _xattr_size(name, value)
        if used > _XATTR_LIMIT:
            lost += 1
        else:
            kept[name] = value
    return kept, lost


def acl_from_text(value: bytes) -> bytes | None:
    """A POSIX ACL as the kernel's xattr has it (linux/posix_acl_xattr.h), from the text star and GNU tar write.

    Empty when it says no more than the mode; None when it names users or groups without numbers.
    """
    entries = []
    for item in value.decode("utf-8", "replace").replace("\n", ",").split(","):
        text = item.partition("#")[0].strip()
        if not text:
            continue
        tag, _, rest = text.partition(":")
        qualifier, _, rest = rest.partition(":")
        permissions, _, number = rest.partition(":")
        kind = _ACL_TAGS.get((tag, bool(qualifier)))
        identity = number or qualifier  # star adds the number behind the name
        if (
            kind is None
            or not re.fullmatch(r"[r-][w-][x-]", permissions[:3])
            or (identity and not identity.isdecimal())
        ):
            return None
        bits = sum(bit for bit, letter in zip((4, 2, 1), permissions, strict=False) if letter != "-")
        entries.append((kind, int(identity) if identity else 0xFFFFFFFF, bits))
    if len(entries) <= 3:
        return b""
    packed = (struct.pack("<HHI", kind, bits, identity) for kind, identity, bits in sorted(entries))
    return struct.pack("<I", 2) + b"".join(packed)


def _scriptable(path: str) -> bool:
    """Whether debugfs can be given the path in a script: it reads lines of at most 8 KiB."""
    return "\n" not in path and "\r" not in path and len(raw(path)) < 3000
