"""The door of the supervision room: becoming the resident process, and being it.

The command line parser is not worth its memory for the VM's whole life, so ``launcher run`` replaces itself (same pid) by
``python -I -m launcher.supervise``, with the settings in an inherited descriptor: they hold the spec. Signals are blocked
from before the exec until the loop catches them: as PID 1 a signal without a handler would be lost, not deadly.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from launcher import logs
from launcher.codec import from_json, to_json
from launcher.errors import HostUnfit, LauncherError
from launcher.paths import Paths
from launcher.supervise import outcome as ends
from launcher.supervise.handoff import Settings
from launcher.supervise.lock import hold_lock
from launcher.supervise.model import Limits
from launcher.supervise.record import Record
from launcher.supervise.supervisor import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def become_supervisor(settings: Settings, limits: Limits) -> NoReturn:
    """Replace this process by the supervisor."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    fd = os.memfd_create("settings")  # inherited: no MFD_CLOEXEC
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps({"settings": to_json(settings), "limits": to_json(limits)}).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    os.set_inheritable(fd, True)
    argv = [sys.executable, "-I", "-m", "launcher.supervise", str(fd)]
    os.execv(argv[0], argv)  # noqa: S606  # no shell is the point


def main() -> int:
    """The program behind ``become_supervisor``: run one VM to its end; the exit code."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        value = json.loads(file.read())
    settings, limits = from_json(Settings, value["settings"]), from_json(Limits, value["limits"])
    logs.set_up()
    try:
        return supervise(settings, limits)
    except LauncherError as error:
        _log.error(error.message, extra={"fields": {"reason": error.reason, "hint": error.hint}})
        return error.exit_code


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
