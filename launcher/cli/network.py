"""``launcher network``: the pod's network by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli import options

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def network() -> None:
    """Look after the pod's network."""


@network.command()
@options.run_dir
def restore(run_dir: Path) -> None:
    """Put the pod's network back as the CNI made it. Refused while a launcher is alive here."""
    from launcher.host.network import restore_network
    from launcher.paths import Paths
    from launcher.supervise.lock import hold_lock

    with hold_lock(Paths(run_dir=run_dir.absolute())):
        changed = restore_network()
    click.echo("the pod's network is as the CNI made it" + ("" if changed else ", and was before"))
