"""qemu-img, for the one thing we let it do: read a qcow2 disk of strangers. The only module that knows it."""

from __future__ import annotations

import os
import re
import shutil
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit, StorageFailed
from launcher.host import process
from launcher.host.confine import confined_argv

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.plan.types import Confinement

PROGRAM = "qemu-img"
_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")  # what -p writes, over and over


def qcow2_to_raw(source: Path, target: Path, identity: Confinement, on_percent: Callable[[float], None]) -> None:
    """Fill the empty file ``target``, which has the disk's size, with what ``source`` holds. Holes stay holes.

    As root it runs as ``identity``, without a capability; both files are ``identity``'s, the folders they are in need not
    be open to it. Raises HostUnfit without the program, StorageFailed with its own words, OSError.
    """
    if shutil.which(PROGRAM, path=process.BASE_ENV["PATH"]) is None:
        raise HostUnfit(f"{PROGRAM} is not installed", hint="install qemu-utils in the launcher's image")
    # The target is there, and empty: so it need not be made, nor its zeros be written. -m 8 -W saves 10 to 25 % of a compressed one.
    argv = [PROGRAM, "convert", "-p", "-n", "--target-is-zero", "-m", "8", "-W", "-f", "qcow2", "-O", "raw"]
    with source.open("rb") as read, target.open("r+b") as written:
        files = (read.fileno(), written.fileno())
        argv += [f"/proc/self/fd/{fd}" for fd in files]  # opened anew by these: no folder is passed through
        status, words = _run(confined_argv(argv, identity) if os.geteuid() == 0 else argv, files, on_percent)
    if status:
        raise StorageFailed(f"{PROGRAM} cannot convert {source}: {words or f'it ended with status {status}'}")


def _run(argv: list[str], files: tuple[int, ...], on_percent: Callable[[float], None]) -> tuple[int, str]:
    """Run it to its end, hearing of its progress: its status (negative for a signal), and the last it said."""
    with ExitStack() as held:
        said = held.enter_context(os.fdopen(os.memfd_create("stderr"), "rb"))
        reader, writer = os.pipe()
        held.callback(os.close, reader)
        try:
            _, pidfd = process.start(argv, stdout=writer, stderr=said.fileno(), pass_fds=files)
        finally:
            os.close(writer)
        held.callback(os.close, pidfd)
        try:
            while text := os.read(reader, 4096):
                for percent in _PERCENT.findall(text):
                    on_percent(float(percent))
        except BaseException:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            raise
        finally:
            ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        status = ended.si_status if ended and ended.si_code == os.CLD_EXITED else -1
        said.seek(0)
        lines = said.read(process.STDERR_TAIL).decode(errors="replace").strip().splitlines()
        return status, lines[-1].removeprefix(f"{PROGRAM}: ") if lines else ""
