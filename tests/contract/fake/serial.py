"""The serial port: nothing, a file, stdout, or a socket with one client at a time."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

REPLAY = 1 << 20  # bytes kept while nobody is connected, from v53 on


class SerialSocket(threading.Thread):
    """Bound at once; ``write`` goes to the client, else into the replay buffer. A new client kicks the old one out."""

    def __init__(self, path: str, on_input: Callable[[bytes], None], *, replay: bool) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.on_input = on_input
        self.replay = replay
        self.buffer = bytearray()
        self.client: socket.socket | None = None
        self.lock = threading.Lock()
        self.waker, self.wakee = socket.socketpair()
        self.listener = socket.socket(socket.AF_UNIX)
        try:
            self.listener.bind(path)
        except OSError:
            self.listener.close()
            self.waker.close()
            self.wakee.close()
            raise
        self.listener.listen(128)

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.wakee, selectors.EVENT_READ)
            selector.register(self.listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self.wakee:
                        return
                    if key.fileobj is self.listener:
                        self.attach(selector)
                    elif key.fileobj is self.client and not self.take(selector, self.client):
                        return

    def attach(self, selector: selectors.BaseSelector) -> None:
        client, _ = self.listener.accept()
        client.setblocking(False)
        if self.client is not None:
            selector.unregister(self.client)
            self.detach()
        selector.register(client, selectors.EVENT_READ)
        with self.lock:
            self.client = client
            pending, self.buffer = bytes(self.buffer), bytearray()
        self.write(pending)

    def take(self, selector: selectors.BaseSelector, client: socket.socket) -> bool:
        """False when the client closed with unread bytes: the real thread ends there, in silence and for good."""
        try:
            data = client.recv(64)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self.on_input(b"\r" if data == b"\n" else data)
        else:
            selector.unregister(client)
            self.detach()
        return True

    def detach(self) -> None:
        with self.lock:
            client, self.client = self.client, None
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            client.close()

    def write(self, data: bytes) -> None:
        with self.lock:
            sent = 0
            if self.client is not None:
                with contextlib.suppress(OSError):
                    sent = self.client.send(data)
            if self.replay:
                self.buffer = (self.buffer + data[sent:])[-REPLAY:]

    def flood(self, size: int) -> None:
        """``size`` bytes, as fast as the client takes them: a guest waits for its serial port."""
        chunk = (b"." * 1022 + b"\r\n") * 64
        while size > 0 and self.client is not None:
            select.select([], [self.client], [])
            size -= self.client.send(chunk[:size])

    def close(self, *, unlink: bool) -> None:
        """``unlink`` False leaves the path behind, as a VM that was never booted does."""
        if self.ident is not None:
            self.waker.send(b"x")
            self.join()
        self.detach()
        for each in (self.listener, self.waker, self.wakee):
            each.close()
        if unlink:
            Path(self.path).unlink(missing_ok=True)


class SerialFile:
    """Mode File (created and truncated at every opening), Tty (stdout), Pty, Null and Off."""

    def __init__(self, mode: str, path: str | None) -> None:
        self.path = path
        self.slave = -1
        match mode:
            case "File":
                self.fd = os.open(path or "", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            case "Tty":
                self.fd = os.dup(sys.stdout.fileno())
            case "Pty":
                self.fd, self.slave = os.openpty()
                self.path = os.ttyname(self.slave)
                os.set_blocking(self.fd, False)
            case _:
                self.fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def start(self) -> None:
        """Nothing reads from these."""

    def write(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.fd, data)

    def close(self, *, unlink: bool) -> None:  # noqa: ARG002  # as SerialSocket's
        os.close(self.fd)
        if self.slave >= 0:
            os.close(self.slave)
