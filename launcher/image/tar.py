"""The tar format as far as image layers use it: its values, and writing headers.

``tar_read`` reads it. Written by hand because tarfile keeps whole pax headers of any size, decodes names through the
locale and is five times slower on a layer of many files. Names are text with undecodable bytes as surrogates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where a sparse file has data, as (offset in the file, length), ascending and apart; all else is zeros.
Segments: TypeAlias = "tuple[tuple[int, int], ...]"

BLOCK = 512
END = bytes(2 * BLOCK)
XATTR = "SCHILY.xattr."  # pax key of an extended attribute (star; Linux tars)
NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})

FILE, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


@dataclass(slots=True, eq=False)
class Member:
    """One entry. ``type`` is one of the constants above; ``size`` is the file's, ``offset`` where its data starts in the
    stream: all of it, or, when ``segments`` is not None, that of the segments, one after the other.
    """

    name: str
    type: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    linkname: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: NO_XATTRS)
    offset: int = 0
    segments: Segments | None = None


def text(raw: bytes) -> str:
    """A name as text; bytes that are no UTF-8 survive as surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def raw(name: str) -> bytes:
    """The bytes of a name; the reverse of ``text``."""
    return name.encode("utf-8", "surrogateescape")


def show(name: str) -> str:
    """A name as an error may print it: quoted, control characters and stray bytes escaped, the middle of a long one left out."""
    return repr(name if len(name) <= 300 else f"{name[:150]}…{name[-150:]}")


def _field(value: int, width: int) -> bytes:
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    encoded = bytearray(value.to_bytes(width, "big", signed=True))
    encoded[0] |= 0x80
    return bytes(encoded)


def _header(name: bytes, type_: bytes, size: int, member: Member | None = None, link: bytes = b"") -> bytes:
    mode, uid, gid, seconds, device = (
        (member.mode, member.uid, member.gid, member.mtime_ns // 10**9, member.device)
        if member
        else (0o644, 0, 0, 0, (0, 0))
    )
    head = b"".join(
        (
            name[:100].ljust(100, b"\0"),
            _field(mode, 8),
            _field(uid, 8),
            _field(gid, 8),
            _field(size, 12),
            _field(seconds, 12),
            b" " * 8,
            type_,
            link[:100].ljust(100, b"\0"),
            b"ustar  \0",
            bytes(64),
            _field(device[0], 8),
            _field(device[1], 8),
        )
    ).ljust(BLOCK, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _extended(type_: bytes, body: bytes) -> bytes:
    return (
        _header(b"././@LongLink" if type_ != b"x" else b"././@PaxHeader", type_, len(body)) + body + padding(len(body))
    )


def _pax_record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def encode_header(member: Member) -> bytes:
    """The header blocks of an entry; its ``size`` bytes of data and ``padding(size)`` follow.

    Names go as GNU long names, not as pax paths: those must be UTF-8, file names need not.
    """
    name, link = raw(member.name), raw(member.linkname)
    out = b""
    if member.xattrs:
        records = (_pax_record(raw(XATTR + key), value) for key, value in sorted(member.xattrs.items()))
        out += _extended(b"x", b"".join(records))
    if len(link) > 100:
        out += _extended(b"K", link + b"\0")
    if len(name) > 100:
        out += _extended(b"L", name + b"\0")
    return out + _header(name, member.type, member.size, member, link)


def padding(size: int) -> bytes:
    """The zero bytes that follow ``size`` bytes of data."""
    return bytes(-size % BLOCK)
