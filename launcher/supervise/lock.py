"""The run directory and its lock: a launcher is alive as long as it holds it."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit
from launcher.host.folders import make_parents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.paths import Paths


@contextmanager
def hold_lock(paths: Paths) -> Iterator[None]:
    """Make the run directory and hold its lock. Raises HostUnfit when either cannot be had."""
    try:
        make_parents(paths.run_dir)
        paths.run_dir.mkdir(mode=0o711, exist_ok=True)
        fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostUnfit(
            f"the run directory {paths.run_dir} cannot be used: {error.strerror}",
            hint="mount a writable emptyDir there, or choose another with --run-dir",
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostUnfit(
                f"another launcher is alive in {paths.run_dir}",
                hint="one launcher per VM: talk to it with launcher status, or choose another --run-dir",
            ) from None
        yield
    finally:
        os.close(fd)
