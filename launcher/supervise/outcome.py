"""How a VM's life ended: the reason users branch on, the exit code, one sentence.

Source: docs/reference/exit-codes.md. A failed start carries the reason and code of its LauncherError instead.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import SpecInvalid

if TYPE_CHECKING:
    from launcher.errors import LauncherError


MANY = 10  # problems of a spec that may not all fit into a termination message


@dataclass(frozen=True, slots=True)
class Outcome:
    """``message`` is a sentence; ``hint`` the remedy where there is one."""

    reason: str
    exit_code: int
    message: str
    hint: str | None = None


def failed(error: LauncherError) -> Outcome:
    """The outcome of a start that failed with ``error``."""
    problems = error.problems if isinstance(error, SpecInvalid) else ()
    message = "; ".join(map(str, problems)) or error.message
    hint = f"launcher validate shows all {len(problems)} problems" if len(problems) > MANY else error.hint
    return Outcome(error.reason, error.exit_code, message, hint)


def internal(error: Exception) -> Outcome:
    """A bug in the launcher, told without the error's text, which may quote a secret."""
    return Outcome(
        "Internal",
        70,
        f"a bug in the launcher: {type(error).__name__}",
        "please report it; the log has the traceback",
    )


def guest_powered_off(message: str) -> Outcome:
    """The guest is off because it wanted to be, or because somebody asked us for it."""
    return Outcome("GuestPoweredOff", 0, message)


def migrated_away() -> Outcome:
    """A send-migration finished: the guest runs elsewhere."""
    return Outcome("MigratedAway", 0, "the VM was migrated to another launcher")


def stopped_by_api() -> Outcome:
    """Another client of the VMM's socket ended the VM."""
    return Outcome("StoppedByApi", 0, "another client of the VMM's API stopped or deleted the VM")


def guest_panicked(grace: float) -> Outcome:
    """The guest's kernel reported a panic and then did nothing."""
    return Outcome("GuestPanicked", 20, f"the guest panicked and did not reboot within {grace:g} s")


def vmm_died(status: int, last_words: str) -> Outcome:
    """The VMM ended by itself, for no reason we know."""
    said = f": {last_words}" if last_words else " without a word"
    return Outcome("VmmDied", 21, f"the VMM ended with status {status}{said}")


def vmm_killed(number: int, last_words: str) -> Outcome:
    """The VMM was killed by signal ``number``."""
    name = signal.Signals(number).name
    hint = {
        signal.SIGKILL: "the kernel's OOM killer does this: compare memory.events and the container's memory limit",
        signal.SIGBUS: "with hugepages: the container's hugepages limit is below the VM's memory",
        signal.SIGSYS: "the VMM's seccomp filter refused a system call",
    }.get(signal.Signals(number))
    said = f": {last_words}" if last_words else ""
    return Outcome("VmmKilled", 128 + number, f"the VMM was killed by {name}{said}", hint)


def terminated(message: str) -> Outcome:
    """SIGTERM or SIGINT, and the guest shut down (or was not running yet)."""
    return Outcome("Terminated", 143, message)


def terminated_forced(seconds: float) -> Outcome:
    """SIGTERM or SIGINT, and the guest had to be cut."""
    return Outcome(
        "TerminatedForced",
        143,
        f"the guest did not react to the power button within {seconds:.3g} s and was cut",
        "the guest needs an ACPI listener: systemd-logind or acpid; or give it a longer grace period",
    )
