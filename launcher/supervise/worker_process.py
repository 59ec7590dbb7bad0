"""The worker as a child: settings in, messages out line by line, its log lines into ours."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING

from launcher.codec import DoesNotFit
from launcher.supervise import handoff
from launcher.supervise.children import Child
from launcher.supervise.loop import READ

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.supervise.handoff import Message, Settings
    from launcher.supervise.loop import Loop

_log = logging.getLogger(__name__)


class WorkerProcess:
    """``on_exit`` comes after the last message was delivered."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        *,
        on_message: Callable[[Message], None],
        on_exit: Callable[[int], None],
        on_line: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._on_exit = on_exit
        self._received = bytearray()
        self._reports, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reports, False)
        self.child = Child(
            loop,
            [sys.executable, "-I", "-m", "launcher.worker", "--report-fd", str(theirs)],
            stdin=handoff.encode_settings(settings),
            pass_fds=(theirs,),
            on_exit=self._ended,
            on_line=on_line,
        )
        os.close(theirs)
        loop.watch(self._reports, READ, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reports, 65536):
                self._received += data
            self._loop.unwatch(self._reports)  # closed: its exit comes next
        *lines, rest = bytes(self._received).split(b"\n")
        self._received[:] = rest
        for line in lines:
            try:
                message = handoff.decode(line)
            except DoesNotFit as error:
                _log.warning("the worker sent something unreadable", extra={"fields": {"error": str(error)}})
                continue
            self._on_message(message)

    def _ended(self, status: int) -> None:
        self._read()
        self._loop.unwatch(self._reports)
        os.close(self._reports)
        self._on_exit(status)
