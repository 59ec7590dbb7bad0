"""Writing a file's data without its runs of zeros."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_HOLE = 64 << 10  # zero runs of this size and alignment become holes
_ZEROS = bytes(_HOLE)


def _data(chunks: Iterable[bytes | memoryview]) -> Iterator[tuple[int, bytes | memoryview]]:
    """What is not zeros, with its place in the file; cut where the file's blocks are cut, however the chunks come."""
    position = 0
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            part = chunk[start : start + _HOLE - position % _HOLE]
            if part != _ZEROS[: len(part)]:
                yield position, part
            start += len(part)
            position += len(part)


def write_sparse(
    chunks: Iterable[bytes | memoryview], size: int, fd: int, on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Write ``size`` bytes of ``chunks`` to the empty file ``fd``; ``on_bytes`` hears how far it is. Raises OSError."""
    os.ftruncate(fd, size)
    for position, part in _data(chunks):
        written = 0
        while written < len(part):
            written += os.pwrite(fd, part[written:], position + written)
        on_bytes(position + len(part))


def data_bytes(chunks: Iterable[bytes | memoryview]) -> int:
    """How many bytes ``write_sparse`` would write."""
    return sum(len(part) for _, part in _data(chunks))
