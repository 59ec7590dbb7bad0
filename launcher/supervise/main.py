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
import time
from typing import TYPE_CHECKING

from launcher import logs
from launcher.codec import from_json, to_json
from launcher.errors import HostUnfit, LauncherError
from launcher.supervise import outcome as ends
from launcher.supervise import record
from launcher.supervise.handoff import Settings, WorkerFailure
from launcher.supervise.lock import hold_lock
from launcher.supervise.model import Limits
from launcher.supervise.supervisor import Supervisor

if TYPE_CHECKING:
    from typing import NoReturn

_log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def become_supervisor(settings: Settings, limits: Limits, failure: LauncherError | None = None) -> NoReturn:
    """Replace this process by the supervisor. With a ``failure`` there is nothing to start: it is told, and held."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)  # a closed stdin, stdout or stderr would be the next file that is opened
    os.close(fd)
    value = {
        "settings": to_json(settings),
        "limits": to_json(limits),
        "failure": to_json(WorkerFailure.of(failure)) if failure else None,
    }
    fd = os.memfd_create("settings")  # inherited: no MFD_CLOEXEC
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps(value).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    os.set_inheritable(fd, True)
    argv = [sys.executable, "-I", "-m", "launcher.supervise", str(fd)]
    os.execv(argv[0], argv)  # noqa: S606  # no shell is the point


def main() -> int:
    """The program behind ``become_supervisor``: run one VM to its end; the exit code."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        value = json.loads(file.read())
    settings, limits = from_json(Settings, value["settings"]), from_json(Limits, value["limits"])
    failure = from_json(WorkerFailure, value["failure"]).error() if value["failure"] else None
    logs.set_up()
    try:
        return supervise(settings, limits, failure)
    except LauncherError as error:
        outcome = ends.failed(error)
        _log.error(error.message, extra={"fields": {"reason": error.reason, "hint": error.hint}})
        # The run directory is not ours to write to.
        record.tell_kubelet(record.result_json(outcome, phase="preparing", started=time.time()))
        return error.exit_code


def supervise(settings: Settings, limits: Limits, failure: LauncherError | None = None) -> int:
    """Run one VM to its end; returns the exit code. Raises HostUnfit when the run directory cannot be had."""
    os.umask(0o077)
    with hold_lock(settings.paths):
        try:
            supervisor = Supervisor(settings, limits, failure)
        except OSError as error:
            raise HostUnfit(
                f"the run directory {settings.run_dir} cannot be used: {error.strerror or error}",
                hint="it needs room for sockets and logs, and a path short enough for a socket (100 bytes)",
            ) from error
        return supervisor.run()
