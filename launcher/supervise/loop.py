"""The event loop: descriptors, timers and signals on one epoll, nothing else. Standard library, one thread."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Loop:
    """Calls back when a descriptor is ready, a named timer is due, or a signal came in."""

    def __init__(self, *, on_timer: Callable[[str], None], on_signal: Callable[[int], None]) -> None:
        self._selector = selectors.DefaultSelector()
        self._deadlines: dict[str, float] = {}
        self._on_timer = on_timer
        self._on_signal = on_signal
        self._wakeup, self._signalled = socket.socketpair()
        for end in (self._wakeup, self._signalled):
            end.setblocking(False)
        self.watch(self._wakeup.fileno(), READ, self._read_signals)

    def catch(self, *numbers: int) -> None:
        """Have these signals delivered through the loop."""
        for number in numbers:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)

    def watch(self, fd: int, mask: int, callback: Callable[[], object]) -> None:
        """Call back whenever ``fd`` is ready for ``mask``; a second call changes mask and callback.

        Raises PermissionError for what is always ready: a regular file, /dev/null.
        """
        try:
            self._selector.modify(fd, mask, callback)
        except KeyError:
            self._selector.register(fd, mask, callback)

    def unwatch(self, fd: int) -> None:
        """Forget ``fd``, before it is closed; no harm when it is not watched."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def arm(self, timer: str, seconds: float) -> None:
        """(Re)start a named timer."""
        self._deadlines[timer] = time.monotonic() + seconds

    def disarm(self, timer: str) -> None:
        """Stop a named timer; no harm when it is not running."""
        self._deadlines.pop(timer, None)

    def run_once(self) -> None:
        """Wait for something to happen and call back for all of it."""
        timeout = None
        if self._deadlines:
            timeout = max(0.0, min(self._deadlines.values()) - time.monotonic())
        for key, _ in self._selector.select(timeout):
            # A callback may have closed a later descriptor of the same batch.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        now = time.monotonic()
        for timer in [name for name, due in self._deadlines.items() if due <= now]:
            if self._deadlines.get(timer, now + 1) <= now:
                del self._deadlines[timer]
                self._on_timer(timer)

    def close(self) -> None:
        """Give the descriptors back."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wakeup.close()
        self._signalled.close()

    def _read_signals(self) -> None:
        for number in self._wakeup.recv(4096):
            self._on_signal(number)
