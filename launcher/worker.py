"""The heavy phase: observe, plan, apply, hand off, exit.

As a program, ``python -I -m launcher.worker --report-fd N``, it reads its settings from stdin and writes to descriptor N what
``launcher.supervise.handoff`` describes, ending with a handoff or a failure. It has no signal handlers: SIGTERM ends it at once
wherever it is, since a half-made file has a name of its own that the next start removes, and every action converges. It ends
with the supervisor, however that ends: left behind it would work beside the next start's, and could give a disk its name anew.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import select
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher import logs
from launcher.codec import DoesNotFit
from launcher.errors import LauncherError
from launcher.facts import CacheFacts
from launcher.host.apply import apply
from launcher.host.observe import VmmChoice, observe
from launcher.plan.build import plan
from launcher.plan.text import digest
from launcher.plan.vmconfig import wire
from launcher.spec.load import load
from launcher.supervise.handoff import (
    Handoff,
    Progress,
    Settings,
    Step,
    WorkerFailure,
    decode_settings,
    encode,
)
from launcher.vmm.argv import check_version, parse_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launcher.facts import HostFacts
    from launcher.plan.types import Action, BootPlan
    from launcher.spec.load import Loaded
    from launcher.spec.types import VmSpec
    from launcher.supervise.handoff import Message

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_log = logging.getLogger(__name__)


def load_spec(settings: Settings) -> Loaded:
    """The spec the settings hold. Raises SpecInvalid."""
    return load(settings.spec_bytes, unknown_fields="warn" if settings.from_vm_data else "fail")


def observe_machine(spec: VmSpec | None, settings: Settings) -> HostFacts:
    """What is seen of this machine; without a spec, of every image and volume. Raises nothing."""
    return observe(
        spec,
        settings.paths,
        VmmChoice(settings.vmm, settings.emulate, settings.firmware),
        judge=_judge,
        vmm_uid=settings.vmm_uid,
        vmm_gid=settings.vmm_gid,
        block_volumes=settings.block_volumes,
        container_disk=settings.container_disk,
        receive_migration=settings.receive_migration,
        limits=settings.limits,
        cache=CacheFacts(settings.cache, settings.cache_size, settings.cache_verify) if settings.cache else None,
    )


def _judge(binary: str, answer: str) -> tuple[int, ...]:
    # The emulator says, under its own name, whose version's API it speaks.
    version = parse_version(answer.replace("vmm-emulator ", "cloud-hypervisor ", 1))
    check_version(binary, version)
    return version or ()


def prepare(settings: Settings, on_progress: Callable[[Progress], None] = lambda _: None) -> Handoff:
    """The whole preparation in this process. Raises LauncherError; what was done until then stays, and does no harm."""
    steps: list[Step] = []

    def ended(name: str, seconds: float) -> None:
        step = Step(name, round(seconds * 1000, 3))
        steps.append(step)
        on_progress(Progress(step.name, step.milliseconds))

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        on_progress(Progress(name))
        started = time.monotonic()
        yield
        ended(name, time.monotonic() - started)

    def on_action(action: Action, seconds: float | None) -> None:
        if seconds is None:
            on_progress(Progress(action.describe()))
        else:
            ended(action.describe(), seconds)

    with timed("read the spec"):
        loaded = load_spec(settings)
    with timed("observe the machine"):
        facts = observe_machine(loaded.spec, settings)
    with timed("plan"):
        boot = plan(loaded.spec, facts)
    apply(boot.actions, arch=facts.arch, limits=settings.limits, on_action=on_action)
    return _handoff(boot, loaded, steps)


def _handoff(boot: BootPlan, loaded: Loaded, steps: list[Step]) -> Handoff:
    return Handoff(
        name=boot.name,
        namespace=boot.namespace,
        uid=boot.uid,
        vmm=boot.vmm,
        vm_config=wire(boot.vm_config),
        digest=digest(boot),
        helpers=boot.helpers,
        nics=boot.nics,
        warnings=(*map(str, loaded.warnings), *boot.warnings),
        steps=tuple(steps),
    )


def main() -> int:
    """The worker as a program; its exit status is 0 after a handoff, else the failure's exit code."""
    parser = argparse.ArgumentParser(prog="launcher.worker")
    parser.add_argument("--report-fd", type=int, required=True)
    report_fd: int = parser.parse_args().report_fd
    _end_with_the_reader(report_fd)
    logs.set_up()
    with os.fdopen(report_fd, "wb") as report:

        def tell(message: Message) -> None:
            report.write(encode(message))
            report.flush()

        try:
            tell(prepare(_read_settings(), tell))
        except LauncherError as error:
            tell(WorkerFailure.of(error))
            return error.exit_code
        except Exception as error:  # noqa: BLE001  # the last line of defence: whatever it is, the supervisor hears of it
            _log.exception("the preparation failed unexpectedly")
            tell(WorkerFailure.of(_internal(error)))
            return LauncherError.exit_code
    return 0


def _end_with_the_reader(report_fd: int) -> None:
    """Tie this process to its parent, which alone reads the reports."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    poll = select.poll()
    poll.register(report_fd, 0)
    if poll.poll(0):  # POLLERR: the parent had ended before it was tied to
        sys.exit(LauncherError.exit_code)


def _read_settings() -> Settings:
    try:
        return decode_settings(sys.stdin.buffer.read())
    except DoesNotFit as error:
        raise LauncherError(f"the worker's settings cannot be read: {error}") from error


def _internal(error: Exception) -> LauncherError:
    """An unexpected exception by its type and place: its text may quote the spec."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return LauncherError(
        f"a bug in the launcher: {type(error).__name__}{place}",
        hint="please report it; the log has the traceback",
    )


if __name__ == "__main__":
    sys.exit(main())
