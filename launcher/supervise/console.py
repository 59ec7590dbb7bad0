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
import stat
import time
from typing import TYPE_CHECKING

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
_CHUNK = 4096  # PIPE_BUF: a pipe that polls writable takes this much without blocking


class Outlet:
    """Our stdout (or any descriptor) written to without ever blocking; slow readers lose the oldest bytes."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._waiting = bytearray()
        # Files are always ready, and epoll refuses them.
        self._pollable = not stat.S_ISREG(os.fstat(fd).st_mode)
        self.dropped = 0

    def write(self, data: bytes) -> None:
        self._waiting += data
        if (excess := len(self._waiting) - BACKLOG) > 0:
            del self._waiting[:excess]
            self.dropped += excess
        if self._pollable:
            self._loop.watch(self._fd, WRITE, self._flush)
        else:
            while self._waiting:
                self._flush()

    def _flush(self) -> None:
        try:
            written = os.write(self._fd, self._waiting[:_CHUNK])
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            written = len(self._waiting)
        del self._waiting[:written]
        if not self._waiting and self._pollable:
            self._loop.unwatch(self._fd)

    def close(self, seconds: float = 1.0) -> None:
        """Write what still waits, for a bounded time."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while self._waiting and (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            self._flush()
        self._loop.unwatch(self._fd)


class BoundedLog:
    """console.log: appended to, and at its limit renamed to console.log.1, so that both together stay bounded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        if self._file.tell() + len(data) > LOG_LIMIT:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(data)

    def close(self) -> None:
        self._file.close()


class Console:
    """The connection to the VMM's serial socket, for the VM's whole life, across guest reboots."""

    def __init__(self, loop: Loop, path: Path, log: Path, stdout: int, on_first_byte: Callable[[], None]) -> None:
        self._loop = loop
        self._path = path
        self._log = BoundedLog(log)
        self._outlet = Outlet(loop, stdout)
        self._on_first_byte: Callable[[], None] | None = on_first_byte
        self._socket: socket.socket | None = None
        self._tail = bytearray()
        self.bytes = 0

    def connect(self) -> None:
        """Connect, or come back to it in a moment: at a reboot the VMM closes the socket and makes a new one."""
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
        self._loop.watch(client.fileno(), READ, self._read)

    def disconnect(self) -> None:
        """The VM is gone: drain what is there and stop trying."""
        if self._socket is not None:
            self._read()
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

    def _read(self) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop()
                self._loop.arm("console", RETRY)
                return
            self._take(data)

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
