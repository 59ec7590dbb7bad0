"""The door of the supervision room."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit, LauncherError
from launcher.paths import Paths
from launcher.supervise import outcome as ends
from launcher.supervise.lock import hold_lock
from launcher.supervise.record import Record
from launcher.supervise.supervisor import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.supervise.handoff import Settings
    from launcher.supervise.model import Limits

_log = logging.getLogger(__name__)


def supervise(settings: Settings, limits: Limits) -> int:
    """Run one VM to its end; returns the exit code. Raises HostUnfit when the run directory cannot be had."""
    os.umask(0o077)
    with hold_lock(settings.paths):
        try:
            supervisor = Supervisor(settings, limits)
        except OSError as error:
            raise HostUnfit(
                f"the run directory {settings.run_dir} cannot be used: {error.strerror or error}",
                hint="it needs room for sockets and logs, and a path short enough for a socket (100 bytes)",
            ) from error
        return supervisor.run()


def refuse(run_dir: Path, error: LauncherError) -> int:
    """A start that failed before there was a spec: leave the result where users look for it; returns the exit code."""
    os.umask(0o077)
    paths = Paths(run_dir=run_dir)
    outcome = ends.failed(error)
    with hold_lock(paths):
        record = Record(paths)
        record.result(outcome, phase="preparing", vmm={}, console=[])
        record.close()
    _log.error(outcome.message, extra={"fields": {"reason": outcome.reason, "hint": outcome.hint}})
    return outcome.exit_code
