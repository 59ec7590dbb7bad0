"""Files that are appended to for a VM's whole life and stay bounded."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path


class BoundedLog:
    """At ``limit`` bytes the file is renamed to NAME.1 and a new one begun, so both together stay below twice of that.

    The constructor raises OSError. Afterwards nothing does: a full disk costs what was to be written, not the VM.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._file = _open(path)

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._file.tell() + len(data) > self._limit:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                old, self._file = self._file, _open(self._path)
                old.close()
            self._file.write(data)

    def close(self) -> None:
        self._file.close()


def _open(path: Path) -> FileIO:
    """For appending; a link in its place is not followed, whoever put it there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "ab", buffering=0)
