"""The clients against a socket that a test drives by hand; against a VMM see tests/contract."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from launcher.errors import LauncherError, VmmFailed
from launcher.vmm import api
from launcher.vmm.nonblocking import PendingCall
from launcher.vmm.requests_transport import RequestsTransport
from launcher.vmm.transport import SocketTransport, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
OK = b"HTTP/1.1 200 \r\nServer: x\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}"
QUICK = api.Call("GET", "/api/v1/vmm.ping", deadline_s=0.05)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(8)
        server.settimeout(10)
        yield server


@contextmanager
def serving(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Answer one connection with ``serve``, which gets it after the request's first bytes have arrived."""
    with listening(path) as server:

        def answer() -> None:
            client, _ = server.accept()
            while not client.recv(1):  # a probe that closed again
                client.close()
                client, _ = server.accept()
            with client:
                serve(client)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            thread.join(10)


@pytest.fixture(params=[SocketTransport, RequestsTransport])
def make(request: pytest.FixtureRequest) -> Callable[[Path], Transport]:
    chosen: Callable[[Path], Transport] = request.param
    return chosen


def test_an_answer_comes_back(tmp_path: Path, make: Callable[[Path], Transport]) -> None:
    with serving(tmp_path / "s", lambda client: client.sendall(OK)):
        response = make(tmp_path / "s").call(api.ping())
    assert (response.status, response.body, response.headers["server"]) == (200, b"{}", "x")


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200", b"HTTP/1.1 204 \r\n", OK[:-1], OK[:-20]])
def test_an_answer_that_was_cut_is_an_error(tmp_path: Path, make: Callable[[Path], Transport], raw: bytes) -> None:
    with (
        serving(tmp_path / "s", lambda client: client.sendall(raw)),
        pytest.raises(VmmFailed, match=r"did not answer vmm\.ping|broke"),
    ):
        make(tmp_path / "s").call(api.ping())


def test_silence_ends_at_the_deadline(tmp_path: Path, make: Callable[[Path], Transport]) -> None:
    with listening(tmp_path / "s"), pytest.raises(VmmFailed, match=r"did not answer vmm\.ping within 0\.05 s"):
        make(tmp_path / "s").call(QUICK)


def test_no_socket_and_nobody_at_it_are_told_apart(tmp_path: Path, make: Callable[[Path], Transport]) -> None:
    transport = make(tmp_path / "s")
    with pytest.raises(VmmFailed, match=r"there is no VMM socket at .*container restarted"):
        transport.call(api.ping())
    with listening(tmp_path / "s"):
        pass
    with pytest.raises(VmmFailed, match=r"nobody listens at .*is gone"):
        transport.call(api.ping())


def test_a_path_that_is_too_long_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VmmFailed, match=r"cannot connect to .*too long"):
        SocketTransport(tmp_path / ("s" * 120)).call(api.ping())


def test_requests_cannot_pass_descriptors(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="cannot be passed"):
        RequestsTransport(tmp_path / "s").call(api.add_net({}, (0,)))


def test_descriptors_arrive_with_the_first_bytes(tmp_path: Path) -> None:
    with listening(tmp_path / "s") as server, (tmp_path / "tap").open("w+b") as tap:
        with PendingCall(tmp_path / "s", api.add_net({"id": "n"}, (tap.fileno(),)), now=0) as pending:
            assert pending.advance(0) is None
            client, _ = server.accept()
            with client:
                data, fds, _, _ = socket.recv_fds(client, 16, 4)
                client.sendall(NO_CONTENT)
                response = pending.advance(1)
        assert data == b"PUT /api/v1/vm.a"
        assert [os.path.sameopenfile(fd, tap.fileno()) for fd in fds] == [True]
        for fd in fds:
            os.close(fd)
    assert response is not None
    assert response.status == 204


def test_a_large_body_is_sent_in_turns_and_its_answer_read(tmp_path: Path) -> None:
    body = {"payload": {"cmdline": "x" * 50000}}
    with listening(tmp_path / "s") as server, PendingCall(tmp_path / "s", api.create(body), now=0) as pending:
        client, _ = server.accept()
        with client:
            client.settimeout(10)
            got = b""
            while not got.endswith(b'"}}'):
                assert pending.advance(0) is None
                got += client.recv(4096)
            client.sendall(NO_CONTENT)
            response = pending.advance(0)
        assert response is not None
        assert pending.fileno() == -1


def test_a_pending_call_waits_until_its_deadline_by_the_callers_clock(tmp_path: Path) -> None:
    with listening(tmp_path / "s"), PendingCall(tmp_path / "s", api.ping(), now=100) as pending:
        assert pending.deadline == 102
        assert pending.advance(101.9) is None
        with pytest.raises(VmmFailed, match="within 2 s"):
            pending.advance(102)
        assert pending.fileno() == -1


def test_an_answer_sent_before_the_request_was_read_is_still_read(tmp_path: Path) -> None:
    busy = b'HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n{ "error": "Too many open connections" }'
    with listening(tmp_path / "s") as server, PendingCall(tmp_path / "s", api.ping(), now=0) as pending:
        client, _ = server.accept()
        with client:
            client.sendall(busy)
        response = pending.advance(0)
    assert response is not None
    with pytest.raises(api.VmmRefused, match="Too many open connections"):
        api.accept(api.ping(), response)
