"""The supervisor's decisions: ``step(state, event)`` gives the next state and what to do, without I/O and without a clock.

The life of a VM: preparing → starting → booting → running → stopping → ended, or failed (held) when the start did not
work. Facts about the VMM behind the rules below, all seen on v53.0 (docs/explanation/vmm.md):

- vm.boot is never asked a second time: after a failure it may run the VM without its disks.
- With --no-shutdown a guest's power-off leaves the process alive, so "vm shutdown" is followed by asking vm.info: an
  answer means the guest is off, silence means that the process is going, by a crash or somebody else's wish.
- A press of the power button before the guest listens is lost although the reply says success: press until it is off.
- A vhost-user device whose helper died does not come back: with another helper there, the guest hangs on the device, and
  a vm.reboot never returns. A reboot with the helper alive works: the VMM disconnects, and connects to the next helper.
- A busy VMM heeds neither its API nor SIGTERM; only SIGKILL has a deadline.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from launcher.supervise import outcome as ends
from launcher.supervise.model import (
    Answered,
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
    Stop,
    StopSignal,
    TimerFired,
    VmmExited,
    VmmSaid,
    WithdrawApi,
    WorkerExited,
    WriteResult,
)

if TYPE_CHECKING:
    from launcher.supervise.outcome import Outcome

PRESS_EVERY = 2.0  # seconds between two presses of the power button
EXIT_WITHIN = 2.0  # seconds a VMM told to go may take before it is killed
HELPER_AGAIN = 0.1  # seconds until a helper that ended is started again, doubled for each death
HELPER_QUIET = 60.0  # seconds without a death after which a helper's count starts anew
HELPER_DEATHS = 5  # so many without a quiet minute, and it "kept dying"
NO_SHUTDOWN = (52, 0, 0)  # the first VMM in which a power-off can be told from an exit

Step = tuple[State, tuple[Command, ...]]


def step(state: State, event: Event) -> Step:
    """What follows from ``event`` in ``state``. Total: every pair has an answer, if only "nothing"."""
    if state.phase is Phase.ENDED:
        return state, ()
    match event:
        case Prepared():
            return _prepared(state, event)
        case PreparationFailed():
            return _fail(replace(state, outcome=event.outcome)) if state.outcome is None else (state, ())
        case WorkerExited():
            return _worker_exited(state, event)
        case Answered():
            return _answered(state, event)
        case VmmSaid():
            return _vmm_said(state, event)
        case VmmExited():
            return _vmm_exited(state, event)
        case HelperExited():
            return _helper_exited(state, event)
        case StopSignal():
            return _stop_signal(state, event)
        case PowerRequested():
            return _power_requested(state, event)
        case TimerFired():
            return _timer_fired(state, event.name)
        case _:
            assert_never(event)


# --- the start ---


def _prepared(state: State, event: Prepared) -> Step:
    if state.outcome is not None:  # told to stop while the worker was finishing
        return state, ()
    helpers = tuple(StartHelper(helper.name) for helper in event.handoff.helpers)
    state = replace(state, phase=Phase.STARTING, handoff=event.handoff, vmm_alive=True)
    return state, (*helpers, StartVmm(), CallApi("ping"))


def _worker_exited(state: State, event: WorkerExited) -> Step:
    state = replace(state, worker_alive=False)
    if state.outcome is not None:
        return _fail(state)
    if state.phase is not Phase.PREPARING:  # it handed off before
        return state, ()
    if event.status < 0:
        how, hint = f"was killed by signal {-event.status}", "out of memory? see memory.events"
    else:
        how, hint = f"ended with status {event.status}", "the log has its last words"
    message = f"the preparation {how} without saying why"
    return _fail(replace(state, outcome=ends.Outcome("Internal", 70, message, hint)))


def _answered(state: State, event: Answered) -> Step:
    starting = state.phase in {Phase.STARTING, Phase.BOOTING}
    if starting and state.outcome is None:
        if event.refusal is not None and event.unreachable:  # it is going, and its exit tells why, or it is stuck
            return replace(state, phase=Phase.STOPPING, outcome=event.refusal), (Arm("kill", EXIT_WITHIN),)
        if event.refusal is not None:
            return _fail(replace(state, outcome=event.refusal))
        match event.call:
            case "ping":
                return state, (CallApi("create"),)
            case "create":
                state = replace(state, phase=Phase.BOOTING, vm_state="Created")
                return state, (ConnectConsole(), CallApi("boot"))
            case "boot":
                return replace(state, phase=Phase.RUNNING, vm_state="Running"), (PublishApi(), Note("running"))
            case _:
                return state, ()
    if event.call == "info" and state.guest_off and state.outcome is None:
        return _why_off(state, event)
    power_off = state.outcome is None and state.stop is not None and not state.stop.by_signal
    if event.call == "shutdown" and event.refusal is not None and power_off:
        return _abandon(state, event.refusal.message)
    return state, ()


def _fail(state: State) -> Step:
    """The start did not work, or was called off: end what runs, then tell; a failed start may be held."""
    outcome = state.outcome
    if outcome is None or state.phase in {Phase.FAILED, Phase.ENDED}:
        return state, ()
    if state.vmm_alive:
        if state.vmm_kill_sent:
            return state, ()
        return replace(state, phase=Phase.STOPPING, vmm_kill_sent=True), (SignalVmm(kill=False), Arm("kill", 1.0))
    if state.worker_alive:
        return state, (Arm("worker", EXIT_WITHIN),)
    return _end(state)


def _end(state: State) -> Step:
    outcome = state.outcome or ends.Outcome("Internal", 70, "the launcher ended without a reason")
    commands: tuple[Command, ...] = (WithdrawApi(),)
    if state.stop is not None and state.stop.request is not None:
        commands += (AnswerRequest(state.stop.request),)
    held = state.limits.hold != 0 and outcome.reason in _HELD and not (state.stop is not None and state.stop.by_signal)
    if not held:
        return replace(state, phase=Phase.ENDED, vm_state=""), (*commands, WriteResult(outcome), Exit(outcome))
    if state.limits.hold is not None:
        commands += (Arm("hold", state.limits.hold),)
    note = Note("held", (("reason", outcome.reason), ("message", outcome.message)), warning=True)
    return replace(state, phase=Phase.FAILED, vm_state=""), (*commands, WriteResult(outcome), note)


_HELD = frozenset(
    {
        "SpecInvalid",
        "HostUnfit",
        "ImageInvalid",
        "StorageFailed",
        "NetworkFailed",
        "VmmFailed",
        "HelperFailed",
        "Internal",
    }
)


# --- the VM's own life ---


def _vmm_said(state: State, event: VmmSaid) -> Step:
    match event.source, event.event:
        case "vm", "paused":
            return replace(state, vm_state="Paused"), ()
        case "vm", "resumed":
            return replace(state, vm_state="Running"), ()
        case "vm", "rebooted":
            return replace(state, vm_state="Running", guest_off=False), (Disarm("panic"), ConnectConsole())
        case "vm", "shutdown":
            return _vm_shut_down(state)
        case "vm", "deleted":
            return replace(state, vm_deleted=True), ()
        case "vm", "migration-finished":
            return replace(state, migrated=True), ()
        case "guest", "panic" if event.properties.get("event") == "panic":
            return state, (Arm("panic", state.limits.panic_grace), Note("guest-panic", warning=True))
        case "guest", "panic" if event.properties.get("event") == "crash_loaded":  # kdump is at work
            return state, (Disarm("panic"),)
        case _:
            return state, ()


def _vm_shut_down(state: State) -> Step:
    state = replace(state, vm_state="Created", guest_off=True)
    if state.phase not in {Phase.RUNNING, Phase.STOPPING} or state.outcome is not None:
        return state, ()
    if state.stop is not None:
        return _leave(state, state.stop.graceful)
    # Nobody here asked for it. An answer will say who did, silence too.
    return state, (WithdrawApi(), Disarm("panic"), CallApi("info"))


def _why_off(state: State, event: Answered) -> Step:
    if event.unreachable:
        return state, (Arm("kill", EXIT_WITHIN),)  # the process is going; its exit tells why
    if event.not_created:
        return _leave(state, ends.stopped_by_api())
    if event.vm_state == "Created":
        return _leave(state, ends.guest_powered_off("the guest powered itself off"))
    return replace(state, guest_off=False), (PublishApi(),)  # somebody booted it again


def _leave(state: State, outcome: Outcome) -> Step:
    """The guest is gone; end the VMM in good order and then ourselves."""
    state = replace(state, phase=Phase.STOPPING, outcome=outcome)
    timers = tuple(Disarm(name) for name in ("press", "hard", "give-up", "panic"))
    return state, (WithdrawApi(), *timers, CallApi("vmm-shutdown"), Arm("kill", EXIT_WITHIN))


def _vmm_exited(state: State, event: VmmExited) -> Step:
    starting = state.phase in {Phase.STARTING, Phase.BOOTING}
    state = replace(state, vmm_alive=False, vm_state="")
    failed_start = state.outcome is not None and state.outcome.reason == "VmmFailed"
    if event.status < 0 and not state.vmm_kill_sent and (state.outcome is None or failed_start):
        state = replace(state, outcome=ends.vmm_killed(-event.status, event.last_words))
    elif starting or (failed_start and event.status > 0):
        # Its own words on stderr beat "the connection broke".
        words = event.last_words or f"the VMM ended with status {event.status} before the VM ran"
        state = replace(state, outcome=ends.Outcome("VmmFailed", 15, words))
    elif state.outcome is None:
        state = replace(state, outcome=_why_exited(state, event))
    return _fail(state) if state.worker_alive else _end(state)


def _why_exited(state: State, event: VmmExited) -> Outcome:
    if state.migrated:
        return ends.migrated_away()
    if (event.status != 0 and not state.vmm_kill_sent) or event.crashed:
        return ends.vmm_died(event.status, event.last_words)
    if state.stop is not None:
        return state.stop.graceful
    if state.guest_off:
        version = state.handoff.vmm.version if state.handoff else NO_SHUTDOWN
        if version < NO_SHUTDOWN:  # a power-off ends such a process; who asked cannot be told
            return ends.guest_powered_off("the guest powered itself off")
        return ends.stopped_by_api()
    return ends.stopped_by_api() if state.vm_deleted else ends.vmm_died(event.status, event.last_words)


def _helper_exited(state: State, event: HelperExited) -> Step:
    if state.phase in {Phase.STOPPING, Phase.FAILED} or state.outcome is not None:
        return state, ()
    serves_the_vmm = _serves_the_vmm(state, event.name)
    if serves_the_vmm and event.status == 0:
        return state, (Arm(f"helper {event.name}", HELPER_AGAIN),)  # the guest rebooted: the VMM will connect anew
    if serves_the_vmm and state.phase is Phase.RUNNING:
        return _lost_device(state, event)
    deaths = dict(state.helper_deaths)
    count = deaths[event.name] = deaths.get(event.name, 0) + 1
    state = replace(state, helper_deaths=tuple(deaths.items()))
    words = event.last_words or f"status {event.status}"
    if count >= HELPER_DEATHS:
        outcome = ends.Outcome("HelperFailed", 16, f"{event.name} kept dying: {words}")
        if state.phase is not Phase.RUNNING:
            return _fail(replace(state, outcome=outcome))
        return _begin_stop(state, Stop(graceful=outcome, forced=outcome))
    note = Note("helper-died", (("helper", event.name), ("words", words)), warning=True)
    delay = min(HELPER_AGAIN * 2 ** (count - 1), 5.0)
    return state, (note, Arm(f"helper {event.name}", delay), Arm(f"quiet {event.name}", HELPER_QUIET))


def _lost_device(state: State, event: HelperExited) -> Step:
    """A device of the guest is gone for good: the VMM connects to another helper, but the guest's requests stay unanswered."""
    how = f"was killed by signal {-event.status}" if event.status < 0 else f"ended with status {event.status}"
    message = f"{event.name} {how}, and the guest cannot go on without it"
    outcome = ends.Outcome("HelperFailed", 16, f"{message}: {event.last_words}" if event.last_words else message)
    note = Note("helper-died", (("helper", event.name), ("words", event.last_words or how)), warning=True)
    state, commands = _begin_stop(state, Stop(graceful=outcome, forced=outcome))
    return state, (note, *commands)


def _serves_the_vmm(state: State, name: str) -> bool:
    helpers = state.handoff.helpers if state.handoff is not None else ()
    return any(helper.name == name and helper.listen is not None for helper in helpers)


# --- stopping ---


def _stop_signal(state: State, event: StopSignal) -> Step:
    if state.stop is not None and state.stop.by_signal:
        insists = event.name == "SIGINT" and state.outcome is None
        return _cut(state) if insists else (state, ())
    seconds = state.limits.grace
    stop = Stop(
        graceful=ends.terminated(f"{event.name}: the guest shut down"),
        forced=ends.terminated_forced(seconds),
        by_signal=True,
    )
    if (
        state.stop is not None and state.stop.request is not None
    ):  # a power action was under way: same goal, our deadline
        stop = replace(stop, request=state.stop.request)
    match state.phase:
        case Phase.FAILED:
            outcome = state.outcome or stop.graceful
            return replace(state, phase=Phase.ENDED), (Exit(outcome),)
        case Phase.RUNNING:
            return _begin_stop(state, stop)
        case Phase.STOPPING if state.outcome is None:  # by a power action or a failing helper; only the deadline is new
            return replace(state, stop=stop), _deadlines(seconds)
        case Phase.STOPPING:  # as good as ended; but nobody waits for a failed start any more
            return replace(state, stop=replace(state.stop or stop, by_signal=True)), ()
        case _:
            early = ends.terminated(f"{event.name} while {state.phase}: the guest had not started yet")
            state = replace(state, stop=stop, outcome=state.outcome or early)
            if state.worker_alive and not state.vmm_alive:
                return state, (SignalWorker(kill=False), Arm("worker", EXIT_WITHIN))
            return _fail(state)


def _begin_stop(state: State, stop: Stop) -> Step:
    wake: tuple[Command, ...] = (CallApi("resume"),) if state.vm_state == "Paused" else ()
    state = replace(state, phase=Phase.STOPPING, stop=stop)
    note = Note("power-button", (("grace", f"{state.limits.grace:g}"),))
    commands = (note, *wake, CallApi("power-button"), Arm("press", PRESS_EVERY), *_deadlines(state.limits.grace))
    return state, commands


def _deadlines(grace: float) -> tuple[Command, ...]:
    """Within the grace period: cut the guest near its end, kill the VMM right before it."""
    return Arm("hard", max(grace * 0.5, grace - 3.0)), Arm("kill", max(grace * 0.75, grace - 1.0)), Disarm("give-up")


def _cut(state: State) -> Step:
    """The guest had its chance: end the VMM, and with it the VM."""
    stop = state.stop
    state = replace(state, outcome=state.outcome or (stop.forced if stop is not None else None), vmm_kill_sent=True)
    return state, (WithdrawApi(), Disarm("press"), SignalVmm(kill=False), Arm("kill", 1.0), Note("cut", warning=True))


def _power_requested(state: State, event: PowerRequested) -> Step:
    if state.phase is not Phase.RUNNING or state.stop is not None:
        return state, (AnswerRequest(event.request, f"the VM is {state.phase}, not running"),)
    off = ends.guest_powered_off(f"power {event.action} was asked for")
    stop = Stop(graceful=off, forced=off, request=event.request, give_up=event.action == "shutdown" and not event.force)
    if event.action == "off":
        state = replace(state, phase=Phase.STOPPING, stop=stop)
        return state, (Note("power-off"), CallApi("shutdown"), Arm("hard", event.timeout))
    state, commands = _begin_stop(state, stop)
    ladder = tuple(
        command for command in commands if not (isinstance(command, Arm) and command.timer in {"hard", "kill"})
    )
    return state, (*ladder, Arm("give-up" if stop.give_up else "hard", event.timeout))


def _abandon(state: State, message: str) -> Step:
    """A power action had no effect: the VM runs on and the caller is told."""
    request = state.stop.request if state.stop is not None else None
    answer = (AnswerRequest(request, message),) if request is not None else ()
    timers = tuple(Disarm(name) for name in ("press", "hard", "give-up"))
    return replace(state, phase=Phase.RUNNING, stop=None), (*timers, *answer)


def _timer_fired(state: State, name: str) -> Step:
    match name.split():
        case ["worker"]:
            return state, (SignalWorker(kill=True),) if state.worker_alive else ()
        case ["press"] if state.stop is not None and state.outcome is None:
            return state, (CallApi("power-button"), Arm("press", PRESS_EVERY))
        case ["give-up"] if state.phase is Phase.STOPPING and state.outcome is None:
            return _abandon(state, "the guest did not react to the power button; it needs systemd-logind or acpid")
        case ["hard"] if state.outcome is None:
            return _cut(state)
        case ["kill"] if state.vmm_alive:
            return replace(state, vmm_kill_sent=True), (SignalVmm(kill=True),)
        case ["panic"] if state.outcome is None:
            return _leave(state, ends.guest_panicked(state.limits.panic_grace))
        case ["hold"]:
            outcome = state.outcome or ends.terminated("the hold ended")
            return replace(state, phase=Phase.ENDED), (Exit(outcome),)
        case ["helper", helper] if state.outcome is None and state.phase is not Phase.FAILED:
            return state, (StartHelper(helper),)
        case ["quiet", helper]:
            kept = tuple(pair for pair in state.helper_deaths if pair[0] != helper)
            return replace(state, helper_deaths=kept), ()
        case _:
            return state, ()
