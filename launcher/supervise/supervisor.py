"""The resident process: carries the commands of ``state.step`` out and feeds it with what happens.

Standard library only, one thread, one loop: it is PID 1 of the pod for the VM's whole life and must stay small (a test
holds it to its memory budget) and answer at any time. What is heavy happens in the worker, which is gone by then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from launcher import codec, logs
from launcher.errors import HostUnfit
from launcher.host.confine import confined_argv
from launcher.supervise import control, handoff, record
from launcher.supervise import outcome as ends
from launcher.supervise.children import Child, become_subreaper, reap_all
from launcher.supervise.console import Console, Outlet
from launcher.supervise.helper_sockets import HelperSockets
from launcher.supervise.loop import Loop
from launcher.supervise.model import (
    AnswerRequest,
    Arm,
    CallApi,
    Command,
    ConnectConsole,
    Disarm,
    Event,
    Exit,
    HelperExited,
    Note,
    Phase,
    PowerRequested,
    PreparationFailed,
    Prepared,
    PublishApi,
    SignalVmm,
    SignalWorker,
    StartHelper,
    StartVmm,
    State,
    StopSignal,
    TimerFired,
    VmmExited,
    VmmSaid,
    WithdrawApi,
    WorkerExited,
    WriteResult,
)
from launcher.supervise.state import step
from launcher.supervise.vmm_api import ApiQueue
from launcher.supervise.vmm_process import VmmProcess
from launcher.supervise.worker_process import WorkerProcess

if TYPE_CHECKING:
    from launcher.errors import LauncherError
    from launcher.supervise.handoff import Settings
    from launcher.supervise.model import Limits
    from launcher.supervise.outcome import Outcome
    from launcher.vmm.events import VmmEvent

_log = logging.getLogger(__name__)

CONSOLE_LINES = 20  # in the termination message
_LEASE = re.compile(r"DHCPACK\((?P<bridge>\S+)\) (?P<address>\S+) (?P<mac>\S+)")


class Supervisor:
    """One VM, from the worker's start to the exit code."""

    def __init__(self, settings: Settings, limits: Limits, failure: LauncherError | None = None) -> None:
        """``failure``: there is nothing to start, only a failed start to tell and perhaps to hold."""
        self._settings = settings
        self._failure = failure
        self._paths = settings.paths
        self._state = State(limits)
        self._ended_in = self._state.phase  # the last phase in which something was still going on
        self._exit: Outcome | None = None
        self._pending: deque[Event] = deque()
        self._started = time.monotonic()
        self._loop = Loop(on_timer=self._on_timer, on_signal=self._on_signal)
        # Whoever reads our log may hang; we may not.
        self._stderr = Outlet(self._loop, sys.stderr.fileno())
        logs.set_up(self._stderr.write)
        self._record = record.Record(self._paths)
        self._control = control.ControlServer(self._loop, self._paths.control_socket, self)
        self._record.followers.append(self._control.publish)
        self._console = Console(
            self._loop,
            self._paths.serial_socket,
            self._paths.console_log,
            sys.stdout.fileno(),
            lambda: self._record.mark("first console byte"),
        )
        self._api = ApiQueue(self._loop, self._paths, time.monotonic, self._feed)
        self._api.close()  # sockets that a launcher that was killed left behind
        self._worker: WorkerProcess | None = None
        self._vmm: VmmProcess | None = None
        self._helpers: dict[str, Child] = {}
        self._helper_sockets = HelperSockets()

    def run(self) -> int:
        """Supervise until the end; returns the exit code."""
        become_subreaper()
        stop_signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._loop.catch(*stop_signals, signal.SIGCHLD)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals)  # blocked since before the exec
        self._record.mark("launcher started")
        self._record.event("started", {"pid": os.getpid()})
        self._save_state()
        try:
            if self._failure is None:
                self._worker = WorkerProcess(
                    self._loop,
                    self._settings,
                    on_message=self._worker_said,
                    on_exit=self._worker_ended,
                    on_line=lambda line: self._stderr.write(line.encode() + b"\n"),  # its log lines are ours
                )
            else:
                self._fail(self._failure)
                self._feed(WorkerExited(0))
            while self._exit is None:
                self._loop.run_once()
        except Exception as error:  # noqa: BLE001  # the last line of defence: nothing may end us without a word
            _log.exception("the supervisor failed unexpectedly")
            self._exit = ends.internal(error)
            self._write_result(self._exit)
        self._clean_up(self._exit)
        return self._exit.exit_code

    # --- what happens ---

    def _feed(self, event: Event) -> None:
        # A command may fail at once and so be an event itself: it waits until the commands before it are carried out.
        self._pending.append(event)
        if len(self._pending) > 1:
            return
        while self._pending:
            self._handle(self._pending[0])
            self._pending.popleft()

    def _handle(self, event: Event) -> None:
        phase = self._state.phase
        self._state, commands = step(self._state, event)
        if self._state.phase not in {Phase.FAILED, Phase.ENDED}:
            self._ended_in = self._state.phase
        if self._state.phase is not phase:
            self._record.mark(str(self._state.phase))
            self._record.event("phase", {"phase": str(self._state.phase)})
        for command in commands:
            self._carry_out(command)
        if self._state.phase is not phase:
            self._save_state()

    def _on_timer(self, name: str) -> None:
        match name.split(maxsplit=1)[0]:
            case "console":
                self._console.connect()
            case "client":
                self._control.expire(name)
            case "call":
                self._api.advance()
            case _:
                self._feed(TimerFired(name))

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            reap_all({child.pid: child for child in self._children if child.status is None})
        else:
            name = signal.Signals(number).name
            self._record.event("signal", {"signal": name})
            self._feed(StopSignal(name))

    @property
    def _children(self) -> list[Child]:
        processes = [process.child for process in (self._worker, self._vmm) if process is not None]
        return [*processes, *self._helpers.values()]

    # --- what is done about it ---

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartHelper(name):
                self._start_helper(name)
            case StartVmm():
                self._start_vmm()
            case CallApi(call):
                self._api.ask(call, self._state.handoff)
            case Arm(timer, seconds):
                self._loop.arm(timer, seconds)
            case Disarm(timer):
                self._loop.disarm(timer)
            case SignalVmm(kill):
                if self._vmm is not None:
                    self._vmm.child.send(signal.SIGKILL if kill else signal.SIGTERM)
            case SignalWorker(kill):
                if self._worker is not None:
                    self._worker.child.send(signal.SIGKILL if kill else signal.SIGTERM)
            case PublishApi():
                self._api.publish()
            case WithdrawApi():
                self._api.withdraw()
            case ConnectConsole():
                self._console.connect()
            case Note(event, fields, warning):
                self._record.event(event, dict(fields), warning=warning)
            case AnswerRequest(request, error):
                self._control.answer(request, error)
            case WriteResult(outcome):
                self._write_result(outcome)
            case Exit(outcome):
                self._exit = outcome
            case _:
                assert_never(command)

    def _worker_said(self, message: handoff.Message) -> None:
        match message:
            case handoff.Progress():
                if message.milliseconds is not None:
                    self._record.mark(message.step, took_ms=round(message.milliseconds))
                    self._record.event("prepared", {"step": message.step, "tookMs": round(message.milliseconds)})
            case handoff.WorkerFailure():
                self._fail(message.error())
            case handoff.Handoff():
                for warning in message.warnings:
                    self._record.event("warning", {"message": warning}, warning=True)
                self._record.mark("prepared")
                self._feed(Prepared(message))
            case _:
                assert_never(message)

    def _worker_ended(self, status: int) -> None:
        self._record.mark("worker ended")
        self._feed(WorkerExited(status))

    def _fail(self, error: LauncherError) -> None:
        outcome = ends.failed(error)
        self._record.event("failed", {"reason": outcome.reason, "message": outcome.message}, warning=True)
        self._feed(PreparationFailed(outcome))

    def _start_helper(self, name: str) -> None:
        if self._state.handoff is None:
            return
        spec = next(helper for helper in self._state.handoff.helpers if helper.name == name)

        def said(line: str) -> None:
            _log.info("helper", extra={"fields": {"helper": name, "line": line}})
            if lease := _LEASE.search(line):
                self._record.mark("lease")
                self._record.event("lease", lease.groupdict())

        def ended(status: int) -> None:
            self._feed(HelperExited(name, status, self._helpers[name].last_words()))

        argv, fds = list(spec.argv), []
        try:
            if spec.listen is not None:
                vmm = self._state.handoff.vmm.confinement
                fds.append(self._helper_sockets.descriptor(spec.listen, vmm.uid, vmm.gid))
                argv.append(f"--fd={fds[0]}")
            command = confined_argv(argv, spec.confinement)
            self._helpers[name] = Child(self._loop, command, pass_fds=fds, on_exit=ended, on_line=said)
        except (HostUnfit, OSError) as error:
            self._feed(HelperExited(name, 127, str(error)))
            return
        self._record.event("helper-started", {"helper": name, "pid": self._helpers[name].pid})

    def _start_vmm(self) -> None:
        if self._state.handoff is None:
            return
        launch = self._state.handoff.vmm
        try:
            self._vmm = VmmProcess(self._loop, self._paths, launch, on_event=self._vmm_said, on_exit=self._vmm_ended)
        except HostUnfit as error:
            self._feed(VmmExited(1, str(error)))
            return
        self._record.mark("vmm started")
        self._record.event("vmm-started", {"pid": self._vmm.child.pid, "version": ".".join(map(str, launch.version))})

    def _vmm_said(self, event: VmmEvent) -> None:
        self._record.event(f"{event.source} {event.event}", event.properties)
        if event.source == "virtio-device" and event.event == "activated":
            self._record.mark("guest drivers up")
        self._feed(VmmSaid(event.source, event.event, event.properties))

    def _vmm_ended(self, exited: VmmExited) -> None:
        self._api.close()
        self._console.disconnect()
        self._record.mark("vmm ended")
        self._record.event("vmm-ended", {"status": exited.status})
        self._feed(exited)

    # --- the control socket's services ---

    def status(self) -> dict[str, Any]:
        """What ``launcher status`` shows."""
        plan, state = self._state.handoff, self._state
        result: dict[str, Any] = {
            "phase": str(state.phase),
            "vmState": state.vm_state or None,
            "pid": os.getpid(),
            "uptimeSeconds": round(time.monotonic() - self._started, 3),
            "consoleBytes": self._console.bytes,
            "consoleDroppedBytes": self._console.dropped,
            "memory": {"supervisorPssBytes": _own_pss()},
        }
        if state.outcome is not None:
            result["outcome"] = {"reason": state.outcome.reason, "message": state.outcome.message}
        if plan is not None:
            result |= {
                "vm": {"name": plan.name, "namespace": plan.namespace, "uid": plan.uid},
                "vcpus": plan.vm_config["cpus"]["boot_vcpus"],
                "memoryBytes": plan.vm_config["memory"]["size"],
                "disks": plan.vm_config.get("disks", []),
                "nics": [codec.to_json(nic) for nic in plan.nics],
                "helpers": [self._child_status(name, child) for name, child in self._helpers.items()],
                "planDigest": plan.digest,
            }
        if self._vmm is not None:
            result["vmm"] = self._child_status("vmm", self._vmm.child)
        return result

    def recent_events(self) -> list[dict[str, Any]]:
        """The newest events, oldest first."""
        return self._record.events

    def power(self, request: int, action: str, timeout: float, *, force: bool) -> None:
        """Carry a power action out; ``control.answer`` gets the outcome."""
        self._feed(PowerRequested(request, "off" if action == "off" else "shutdown", timeout, force))

    def _child_status(self, name: str, child: Child) -> dict[str, Any]:
        deaths = dict(self._state.helper_deaths).get(name, 0)
        return {"name": name, "pid": child.pid, "alive": child.status is None, "recentDeaths": deaths}

    # --- the end ---

    def _write_result(self, outcome: Outcome) -> None:
        vmm = self._vmm.report if self._vmm is not None else {}
        lines = self._console.last_lines(CONSOLE_LINES)
        self._record.result(outcome, phase=str(self._ended_in), vmm=vmm, console=lines)
        level = logging.INFO if outcome.exit_code in {0, 143} else logging.ERROR
        fields = {"reason": outcome.reason, "exitCode": outcome.exit_code} | (
            {"hint": outcome.hint} if outcome.hint else {}
        )
        _log.log(level, outcome.message, extra={"fields": fields})

    def _clean_up(self, outcome: Outcome) -> None:
        self._record.mark("ended")
        self._record.event("ended", {"reason": outcome.reason})
        for child in self._children:
            child.send(signal.SIGKILL)  # the VMM is gone by now; dnsmasq keeps its lease file at every lease
            child.reap()
        self._helper_sockets.close()
        self._api.close()
        self._console.close()
        self._save_state()
        self._control.close()
        self._record.close()
        self._stderr.close()
        self._loop.close()

    def _save_state(self) -> None:
        fields: dict[str, Any] = {"phase": str(self._state.phase)}
        if self._state.handoff is not None:
            fields["planDigest"] = self._state.handoff.digest
        if self._vmm is not None and self._vmm.child.status is None:
            fields["vmm"] = self._vmm.identity
        self._record.state(**fields)


def _own_pss() -> int | None:
    """Bytes of memory that are this process's share."""
    with contextlib.suppress(OSError), Path("/proc/self/smaps_rollup").open(encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return None
