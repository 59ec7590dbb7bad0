"""Where sparse members of a tar have their data: GNU tar's own format and its three pax formats.

Formats: GNU tar manual, "Storing Sparse Files" (old GNU, and pax 0.0, 0.1 and 1.0). A map is read as it is told and then
judged as a whole: ascending, apart, inside the file, and exactly as long as the data that is stored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.image.tar import BLOCK, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from launcher.image.inflate import LayerStream
    from launcher.image.tar import Segments

MAP_LIMIT = 1 << 20  # bytes of one map as it is stored; room for 40000 segments
_NUMBERS_IN_HEADER, _EXTENDED_IN_HEADER, _SIZE_IN_HEADER = 386, 482, 483
_ENTRY = 24  # bytes: an offset and a length of twelve each
_DIGITS = re.compile(rb"[0-9]{1,18}")
_PREFIX = "GNU.sparse."


class BadMapError(Exception):
    """A map that cannot be read; the reader of the tar knows its place."""


def is_pax_sparse(extras: Mapping[str, bytes]) -> bool:
    """Whether a member's pax records say that it is sparse."""
    return f"{_PREFIX}map" in extras or extras.get(f"{_PREFIX}major") is not None


def read_gnu(stream: LayerStream, header: bytes) -> tuple[int, list[int]]:
    """The file's size and the numbers of the map of an old GNU member; its extension blocks are read from the stream."""
    numbers = _table(header[_NUMBERS_IN_HEADER:_EXTENDED_IN_HEADER])
    extended, read = header[_EXTENDED_IN_HEADER], 0
    while extended:
        block = stream.read(BLOCK)
        read += BLOCK
        if len(block) < BLOCK or read > MAP_LIMIT:
            raise BadMapError
        numbers += _table(block[: 21 * _ENTRY])
        extended = block[21 * _ENTRY]
    return _field(header[_SIZE_IN_HEADER : _SIZE_IN_HEADER + 12]), numbers


def _table(raw: bytes) -> list[int]:
    numbers: list[int] = []
    for start in range(0, len(raw), _ENTRY):
        if not raw[start]:
            break
        numbers += [_field(raw[start : start + 12]), _field(raw[start + 12 : start + _ENTRY])]
    return numbers


def _field(raw: bytes) -> int:
    """Octal, or base 256 when the top bit is set."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    if not re.fullmatch(rb"[0-7]+", digits):
        raise BadMapError
    return int(digits, 8)


def read_pax(stream: LayerStream, extras: Mapping[str, bytes], stored: int) -> tuple[int, list[int], int]:
    """The file's size, the numbers of its map, and how many of the ``stored`` bytes the map took of the stream."""
    size = _number(extras.get(f"{_PREFIX}realsize") or extras.get(f"{_PREFIX}size"))
    version = (extras.get(f"{_PREFIX}major"), extras.get(f"{_PREFIX}minor"))
    if version == (b"1", b"0"):
        numbers, taken = _read_map(stream, min(stored, MAP_LIMIT))
        return size, numbers, taken
    if version not in {(None, None), (b"0", b"0"), (b"0", b"1")}:
        raise BadMapError
    listed = extras.get(f"{_PREFIX}map", b"")
    return size, [_number(item) for item in listed.split(b",")] if listed else [], 0


def _read_map(stream: LayerStream, room: int) -> tuple[list[int], int]:
    """Format 1.0: before the data, padded to whole blocks, decimal lines: how many segments, then each one's numbers."""
    numbers: list[int] = []
    rest, taken, wanted = b"", 0, 1
    while len(numbers) < wanted:
        block = stream.read(BLOCK)
        taken += BLOCK
        if len(block) < BLOCK or taken > room:
            raise BadMapError
        *lines, rest = (rest + block).split(b"\n")
        numbers += [_number(line) for line in lines[: wanted - len(numbers)]]
        if wanted == 1 and numbers:
            wanted += 2 * numbers[0]
            numbers += [_number(line) for line in lines[1:wanted]]
    return numbers[1:], taken


def _number(raw: bytes | None) -> int:
    if raw is None or not _DIGITS.fullmatch(raw):
        raise BadMapError
    return int(raw)


def segments(stream: LayerStream, name: str, size: int, numbers: Sequence[int], stored: int) -> Segments:
    """The map as segments, empty ones left out. Raises ImageInvalid unless it is sound and tells ``stored`` bytes."""
    pairs = [*zip(numbers[::2], numbers[1::2], strict=False)]
    end = total = 0
    for offset, length in pairs:
        if offset < end:
            break
        end = offset + length
        total += length
    else:
        if len(numbers) % 2 == 0 and end <= size and total == stored:
            return tuple(pair for pair in pairs if pair[1])
    raise ImageInvalid(f"{stream.what}, entry {show(name)}: the map of its sparse data is damaged")
