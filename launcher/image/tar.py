"""The tar format as far as image layers use it: reading members from a stream, writing headers.

Reads ustar, GNU long names and base-256 numbers, and pax headers (POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format").
Written by hand because tarfile keeps whole pax headers of any size, decodes names through the locale and is five times
slower on a layer of many files. Names are text with undecodable bytes as surrogates.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from launcher.image.inflate import LayerStream

BLOCK = 512
END = bytes(2 * BLOCK)
_EXTENSION_LIMIT = (
    1 << 20
)  # bytes of one long name or pax header; the kernel bounds an xattr by 64 KiB and a path by 4 KiB
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=]+)=")
_PAX_TIME = re.compile(r"(-?)(\d{1,15})(?:\.(\d*))?")
_NUMBER = re.compile(rb"[0-7]*")
_XATTR = "SCHILY.xattr."
_XATTR_BASE64 = "LIBARCHIVE.xattr."

FILE, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_REGULAR = (FILE, b"\0", b"7")  # POSIX; V7; contiguous files, which are treated as regular ones
_KNOWN = (FILE, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO)


@dataclass(slots=True, eq=False)
class Member:
    """One entry. ``type`` is one of the constants above; ``offset`` is where its data starts in the stream."""

    name: str
    type: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    linkname: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    offset: int = 0


def text(raw: bytes) -> str:
    """A name as text; bytes that are no UTF-8 survive as surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def raw(name: str) -> bytes:
    """The bytes of a name; the reverse of ``text``."""
    return name.encode("utf-8", "surrogateescape")


def show(name: str) -> str:
    """A name as an error may print it: quoted, control characters and stray bytes escaped."""
    return repr(name)


def read_members(stream: LayerStream, *, need_end: bool = False) -> Iterator[Member]:
    """Every entry of a tar stream, in order; the reader may leave an entry's data unread or read part of it.

    ``need_end`` demands the closing zero block, for a stream whose completeness no digest vouches for.
    Raises ImageInvalid for anything that is not a well-formed tar.
    """
    extras: dict[str, bytes] = {}
    pax_global: dict[str, bytes] = {}
    after = ""
    while True:
        start = stream.position
        header = stream.read(BLOCK)
        if not header.rstrip(b"\0"):
            if len(header) != BLOCK and (header or need_end or extras):
                raise _bad(stream, after, "the tar is cut off")
            if start == 0 and not header:
                raise ImageInvalid(f"{stream.what}: is empty, not a tar")
            stream.drain()
            return
        if len(header) != BLOCK:
            raise _bad(stream, after, "the tar is cut off")
        _check_sum(stream, header, start, after)
        type_ = header[156:157]
        size = _number(stream, header[124:136], "size", after)
        if type_ in {b"L", b"K", b"x", b"g"}:
            body = _extension(stream, size, after)
            if type_ == b"x":
                extras.update(_pax(stream, body, after))
            elif type_ == b"g":
                pax_global.update(_pax(stream, body, after))
            else:
                extras["path" if type_ == b"L" else "linkpath"] = body.rstrip(b"\0")
            continue
        member = _member(stream, header, size, {**pax_global, **extras}, after)
        extras = {}
        after = member.name
        yield member
        if member.type == FILE:
            if not stream.skip(member.offset + member.size - stream.position):
                raise ImageInvalid(f"{stream.what}, entry {show(member.name)}: the data is cut off")
            # umoci's insert leaves out the last entry's padding and the end of the archive, and every Go tool reads
            # that: as much a missing end as a missing zero block.
            stream.skip(-member.size % BLOCK)


def _bad(stream: LayerStream, after: str, message: str) -> ImageInvalid:
    place = f" after entry {show(after)}" if after else ""
    return ImageInvalid(f"{stream.what}: {message}{place}")


def _check_sum(stream: LayerStream, header: bytes, start: int, after: str) -> None:
    total = sum(header) - sum(header[148:156]) + 8 * 0x20
    digits = header[148:156].strip(b" \0")
    if not digits or not _NUMBER.fullmatch(digits) or int(digits, 8) != total:
        raise _bad(stream, after, "is not a tar" if start == 0 else "a tar header is damaged")


def _number(stream: LayerStream, raw_number: bytes, what: str, after: str) -> int:
    """Octal, or base 256 when the top bit is set (GNU)."""
    if raw_number[0] & 0x80:
        value = (
            int.from_bytes(raw_number, "big", signed=True)
            if raw_number[0] == 0xFF
            else (int.from_bytes(raw_number, "big") & ~(0x80 << 8 * (len(raw_number) - 1)))
        )
    else:
        digits = raw_number.split(b"\0", 1)[0].strip()
        if not _NUMBER.fullmatch(digits):
            raise _bad(stream, after, f"a tar header has no number as its {what}")
        value = int(digits or b"0", 8)
    if what != "time" and not 0 <= value < 1 << 63:
        raise _bad(stream, after, f"a tar header has an impossible {what}")
    return value


def _extension(stream: LayerStream, size: int, after: str) -> bytes:
    if size > _EXTENSION_LIMIT:
        raise _bad(stream, after, f"an extended tar header has {size} bytes")
    body = stream.read(-(-size // BLOCK) * BLOCK)
    if len(body) < size:
        raise _bad(stream, after, "the tar is cut off")
    return body[:size]


def _pax(stream: LayerStream, body: bytes, after: str) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    position = 0
    while position < len(body):
        found = _PAX_RECORD.match(body, position)
        end = position + int(found[1]) if found else 0
        if not found or not found.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise _bad(stream, after, "a pax header is damaged")
        records[text(found[2])] = body[found.end() : end - 1]
        position = end
    return records


def _pax_time(stream: LayerStream, value: bytes, after: str) -> int:
    found = _PAX_TIME.fullmatch(text(value))
    if not found:
        raise _bad(stream, after, "a pax header has no number as its mtime")
    nanoseconds = int(found[2]) * 10**9 + int(((found[3] or "") + "0" * 9)[:9])
    return -nanoseconds if found[1] else nanoseconds


def _pax_int(stream: LayerStream, value: bytes, what: str, after: str) -> int:
    if not value.isdigit() or len(value) > 18:
        raise _bad(stream, after, f"a pax header has no number as its {what}")
    return int(value)


def _xattrs(stream: LayerStream, extras: Mapping[str, bytes], after: str) -> dict[str, bytes]:
    """Extended attributes by name; an ACL as text (star, GNU tar) keeps its pax key, for the disk to translate."""
    found: dict[str, bytes] = {}
    for key, value in extras.items():
        if key.startswith(_XATTR):
            found[key.removeprefix(_XATTR)] = value
        elif key.startswith(_XATTR_BASE64):
            try:
                found.setdefault(key.removeprefix(_XATTR_BASE64), base64.b64decode(value + b"==="))
            except binascii.Error as error:
                raise _bad(stream, after, "a pax header holds a damaged extended attribute") from error
        elif key.startswith("SCHILY.acl."):
            found[key] = value
    return found


def _member(stream: LayerStream, header: bytes, size: int, extras: Mapping[str, bytes], after: str) -> Member:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    name = extras.get("path", name)
    if not name:
        raise _bad(stream, after, "a tar entry has no name")
    type_ = header[156:157]
    if type_ in _REGULAR:
        type_ = DIRECTORY if name.endswith(b"/") else FILE
    if type_ == b"S" or any(key.startswith("GNU.sparse.") for key in extras):
        raise ImageInvalid(
            f"{stream.what}, entry {show(text(name))}: is stored as a GNU sparse file, which image layers do not have",
            hint="make the layer without tar's --sparse",
        )
    if type_ not in _KNOWN:
        raise ImageInvalid(f"{stream.what}, entry {show(text(name))}: has the unknown tar type {type_!r}")
    if b"\0" in name or b"\0" in extras.get("linkpath", b""):
        raise _bad(stream, after, "a name in a tar header holds a NUL byte")
    if "size" in extras:
        size = _pax_int(stream, extras["size"], "size", after)
    member = Member(
        name=text(name),
        type=type_,
        mode=_number(stream, header[100:108], "mode", after) & 0o7777,
        uid=_pax_int(stream, extras["uid"], "uid", after)
        if "uid" in extras
        else _number(stream, header[108:116], "uid", after),
        gid=_pax_int(stream, extras["gid"], "gid", after)
        if "gid" in extras
        else _number(stream, header[116:124], "gid", after),
        mtime_ns=_pax_time(stream, extras["mtime"], after)
        if "mtime" in extras
        else _number(stream, header[136:148], "time", after) * 10**9,
        size=size if type_ == FILE else 0,  # other types carry no data, whatever the field says (as Go's reader has it)
        offset=stream.position,
        xattrs=_xattrs(stream, extras, after) if extras else {},
    )
    if max(member.uid, member.gid) > 0xFFFFFFFE:
        raise ImageInvalid(f"{stream.what}, entry {show(member.name)}: its owner is out of range")
    if type_ in {LINK, SYMLINK}:
        member.linkname = text(extras.get("linkpath", header[157:257].split(b"\0", 1)[0]))
    elif type_ in {CHAR, BLOCKDEV}:
        member.device = (
            _number(stream, header[329:337], "device", after),
            _number(stream, header[337:345], "device", after),
        )
    return member


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
        records = (_pax_record(raw(_XATTR + key), value) for key, value in sorted(member.xattrs.items()))
        out += _extended(b"x", b"".join(records))
    if len(link) > 100:
        out += _extended(b"K", link + b"\0")
    if len(name) > 100:
        out += _extended(b"L", name + b"\0")
    return out + _header(name, member.type, member.size, member, link)


def padding(size: int) -> bytes:
    """The zero bytes that follow ``size`` bytes of data."""
    return bytes(-size % BLOCK)
