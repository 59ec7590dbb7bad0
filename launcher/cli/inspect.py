"""``launcher validate``, ``plan`` and ``facts``: the verbs that only look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import options
from launcher.errors import UsageError

if TYPE_CHECKING:
    from launcher.facts import HostFacts
    from launcher.spec.load import Loaded

_FACTS_LIMIT = 16 << 20  # bytes


@click.command()
@options.spec_argument
def validate(spec: Path | None) -> None:
    """Check a spec against the API and print every problem; what is fine prints nothing."""
    for warning in _load(spec)[0].warnings:
        click.echo(f"warning: {warning}", err=True)


@click.command()
@options.spec_argument
@options.host_options
@click.option(
    "--facts", "facts_file", type=click.Path(path_type=Path), help="Facts of a machine, from `launcher facts`."
)
@options.output
def plan(spec: Path | None, facts_file: Path | None, output: str, **host: Any) -> None:
    """Print what `run` would do: the cloud-hypervisor config and every action on the host, with its reason."""
    from launcher.plan.build import plan as make_plan
    from launcher.plan.text import render_json, render_text

    loaded, from_vm_data = _load(spec)
    facts_seen = _read_facts(facts_file) if facts_file is not None else _observe(loaded, host, from_vm_data)
    boot_plan = make_plan(loaded.spec, facts_seen)
    if output == "json":
        click.echo(json.dumps(render_json(boot_plan), indent=2))
    else:
        click.echo(render_text(boot_plan), nl=False)


@click.command()
@options.spec_option
@options.host_options
def facts(spec: Path | None, **host: Any) -> None:
    """Print what is seen of this machine as JSON: for `plan --facts` anywhere, or for a bug report."""
    from launcher.codec import to_json
    from launcher.errors import SpecInvalid

    loaded, from_vm_data = None, False  # without a spec everything in the folders is looked at
    try:
        loaded, from_vm_data = _load(spec)
    except SpecInvalid:
        if spec is not None:
            raise
    click.echo(json.dumps(to_json(_observe(loaded, host, from_vm_data)), indent=2))


def _load(path: Path | None) -> tuple[Loaded, bool]:
    """The spec, and whether it came from $VM_DATA."""
    from launcher.spec.load import load

    document, from_vm_data = options.read_spec(path)
    return load(document, unknown_fields="warn" if from_vm_data else "fail"), from_vm_data


def _observe(loaded: Loaded | None, host: dict[str, Any], from_vm_data: bool) -> HostFacts:  # noqa: FBT001  # private
    from launcher import worker

    settings = options.settings(b"", from_vm_data=from_vm_data, **host)
    return worker.observe_machine(loaded.spec if loaded else None, settings)


def _read_facts(path: Path) -> HostFacts:
    from launcher.codec import DoesNotFit, from_json
    from launcher.facts import HostFacts

    hint = "make the file with launcher facts"
    try:
        with path.open("rb") as file:
            text = file.read(_FACTS_LIMIT + 1)
        if len(text) > _FACTS_LIMIT:
            raise UsageError(f"the facts {path} have more than {_FACTS_LIMIT} bytes", hint=hint)
        return from_json(HostFacts, json.loads(text))
    except OSError as error:
        raise UsageError(f"cannot read the facts {path}: {error.strerror}", hint=hint) from None
    except DoesNotFit as error:
        raise UsageError(f"{path} holds no facts of this version: {error}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=hint) from None
