"""Children as the loop knows them: a pidfd that tells the end, a stderr that is always drained, the last words kept."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from launcher.host import process
from launcher.supervise.loop import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from launcher.supervise.loop import Loop

LINES_KEPT = 20  # of a child's stderr
_LINE_LIMIT = 8192  # bytes; a longer line is cut
_PR_SET_CHILD_SUBREAPER = 36


class Child:
    """One child process. ``on_exit`` gets its exit code, or minus a signal, after its last stderr line was delivered."""

    def __init__(
        self,
        loop: Loop,
        argv: Sequence[str],
        *,
        on_exit: Callable[[int], None],
        on_line: Callable[[str], None],
        stdin: bytes | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._on_line = on_line
        self._partial = bytearray()
        self.lines: list[str] = []
        self.status: int | None = None
        self._stderr, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._stderr, False)
        source = _memory_file(stdin) if stdin is not None else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.pid, self._pidfd = process.start(argv, stdin=source, stdout=theirs, stderr=theirs, pass_fds=pass_fds)
        except BaseException:
            os.close(self._stderr)
            raise
        finally:
            os.close(theirs)
            os.close(source)
        loop.watch(self._pidfd, READ, self.reap)
        loop.watch(self._stderr, READ, self._read)

    def send(self, number: int) -> None:
        """Signal it; no harm when it has ended."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def reap(self) -> None:
        """Take its end, which has come or is near (SIGKILL was sent); no harm when that was done before."""
        end = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED) if self.status is None else None
        if end is None:
            return
        self.status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._read()  # all that a pipe holds
        if self._partial:
            self._line(bytes(self._partial))
        self._loop.unwatch(self._stderr)
        os.close(self._stderr)
        self._on_exit(self.status)

    def last_words(self) -> str:
        """Its last stderr lines as one line of text."""
        return " | ".join(self.lines[-5:])

    def _read(self) -> None:
        try:
            data = os.read(self._stderr, 65536)  # no more at a time: a child that never stops must not hold the loop
        except BlockingIOError:
            return
        if not data:  # it closed its stderr, or ended: the pidfd tells
            self._loop.unwatch(self._stderr)
            return
        self._partial += data
        *lines, rest = bytes(self._partial).split(b"\n")
        self._partial[:] = rest[:_LINE_LIMIT]
        for line in lines:
            self._line(line)

    def _line(self, raw: bytes) -> None:
        line = raw[:_LINE_LIMIT].decode(errors="replace").strip()
        if line:
            self.lines.append(line)
            del self.lines[:-LINES_KEPT]
            self._on_line(line)


def _memory_file(data: bytes) -> int:
    """A descriptor that reads as ``data``: nothing to feed, nothing on disk."""
    fd = os.memfd_create("settings", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def become_subreaper() -> None:
    """Have orphaned grandchildren become our children, as they do by nature when we are PID 1."""
    if os.getpid() != 1:
        import ctypes  # noqa: PLC0415  # 1 MB that PID 1 does not need

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_all(known: Mapping[int, Child]) -> None:
    """Reap every child that has ended: ours (``known`` by pid) and those that others left to us, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):  # no children at all
        while end := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if child := known.get(end.si_pid):
                child.reap()
            else:
                os.waitid(os.P_PID, end.si_pid, os.WEXITED | os.WNOHANG)
