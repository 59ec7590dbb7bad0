"""Reading the members of a tar from a stream: ustar, GNU and pax.

Formats: POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format". Where they leave room, what Go's archive/tar does counts:
umoci, containerd, skopeo and Docker read layers with it. So a global pax header is passed over, and an empty pax value is
none.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.image import tar_sparse
from launcher.image.tar import (
    BLOCK,
    BLOCKDEV,
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    NO_XATTRS,
    SYMLINK,
    XATTR,
    Member,
    show,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from launcher.image.inflate import LayerStream

_EXTENSION_LIMIT = 1 << 20  # bytes of a long name or pax header; the kernel bounds an xattr by 64 KiB, a path by 4 KiB
_EXTENSIONS_LIMIT = 8  # extended headers before one entry; real ones need three
_LONGEST_NAME = 255  # bytes of one component (limits.h, NAME_MAX)
_LONGEST_PATH = 4095  # bytes of a path or a symlink's target (limits.h, PATH_MAX)
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=]+)=")
_PAX_TIME = re.compile(r"(-?)(\d{1,15})(?:\.(\d*))?")
_NUMBER = re.compile(rb"[0-7]*")
_BASE64_XATTR = "LIBARCHIVE.xattr."
_SPARSE = b"S"
_V7, _CONTIGUOUS = b"\0", b"7"
_KNOWN = frozenset((FILE, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO))
_LARGEST_ID = 0xFFFFFFFE  # the next one means "no change" to chown(2)


def read_members(stream: LayerStream, *, need_end: bool = False) -> Iterator[Member]:
    """Every entry of a tar stream, in order; the reader may leave an entry's data unread or read part of it.

    ``need_end`` demands the closing zero block, for a stream whose completeness no digest vouches for.
    Raises ImageInvalid for anything that is not a well-formed tar.
    """
    extras: dict[str, bytes] = {}
    extensions = 0
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
            extensions += 1
            if extensions > _EXTENSIONS_LIMIT:
                raise _bad(stream, after, f"more than {_EXTENSIONS_LIMIT} extended tar headers follow one another")
            body = _extension(stream, size, after)
            if type_ == b"x":
                extras.update(_pax(stream, body, after))
            elif type_ != b"g":
                extras["path" if type_ == b"L" else "linkpath"] = body.rstrip(b"\0")
            continue
        member, stored = _member(stream, header, size, extras, after)
        extras, extensions = {}, 0
        after = member.name
        end = member.offset + stored
        yield member
        if not stream.skip(end - stream.position):
            raise ImageInvalid(f"{stream.what}, entry {show(member.name)}: the data is cut off")
        # umoci's insert leaves out the last entry's padding and the end of the archive, and every Go tool reads
        # that: as much a missing end as a missing zero block.
        stream.skip(-end % BLOCK)


def _bad(stream: LayerStream, after: str, message: str) -> ImageInvalid:
    place = f" after entry {show(after)}" if after else ""
    return ImageInvalid(f"{stream.what}: {message}{place}")


def _wrong(stream: LayerStream, name: str, message: str) -> ImageInvalid:
    return ImageInvalid(f"{stream.what}, entry {show(name)}: {message}")


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
    if not (-1 << 63 if what == "time" else 0) <= value < 1 << 63:
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
    pairs: list[bytes] = []  # of sparse format 0.0, which has a record for each number
    position = 0
    while position < len(body):
        found = _PAX_RECORD.match(body, position)
        end = position + int(found[1]) if found else 0
        if not found or not found.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise _bad(stream, after, "a pax header is damaged")
        key, value = text(found[2]), body[found.end() : end - 1]
        position = end
        if key in {"GNU.sparse.offset", "GNU.sparse.numbytes"}:
            pairs.append(value)
        else:
            records[key] = value
    if pairs or "GNU.sparse.numblocks" in records:
        records.setdefault("GNU.sparse.map", b",".join(pairs))
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


def _xattrs(stream: LayerStream, extras: Mapping[str, bytes], after: str) -> Mapping[str, bytes]:
    """Extended attributes by name; an ACL as text (star, GNU tar) keeps its pax key, for the disk to translate."""
    found: dict[str, bytes] = {}
    for key, value in extras.items():
        if key.startswith(XATTR):
            found[key.removeprefix(XATTR)] = value
        elif key.startswith(_BASE64_XATTR):
            try:
                found.setdefault(key.removeprefix(_BASE64_XATTR), base64.b64decode(value + b"==="))
            except binascii.Error as error:
                raise _bad(stream, after, "a pax header holds a damaged extended attribute") from error
        elif key.startswith("SCHILY.acl."):
            found[key] = value
    return found or NO_XATTRS


def _name(stream: LayerStream, header: bytes, extras: Mapping[str, bytes], after: str) -> str:
    name = extras.get("GNU.sparse.name") or extras.get("path")
    if not name:
        name = header[:100].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    if not name:
        raise _bad(stream, after, "a tar entry has no name")
    found = text(name)
    if b"\0" in name:
        raise _wrong(stream, found, "its name holds a NUL byte")
    if len(name) > _LONGEST_PATH:
        raise _wrong(stream, found, f"its name has more than {_LONGEST_PATH} bytes")
    if len(name) > _LONGEST_NAME and max(map(len, name.split(b"/"))) > _LONGEST_NAME:
        raise _wrong(stream, found, f"a file name has more than {_LONGEST_NAME} bytes")
    return found


def _link(stream: LayerStream, header: bytes, extras: Mapping[str, bytes], name: str) -> str:
    link = extras.get("linkpath") or header[157:257].split(b"\0", 1)[0]
    if not link or b"\0" in link or len(link) > _LONGEST_PATH:
        problem = "holds a NUL byte" if b"\0" in link else "is too long" if link else "is empty"
        raise _wrong(stream, name, f"what it links to {problem}")
    return text(link)


def _member(
    stream: LayerStream, header: bytes, stored: int, extras: Mapping[str, bytes], after: str
) -> tuple[Member, int]:
    """The member that a header and the extended ones before it describe, and how many bytes of data it has stored."""
    name = _name(stream, header, extras, after)
    type_ = header[156:157]
    if type_ == _V7:
        type_ = DIRECTORY if name.endswith("/") else FILE
    elif type_ == _CONTIGUOUS:
        type_ = FILE
    if stored_told := extras.get("size"):
        stored = _pax_int(stream, stored_told, "size", after)
    size, segments = stored, None
    try:
        if type_ == _SPARSE:
            size, numbers = tar_sparse.read_gnu(stream, header)
            segments, type_ = tar_sparse.segments(stream, name, size, numbers, stored), FILE
        elif type_ == FILE and extras and tar_sparse.is_pax_sparse(extras):
            size, numbers, taken = tar_sparse.read_pax(stream, extras, stored)
            stored -= taken
            segments = tar_sparse.segments(stream, name, size, numbers, stored)
    except tar_sparse.BadMapError as error:
        raise _wrong(stream, name, "the map of its sparse data is damaged") from error
    if type_ not in _KNOWN:
        raise _wrong(stream, name, f"has the unknown tar type {type_!r}")
    if type_ != FILE:
        stored = size = 0  # other types carry no data, whatever the field says
    uid, gid, mtime = (extras.get("uid"), extras.get("gid"), extras.get("mtime")) if extras else (None, None, None)
    member = Member(
        name=name,
        type=type_,
        mode=_number(stream, header[100:108], "mode", after) & 0o7777,
        uid=_pax_int(stream, uid, "uid", after) if uid else _number(stream, header[108:116], "uid", after),
        gid=_pax_int(stream, gid, "gid", after) if gid else _number(stream, header[116:124], "gid", after),
        mtime_ns=_pax_time(stream, mtime, after) if mtime else _number(stream, header[136:148], "time", after) * 10**9,
        size=size,
        offset=stream.position,
        xattrs=_xattrs(stream, extras, after) if extras else NO_XATTRS,
        segments=segments,
    )
    if max(member.uid, member.gid) > _LARGEST_ID:
        raise _wrong(stream, name, "its owner is out of range")
    if type_ in {LINK, SYMLINK}:
        member.linkname = _link(stream, header, extras, name)
    elif type_ in {CHAR, BLOCKDEV}:
        major, minor = (_number(stream, header[at : at + 8], "device", after) for at in (329, 337))
        if major >= 1 << 12 or minor >= 1 << 20:  # linux/kdev_t.h
            raise _wrong(stream, name, "its device number is out of range")
        member.device = (major, minor)
    return member, stored
