"""Our calls to the VMM, one at a time and without blocking the loop; and the API socket's public name."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from launcher.errors import VmmFailed
from launcher.supervise import outcome as ends
from launcher.supervise.model import Answered
from launcher.vmm import api
from launcher.vmm.nonblocking import PendingCall

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.paths import Paths
    from launcher.supervise.handoff import Handoff
    from launcher.supervise.loop import Loop
    from launcher.supervise.model import ApiName
    from launcher.vmm.http import Response

START_WITHIN = 15.0  # seconds for the first answer of a VMM that is starting


class ApiQueue:
    """The VMM has one API thread; so there is one call under way, and the others wait here."""

    def __init__(
        self, loop: Loop, paths: Paths, now: Callable[[], float], answered: Callable[[Answered], None]
    ) -> None:
        self._loop = loop
        self._paths = paths
        self._now = now
        self._answered = answered
        self._waiting: deque[tuple[ApiName, api.Call]] = deque()
        self._current: tuple[ApiName, PendingCall] | None = None
        self._watched = -1
        self._public = False

    @property
    def socket(self) -> Path:
        """Where the API is at the moment."""
        return self._paths.api_socket if self._public else self._paths.early_api_socket

    def ask(self, name: ApiName, plan: Handoff | None) -> None:
        """Make a call as soon as the ones before it are through; the same call is not queued twice."""
        if any(waiting == name for waiting, _ in self._waiting) or (self._current and self._current[0] == name):
            return
        self._waiting.append((name, _call(name, plan)))
        self._next()

    def advance(self) -> None:
        """Go on with the call under way: its socket is ready, or its time is over."""
        if self._current is None:
            return
        name, pending = self._current
        try:
            response = pending.advance(self._now())
        except VmmFailed as error:
            self._done(Answered(name, refusal=ends.failed(error), unreachable=True))
            return
        if response is None:
            self._watch(pending)
        else:
            self._done(_answer(name, pending.call, response))

    def publish(self) -> None:
        """Let other clients in: the VM runs, so nobody can boot it half-configured."""
        if not self._public and self._paths.early_api_socket.exists():
            self._paths.early_api_socket.rename(self._paths.api_socket)
            self._public = True

    def withdraw(self) -> None:
        """Take the public name away; our own calls go on under the private one."""
        if self._public and self._paths.api_socket.exists():
            self._paths.api_socket.rename(self._paths.early_api_socket)
        self._public = False

    def close(self) -> None:
        """The VMM is gone: nothing will be answered any more, and the socket means nothing."""
        self._waiting.clear()
        if self._current is not None:
            self._unwatch()
            self._current[1].close()
            self._current = None
        for path in (self._paths.api_socket, self._paths.early_api_socket):
            path.unlink(missing_ok=True)
        self._public = False

    def _next(self) -> None:
        if self._current is not None or not self._waiting:
            return
        name, call = self._waiting.popleft()
        try:
            pending = PendingCall(self.socket, call, now=self._now())
        except VmmFailed as error:
            self._answered(Answered(name, refusal=ends.failed(error), unreachable=True))
            self._next()
            return
        self._current = name, pending
        self._loop.arm("call", call.deadline_s)
        self._watch(pending)

    def _done(self, answer: Answered) -> None:
        self._unwatch()
        self._current = None
        self._loop.disarm("call")
        self._answered(answer)
        self._next()

    def _watch(self, pending: PendingCall) -> None:
        self._watched = pending.fileno()
        self._loop.watch(self._watched, pending.interest, self.advance)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._loop.unwatch(self._watched)
            self._watched = -1


def _call(name: ApiName, plan: Handoff | None) -> api.Call:
    match name:
        case "ping":
            return replace(api.ping(), deadline_s=START_WITHIN)
        case "create":
            return api.create(plan.vm_config if plan is not None else {})
        case "boot":
            return api.boot()
        case "info":
            return api.info()
        case "power-button":
            return api.power_button()
        case "resume":
            return api.resume()
        case "shutdown":
            return api.shutdown()
        case "vmm-shutdown":
            return api.vmm_shutdown()
        case _:
            assert_never(name)


def _answer(name: ApiName, call: api.Call, response: Response) -> Answered:
    try:
        if name == "info":
            return Answered(name, vm_state=api.decode_info(call, response).state)
        api.accept(call, response)
    except api.VmmRefused as error:
        return Answered(name, refusal=ends.failed(error), not_created=error.not_created)
    except VmmFailed as error:
        return Answered(name, refusal=ends.failed(error))
    return Answered(name)
