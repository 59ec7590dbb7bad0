"""Assertions 1-3, 10-17 and 54 of the conformance list: what the API's server does with bytes."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from launcher.vmm import api
from tests.contract.harness import RawClient, get, put

if TYPE_CHECKING:
    from tests.contract.conftest import Start
    from tests.contract.harness import Vmm

PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n"


def request(method: str, route: str, body: bytes | None = None, extra: str = "") -> bytes:
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    return f"{method} /api/v1/{route} HTTP/1.1\r\nHost: x\r\n{extra}{length}\r\n".encode() + (body or b"")


def test_01_ping_tells_version_and_pid(vmm: Vmm) -> None:
    info = api.decode_ping(api.ping(), vmm.call(api.ping()))
    assert (info.version, info.build_version, info.pid) == ("53.0.0", "v53.0", vmm.process.pid)
    assert set(json.loads(vmm.call(api.ping()).body)) == {"build_version", "version", "pid", "features"}


@pytest.mark.parametrize("route", ["vmm.ping", "vm.info", "nope"])
def test_02_every_answer_of_a_route_has_its_two_headers_and_no_reason(start: Start, route: str) -> None:
    with RawClient(start().socket) as client:
        answer = client.ask(request("GET", route))
    assert answer.line in {b"HTTP/1.1 200 ", b"HTTP/1.1 404 "}
    assert answer.headers[:3] == [
        b"Server: Cloud Hypervisor API",
        b"Connection: keep-alive",
        b"Content-Type: application/json",
    ]


def test_02_no_content_has_no_length(start: Start) -> None:
    with RawClient(start().socket) as client:
        answer = client.ask(request("PUT", "vm.delete"))
    assert answer.line == b"HTTP/1.1 204 "
    assert answer.headers == [b"Server: Cloud Hypervisor API", b"Connection: keep-alive"]


@pytest.mark.parametrize("route", ["nope", "vmm.ping/", "vmm.ping?x=1", ""])
def test_03_unknown_paths_are_not_found(vmm: Vmm, route: str) -> None:
    response = vmm.call(get(route))
    assert (response.status, json.loads(response.body)) == (404, ["Not Found"])


@pytest.mark.parametrize(
    "body", [b"{", b"nope", b"[]", b"null", b"{} x", b'{"cpus":{"boot_vcpus":1}}', b'{"serial":{"mode":"tty"}}']
)
def test_10_malformed_bodies_are_told_so(vmm: Vmm, body: bytes) -> None:
    response = vmm.call(api.Call("PUT", "/api/v1/vm.create", body))
    assert response.status == 400
    assert json.loads(response.body)[0] == "Failed to deserialize JSON"


def test_11_create_without_a_body(vmm: Vmm) -> None:
    response = vmm.put("vm.create")
    assert (response.status, response.body, response.headers["content-length"]) == (400, b"", "0")


@pytest.mark.parametrize(
    "route", ["vm.boot", "vm.delete", "vm.shutdown", "vm.reboot", "vm.pause", "vm.resume", "vm.power-button"]
)
def test_12_a_body_where_none_belongs(vmm: Vmm, route: str) -> None:
    response = vmm.put(route, {})
    assert (response.status, json.loads(response.body)) == (400, ["Bad Request"])


@pytest.mark.parametrize("call", [get("vm.boot"), put("vmm.ping"), get("vm.create"), put("vm.info"), put("vm.add-net")])
def test_13_the_wrong_method(vmm: Vmm, call: api.Call) -> None:
    response = vmm.call(call)
    assert (response.status, json.loads(response.body)) == (400, ["Bad Request"])


@pytest.mark.parametrize("method", ["POST", "HEAD", "DELETE", "get"])
def test_14_a_method_that_the_parser_does_not_know(start: Start, method: str) -> None:
    with RawClient(start().socket) as client:
        answer = client.ask(request(method, "vmm.ping"))
        assert (answer.status, answer.headers[0]) == (400, b"Server: Firecracker API")
        assert answer.body.startswith(b'{ "error": "Invalid HTTP Method')
        assert answer.body.endswith(b'\nAll previous unanswered requests will be dropped." }')
    with pytest.raises(ValueError, match="control character"):
        json.loads(answer.body)
    assert api.error_chain(answer.body) == ("Invalid HTTP Method: Unsupported HTTP method.",)


def test_15_a_body_may_have_51200_bytes(start: Start) -> None:
    vmm = start()
    vmm.ok(api.Call("PUT", "/api/v1/vm.create", b" " * 51198 + b"{}"))
    with RawClient(vmm.socket) as client:
        answer = client.ask(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 51201\r\n\r\n")
    assert (answer.status, answer.headers[0]) == (400, b"Server: Firecracker API")
    assert b"size 51201 is larger than the limit of 51200" in answer.body


@pytest.mark.parametrize(
    "line", ["GET /" + "a" * 1100 + " HTTP/1.1\r\n", "GET / HTTP/1.1\r\nX: " + "a" * 1100 + "\r\n"]
)
def test_15_a_line_may_have_1024_bytes(start: Start, line: str) -> None:
    with RawClient(start().socket) as client:
        answer = client.ask(f"{line}\r\n".encode())
    assert (answer.status, answer.headers[0]) == (400, b"Server: Firecracker API")


def test_16_the_eleventh_connection_is_turned_away(start: Start) -> None:
    vmm = start()
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            assert stack.enter_context(RawClient(vmm.socket)).ask(PING).status == 200
        answer = stack.enter_context(RawClient(vmm.socket)).read()
        assert answer.line == b"HTTP/1.1 503"
        assert answer.body == b'{ "error": "Too many open connections" }'
        with pytest.raises(api.VmmRefused, match="Too many open connections"):
            api.accept(api.ping(), vmm.call(api.ping()))


def test_17_a_half_closed_client_gets_no_answer(start: Start) -> None:
    vmm = start()
    with RawClient(vmm.socket) as client:
        assert client.ask(PING).status == 200
        vmm.stopped()  # so that it sees the request and the half close at once
        client.send(PING)
        client.socket.shutdown(socket.SHUT_WR)
        vmm.process.send_signal(signal.SIGCONT)
        assert client.closed_without_a_word()


def test_54_continue_comes_before_the_answer(start: Start) -> None:
    with RawClient(start().socket) as client:
        client.send(request("PUT", "vm.create", b"{}", "Expect: 100-continue\r\n"))
        assert client.read().line == b"HTTP/1.1 100 "
        assert client.read().line == b"HTTP/1.1 204 "


def test_54_a_chunk_is_taken_for_a_request(start: Start) -> None:
    with RawClient(start().socket) as client:
        answer = client.ask(b"PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert (answer.status, answer.headers[0]) == (400, b"Server: Firecracker API")


def test_requests_may_be_pipelined(start: Start) -> None:
    with RawClient(start().socket) as client:
        client.send(PING * 3)
        assert [client.read().status for _ in range(3)] == [200, 200, 200]


def test_a_new_connection_works_after_a_parser_error(start: Start) -> None:
    vmm = start()
    with RawClient(vmm.socket) as client:
        client.ask(request("POST", "vmm.ping"))
    assert vmm.call(api.ping()).status == 200
