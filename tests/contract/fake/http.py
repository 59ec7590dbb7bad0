"""micro_http as cloud-hypervisor uses it: byte shapes, limits and oddities as seen on a running v53.0."""

from __future__ import annotations

import os
import select
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READ = 1024  # bytes per read; also the limit of a request or header line
CONNECTIONS = 10
METHODS = {b"GET", b"PUT", b"PATCH"}
TOO_MANY = (
    b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
    b'{ "error": "Too many open connections" }'
)
CONTINUE = b"HTTP/1.1 100 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"


class ParserError(Exception):
    """What the parser refuses, in its words."""


@dataclass(frozen=True)
class Answer:
    """``body`` None sends no length at all, as a 204 does."""

    status: int
    body: bytes | None = None


def encode(answer: Answer, server: str = "Cloud Hypervisor API") -> bytes:
    head = f"HTTP/1.1 {answer.status} \r\nServer: {server}\r\nConnection: keep-alive\r\n"
    if answer.body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(answer.body)}\r\n"
    return f"{head}\r\n".encode() + (answer.body or b"")


@dataclass
class Connection:
    socket: socket.socket
    line: bytearray = field(default_factory=bytearray)
    request: tuple[str, str] | None = None
    length: int = 0
    expects: bool = False
    body: bytearray | None = None
    fds: list[int] = field(default_factory=list)
    parsed: list[tuple[str, str, bytes | None, list[int]]] = field(default_factory=list)

    def reset(self) -> None:
        self.request, self.length, self.expects, self.body, self.fds = None, 0, False, None, []

    def drop(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.socket.close()


def request_line(line: bytes) -> tuple[str, str]:
    parts = line.split(b" ")
    if len(parts) != 3:
        raise ParserError("Invalid request.")
    method, target, version = parts
    if method not in METHODS:
        raise ParserError("Invalid HTTP Method: Unsupported HTTP method.")
    if version not in {b"HTTP/1.0", b"HTTP/1.1"}:
        raise ParserError("Invalid HTTP Version: Unsupported HTTP version.")
    path = target.decode(errors="replace")
    if path.startswith("http://"):
        path = "/" + path.removeprefix("http://").partition("/")[2]
    return method.decode(), path


def header_line(connection: Connection, line: bytes, limit: int) -> None:
    name, colon, value = line.decode(errors="replace").partition(":")
    value = value.strip()
    if not colon:
        raise ParserError(f"Invalid header. Reason: Header is incorrectly formatted. Key: {name}")
    match name.lower():
        case "content-length":
            if not value.isascii() or not value.isdigit():
                raise ParserError(f"Invalid header. Reason: Invalid value. Key:Content-Length; Value: {value}")
            if int(value) > limit:
                raise ParserError(
                    f"Request payload with size {value} is larger than the limit of {limit} allowed by server."
                )
            connection.length = int(value)
        case "expect":
            connection.expects = value == "100-continue"
        case "accept-encoding" if "identity;q=0" in value.replace(" ", ""):
            raise ParserError(f"Invalid header. Reason: Invalid value. Key:Accept-Encoding; Value:{value}")
        case _:
            pass  # Transfer-Encoding among them: read and ignored, so that a chunk becomes a request line


class Server(threading.Thread):
    """One thread; ``handle(method, path, body, fds)`` blocks it, and with it every other connection."""

    def __init__(
        self, listener: socket.socket, handle: Callable[[str, str, bytes | None, list[int]], Answer], limit: int
    ) -> None:
        super().__init__(daemon=True)
        self.listener = listener
        self.handle = handle
        self.limit = limit
        self.connections: dict[int, Connection] = {}
        self.waker = os.eventfd(0, os.EFD_CLOEXEC)

    def stop(self) -> None:
        os.eventfd_write(self.waker, 1)
        self.join(0.5)  # a request that came as the VMM ended is never answered; the connection ends with us

    def run(self) -> None:
        epoll = select.epoll()
        epoll.register(self.listener, select.EPOLLIN)
        epoll.register(self.waker, select.EPOLLIN)
        while True:
            for fd, events in epoll.poll():
                if fd == self.waker:
                    epoll.close()
                    return
                if fd == self.listener.fileno():
                    self.accept(epoll)
                elif connection := self.connections.get(fd):
                    self.serve(fd, connection, events)

    def accept(self, epoll: select.epoll) -> None:
        client, _ = self.listener.accept()
        if len(self.connections) >= CONNECTIONS:
            client.sendall(TOO_MANY)
            client.close()
            return
        self.connections[client.fileno()] = Connection(client)
        epoll.register(client, select.EPOLLIN | select.EPOLLRDHUP)

    def serve(self, fd: int, connection: Connection, events: int) -> None:
        try:
            if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                raise ConnectionResetError  # half closed: nothing is answered, not even what has arrived
            data, fds, _, _ = socket.recv_fds(connection.socket, READ, 253)
            connection.fds += fds
            self.feed(connection, data)
        except OSError:
            connection.drop()
            del self.connections[fd]

    def feed(self, connection: Connection, data: bytes) -> None:
        try:
            while data:
                data = self.step(connection, data)
            while connection.parsed:
                connection.socket.sendall(encode(self.handle(*connection.parsed.pop(0))))
        except ParserError as error:
            connection.line.clear()
            connection.parsed.clear()  # requests of the same read, not yet answered, go with it
            for fd in connection.fds:
                os.close(fd)
            connection.reset()
            text = f'{{ "error": "{error}\nAll previous unanswered requests will be dropped." }}'
            connection.socket.sendall(encode(Answer(400, text.encode()), "Firecracker API"))

    def step(self, connection: Connection, data: bytes) -> bytes:
        """Take a line or a piece of body from ``data``; what is left of it."""
        if connection.body is not None:
            missing = connection.length - len(connection.body)
            connection.body += data[:missing]
            if len(connection.body) == connection.length:
                self.complete(connection, bytes(connection.body))
            return data[missing:]
        connection.line += data
        end = connection.line.find(b"\r\n")
        if end + 2 > READ or (end < 0 and len(connection.line) >= READ):
            text = connection.line[:READ].decode(errors="replace")
            raise ParserError(
                f"Invalid header. Reason: Invalid content length. Header: {text}"
                if connection.request
                else "Invalid request."
            )
        if end < 0:
            return b""
        line, rest = bytes(connection.line[:end]), bytes(connection.line[end + 2 :])
        connection.line.clear()
        if connection.request is None:
            connection.request = request_line(line)
        elif line:
            header_line(connection, line, self.limit)
        elif connection.length:
            if connection.expects:
                connection.socket.sendall(CONTINUE)
            connection.body = bytearray()
        else:
            self.complete(connection, None)
        return rest

    @staticmethod
    def complete(connection: Connection, body: bytes | None) -> None:
        if connection.request is None:
            raise AssertionError("a body without a request")
        connection.parsed.append((*connection.request, body, connection.fds))
        connection.reset()
