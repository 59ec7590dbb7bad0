"""The listening sockets of helpers: bound once by us and inherited by each helper that is started for one.

So the VMM can connect before the helper is up, and again when the guest reboots: the connection waits in the backlog.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BACKLOG = 4


class HelperSockets:
    """Sockets by their paths."""

    def __init__(self) -> None:
        self._open: dict[Path, socket.socket] = {}

    def descriptor(self, path: Path, uid: int, gid: int) -> int:
        """The listening socket at ``path``, which only ``uid`` may connect to. Raises OSError."""
        if path not in self._open:
            path.unlink(missing_ok=True)  # of a launcher that was killed
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                listener.bind(os.fspath(path))
                path.chmod(0o600)
                os.chown(path, uid, gid)
                listener.listen(_BACKLOG)
            except BaseException:
                listener.close()
                raise
            self._open[path] = listener
        return self._open[path].fileno()

    def close(self) -> None:
        for path, listener in self._open.items():
            listener.close()
            path.unlink(missing_ok=True)
        self._open.clear()
