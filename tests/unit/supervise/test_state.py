"""The supervisor's decisions, one sentence a test: no process, no socket, no clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.plan.types import Confinement, HelperSpec, VmmLaunch
from launcher.supervise import outcome as ends
from launcher.supervise.handoff import Handoff
from launcher.supervise.model import (
    Answered,
    AnswerRequest,
    Arm,
    CallApi,
    Command,
    ConnectConsole,
    Event,
    Exit,
    HelperExited,
    Limits,
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
from launcher.supervise.state import HELPER_DEATHS, step

WHO = Confinement(107, 107)
HANDOFF = Handoff(
    "vm",
    "default",
    "",
    VmmLaunch("cloud-hypervisor", (53, 0, 0), WHO),
    {},
    "d",
    (HelperSpec("dnsmasq", ("dnsmasq",), WHO),),
)
SHARING = replace(HANDOFF, helpers=(HelperSpec("virtiofsd", ("virtiofsd",), WHO, listen=Path("/run/s.sock")),))
REFUSED = ends.Outcome("VmmFailed", 15, "the VMM refused vm.boot: no kernel")


def play(*events: Event, state: State | None = None) -> tuple[State, list[Command]]:
    """Feed the events one after the other; all commands on the way."""
    state = state or State(Limits())
    commands: list[Command] = []
    for event in events:
        state, more = step(state, event)
        commands += more
    return state, commands


def running(limits: Limits | None = None) -> State:
    state, _ = play(
        Prepared(HANDOFF),
        WorkerExited(0),
        Answered("ping"),
        Answered("create"),
        Answered("boot"),
        state=State(limits or Limits()),
    )
    assert state.phase is Phase.RUNNING
    return state


def outcome_of(commands: list[Command]) -> ends.Outcome:
    exits = [command.outcome for command in commands if isinstance(command, Exit)]
    assert len(exits) == 1
    return exits[0]


def test_the_way_up_is_helpers_vmm_ping_create_console_boot_publish() -> None:
    _, commands = play(Prepared(HANDOFF), Answered("ping"), Answered("create"), Answered("boot"))

    assert commands[:7] == [
        StartHelper("dnsmasq"),
        StartVmm(),
        CallApi("ping"),
        CallApi("create"),
        ConnectConsole(),
        CallApi("boot"),
        PublishApi(),
    ]


def test_a_refused_boot_is_never_asked_again() -> None:
    state, commands = play(
        Prepared(HANDOFF), WorkerExited(0), Answered("ping"), Answered("create"), Answered("boot", refusal=REFUSED)
    )
    state, more = play(VmmExited(0), state=state)

    assert [c for c in commands if c == CallApi("boot")] == [CallApi("boot")]
    assert SignalVmm(kill=False) in commands
    assert outcome_of(more) == REFUSED


def test_a_vmm_that_dies_at_once_is_told_with_its_own_words() -> None:
    _, commands = play(Prepared(HANDOFF), WorkerExited(0), VmmExited(1, "Failed to open hypervisor interface"))

    outcome = outcome_of(commands)
    assert (outcome.reason, outcome.exit_code) == ("VmmFailed", 15)
    assert "Failed to open hypervisor interface" in outcome.message


def test_its_exit_explains_a_broken_connection() -> None:
    broken = Answered("ping", refusal=ends.Outcome("VmmFailed", 15, "the connection broke"), unreachable=True)
    _, commands = play(Prepared(HANDOFF), WorkerExited(0), broken, VmmExited(1, "no /dev/kvm"))

    assert outcome_of(commands).message == "no /dev/kvm"


def test_a_signal_that_ends_it_explains_a_broken_connection() -> None:
    broken = Answered("boot", refusal=REFUSED, unreachable=True)
    state, commands = play(Prepared(HANDOFF), WorkerExited(0), Answered("ping"), Answered("create"), broken)
    assert not any(isinstance(command, SignalVmm) for command in commands)

    _, commands = play(VmmExited(-31), state=state)
    assert (outcome_of(commands).reason, outcome_of(commands).exit_code) == ("VmmKilled", 159)


def test_a_vmm_that_never_answers_is_killed() -> None:
    silent = Answered("ping", refusal=REFUSED, unreachable=True)
    state, commands = play(Prepared(HANDOFF), WorkerExited(0), silent)
    assert any(isinstance(command, Arm) and command.timer == "kill" for command in commands)

    state, commands = play(TimerFired("kill"), state=state)
    assert commands == [SignalVmm(kill=True)]
    assert outcome_of(play(VmmExited(-9), state=state)[1]) == REFUSED


def test_a_failed_preparation_ends_with_its_reason() -> None:
    bad = ends.Outcome("ImageInvalid", 12, "no /vmlinux")
    _, commands = play(PreparationFailed(bad), WorkerExited(12))

    assert WriteResult(bad) in commands
    assert outcome_of(commands) == bad


def test_a_worker_that_vanishes_is_an_internal_error() -> None:
    _, commands = play(WorkerExited(-9))

    assert outcome_of(commands).reason == "Internal"
    assert "signal 9" in outcome_of(commands).message


def test_a_failed_start_is_held_and_the_hold_ends() -> None:
    bad = ends.Outcome("ImageInvalid", 12, "no /vmlinux")
    state, commands = play(PreparationFailed(bad), WorkerExited(12), state=State(Limits(hold=10)))

    assert state.phase is Phase.FAILED
    assert Arm("hold", 10) in commands
    assert WriteResult(bad) in commands
    assert outcome_of(play(TimerFired("hold"), state=state)[1]) == bad


def test_sigterm_ends_the_hold_at_once() -> None:
    bad = ends.Outcome("ImageInvalid", 12, "no /vmlinux")
    state, commands = play(PreparationFailed(bad), WorkerExited(12), state=State(Limits(hold=None)))

    assert not [c for c in commands if isinstance(c, Arm) and c.timer == "hold"]
    assert outcome_of(play(StopSignal("SIGTERM"), state=state)[1]) == bad


def test_sigterm_while_preparing_stops_the_worker() -> None:
    state, commands = play(StopSignal("SIGTERM"))

    assert commands[0] == SignalWorker(kill=False)
    _, more = play(WorkerExited(-15), state=state)
    assert outcome_of(more).reason == "Terminated"
    assert outcome_of(more).exit_code == 143


def test_a_deaf_worker_is_killed() -> None:
    state, _ = play(StopSignal("SIGTERM"))

    assert step(state, TimerFired("worker"))[1] == (SignalWorker(kill=True),)


def test_a_handoff_that_comes_after_sigterm_starts_nothing() -> None:
    _, commands = play(StopSignal("SIGTERM"), Prepared(HANDOFF), WorkerExited(0))

    assert StartVmm() not in commands
    assert outcome_of(commands).reason == "Terminated"


@pytest.mark.parametrize("answered", [(), ("ping",), ("ping", "create")])
def test_sigterm_before_the_boot_is_through_ends_the_vmm(answered: tuple[str, ...]) -> None:
    calls = [Answered(call) for call in answered]  # type: ignore[arg-type]
    state, commands = play(Prepared(HANDOFF), WorkerExited(0), *calls, StopSignal("SIGTERM"))

    assert SignalVmm(kill=False) in commands
    assert Arm("kill", 1.0) in commands
    assert outcome_of(play(VmmExited(-9), state=state)[1]).reason == "Terminated"


def test_sigterm_presses_the_button_until_the_guest_is_off() -> None:
    state, commands = play(StopSignal("SIGTERM"), state=running())
    assert CallApi("power-button") in commands
    state, commands = play(TimerFired("press"), TimerFired("press"), state=state)
    assert commands.count(CallApi("power-button")) == 2

    _, commands = play(VmmSaid("vm", "shutdown"), VmmExited(0), state=state)

    assert CallApi("vmm-shutdown") in commands
    assert outcome_of(commands).reason == "Terminated"


def test_a_paused_guest_is_resumed_before_the_button() -> None:
    _, commands = play(VmmSaid("vm", "paused"), StopSignal("SIGTERM"), state=running())

    calls = [command.call for command in commands if isinstance(command, CallApi)]
    assert calls == ["resume", "power-button"]


def test_a_deaf_guest_is_cut_within_the_grace_period() -> None:
    state, commands = play(StopSignal("SIGTERM"), state=running(Limits(grace=25)))
    deadlines = {c.timer: c.seconds for c in commands if isinstance(c, Arm)}
    assert deadlines["hard"] < deadlines["kill"] < 25

    state, commands = play(TimerFired("hard"), state=state)
    assert SignalVmm(kill=False) in commands
    state, commands = play(TimerFired("kill"), state=state)
    assert commands == [SignalVmm(kill=True)]
    outcome = outcome_of(play(VmmExited(-9), state=state)[1])
    assert (outcome.reason, outcome.exit_code) == ("TerminatedForced", 143)


def test_a_second_ctrl_c_does_not_wait() -> None:
    _, commands = play(StopSignal("SIGINT"), StopSignal("SIGINT"), state=running())

    assert SignalVmm(kill=False) in commands


def test_a_second_sigterm_changes_nothing() -> None:
    state, _ = play(StopSignal("SIGTERM"), state=running())

    assert step(state, StopSignal("SIGTERM")) == (state, ())


def test_a_guest_that_powers_off_ends_the_launcher() -> None:
    state, commands = play(VmmSaid("vm", "shutdown"), state=running())
    assert commands[0] == WithdrawApi()
    assert commands[-1] == CallApi("info")

    state, commands = play(Answered("info", vm_state="Created"), VmmExited(0), state=state)

    assert CallApi("vmm-shutdown") in commands
    assert outcome_of(commands).reason == "GuestPoweredOff"


def test_an_old_vmm_that_ends_with_the_guest_is_a_power_off() -> None:
    old = replace(HANDOFF, vmm=replace(HANDOFF.vmm, version=(51, 0, 0)))
    state = replace(running(), handoff=old)
    unreachable = Answered("info", refusal=REFUSED, unreachable=True)
    _, commands = play(VmmSaid("vm", "shutdown"), unreachable, VmmExited(0), state=state)

    assert outcome_of(commands).reason == "GuestPoweredOff"


def test_an_old_vmm_that_takes_long_to_go_after_its_guest_is_still_a_power_off() -> None:
    old = replace(HANDOFF, vmm=replace(HANDOFF.vmm, version=(51, 0, 0)))
    state = replace(running(), handoff=old)
    unreachable = Answered("info", refusal=REFUSED, unreachable=True)
    _, commands = play(VmmSaid("vm", "shutdown"), unreachable, TimerFired("kill"), VmmExited(-9), state=state)

    assert SignalVmm(kill=True) in commands
    assert outcome_of(commands).reason == "GuestPoweredOff"


def test_a_vcpu_error_exits_zero_and_is_no_power_off() -> None:
    _, commands = play(
        VmmSaid("vm", "shutdown"),
        Answered("info", refusal=REFUSED, unreachable=True),
        VmmSaid("vm", "deleted"),
        VmmExited(0, "VCPU generated error", crashed=True),
        state=running(),
    )

    assert (outcome_of(commands).reason, outcome_of(commands).exit_code) == ("VmmDied", 21)


def test_somebody_elses_delete_is_stopped_by_api() -> None:
    _, commands = play(
        VmmSaid("vm", "shutdown"),
        VmmSaid("vm", "deleted"),
        Answered("info", refusal=REFUSED, not_created=True),
        VmmExited(0),
        state=running(),
    )

    assert (outcome_of(commands).reason, outcome_of(commands).exit_code) == ("StoppedByApi", 0)


def test_somebody_elses_vmm_shutdown_is_stopped_by_api() -> None:
    _, commands = play(
        VmmSaid("vm", "shutdown"), VmmSaid("vm", "deleted"), VmmSaid("vmm", "shutdown"), VmmExited(0), state=running()
    )

    assert outcome_of(commands).reason == "StoppedByApi"


def test_a_vm_booted_again_by_somebody_lives_on() -> None:
    state, commands = play(VmmSaid("vm", "shutdown"), Answered("info", vm_state="Running"), state=running())

    assert state.phase is Phase.RUNNING
    assert PublishApi() in commands


def test_a_migrated_vm_ends_well() -> None:
    _, commands = play(VmmSaid("vm", "migration-finished"), VmmSaid("vm", "deleted"), VmmExited(0), state=running())

    assert (outcome_of(commands).reason, outcome_of(commands).exit_code) == ("MigratedAway", 0)


@pytest.mark.parametrize(
    ("status", "reason", "code"), [(1, "VmmDied", 21), (-9, "VmmKilled", 137), (-7, "VmmKilled", 135)]
)
def test_a_vmm_that_ends_by_itself(status: int, reason: str, code: int) -> None:
    _, commands = play(VmmExited(status, "Error rebooting VM"), state=running())

    outcome = outcome_of(commands)
    assert (outcome.reason, outcome.exit_code) == (reason, code)
    assert "Error rebooting VM" in outcome.message


def test_an_exit_zero_without_any_event_is_no_power_off() -> None:
    _, commands = play(VmmExited(0), state=running())

    assert outcome_of(commands).reason == "VmmDied"


def test_a_panicked_guest_that_stays_down_ends_as_panicked() -> None:
    state, commands = play(VmmSaid("guest", "panic", {"event": "panic"}), state=running())
    assert Arm("panic", 30.0) in commands

    _, commands = play(TimerFired("panic"), VmmExited(0), state=state)
    assert (outcome_of(commands).reason, outcome_of(commands).exit_code) == ("GuestPanicked", 20)


def test_a_guest_that_writes_a_crash_dump_is_left_alone() -> None:
    _, commands = play(VmmSaid("guest", "panic", {"event": "crash_loaded"}), state=running())

    assert not [command for command in commands if isinstance(command, Arm)]


def test_a_dead_helper_is_started_again_a_little_later_each_time() -> None:
    state, delays = running(), []
    for _ in range(HELPER_DEATHS - 1):
        state, commands = play(HelperExited("dnsmasq", 1), state=state)
        delays += [c.seconds for c in commands if isinstance(c, Arm) and c.timer == "helper dnsmasq"]
        state, commands = play(TimerFired("helper dnsmasq"), state=state)
        assert commands == [StartHelper("dnsmasq")]

    assert delays == sorted(delays)
    assert len(set(delays)) == len(delays)


def test_a_helper_that_keeps_dying_shuts_the_guest_down() -> None:
    events = [HelperExited("dnsmasq", 1, "cannot bind")] * HELPER_DEATHS
    state, commands = play(*events, state=running())
    assert CallApi("power-button") in commands

    _, commands = play(VmmSaid("vm", "shutdown"), VmmExited(0), state=state)
    assert (outcome_of(commands).reason, outcome_of(commands).exit_code) == ("HelperFailed", 16)


def test_a_helper_that_served_its_client_is_started_again_without_a_count() -> None:
    state = replace(running(), handoff=SHARING)
    for _ in range(HELPER_DEATHS + 1):
        state, commands = play(HelperExited("virtiofsd", 0), state=state)
        assert commands == [Arm("helper virtiofsd", 0.1)]
        state, commands = play(TimerFired("helper virtiofsd"), state=state)
        assert commands == [StartHelper("virtiofsd")]
    assert state.helper_deaths == ()


@pytest.mark.parametrize(
    ("status", "words", "told"),
    [
        (1, "no folder", "virtiofsd ended with status 1, and the guest cannot go on without it: no folder"),
        (-9, "", "virtiofsd was killed by signal 9, and the guest cannot go on without it"),
    ],
)
def test_a_helper_that_the_guest_has_a_device_from_takes_the_vm_with_it(status: int, words: str, told: str) -> None:
    state, commands = play(HelperExited("virtiofsd", status, words), state=replace(running(), handoff=SHARING))
    assert state.phase is Phase.STOPPING
    assert CallApi("power-button") in commands
    assert any(isinstance(command, Note) and command.event == "helper-died" for command in commands)
    _, commands = play(TimerFired("hard"), VmmExited(0), state=state)
    [outcome] = [command.outcome for command in commands if isinstance(command, Exit)]
    assert (outcome.reason, outcome.exit_code) == ("HelperFailed", 16)
    assert outcome.message == told


def test_before_the_guest_runs_such_a_helper_is_tried_again() -> None:
    state, commands = play(Prepared(SHARING), HelperExited("virtiofsd", 1, "busy"))
    assert Arm("helper virtiofsd", 0.1) in commands
    state, _ = play(*[HelperExited("virtiofsd", 1, "busy")] * (HELPER_DEATHS - 1), state=state)
    assert state.outcome is not None
    assert state.outcome.reason == "HelperFailed"


def test_a_quiet_minute_forgives_a_helper() -> None:
    state, _ = play(*[HelperExited("dnsmasq", 1)] * (HELPER_DEATHS - 1), TimerFired("quiet dnsmasq"), state=running())
    _, commands = play(HelperExited("dnsmasq", 1), state=state)

    assert CallApi("power-button") not in commands


def test_power_shutdown_answers_when_the_guest_is_off() -> None:
    state, commands = play(PowerRequested(7, "shutdown", 60), state=running())
    assert CallApi("power-button") in commands
    assert not [c for c in commands if isinstance(c, Arm) and c.timer in {"hard", "kill"}]

    _, commands = play(VmmSaid("vm", "shutdown"), VmmExited(0), state=state)
    assert AnswerRequest(7) in commands
    assert outcome_of(commands).reason == "GuestPoweredOff"


def test_power_shutdown_gives_up_and_leaves_the_guest_running() -> None:
    state, commands = play(PowerRequested(7, "shutdown", 5), TimerFired("give-up"), state=running())

    assert state.phase is Phase.RUNNING
    assert any(isinstance(c, AnswerRequest) and c.error for c in commands)


def test_power_shutdown_with_force_cuts() -> None:
    _, commands = play(PowerRequested(7, "shutdown", 5, force=True), TimerFired("hard"), VmmExited(-9), state=running())

    assert AnswerRequest(7) in commands
    assert outcome_of(commands).reason == "GuestPoweredOff"


def test_sigterm_takes_a_power_shutdown_over() -> None:
    state, commands = play(PowerRequested(7, "shutdown", 600), StopSignal("SIGTERM"), state=running())
    assert {c.timer for c in commands if isinstance(c, Arm)} >= {"hard", "kill"}

    _, commands = play(VmmSaid("vm", "shutdown"), VmmExited(0), state=state)
    assert AnswerRequest(7) in commands
    assert outcome_of(commands).reason == "Terminated"


def test_power_off_cuts_at_once() -> None:
    state, commands = play(PowerRequested(7, "off", 10), state=running())
    assert CallApi("shutdown") in commands

    _, commands = play(Answered("shutdown"), VmmSaid("vm", "shutdown"), VmmExited(0), state=state)
    assert AnswerRequest(7) in commands
    assert outcome_of(commands).reason == "GuestPoweredOff"


def test_a_refused_power_off_leaves_the_guest_running() -> None:
    state, commands = play(PowerRequested(7, "off", 10), Answered("shutdown", refusal=REFUSED), state=running())

    assert AnswerRequest(7, REFUSED.message) in commands
    assert state.phase is Phase.RUNNING


def test_sigterm_outlives_a_refused_power_off() -> None:
    state, _ = play(PowerRequested(7, "off", 10), StopSignal("SIGTERM"), state=running())
    state, commands = play(Answered("shutdown", refusal=REFUSED), state=state)
    assert commands == []

    state, commands = play(TimerFired("hard"), state=state)
    assert SignalVmm(kill=False) in commands
    assert outcome_of(play(VmmExited(0), state=state)[1]).reason == "TerminatedForced"


def test_a_power_action_is_refused_while_nothing_runs() -> None:
    _, commands = play(PowerRequested(7, "off", 10))

    assert commands == [AnswerRequest(7, "the VM is preparing, not running")]


def test_a_guest_reboot_reconnects_the_console_and_ends_nothing() -> None:
    state, commands = play(VmmSaid("vm", "rebooting"), VmmSaid("vm", "rebooted"), state=running())

    assert state.phase is Phase.RUNNING
    assert ConnectConsole() in commands


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.just(Prepared(HANDOFF)),
    st.just(PreparationFailed(ends.Outcome("ImageInvalid", 12, "no"))),
    st.builds(WorkerExited, st.sampled_from([0, 12, -9])),
    st.builds(
        Answered,
        st.sampled_from(["ping", "create", "boot", "info", "power-button", "shutdown"]),
        vm_state=st.sampled_from([None, "Created", "Running"]),
        refusal=st.sampled_from([None, REFUSED]),
        not_created=st.booleans(),
        unreachable=st.booleans(),
    ),
    st.builds(
        VmmSaid, st.just("vm"), st.sampled_from(["shutdown", "deleted", "paused", "resumed", "rebooted", "booted"])
    ),
    st.just(VmmSaid("guest", "panic", {"event": "panic"})),
    st.builds(HelperExited, st.just("dnsmasq"), st.integers(-9, 3)),
    st.builds(StopSignal, st.sampled_from(["SIGTERM", "SIGINT"])),
    st.builds(PowerRequested, st.just(1), st.sampled_from(["off", "shutdown"]), st.just(5.0), st.booleans()),
    st.builds(
        TimerFired, st.sampled_from(["worker", "press", "hard", "kill", "give-up", "panic", "hold", "helper dnsmasq"])
    ),
)


@given(st.lists(EVENTS, max_size=25), st.sampled_from([0.0, 5.0, None]))
@settings(max_examples=300, deadline=None)
def test_whatever_happens_sigterm_ends_it(events: list[Event], hold: float | None) -> None:
    """After any history, SIGTERM and the ends of the children lead to exactly one exit, and nothing starts any more."""
    state, commands = play(*events, state=State(Limits(hold=hold)))
    exits = sum(isinstance(command, Exit) for command in commands)
    boots = commands.count(CallApi("boot"))
    assert boots <= commands.count(StartVmm())

    state, commands = play(StopSignal("SIGTERM"), TimerFired("hard"), TimerFired("kill"), state=state)
    if state.worker_alive:
        state, more = play(WorkerExited(-15), state=state)
        commands += more
    if state.vmm_alive:
        state, more = play(VmmExited(-9), state=state)
        commands += more

    assert not any(isinstance(command, StartVmm | StartHelper) for command in commands)
    assert state.phase is Phase.ENDED
    assert exits + sum(isinstance(command, Exit) for command in commands) == 1
