"""The serial port's host side: what QEMU's UART says goes to a terminal, a file, a socket or a pty.

Source: cloud-hypervisor v53.0, vmm/src/console_devices.rs and serial_manager.rs. A socket has one client at a time, the
newest wins; what the guest says while there is none is kept, up to the last MiB, and given to the next one.
Mode Tty is output only.
"""

from __future__ import annotations

import contextlib
import os
import pty
import selectors
import socket
import tty
from pathlib import Path
from typing import Any

from launcher.emulator.refusal import Refused, os_words

REPLAY = 1 << 20  # bytes kept for the next reader
CHUNK = 65536
UNREAD = 4 << 20  # bytes a connected reader may lag behind before the guest is made to wait


class Serial:
    """An open port. ``guest`` is the UART's end while a guest runs."""

    def __init__(self, config: dict[str, Any], loop: selectors.BaseSelector) -> None:
        """Open what ``config`` (a SerialConfig) names; a pty's path is written back into it. Refused when it cannot be."""
        self._loop = loop
        self._mode: str = config["mode"]
        self._guest: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._reader: int | None = None  # where output goes: a descriptor, blocking only for Tty and File
        self._client: socket.socket | None = None
        self._slave: int | None = None
        self._pending = bytearray()
        self._watched: dict[int, int] = {}
        try:
            self._open(config)
        except OSError as error:
            raise Refused("Error creating console devices", "Error creating console device", os_words(error)) from error

    @property
    def wanted(self) -> bool:
        """Whether the guest has a serial port at all."""
        return self._mode != "Off"

    def _open(self, config: dict[str, Any]) -> None:
        match self._mode:
            case "Tty":
                self._reader = os.dup(1)
            case "File":
                self._reader = os.open(config["file"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            case "Socket":
                self._path = Path(config["socket"])
                self._listener = socket.socket(socket.AF_UNIX)
                try:
                    self._listener.bind(config["socket"])
                    self._path.chmod(0o700)
                    self._listener.listen()
                except OSError:
                    self._listener.close()
                    raise
                self._listener.setblocking(False)
                self._loop.register(self._listener, selectors.EVENT_READ, self._accept)
            case "Pty":
                # The slave stays open here, so that its line settings live and the master never hangs up.
                master, slave = pty.openpty()
                self._reader, self._slave = master, slave
                tty.setraw(slave)
                os.set_blocking(master, False)
                config["file"] = os.ttyname(slave)
                self._watch()
            case _:
                pass  # Off and Null: nothing to open

    # -- the guest's end

    def attach(self, guest: socket.socket) -> None:
        """Take over the UART's end of a guest that is about to run."""
        guest.setblocking(False)
        self._guest = guest
        self._watch()

    def close(self, *, unlink: bool) -> None:
        """Deliver what a guest that is gone has said, then close everything; a socket's name goes with ``unlink``."""
        if self._guest is not None:
            while self._pump():
                pass
        for watched in tuple(self._watched):
            self._loop.unregister(watched)
        self._watched.clear()
        if self._listener is not None:
            self._loop.unregister(self._listener)
            self._listener.close()
            if unlink and self._path is not None:
                self._path.unlink(missing_ok=True)
        for end in (self._guest, self._client):
            if end is not None:
                end.close()
        for fd in (self._slave, self._reader if self._client is None else None):
            if fd is not None:
                os.close(fd)
        self._guest = self._client = self._listener = self._slave = self._reader = None

    def _pump(self) -> bool:
        """Move what the guest has said towards the reader; False when there is nothing for now."""
        if self._guest is None:
            return False
        try:
            data = self._guest.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            gone, self._guest = self._guest, None
            self._watch()
            gone.close()
            return False
        self._pending += data
        self._flush()
        return True

    # -- the reader's end

    def _flush(self) -> None:
        if self._reader is not None:
            try:
                while self._pending:
                    del self._pending[: os.write(self._reader, self._pending[:CHUNK])]
            except BlockingIOError:
                pass
            except OSError:
                self._hang_up()
        if self._client is None:
            del self._pending[: max(0, len(self._pending) - REPLAY)]
        if self._mode == "Null":
            self._pending.clear()
        self._watch()

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except OSError:  # it went away before we looked
            return
        self._hang_up()
        client.setblocking(False)
        self._client, self._reader = client, client.fileno()
        self._flush()

    def _hang_up(self) -> None:
        """Let the socket's client go."""
        if self._client is not None:
            gone, self._client, self._reader = self._client, None, None
            self._watch()
            gone.close()

    def _hear(self) -> None:
        """The reader typed something, wants more, or has left."""
        if self._reader is None:
            return
        try:
            typed = os.read(self._reader, CHUNK)
        except BlockingIOError:
            typed = None
        except OSError:
            typed = b""
        if typed == b"":
            self._hang_up()
        elif typed and self._guest is not None:
            # What does not fit is lost, as bytes are that overrun a UART.
            with contextlib.suppress(OSError):
                self._guest.send(b"\r" if typed == b"\n" else typed)
        self._flush()

    def _watch(self) -> None:
        """Bring the loop's view up to date: whom to listen to, and who has room."""
        wanted: dict[int, int] = {}
        talks = self._client is not None or self._slave is not None
        if self._guest is not None and not (self._client is not None and len(self._pending) >= UNREAD):
            wanted[self._guest.fileno()] = selectors.EVENT_READ
        if self._reader is not None and talks:
            wanted[self._reader] = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._pending else 0)
        for fd in self._watched.keys() - wanted.keys():
            self._loop.unregister(fd)
        for fd, events in wanted.items():
            callback = self._hear if fd == self._reader else self._pump
            if fd not in self._watched:
                self._loop.register(fd, events, callback)
            elif self._watched[fd] != events:
                self._loop.modify(fd, events, callback)
        self._watched = wanted
