"""Carrying one call to the VMM and waiting for its answer.

``SocketTransport`` is what the launcher uses; ``requests_transport`` is an independent second client for the command
line's sake and the contract tests', behind the same protocol.
"""

from __future__ import annotations

import select
import selectors
import time
from typing import TYPE_CHECKING, Protocol

from launcher.vmm.nonblocking import PendingCall

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.vmm.api import Call
    from launcher.vmm.http import Response


class Transport(Protocol):
    """Something that can carry a call. Raises VmmFailed when there is no answer; a refusal is an answer."""

    def call(self, call: Call) -> Response: ...


class SocketTransport:
    """The VMM's unix socket at ``path``: one fresh connection per call, descriptors included, the deadline over all."""

    def __init__(self, path: Path | str) -> None:
        self._path = path

    def call(self, call: Call) -> Response:
        with PendingCall(self._path, call, now=time.monotonic()) as pending:
            poll = select.poll()
            while True:
                now = time.monotonic()
                response = pending.advance(now)
                if response is not None:
                    return response
                poll.register(pending, select.POLLOUT if pending.interest == selectors.EVENT_WRITE else select.POLLIN)
                poll.poll(max(0.0, pending.deadline - now) * 1000)
