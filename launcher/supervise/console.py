"""The guest's serial console: the launcher is its only client and always drains it.

An unread serial socket blocks the guest, and a client that closes with unread bytes kills the VMM's serial thread; so
this end reads whatever comes, at once, and what becomes of it (log, our stdout, the tail kept for the termination
message) can lose bytes but never wait.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from typing import TYPE_CHECKING

from launcher.supervise.bounded_log import BoundedLog
from launcher.supervise.loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.supervise.loop import Loop

LOG_LIMIT = 4 << 20  # bytes of console.log before it becomes console.log.1
TAIL = 16 << 10  # bytes kept in memory
BACKLOG = 1 << 20  # bytes that wait for a slow stdout before the oldest are dropped
RETRY = 0.02  # seconds between attempts to reconnect while the VMM re-creates the socket at a reboot
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")  # ANSI control sequences
_READ = 65536  # bytes at a time: a guest that never stops must not hold the loop
_CHUNK = 4096  # PIPE_BUF: a pipe that polls writable takes this much without blocking


class Outlet:
    """Our stdout or stderr, written to without ever blocking; slow readers lose the oldest bytes.

    The descriptor stays in blocking mode, for others share it; so each write follows a poll.
    """

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._waiting = bytearray()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.dropped = 0

    def write(self, data: bytes) -> None:
        """Write what can be written at once; the rest waits for a reader."""
        self._waiting += data
        self._flush()
        if (excess := len(self._waiting) - BACKLOG) > 0:
            del self._waiting[:excess]
            self.dropped += excess
        if self._waiting:  # a pipe, a socket or a terminal: files and /dev/null, which epoll refuses, take all at once
            self._loop.watch(self._fd, WRITE, self._flush)

    def _flush(self) -> None:
        while self._waiting and self._poll.poll(0):
            try:
                written = os.write(self._fd, self._waiting[:_CHUNK])
            except BlockingIOError:  # somebody else made it non-blocking
                return
            except OSError:  # nobody reads any more
                written = len(self._waiting)
            del self._waiting[:written]
        if not self._waiting:
            self._loop.unwatch(self._fd)

    def close(self, seconds: float = 0.3) -> None:
        """Write what still waits, for a bounded time."""
        deadline = time.monotonic() + seconds
        while self._waiting and (left := deadline - time.monotonic()) > 0 and self._poll.poll(left * 1000):
            self._flush()
        self._loop.unwatch(self._fd)


class Console:
    """The connection to the VMM's serial socket, for the VM's whole life, across guest reboots."""

    def __init__(self, loop: Loop, path: Path, log: Path, stdout: int, on_first_byte: Callable[[], None]) -> None:
        self._loop = loop
        self._path = path
        self._log = BoundedLog(log, LOG_LIMIT)
        self._outlet = Outlet(loop, stdout)
        self._on_first_byte: Callable[[], None] | None = on_first_byte
        self._socket: socket.socket | None = None
        self._tail = bytearray()
        self.bytes = 0

    @property
    def dropped(self) -> int:
        """Bytes that our stdout did not get, for nobody read it in time; console.log has them."""
        return self._outlet.dropped

    def connect(self) -> None:
        """Connect, or come back to it in a moment: at a reboot the VMM closes the socket and makes a new one."""
        while self._receive():  # what the old one still holds, and its end
            pass
        if self._socket is not None:
            return
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            client.connect(os.fspath(self._path))
        except OSError:
            client.close()
            self._loop.arm("console", RETRY)
            return
        self._socket = client
        self._loop.watch(client.fileno(), READ, self._receive)

    def disconnect(self) -> None:
        """The VM is gone: drain what is there and stop trying."""
        while self._receive():
            pass
        self._drop()
        self._loop.disarm("console")

    def last_lines(self, count: int) -> list[str]:
        """The newest lines, oldest first, without control characters."""
        text = _ESCAPES.sub("", self._tail.decode(errors="replace"))
        lines = ["".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in text.splitlines()]
        return [line for line in lines if line][-count:]

    def close(self) -> None:
        self.disconnect()
        self._outlet.close()
        self._log.close()

    def _receive(self) -> bool:
        """Take what is there, up to a limit; False when there was nothing."""
        if self._socket is None:
            return False
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._drop()
            self._loop.arm("console", RETRY)
        return bool(data)

    def _take(self, data: bytes) -> None:
        self.bytes += len(data)
        self._outlet.write(data)
        self._log.write(data)
        self._tail += data
        del self._tail[:-TAIL]
        if self._on_first_byte is not None:
            self._on_first_byte()
            self._on_first_byte = None

    def _drop(self) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
