from __future__ import annotations

import contextlib
import os
import selectors
import socket
from typing import TYPE_CHECKING

import pytest

from launcher.emulator.http import MAX_BODY, Request, Response, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n"


class Lab:
    """A server in this thread; ``seen`` holds the requests, each answered with 204 or its body."""

    def __init__(self, path: Path, loop: selectors.BaseSelector) -> None:
        self.path = str(path / "s")
        self.loop = loop
        self.seen: list[Request] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(20)
        self.server = Server(listener, loop, self.handle)

    def handle(self, request: Request) -> Response:
        self.seen.append(request)
        return Response(204) if request.body is None else Response(200, request.body)

    def turn(self) -> None:
        """Let the server do all that it can do now."""
        while ready := self.loop.select(0):
            for key, _ in ready:
                key.data()

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        client.settimeout(0)
        self.turn()
        return client

    def answer(self, data: bytes) -> bytes:
        with self.client() as client:
            client.sendall(data)
            self.turn()
            return client.recv(1 << 20)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with selectors.DefaultSelector() as loop:
        made = Lab(tmp_path, loop)
        yield made
        made.server.close()


def test_an_answer_has_the_real_ones_bytes(lab: Lab) -> None:
    head = b"HTTP/1.1 %d \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
    assert lab.answer(PING) == head % 204 + b"\r\n"
    body = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    assert lab.answer(b"PUT /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}") == head % 200 + body
    assert Response(400).encode().endswith(b"Content-Length: 0\r\n\r\n")


def test_requests_may_be_split_and_pipelined(lab: Lab) -> None:
    with lab.client() as client:
        for byte in PING:
            client.sendall(bytes([byte]))
            lab.turn()
        client.sendall(PING * 3)
        lab.turn()
        assert client.recv(65536).count(b"HTTP/1.1 204") == 4


def test_an_absolute_uri_is_taken(lab: Lab) -> None:
    lab.answer(b"GET http://localhost/api/v1/vmm.ping HTTP/1.0\r\n\r\n")
    assert lab.seen == [Request("GET", "/api/v1/vmm.ping", None)]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /x HTTP/1.1\r\n\r\n",
        b"get /x HTTP/1.1\r\n\r\n",
        b"DELETE /x HTTP/1.1\r\n\r\n",
        b"rubbish\r\n\r\n",
        b"GET /x HTTP/2\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"PUT /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1),
        b"GET /" + b"x" * 1030,
    ],
)
def test_what_is_no_request_is_refused_by_the_parser(lab: Lab, request_bytes: bytes) -> None:
    answer = lab.answer(request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 \r\nServer: Firecracker API\r\n")
    assert answer.endswith(b'\nAll previous unanswered requests will be dropped." }')
    assert lab.seen == []


def test_the_largest_body_is_taken(lab: Lab) -> None:
    lab.answer(b"PUT /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MAX_BODY + b"x" * MAX_BODY)
    assert lab.seen[0].body == b"x" * MAX_BODY


def test_a_half_closed_client_gets_no_answer(lab: Lab) -> None:
    with lab.client() as client:
        client.sendall(PING)
        client.shutdown(socket.SHUT_WR)
        lab.turn()
        assert client.recv(100) == b""
    assert lab.seen == []


def test_who_expects_a_continue_gets_one(lab: Lab) -> None:
    with lab.client() as client:
        client.sendall(b"PUT /x HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        lab.turn()
        assert client.recv(1000).startswith(b"HTTP/1.1 100 \r\n")
        client.sendall(b"{}")
        lab.turn()
        assert client.recv(1000).startswith(b"HTTP/1.1 200 \r\n")


def test_the_eleventh_connection_is_turned_away_and_a_place_is_free_again(lab: Lab) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(lab.client()) for _ in range(11)]
        assert clients[10].recv(1000).startswith(b"HTTP/1.1 503\r\n")
        clients[0].close()
        lab.turn()
        assert lab.answer(PING).startswith(b"HTTP/1.1 204")


def test_descriptors_come_with_their_request(lab: Lab) -> None:
    read, write = os.pipe()
    with lab.client() as client:
        socket.send_fds(client, [PING], [write])
        lab.turn()
    os.close(write)
    (passed,) = lab.seen[0].fds
    os.write(passed, b"x")
    os.close(passed)
    assert os.read(read, 2) == b"x"
    os.close(read)


def test_descriptors_of_no_request_are_closed(lab: Lab) -> None:
    read, write = os.pipe()
    with lab.client() as client:
        socket.send_fds(client, [b"GET"], [write])
        lab.turn()
    os.close(write)
    lab.turn()
    assert os.read(read, 1) == b""  # no writer is left
    os.close(read)
