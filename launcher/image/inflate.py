"""Layers as forward-only streams of tar bytes: plain, gzip or zstd, told apart by their first bytes.

The media type is no proof: tools are known to reuse a blob of the other compression. The only module that imports zstd.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.image.blob import CHUNK

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.image.blob import Blob

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_STEP = 256 << 10  # compressed bytes taken at a time


class _Gzip:
    """One gzip member. Output is bounded, so that a bomb cannot fill the memory."""

    name = "gzip"
    magic = GZIP_MAGIC

    def __init__(self) -> None:
        self._state = zlib.decompressobj(wbits=31)
        self.hungry = True

    @property
    def eof(self) -> bool:
        return self._state.eof

    @property
    def unused_data(self) -> bytes:
        return self._state.unused_data

    def decompress(self, data: bytes) -> bytes:
        out = self._state.decompress(self._state.unconsumed_tail + data, CHUNK)
        self.hungry = not self._state.unconsumed_tail and len(out) < CHUNK
        return out


class _Zstd:
    """One zstd frame, likewise bounded."""

    name = "zstd"
    magic = ZSTD_MAGIC

    def __init__(self) -> None:
        self._state = zstd.ZstdDecompressor()

    @property
    def hungry(self) -> bool:
        return self._state.needs_input

    @property
    def eof(self) -> bool:
        return self._state.eof

    @property
    def unused_data(self) -> bytes:
        return self._state.unused_data

    def decompress(self, data: bytes) -> bytes:
        return self._state.decompress(data, CHUNK)


def compression(blob: Blob) -> str:
    """``gzip``, ``zstd`` or ``none``."""
    codec = _codec(blob)
    return codec.name if codec else "none"


def _codec(blob: Blob) -> type[_Gzip | _Zstd] | None:
    head = blob.read_at(0, 4)
    return next((codec for codec in (_Gzip, _Zstd) if head.startswith(codec.magic)), None)


def _inflated(blob: Blob, codec: type[_Gzip | _Zstd]) -> Iterator[bytes]:
    """The decompressed chunks. Members may follow one another, and zero bytes may follow the last."""
    decoder: _Gzip | _Zstd = codec()
    position, pending = 0, b""
    while True:
        if decoder.eof:
            pending = (decoder.unused_data or pending).lstrip(b"\0")
            while not pending and position < blob.size:
                pending = blob.read_at(position, _STEP)
                position += len(pending)
                pending = pending.lstrip(b"\0")
            if not pending:
                return
            decoder = codec()
        elif decoder.hungry and not pending:
            if position >= blob.size:
                raise ImageInvalid(f"{blob.what}: the {codec.name} data is cut off after {blob.size} bytes")
            pending = blob.read_at(position, _STEP)
            position += len(pending)
        try:
            out = decoder.decompress(pending)
        except (zlib.error, zstd.ZstdError) as error:
            raise ImageInvalid(f"{blob.what}: the {codec.name} data is corrupt: {error}") from error
        pending = b""
        if out:
            yield out


class LayerStream:
    """The tar bytes of a layer, read forward. ``position`` counts decompressed bytes."""

    def __init__(self, blob: Blob) -> None:
        self.what = blob.what
        self.position = 0
        self._blob = blob
        codec = _codec(blob)
        self._chunks = _inflated(blob, codec) if codec else None
        self._buffer = memoryview(b"")

    def _fill(self) -> bool:
        if self._chunks is None:
            self._buffer = memoryview(self._blob.read_at(self.position, CHUNK))
        else:
            self._buffer = memoryview(next(self._chunks, b""))
        return bool(self._buffer)

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes, fewer only at the end of the stream."""
        parts = []
        while count > 0 and (self._buffer or self._fill()):
            part = bytes(self._buffer[:count])
            self._buffer = self._buffer[len(part) :]
            self.position += len(part)
            count -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, count: int) -> bool:
        """Pass over ``count`` bytes; False when the stream ends before."""
        if self._chunks is None and count > len(self._buffer):
            self._buffer = memoryview(b"")
            self.position += count
            return self.position <= self._blob.size
        while count > 0 and (self._buffer or self._fill()):
            step = min(count, len(self._buffer))
            self._buffer = self._buffer[step:]
            self.position += step
            count -= step
        return count == 0

    def chunks(self, count: int) -> Iterator[bytes | memoryview]:
        """The next ``count`` bytes in pieces, without copying them together."""
        while count > 0:
            if not (self._buffer or self._fill()):
                raise ImageInvalid(f"{self.what}: ends earlier than when it was read first")
            part = self._buffer[:count]
            self._buffer = self._buffer[len(part) :]
            self.position += len(part)
            count -= len(part)
            yield part

    def drain(self) -> None:
        """Read a compressed stream to its end, so that its checksum is checked."""
        if self._chunks is not None:
            while self._fill():
                pass
