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


@click.command()
@options.spec_argument
def validate(spec: Path | None) -> None:
    """Check a spec against the API and print every problem; what is fine prints nothing."""
    for warning in _load(spec).warnings:
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

    loaded = _load(spec)
    facts_seen = _read_facts(facts_file) if facts_file is not None else _observe(loaded, host)
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

    try:
        loaded = _load(spec)
    except SpecInvalid:
        if spec is not None:
            raise
        loaded = None  # without a spec everything in the folders is looked at
    click.echo(json.dumps(to_json(_observe(loaded, host)), indent=2))


def _load(path: Path | None) -> Loaded:
    from launcher.spec.load import load

    document, from_vm_data = options.read_spec(path)
    return load(document, unknown_fields="warn" if from_vm_data else "fail")


def _observe(loaded: Loaded | None, host: dict[str, Any]) -> HostFacts:
    from launcher import worker

    settings = options.settings(b"", from_vm_data=False, **host)
    return worker.observe_machine(loaded.spec if loaded else None, settings)


def _read_facts(path: Path) -> HostFacts:
    from launcher.codec import DoesNotFit, from_json
    from launcher.facts import HostFacts

    hint = "make the file with launcher facts"
    try:
        return from_json(HostFacts, json.loads(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"cannot read the facts {path}: {error.strerror}", hint=hint) from None
    except DoesNotFit as error:
        raise UsageError(f"{path} holds no facts of this version: {error}", hint=hint) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=hint) from None
