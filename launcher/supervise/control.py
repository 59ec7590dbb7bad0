"""The control socket: HTTP/1.1 and JSON on ``launcher.sock``, for our own CLI and for curl.

    GET  /status              what ``launcher status -o json`` prints
    GET  /events[?follow]     JSON lines; with ``follow`` the stream stays open
    POST /power/shutdown      {"timeout": seconds, "force": false}; answers when it had its effect
    POST /power/off           {"timeout": seconds}

Only root and the launcher's own uid are served. Sizes, clients and the time to send a request are bounded, so that
nobody can hold the supervisor up; answers are written as the client takes them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Protocol

from launcher.supervise.loop import READ, WRITE
from launcher.vmm.http import ProtocolError, RequestParser, encode_error, encode_response

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.supervise.loop import Loop
    from launcher.vmm.http import Request

CLIENTS = 16
REQUEST_WITHIN = 5.0  # seconds
BODY_LIMIT = 16 << 10  # bytes
UNREAD_LIMIT = 1 << 20  # bytes that may wait for a follower before it is dropped
LINGER = 1.0  # seconds that the end waits for the clients that asked for it
POWER_TIMEOUT = 60.0  # seconds, unless the request says otherwise


class Services(Protocol):
    """What the socket offers; the supervisor implements it."""

    def status(self) -> dict[str, Any]: ...
    def recent_events(self) -> list[dict[str, Any]]: ...
    def power(self, request: int, action: str, timeout: float, *, force: bool) -> None: ...


class _Client:
    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number  # never used again, as a descriptor would be: a late answer must not reach somebody else
        self.connection = connection
        self.refusal: ProtocolError | None = None
        self.parser = RequestParser(body_limit=BODY_LIMIT)
        self.unsent = bytearray()
        self.requested = False
        self.follows = False
        self.last = False  # close once everything is sent


class ControlServer:
    """Serves the clients from within the loop."""

    def __init__(self, loop: Loop, path: Path, services: Services) -> None:
        self._loop = loop
        self._path = path
        self._services = services
        self._clients: dict[int, _Client] = {}  # by number
        self._numbers = itertools.count(1)
        self._lingering: list[int] = []  # pidfds
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._listener.bind(os.fspath(path))
        path.chmod(0o600)
        self._listener.listen(64)
        loop.watch(self._listener.fileno(), READ, self._accept)

    def answer(self, request: int, error: str | None) -> None:
        """Answer a power request, if its client still waits."""
        client = self._clients.get(request)
        if client is not None:
            if error is None:  # our end comes next
                self._linger_for(client)
            body = {"error": error} if error else {"done": True}
            self._finish(client, encode_response(409 if error else 200, _json(body)))

    def publish(self, event: dict[str, Any]) -> None:
        """Hand one event to everybody who follows."""
        line = _json(event) + b"\n"
        for client in tuple(self._clients.values()):
            if client.follows:
                self._send(client, line)

    def expire(self, timer: str) -> None:
        """A client took too long to send its request (a timer of ours, named ``client NUMBER``)."""
        client = self._clients.get(int(timer.split()[1]))
        if client is not None and not client.requested:
            self._finish(client, encode_error(ProtocolError(408, "the request did not come in time")))

    def close(self) -> None:
        """Send what waits, as far as it goes at once, and close."""
        for client in tuple(self._clients.values()):
            self._flush(client)
            self._drop(client)
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
        deadline = time.monotonic() + LINGER
        for pidfd in self._lingering:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            os.close(pidfd)

    def _linger_for(self, client: _Client) -> None:
        """When PID 1 ends, the kernel kills whatever was exec'ed into the container: let who asked for our end hear of it."""
        pid = _peer(client.connection)[0]
        if os.getpid() == 1 and pid > 0:
            with contextlib.suppress(ProcessLookupError):
                self._lingering.append(os.pidfd_open(pid))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        client = _Client(next(self._numbers), connection)
        self._clients[client.number] = client
        # Told when the request is there: who is still sending would see a broken connection instead.
        if _peer(connection)[1] not in {0, os.geteuid()}:
            client.refusal = ProtocolError(403, "only root may talk to the launcher")
        elif len(self._clients) > CLIENTS:
            client.refusal = ProtocolError(503, f"there are {CLIENTS} clients already")
        if len(self._clients) > 2 * CLIENTS:
            self._drop(client)
            return
        self._loop.watch(connection.fileno(), READ, lambda: self._read(client))
        self._loop.arm(f"client {client.number}", REQUEST_WITHIN)

    def _read(self, client: _Client) -> None:
        try:
            data = client.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        if client.requested:  # one request per connection
            return
        try:
            if client.refusal is not None:
                raise client.refusal
            request = client.parser.feed(data)
            if request is not None:
                client.requested = True
                self._loop.disarm(f"client {client.number}")
                self._serve(client, request)
        except ProtocolError as error:
            self._finish(client, encode_error(error))

    def _serve(self, client: _Client, request: Request) -> None:
        match request.method, request.path:
            case "GET", "/status":
                self._finish(client, encode_response(200, _json(self._services.status())))
            case "GET", "/events" | "/events?follow":
                lines = b"".join(_json(event) + b"\n" for event in self._services.recent_events())
                if request.path == "/events":
                    self._finish(client, encode_response(200, lines, "application/jsonl"))
                    return
                client.follows = True  # no length: the stream lasts until one side closes
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/jsonl\r\n\r\n"
                self._send(client, head + lines)
            case "POST", "/power/off" | "/power/shutdown":
                options = _power_options(request.body)
                action = request.path.rpartition("/")[2]
                self._services.power(client.number, action, options[0], force=options[1])
            case _, "/status" | "/events" | "/events?follow" | "/power/off" | "/power/shutdown":
                raise ProtocolError(405, f"{request.method} does not go with {request.path}")
            case _:
                raise ProtocolError(404, f"there is no {request.path[:80]}; see docs/reference/control-socket.md")

    def _finish(self, client: _Client, data: bytes) -> None:
        client.last = client.requested = True
        self._send(client, data)

    def _send(self, client: _Client, data: bytes) -> None:
        client.unsent += data
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        fd = client.connection.fileno()
        if fd < 0:
            return
        try:
            while client.unsent:
                del client.unsent[: client.connection.send(client.unsent)]
        except BlockingIOError:
            if len(client.unsent) > UNREAD_LIMIT:
                self._drop(client)
                return
            self._loop.watch(fd, READ | WRITE, lambda: self._ready(client))
            return
        except OSError:
            self._drop(client)
            return
        if client.last:
            self._drop(client)
        else:
            self._loop.watch(fd, READ, lambda: self._read(client))

    def _ready(self, client: _Client) -> None:
        self._flush(client)
        if client.connection.fileno() >= 0:
            self._read(client)

    def _drop(self, client: _Client) -> None:
        fd = client.connection.fileno()
        if fd >= 0:
            self._loop.unwatch(fd)
            self._loop.disarm(f"client {client.number}")
            self._clients.pop(client.number, None)
            client.connection.close()


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The pid (0 when it is in another PID namespace) and the uid of who connected."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _power_options(body: bytes) -> tuple[float, bool]:
    try:
        options = json.loads(body) if body else {}
    except ValueError as error:
        raise ProtocolError(400, f"the body is not JSON: {error}") from None
    if not isinstance(options, dict) or options.keys() - {"timeout", "force"}:
        raise ProtocolError(400, 'the body takes "timeout" (seconds) and "force" (true or false)')
    timeout, force = options.get("timeout", POWER_TIMEOUT), options.get("force", False)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 86400:
        raise ProtocolError(400, '"timeout" is a number of seconds above 0, at most 86400')
    if not isinstance(force, bool):
        raise ProtocolError(400, '"force" is true or false')
    return float(timeout), force
