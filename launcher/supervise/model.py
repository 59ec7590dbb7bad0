"""The values of supervision: the state, what can happen (events), what is done about it (commands).

``state.step(state, event)`` maps the first two to the third, without I/O and without a clock; the loop carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.supervise.handoff import Handoff
    from launcher.supervise.outcome import Outcome

ApiName: TypeAlias = Literal[
    "ping", "create", "boot", "info", "power-button", "resume", "shutdown", "vmm-shutdown"
]  # the VMM calls that supervision makes by itself


class Phase(StrEnum):
    """Where the launcher is, as ``status`` and state.json show it."""

    PREPARING = "preparing"  # the worker is at work
    STARTING = "starting"  # the VMM is up, the VM not created yet
    BOOTING = "booting"  # vm.boot is under way
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"  # the start failed, held for inspection
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. ``hold`` None is for ever."""

    grace: float = 25.0
    hold: float | None = 0.0
    panic_grace: float = 30.0


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop under way. ``request`` is the control request that waits for it."""

    graceful: Outcome
    forced: Outcome
    by_signal: bool = False
    request: int | None = None
    give_up: bool = False  # at the deadline leave the guest running instead of cutting it


@dataclass(frozen=True, slots=True)
class State:
    limits: Limits
    phase: Phase = Phase.PREPARING
    handoff: Handoff | None = None
    worker_alive: bool = True
    vmm_alive: bool = False
    vm_state: Literal["", "Created", "Running", "Paused"] = ""
    vm_deleted: bool = False  # the VMM said that somebody deleted the VM
    migrated: bool = False
    guest_off: bool = False  # the VMM said that the VM is shut down
    stop: Stop | None = None
    outcome: Outcome | None = None  # decided; what remains is cleaning up
    vmm_kill_sent: bool = False
    helper_deaths: tuple[tuple[str, int], ...] = ()  # since the last quiet minute


# --- events ---


@dataclass(frozen=True, slots=True)
class Prepared:
    handoff: Handoff


@dataclass(frozen=True, slots=True)
class PreparationFailed:
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """``status`` is an exit code, or minus a signal."""

    status: int


@dataclass(frozen=True, slots=True)
class Answered:
    """An API call of ours came back. ``vm_state`` is set by ``info``; ``refusal`` by an error answer."""

    call: ApiName
    vm_state: str | None = None
    refusal: Outcome | None = None
    not_created: bool = False
    unreachable: bool = False  # there was no answer at all


@dataclass(frozen=True, slots=True)
class VmmSaid:
    """One event of the VMM's event monitor."""

    source: str
    event: str
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmmExited:
    """``crashed``: its log tells of a vCPU error or a panic, which its exit code does not."""

    status: int
    last_words: str = ""
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class HelperExited:
    name: str
    status: int
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class StopSignal:
    """SIGTERM, SIGINT, or SIGHUP of a terminal that went away. A second SIGINT is somebody who does not want to wait."""

    name: str


@dataclass(frozen=True, slots=True)
class PowerRequested:
    request: int
    action: Literal["off", "shutdown"]
    timeout: float
    force: bool = False


@dataclass(frozen=True, slots=True)
class TimerFired:
    name: str


Event: TypeAlias = (
    Prepared
    | PreparationFailed
    | WorkerExited
    | Answered
    | VmmSaid
    | VmmExited
    | HelperExited
    | StopSignal
    | PowerRequested
    | TimerFired
)


# --- commands ---


@dataclass(frozen=True, slots=True)
class StartHelper:
    name: str


@dataclass(frozen=True, slots=True)
class StartVmm:
    pass


@dataclass(frozen=True, slots=True)
class CallApi:
    call: ApiName


@dataclass(frozen=True, slots=True)
class Arm:
    timer: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Disarm:
    timer: str


@dataclass(frozen=True, slots=True)
class SignalVmm:
    kill: bool


@dataclass(frozen=True, slots=True)
class SignalWorker:
    kill: bool


@dataclass(frozen=True, slots=True)
class PublishApi:
    """Give the API socket its public name."""


@dataclass(frozen=True, slots=True)
class WithdrawApi:
    pass


@dataclass(frozen=True, slots=True)
class ConnectConsole:
    pass


@dataclass(frozen=True, slots=True)
class Note:
    """A line in the event stream and the log."""

    event: str
    fields: tuple[tuple[str, str], ...] = ()
    warning: bool = False


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    request: int
    error: str | None = None  # None: it had its effect


@dataclass(frozen=True, slots=True)
class WriteResult:
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Exit:
    outcome: Outcome


Command: TypeAlias = (
    StartHelper
    | StartVmm
    | CallApi
    | Arm
    | Disarm
    | SignalVmm
    | SignalWorker
    | PublishApi
    | WithdrawApi
    | ConnectConsole
    | Note
    | AnswerRequest
    | WriteResult
    | Exit
)
