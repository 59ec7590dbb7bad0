"""``launcher run`` and ``launcher prepare``: the verbs that change the machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import options
from launcher.errors import SpecInvalid

if TYPE_CHECKING:
    from pathlib import Path


class _Hold(click.ParamType["float | str"]):
    """Seconds, or ``forever``."""

    name = "SECONDS|forever"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value == "forever":
            return "forever"
        try:
            return SECONDS.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither a number of seconds nor 'forever'", param, ctx)


def _is_number(_ctx: click.Context, _param: click.Parameter, value: float | str | None) -> float | str | None:
    """NaN is within every range."""
    if value != value:  # noqa: PLR0124  # the definition of NaN
        raise click.BadParameter("'nan' is not a number of seconds.")
    return value


SECONDS = click.FloatRange(min=0, max=365 * 86400)


@click.command()
@options.spec_option
@options.host_options
@click.option(
    "--grace",
    type=SECONDS,
    callback=_is_number,
    envvar="LAUNCHER_GRACE",
    default=25.0,
    show_default=True,
    show_envvar=True,
    help="Seconds from SIGTERM to the end; keep it below the pod's terminationGracePeriodSeconds.",
)
@click.option(
    "--hold-failure",
    type=_Hold(),
    callback=_is_number,
    envvar="LAUNCHER_HOLD_FAILURE",
    show_envvar=True,
    help="How long a failed start stays for inspection.  [default: 0; 10 with $VM_DATA]",
)
@click.option(
    "--panic-grace",
    type=SECONDS,
    callback=_is_number,
    default=30.0,
    show_default=True,
    help="Seconds a panicked guest has to reboot by itself.",
)
def run(spec: Path | None, grace: float, hold_failure: float | str | None, panic_grace: float, **host: Any) -> None:
    """The pod's entrypoint: prepare, start the VMM, boot the VM, supervise it until it ends."""
    from launcher.supervise.main import become_supervisor
    from launcher.supervise.model import Limits

    failure = None
    try:
        document, from_vm_data = options.read_spec(spec)
    except SpecInvalid as error:
        document, from_vm_data, failure = b"", "VM_DATA" in os.environ, error
    if hold_failure is None:
        hold_failure = 10.0 if from_vm_data else 0.0
    limits = Limits(grace, None if isinstance(hold_failure, str) else hold_failure, panic_grace)
    settings = options.settings(document, from_vm_data=from_vm_data, **host)
    # The spec may hold secrets, and /proc/PID/environ shows them to whoever may look.
    os.environ.pop("VM_DATA", None)
    become_supervisor(settings, limits, failure)


@click.command()
@options.spec_option
@options.host_options
@options.output
def prepare(spec: Path | None, output: str, **host: Any) -> None:
    """The preparation alone: kernel, disks, network, but no VMM. Safe to repeat."""
    import json

    from launcher import logs, worker
    from launcher.codec import to_json
    from launcher.supervise.lock import hold_lock

    logs.set_up()
    document, from_vm_data = options.read_spec(spec)
    settings = options.settings(document, from_vm_data=from_vm_data, **host)
    with hold_lock(settings.paths):
        handoff = worker.prepare(settings)
    if output == "json":
        click.echo(json.dumps(to_json(handoff), indent=2))
        return
    for step in handoff.steps:
        click.echo(f"{step.milliseconds:9.1f} ms  {step.name}")
    click.echo(f"{handoff.namespace}/{handoff.name} is prepared")
