from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import UsageError, VmmFailed
from launcher.vmm.http import (
    HEAD_LIMIT,
    REQUEST_BODY_LIMIT,
    ProtocolError,
    RequestParser,
    ResponseParser,
    encode_error,
    encode_request,
    encode_response,
)

NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
OK = b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CONTINUE = b"HTTP/1.1 100 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"


def test_a_request_without_a_body_has_no_length() -> None:
    head, _, body = encode_request("PUT", "/api/v1/vm.boot", None).partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /api/v1/vm.boot HTTP/1.1\r\n")
    assert b"ontent-" not in head
    assert body == b""


def test_a_body_comes_with_its_length_even_when_empty() -> None:
    assert b"\r\nContent-Length: 2\r\n\r\n{}" in encode_request("PUT", "/x", b"{}")
    assert encode_request("PUT", "/x", b"").endswith(b"\r\nContent-Length: 0\r\n\r\n")


def test_the_largest_body_passes_and_one_byte_more_is_refused_before_sending() -> None:
    assert encode_request("PUT", "/x", b"a" * REQUEST_BODY_LIMIT)
    with pytest.raises(VmmFailed, match="51201 bytes, the VMM takes at most 51200"):
        encode_request("PUT", "/api/v1/vm.create", b"a" * (REQUEST_BODY_LIMIT + 1))


@pytest.mark.parametrize("path", ["vm.info", "/a b", "/a\r\nX: y", "/é", "", "/" + "a" * 1100])
def test_a_path_that_is_none_is_a_usage_error(path: str) -> None:
    with pytest.raises(UsageError):
        encode_request("GET", path, None)


@pytest.mark.parametrize("method", ["get", "", "GET /x HTTP/1.1\r\n", "GE T"])
def test_a_method_that_is_none_is_a_usage_error(method: str) -> None:
    with pytest.raises(UsageError):
        encode_request(method, "/x", None)


@pytest.mark.parametrize("raw", [NO_CONTENT, OK, CONTINUE + OK, CONTINUE + NO_CONTENT])
def test_a_response_is_whole_at_its_last_byte_however_it_arrives(raw: bytes) -> None:
    parser = ResponseParser()
    for i in range(len(raw) - 1):
        assert parser.feed(raw[i : i + 1]) is None
    response = parser.feed(raw[-1:])
    assert response is not None
    assert response == ResponseParser().feed(raw)
    assert response.status in {200, 204}
    assert response.headers["server"] == "Cloud Hypervisor API"


@pytest.mark.parametrize("raw", [OK, NO_CONTENT])
def test_a_response_that_was_cut_anywhere_is_an_error(raw: bytes) -> None:
    for length in range(len(raw)):
        parser = ResponseParser()
        assert parser.feed(raw[:length]) is None
        with pytest.raises(ProtocolError, match="cut off" if length else "without an answer"):
            parser.eof()


def test_a_response_without_a_length_ends_with_the_connection() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nabc") is None
    assert parser.eof().body == b"abc"


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/2 200 \r\n\r\n",
        b"HTTP/1.1 2000 \r\n\r\n",
        b"HTTP/1.1 200 \r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n",
        b"x" * (HEAD_LIMIT + 1),
    ],
)
def test_what_is_no_response_is_an_error(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseParser().feed(raw)


@given(st.binary(max_size=300))
def test_noise_never_raises_anything_else(noise: bytes) -> None:
    for parser in (ResponseParser(), RequestParser()):
        with contextlib.suppress(ProtocolError):
            parser.feed(noise)


def test_a_request_is_read_with_its_headers_and_body() -> None:
    raw = b'POST /v1/power?x=1 HTTP/1.1\r\nHost: a\r\nX-Thing:  b \r\nContent-Length: 4\r\n\r\n{"a"'
    for cut in range(len(raw)):
        parser = RequestParser()
        assert parser.feed(raw[:cut]) is None
        request = parser.feed(raw[cut:])
        assert request is not None
        assert (request.method, request.path, request.body) == ("POST", "/v1/power?x=1", b'{"a"')
        assert request.headers == {"host": "a", "x-thing": "b", "content-length": "4"}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: ten\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: 11\r\n\r\n", 413),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * HEAD_LIMIT, 431),
    ],
)
def test_a_bad_request_carries_its_status(raw: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        RequestParser(body_limit=10).feed(raw)
    assert caught.value.status == status
    answer = ResponseParser().feed(encode_error(caught.value))
    assert answer is not None
    assert answer.status == status
    assert json.loads(answer.body) == {"error": caught.value.message}


def test_a_client_may_ask_for_continue() -> None:
    parser = RequestParser()
    assert parser.feed(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n") is None
    assert parser.wants_continue


def test_what_the_server_encodes_the_client_reads() -> None:
    for status, body in ((200, b"{}"), (204, b""), (404, b'{"error":"x"}')):
        parser = ResponseParser()
        response = parser.feed(encode_response(status, body))
        assert response is not None
        assert (response.status, response.body) == (status, body)
