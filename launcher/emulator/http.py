"""The server side of cloud-hypervisor's HTTP, byte for byte where a client can see it.

Source: firecracker-microvm/micro-http as v53.0 uses it. Requests are answered strictly one after the other, so nothing
else is answered while one runs. Descriptors sent with SCM_RIGHTS arrive with the request they came with.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONNECTIONS = 10
MAX_BODY = 51200  # bytes; v53.0 and older
MAX_LINE = 1024  # the request line, and each header line
MAX_FDS = 253
SEND_TIMEOUT = struct.pack("ll", 5, 0)  # struct timeval: how long a client may leave an answer unread
METHODS = ("GET", "PUT", "PATCH")  # what its parser knows

TOO_MANY = (
    b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
    b'{ "error": "Too many open connections" }'
)
CONTINUE = b"HTTP/1.1 100 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; ``fds`` belong to whoever handles it. ``body`` is None without a Content-Length above zero."""

    method: str
    path: str
    body: bytes | None
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """``body`` None leaves Content-Length out of a 204 and makes it zero elsewhere."""

    status: int
    body: bytes | None = None

    def encode(self) -> bytes:
        head = f"HTTP/1.1 {self.status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
        if self.body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        elif self.status != 204:
            head += "Content-Length: 0\r\n"
        return head.encode() + b"\r\n" + (self.body or b"")


class ParserError(Exception):
    """The bytes are not a request; framing is lost."""

    def encode(self) -> bytes:
        # A raw newline inside the string: the real one's body is not strict JSON either.
        body = f'{{ "error": "{self}\nAll previous unanswered requests will be dropped." }}'.encode()
        head = (
            "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
        )
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    length: int
    wants_continue: bool
    size: int  # bytes up to the body


def parse_head(data: bytes) -> _Head | None:
    """The head of the first request in ``data``, or None as long as it is incomplete."""
    end = data.find(b"\r\n\r\n")
    for line in (data[:end] if end >= 0 else data).split(b"\r\n"):
        if len(line) > MAX_LINE:
            raise ParserError("Invalid request line or header: it is too long.")
    if end < 0:
        return None
    first, *headers = data[:end].decode("latin-1").split("\r\n")
    match first.split(" "):
        case [method, uri, "HTTP/1.1" | "HTTP/1.0"] if method in METHODS and uri:
            path = uri.removeprefix("http://").partition("/")[1:] if uri.startswith("http://") else (uri,)
        case [method, _, _] if method not in METHODS:
            raise ParserError("Invalid HTTP Method.")
        case _:
            raise ParserError("Invalid HTTP request line.")
    length, wants_continue = 0, False
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise ParserError(f"Invalid header. Key:{name}")
        match name.strip().lower(), value.strip():
            case "content-length", number:
                if not number.isascii() or not number.isdigit():
                    raise ParserError(f"Invalid value. Key:Content-Length; Value: {number}")
                length = int(number)
            case "expect", value if value.lower() == "100-continue":
                wants_continue = True
            case _:
                pass
    if length > MAX_BODY:
        raise ParserError(
            f"Request payload with size {length} is larger than the limit of {MAX_BODY} allowed by server."
        )
    return _Head(method, "".join(path), length, wants_continue, end + 4)


class _Connection:
    """One client: what it sent and was not handled yet."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.buffer = b""
        self.fds: list[int] = []
        self.continued = False

    def receive(self) -> bool:
        """Take what is there; False when the client has closed, if only its sending half."""
        try:
            data, fds, _, _ = socket.recv_fds(
                self.socket, 65536, MAX_FDS, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.fds += fds
        self.buffer += data
        if not data:
            return False
        try:
            return self.socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def next(self) -> Request | None:
        """The next complete request."""
        head = parse_head(self.buffer)
        if head is None:
            return None
        if len(self.buffer) < head.size + head.length:
            if head.wants_continue and not self.continued:
                self.continued = True
                self.socket.sendall(CONTINUE)
            return None
        if head.wants_continue and not self.continued:
            self.socket.sendall(CONTINUE)
        body = self.buffer[head.size : head.size + head.length]
        self.buffer = self.buffer[head.size + head.length :]
        self.continued = False
        fds, self.fds = tuple(self.fds), []
        return Request(head.method, head.path, body or None, fds)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.socket.close()


class Server:
    """Answers the requests that arrive at ``listener`` with what ``handle`` returns for them."""

    def __init__(
        self, listener: socket.socket, loop: selectors.BaseSelector, handle: Callable[[Request], Response]
    ) -> None:
        self._listener = listener
        self._loop = loop
        self._handle = handle
        self._connections: set[_Connection] = set()
        listener.setblocking(False)
        loop.register(listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        self._loop.unregister(self._listener)
        self._listener.close()
        for connection in tuple(self._connections):
            self._drop(connection)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it went away before we looked
            return
        client.setblocking(True)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SEND_TIMEOUT)
        if len(self._connections) >= MAX_CONNECTIONS:
            with client, contextlib.suppress(OSError):
                client.sendall(TOO_MANY)
            return
        connection = _Connection(client)
        self._connections.add(connection)
        self._loop.register(client, selectors.EVENT_READ, lambda: self._serve(connection))

    def _drop(self, connection: _Connection) -> None:
        self._loop.unregister(connection.socket)
        self._connections.discard(connection)
        connection.close()

    def _serve(self, connection: _Connection) -> None:
        if not connection.receive():
            self._drop(connection)
            return
        try:
            while (request := connection.next()) is not None:
                connection.socket.sendall(self._handle(request).encode())
        except ParserError as error:
            connection.buffer = b""
            with contextlib.suppress(OSError):
                connection.socket.sendall(error.encode())
        except OSError:
            self._drop(connection)
