"""HTTP/1.1 as bytes in, values out: no socket, no clock, so the same code serves a blocking caller and an epoll loop.

Only what the two ends need: cloud-hypervisor's micro_http (empty reason phrases, no length on a 204, bodies of at most
51200 bytes, request and header lines of at most 1024, no chunks) and the launcher's control socket (``curl
--unix-socket`` on the other end).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import UsageError, VmmFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_BODY_LIMIT = 51200  # bytes; micro_http's default, which every release up to v53.0 keeps
LINE_LIMIT = 1024  # bytes of a request or header line that micro_http takes, its CRLF included
HEAD_LIMIT = 16384  # bytes of a head that we take
RESPONSE_BODY_LIMIT = 16 << 20  # bytes; a vm.info of the largest VM is far below

_METHOD = re.compile(r"[A-Z]+\Z")
_TARGET = re.compile(r"/[!-~]*\Z")
_REQUEST_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?\Z")
_FIELD = re.compile(rb"([!#-'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*\Z")
_LENGTH = re.compile(r"[0-9]{1,18}\Z")

_REASONS = {
    200: "OK",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class ProtocolError(Exception):
    """The other end does not speak HTTP as we take it. ``status`` is what a server answers; ``message`` is a sentence.

    It stays between a parser and whoever reads the socket; callers of the VMM see VmmFailed instead.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Header names are in lower case; ``path`` is the target as sent, query included."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def encode_request(method: str, path: str, body: bytes | None) -> bytes:
    """One request with exactly one length. ``body`` None sends no length at all, as the VMM's bodyless calls want it.

    Raises UsageError for a method or path that is none, VmmFailed for a body above 51200 bytes: the VMM would answer with
    a parser error and lose the connection's framing.
    """
    if not _METHOD.match(method):
        raise UsageError(f"{method!r} is no HTTP method", hint="use GET or PUT")
    line = f"{method} {path} HTTP/1.1\r\n"
    if not _TARGET.match(path) or len(line) > LINE_LIMIT:
        raise UsageError(f"{path[:80]!r} is no API path", hint="as in /api/v1/vm.info")
    head = f"{line}Host: localhost\r\nAccept: application/json\r\n"
    if body is None:
        return f"{head}\r\n".encode("ascii")
    if len(body) > REQUEST_BODY_LIMIT:
        raise VmmFailed(
            f"the request for {path.rpartition('/')[2]} has {len(body)} bytes, the VMM takes at most {REQUEST_BODY_LIMIT}",
            hint="shorten the kernel command line or attach fewer devices",
        )
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode("ascii") + body


def encode_response(status: int, body: bytes = b"", content_type: str = "application/json") -> bytes:
    """One response, after which the server closes: a control socket needs no keep-alive."""
    head = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nConnection: close\r\n"
    if status != 204:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode("ascii") + (b"" if status == 204 else body)


def encode_error(error: ProtocolError) -> bytes:
    """The response to a request that could not be parsed."""
    return encode_response(error.status, json.dumps({"error": error.message}).encode())


class _Message:
    """What requests and responses share: a head up to the blank line, then a body of known length."""

    def __init__(self, *, body_limit: int, too_large: int) -> None:
        self._buffer = bytearray()
        self._body_limit = body_limit
        self._too_large = too_large

    def _take_head(self) -> tuple[bytes, dict[str, str]] | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end > HEAD_LIMIT or (end < 0 and len(self._buffer) > HEAD_LIMIT):
            raise ProtocolError(431, f"the head has more than {HEAD_LIMIT} bytes")
        if end < 0:
            return None
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        headers: dict[str, str] = {}
        for line in lines:
            field = _FIELD.match(line)
            if field is None:
                raise ProtocolError(400, f"{line[:80].decode(errors='replace')!r} is no header line")
            name = field[1].decode("ascii").lower()
            if name == "content-length" and name in headers:
                raise ProtocolError(400, "there is more than one Content-Length")
            headers[name] = field[2].decode("latin-1")
        if "transfer-encoding" in headers:
            raise ProtocolError(411, "a body must come with Content-Length; chunks are not taken")
        return first, headers

    def _length(self, headers: Mapping[str, str]) -> int | None:
        text = headers.get("content-length")
        if text is None:
            return None
        if not _LENGTH.match(text):
            raise ProtocolError(400, f"Content-Length {text[:40]!r} is no number")
        length = int(text)
        if length > self._body_limit:
            raise ProtocolError(self._too_large, f"a body of {length} bytes is above the limit of {self._body_limit}")
        return length


class ResponseParser(_Message):
    """Feed it what the socket gives; it answers with the response once that is whole. One parser per request."""

    def __init__(self) -> None:
        super().__init__(body_limit=RESPONSE_BODY_LIMIT, too_large=502)
        self._status = 0
        self._headers: dict[str, str] = {}
        self._expected: int | None = None  # bytes of body; None until known, or when only the end of the stream tells

    def feed(self, data: bytes) -> Response | None:
        """Take more bytes. Raises ProtocolError for what is no HTTP response."""
        self._buffer += data
        while not self._status:
            head = self._take_head()
            if head is None:
                return None
            first, headers = head
            line = _STATUS_LINE.match(first)
            if line is None:
                raise ProtocolError(
                    502, f"the answer begins with {first[:40].decode(errors='replace')!r}, not with HTTP/1.1"
                )
            status = int(line[1])
            if status < 200:
                continue  # 100 Continue: the real answer follows
            self._status, self._headers = status, headers
            self._expected = 0 if status in {204, 304} else self._length(headers)
        if self._expected is None:
            if len(self._buffer) > self._body_limit:
                raise ProtocolError(502, f"the answer has more than {self._body_limit} bytes")
            return None
        return self._finish(self._expected) if len(self._buffer) >= self._expected else None

    def eof(self) -> Response:
        """The other end closed: the response that only this could end, else ProtocolError for a truncated one."""
        if self._status and self._expected is None:
            return self._finish(len(self._buffer))
        if not self._status and not self._buffer:
            raise ProtocolError(502, "the connection was closed without an answer")
        raise ProtocolError(502, "the answer was cut off")

    def _finish(self, length: int) -> Response:
        return Response(self._status, self._headers, bytes(self._buffer[:length]))


class RequestParser(_Message):
    """The server's side: feed it what a client sends; it answers with the request once that is whole.

    One request per connection. A body needs Content-Length; without one there is none.
    """

    def __init__(self, *, body_limit: int = REQUEST_BODY_LIMIT) -> None:
        super().__init__(body_limit=body_limit, too_large=413)
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._expected = 0

    @property
    def wants_continue(self) -> bool:
        """The client waits for ``100 Continue`` before it sends its body (curl does so above 1 MiB)."""
        return self._head is not None and self._head[2].get("expect", "").lower() == "100-continue"

    def feed(self, data: bytes) -> Request | None:
        """Take more bytes. Raises ProtocolError, whose status and sentence are the answer."""
        self._buffer += data
        if self._head is None:
            head = self._take_head()
            if head is None:
                return None
            first, headers = head
            line = _REQUEST_LINE.match(first)
            if line is None:
                raise ProtocolError(400, f"{first[:80].decode(errors='replace')!r} is no HTTP/1.1 request line")
            self._head = line[1].decode("ascii"), line[2].decode("ascii"), headers
            self._expected = self._length(headers) or 0
        if len(self._buffer) < self._expected:
            return None
        method, path, headers = self._head
        return Request(method, path, headers, bytes(self._buffer[: self._expected]))
