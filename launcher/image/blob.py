"""A run of bytes inside an open file, and the check of its digest.

A blob of an OCI layout is a whole file; a blob of an archive is a stretch of the archive, read in place.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from launcher.errors import ImageInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1 << 20  # bytes read at a time

# What changes when a file's content does: its size, and the times of its last change, the second of which nobody can set.
Stamp: TypeAlias = tuple[int, int, int]

# image-spec, descriptor.md: algorithm ":" encoded; these two are the registered algorithms
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def check_digest_form(digest: object, what: str) -> str:
    """``digest`` when it is one we can verify; it becomes a path, so nothing else may pass."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ImageInvalid(f"{what}: {digest!r} is not a sha256 or sha512 digest")
    return digest


def short(digest: str) -> str:
    """A digest as people quote it: the algorithm and the first twelve digits."""
    return digest[: digest.index(":") + 13]


def check_digest(found: str, expected: str, what: str) -> None:
    """Raise ImageInvalid unless content of this digest is the expected one."""
    if found != expected:
        raise ImageInvalid(f"{what}: its content has the digest {short(found)}, not {short(expected)}")


def stamp_of(fd: int) -> Stamp:
    """The stamp of an open file."""
    now = os.fstat(fd)
    return now.st_size, now.st_mtime_ns, now.st_ctime_ns


@dataclass(frozen=True, slots=True)
class Blob:
    """``size`` bytes from ``offset`` of the open file ``fd``; ``what`` names it in errors. The fd belongs to the image.

    With a ``stamp``, every read is of the file as it was then: what was verified is what is used, though it is read twice.
    """

    fd: int
    offset: int
    size: int
    what: str
    stamp: Stamp | None = None
    on_read: Callable[[int], None] | None = None  # hears of every read, in bytes

    def read_at(self, position: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``position``; fewer only at the end. Raises ImageInvalid when the file is shorter or
        has changed since its stamp was taken.
        """
        count = min(count, self.size - position)
        parts = []
        while count > 0:
            try:
                data = os.pread(self.fd, min(count, CHUNK), self.offset + position)
            except OSError as error:
                raise ImageInvalid(f"{self.what}: cannot be read: {error.strerror}") from error
            if not data:
                raise ImageInvalid(f"{self.what}: the file ends after {position} of {self.size} bytes")
            parts.append(data)
            position += len(data)
            count -= len(data)
            if self.on_read is not None:
                self.on_read(len(data))
        if self.stamp is not None and stamp_of(self.fd) != self.stamp:
            raise ImageInvalid(f"{self.what}: was changed while it was read", hint="start again when it is complete")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def digest(self, algorithm: str) -> str:
        """The digest of the bytes, as ``algorithm:hexadecimal``."""
        state = hashlib.new(algorithm)
        for position in range(0, self.size, CHUNK):
            state.update(self.read_at(position, CHUNK))
        return f"{algorithm}:{state.hexdigest()}"

    def verify(self, digest: str) -> None:
        """Raise ImageInvalid unless the bytes have this digest."""
        check_digest(self.digest(digest.partition(":")[0]), digest, self.what)

    def read_all(self, limit: int, digest: str | None = None) -> bytes:
        """Everything, for a document of at most ``limit`` bytes. Raises ImageInvalid unless it has the digest."""
        if self.size > limit:
            raise ImageInvalid(f"{self.what}: has {self.size} bytes, more than the {limit} such a document may have")
        data = self.read_at(0, self.size)
        if digest is not None:
            algorithm = digest.partition(":")[0]
            check_digest(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}", digest, self.what)
        return data
