"""Slow clients of the control socket, with a loop of our own and real sockets."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from launcher.supervise import control
from launcher.supervise.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Server:
    """A control server whose services are this object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[int] = []
        self.loop = Loop(on_timer=self._on_timer, on_signal=lambda _: None)
        self.control = control.ControlServer(self.loop, path, self)

    def _on_timer(self, name: str) -> None:
        self.control.expire(name)

    def status(self) -> dict[str, Any]:
        return {"phase": "running"}

    def recent_events(self) -> list[dict[str, Any]]:
        return [{"event": "started"}]

    def power(self, request: int, action: str, timeout: float, *, force: bool) -> None:  # noqa: ARG002  # Services
        self.asked.append(request)

    def client(self, text: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(str(self.path))
        client.sendall(text)
        self.turn()
        return client

    def turn(self) -> None:
        """Let the loop do what there is to do."""
        self.loop.arm("client 0", 0)  # nobody's: the loop returns even if nothing happened
        for _ in range(3):
            self.loop.run_once()
            self.loop.arm("client 0", 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "s")
    yield server
    server.control.close()
    server.loop.close()


def test_a_request_that_does_not_come_in_time_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_WITHIN", 0.05)
    with server.client(b"GET /sta") as slow:
        deadline = time.monotonic() + 5
        slow.setblocking(False)
        answer = b""
        while not answer and time.monotonic() < deadline:
            server.loop.run_once()
            try:
                answer = slow.recv(4096)
            except BlockingIOError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_asked_in_time_may_wait_for_ever(server: Server) -> None:
    with server.client(b"POST /power/shutdown HTTP/1.1\r\n\r\n") as client:
        server.control.expire(f"client {server.asked[0]}")
        server.control.answer(server.asked[0], "it did not")
        assert b"409" in client.recv(4096)


def test_a_follower_gets_the_past_and_the_present(server: Server) -> None:
    with server.client(b"GET /events?follow HTTP/1.1\r\n\r\n") as follower, follower.makefile("rb") as stream:
        server.control.publish({"event": "later"})
        while stream.readline().strip():
            pass
        assert [json.loads(stream.readline())["event"] for _ in range(2)] == ["started", "later"]


def test_a_follower_that_does_not_read_is_dropped_and_the_others_are_served(server: Server) -> None:
    with (
        server.client(b"GET /events?follow HTTP/1.1\r\n\r\n") as deaf,
        server.client(b"GET /events?follow HTTP/1.1\r\n\r\n") as keen,
    ):
        event = {"event": "x" * 1000}
        got = dropped_at = 0
        for number in range(2000):
            server.control.publish(event)
            server.turn()
            got += len(keen.recv(65536))
            if len(server.control._clients) == 1 and not dropped_at:
                dropped_at = number
        assert dropped_at * 1000 > control.UNREAD_LIMIT
        assert got > 2000 * 1000
        while data := deaf.recv(1 << 20):
            assert data


def test_an_answer_goes_to_who_asked_or_to_nobody(server: Server) -> None:
    first = server.client(b"POST /power/shutdown HTTP/1.1\r\n\r\n")
    first.close()
    server.turn()
    with server.client(b"POST /power/shutdown HTTP/1.1\r\n\r\n") as second:
        server.control.answer(server.asked[0], None)
        server.control.answer(server.asked[1], "too late")
        assert json.loads(second.recv(4096).partition(b"\r\n\r\n")[2]) == {"error": "too late"}


def test_at_the_end_what_waits_is_sent(server: Server) -> None:
    with server.client(b"GET /events?follow HTTP/1.1\r\n\r\n") as follower:
        server.control.publish({"event": "ended"})
        server.control.close()
        received = b"".join(iter(lambda: follower.recv(4096), b""))
        assert received.endswith(b'{"event": "ended"}\n')
    assert not server.path.exists()
