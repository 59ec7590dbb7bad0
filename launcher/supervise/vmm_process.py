"""The VMM as a child: started with its API socket and event pipe inherited, its events read, its end explained."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.host.confine import confined_argv
from launcher.supervise.children import Child
from launcher.supervise.loop import READ
from launcher.supervise.model import VmmExited
from launcher.vmm.argv import vmm_argv
from launcher.vmm.events import EventStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.paths import Paths
    from launcher.plan.types import VmmLaunch
    from launcher.supervise.loop import Loop
    from launcher.vmm.events import VmmEvent

_log = logging.getLogger(__name__)

_EVENT_PIPE = 1 << 20  # bytes: the VMM writes without blocking, and what does not fit is lost
_CRASH = re.compile(r"VCPU generated error|panicked at")


class VmmProcess:
    """One VMM, for the VM's whole life. The constructor raises HostUnfit when it cannot be executed."""

    def __init__(
        self,
        loop: Loop,
        paths: Paths,
        launch: VmmLaunch,
        *,
        on_event: Callable[[VmmEvent], None],
        on_exit: Callable[[VmmExited], None],
    ) -> None:
        self._loop = loop
        self._on_event = on_event
        self._on_exit = on_exit
        self._stream = EventStream()
        self._version = ".".join(map(str, launch.version))
        paths.serial_socket.unlink(missing_ok=True)  # the VMM never unlinks a stale one
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            # Bound by us and inherited: it can be connected to at once, and under a private name until the VM runs.
            listener.bind(os.fspath(paths.early_api_socket))
            paths.early_api_socket.chmod(0o600)
            listener.listen(16)
            self._events, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._events, False)
            with contextlib.suppress(OSError):  # above the user's pipe limit: the default has to do
                fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, _EVENT_PIPE)
            api = listener.fileno()
            argv = vmm_argv(launch.binary, api_fd=api, event_fd=theirs, version=launch.version)
            try:
                self.child = Child(
                    loop,
                    confined_argv(argv, launch.confinement),
                    pass_fds=(api, theirs),
                    on_exit=self._ended,
                    on_line=lambda line: _log.warning("vmm", extra={"fields": {"line": line}}),
                )
            except BaseException:
                os.close(self._events)
                raise
            finally:
                os.close(theirs)
        loop.watch(self._events, READ, self._read)

    @property
    def identity(self) -> dict[str, Any]:
        """What names this process for good: its pid, and its start in clock ticks since boot."""
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{self.child.pid}/stat").read_text(errors="replace")
            return {"pid": self.child.pid, "startTime": int(stat.rpartition(")")[2].split()[19])}
        return {"pid": self.child.pid}

    @property
    def report(self) -> dict[str, Any]:
        """Its part of result.json."""
        report: dict[str, Any] = {"version": self._version}
        if (status := self.child.status) is not None:
            report |= {"signal": signal.Signals(-status).name} if status < 0 else {"exitCode": status}
        return report | {"lastErrors": [line[:300] for line in self.child.lines[-5:]]}

    def _read(self) -> bool:
        """Take what is there, up to a limit; False when there was nothing."""
        try:
            data = os.read(self._events, 65536)
        except BlockingIOError:
            return False
        if not data:  # the VMM ended, or closed it
            self._loop.unwatch(self._events)
            return False
        for event in self._stream.feed(data):
            self._on_event(event)
        return True

    def _ended(self, status: int) -> None:
        while self._read():
            pass
        self._loop.unwatch(self._events)
        os.close(self._events)
        crashed = any(_CRASH.search(line) for line in self.child.lines)
        self._on_exit(VmmExited(status, _last_words(self.child.lines), crashed))


def _last_words(lines: list[str]) -> str:
    """The VMM's error chain as one sentence: its lines without the frame they are printed in."""
    words = [
        re.sub(r"^\s*\d+:\s*", "", line) for line in lines if not line.startswith("Error: Cloud Hypervisor exited")
    ]
    return ": ".join(words[-5:])
