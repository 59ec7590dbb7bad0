"""One API call in flight, driven by whoever owns the event loop.

The supervisor keeps answering signals while vm.boot takes its time: it registers ``fileno()`` for ``interest``, calls
``advance`` when that is ready or ``deadline`` has passed, and gets the response or an error. One fresh connection per
call, never half-closed, always dropped: after a parser error, a time-out or a short read the framing is lost anyway.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from typing import TYPE_CHECKING, Self

from launcher.errors import VmmFailed
from launcher.vmm.http import ProtocolError, ResponseParser, encode_request

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.vmm.api import Call
    from launcher.vmm.http import Response

_READ_SIZE = 65536
_MISSING = "is the launcher running, or was the container restarted?"


def connect(path: Path | str) -> socket.socket:
    """A non-blocking connection to the unix socket ``path``; a unix socket connects at once or not at all.

    Raises VmmFailed, with what the user can do about it, when nobody can be reached there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise _unreachable(path, error) from error
    return connection


class PendingCall:
    """``call`` sent to the unix socket ``path``; ``now`` is the caller's monotonic clock in seconds.

    Raises VmmFailed from the constructor when nobody listens there. Closes itself when ``advance`` returns a response or
    raises.
    """

    def __init__(self, path: Path | str, call: Call, *, now: float) -> None:
        self.call = call
        self.deadline = now + call.deadline_s
        self._unsent = memoryview(encode_request(call.method, call.path, call.body))
        self._fds = call.fds
        self._parser = ResponseParser()
        self._socket = connect(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket, -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Drop the connection. The VMM may still carry the call out."""
        self._socket.close()

    @property
    def interest(self) -> int:
        """What to wait for: ``selectors.EVENT_WRITE`` while sending, then ``selectors.EVENT_READ``."""
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def advance(self, now: float) -> Response | None:
        """Do what can be done without waiting. None means not yet.

        Raises VmmFailed when the deadline has passed without an answer, or the answer is none.
        """
        try:
            response = self._send_and_receive()
        except ProtocolError as error:
            self.close()
            raise VmmFailed(f"the VMM did not answer {self.call.name}: {error.message}") from error
        except OSError as error:
            self.close()
            raise VmmFailed(f"the connection for {self.call.name} broke: {error.strerror}") from error
        if response is None and now < self.deadline:
            return None
        self.close()
        if response is None:
            raise VmmFailed(
                f"the VMM did not answer {self.call.name} within {self.call.deadline_s:g} s",
                hint="it does one thing at a time; it may still be busy with this or an earlier call",
            )
        return response

    def _send_and_receive(self) -> Response | None:
        try:
            while self._unsent:
                # The descriptors go with the first bytes: the VMM collects them while it reads the request.
                sent = (
                    socket.send_fds(self._socket, [self._unsent], self._fds)
                    if self._fds
                    else self._socket.send(self._unsent)
                )
                self._fds = ()
                self._unsent = self._unsent[sent:]
        except BlockingIOError:
            return None
        except (BrokenPipeError, ConnectionResetError):
            # A server with too many connections answers and closes before it has read anything.
            self._unsent = self._unsent[:0]
        try:
            while data := self._socket.recv(_READ_SIZE):
                if response := self._parser.feed(data):
                    return response
        except BlockingIOError:
            return None
        return self._parser.eof()


def _unreachable(path: Path | str, error: OSError) -> VmmFailed:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return VmmFailed(f"there is no VMM socket at {path}", hint=_MISSING)
        case errno.ECONNREFUSED:
            return VmmFailed(f"nobody listens at {path}", hint=f"left behind by a VMM that is gone; {_MISSING}")
        case errno.EAGAIN:
            return VmmFailed(f"too many callers already wait at {path}", hint="the VMM is busy; try again")
        case errno.EACCES | errno.EPERM:
            return VmmFailed(
                f"no permission to connect to {path}", hint="run it as the launcher's user, in its container"
            )
        case _:  # a path above 107 bytes has no errno
            return VmmFailed(f"cannot connect to {path}: {error.strerror or error}")
