"""Running external programs. The only module that imports subprocess.

``run`` is for programs that end by themselves (mke2fs, nft); long-lived children belong to the supervisor, which starts
them with ``start`` and knows them by their pidfd.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

from launcher.errors import HostUnfit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STDERR_TAIL = 4096  # bytes of a failed program's stderr that are kept for the error
_PIPE = (
    1 << 20
)  # bytes a fed program may be behind; mke2fs takes 4 KiB at a time, and 64 KiB cost it a third of its speed

# A child never inherits our environment: it may hold the VM's spec. UTF-8 is needed by mke2fs to read pax names.
BASE_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

_TIED = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended. ``returncode`` is negative for a signal, as subprocess has it; ``killed_after`` is the time in
    seconds it was given, when it was killed for not ending by then.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: str
    killed_after: float | None = None

    @property
    def command(self) -> str:
        return shlex.join(self.argv)

    @property
    def failure(self) -> str:
        """One clause that tells how it failed: by which signal or status, and its last words."""
        if self.killed_after is not None:
            how = f"did not end within {self.killed_after:g} s"
        elif self.returncode < 0:
            how = f"was killed by {signal.Signals(-self.returncode).name}"
        else:
            how = f"ended with status {self.returncode}"
        words = self.stderr.strip().splitlines()
        return f"{self.argv[0]} {how}" + (f": {words[-1].strip()}" if words else "")


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | IO[bytes] | int | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Finished:
    """Run a program to its end and return how it ended, whatever its status.

    ``stdin`` is bytes to feed, an open file or descriptor, or None for /dev/null. Raises HostUnfit when the program does
    not exist or cannot be executed. A program that outlives ``timeout`` seconds is killed with all that it started: a child
    that holds our pipes would keep us waiting.
    """
    feed = stdin if isinstance(stdin, bytes) else None
    source = subprocess.PIPE if feed is not None else subprocess.DEVNULL if stdin is None else stdin
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=source,  # type: ignore[arg-type]  # bytes were sorted out above
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**BASE_ENV, **(env or {})},
            process_group=0,
        )
    except OSError as error:
        raise HostUnfit(f"cannot run {argv[0]}: {error.strerror}", hint="install it in the launcher's image") from error
    killed_after = None
    with child:
        try:
            out, err = child.communicate(feed, timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            killed_after = timeout
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    words = err[-STDERR_TAIL:].decode(errors="replace")
    return Finished(tuple(argv), child.returncode, out, words, killed_after)


def feed(
    argv: Sequence[str], chunks: Iterable[bytes | memoryview], *, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a program to its end with ``chunks`` as its stdin, and return how it ended.

    A program that stops reading ends the feeding. An exception of ``chunks`` kills the program and passes through: it
    must not take the part for the whole. Raises HostUnfit like ``run``.
    """
    with ExitStack() as held:
        # Files, not pipes, take what it says: nobody has to read while we write.
        out, err = (held.enter_context(os.fdopen(os.memfd_create(name), "rb")) for name in ("stdout", "stderr"))
        try:
            # It ends with us: one that is left behind would go on with the part that it was fed.
            child = subprocess.Popen(
                [*_TIED, *argv], stdin=subprocess.PIPE, stdout=out, stderr=err, env={**BASE_ENV, **(env or {})}
            )
        except OSError as error:
            raise HostUnfit(
                f"cannot run {argv[0]}: {error.strerror}", hint="install it in the launcher's image"
            ) from error
        with child:
            try:
                with suppress(BrokenPipeError), cast("IO[bytes]", child.stdin) as pipe:
                    with suppress(PermissionError):  # pipe(7): the pipes of a user have a limit
                        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
                    for chunk in chunks:
                        pipe.write(chunk)
            except BaseException:
                child.kill()
                raise
        out.seek(0)
        err.seek(max(0, err.seek(0, os.SEEK_END) - STDERR_TAIL))
        return Finished(tuple(argv), child.returncode, out.read(), err.read().decode(errors="replace"))


def start(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int,
    stderr: int,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Start a long-lived child and return ``(pid, pidfd)``; the caller owns the pidfd and reaps the child.

    stdin is /dev/null unless given; the child leads a process group of its own, so that a Ctrl-C at the terminal reaches only us.
    """
    try:
        # Not a context manager and never waited for through Popen: the supervisor reaps by pidfd.
        child = subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            env={**BASE_ENV, **(env or {})},
            process_group=0,
        )
    except OSError as error:
        raise HostUnfit(f"cannot run {argv[0]}: {error.strerror}", hint="install it in the launcher's image") from error
    child.returncode = 0  # tells Popen's finaliser that somebody else reaps this child
    return child.pid, os.pidfd_open(child.pid)
