"""The command line. Each verb imports its layer when it is called, so that ``--help`` and the resident process stay small.

This is the one place that prints and that turns errors into exit codes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import click

from launcher import __version__
from launcher.cli import client, images, inspect, network, run
from launcher.errors import LauncherError, SpecInvalid


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="launcher %(version)s")
def launcher() -> None:
    """Run one cloud-hypervisor VM from a JSON spec, and look after it.

    In a pod, `launcher run` is the entrypoint; the other verbs are for `kubectl exec`.
    """


for verb in (
    run.run,
    run.prepare,
    inspect.validate,
    inspect.plan,
    inspect.facts,
    client.status,
    client.power,
    client.events,
    client.timeline,
    client.api,
    network.network,
    images.image,
):
    launcher.add_command(verb)


def main() -> NoReturn:
    """The console script: runs a verb and exits with the code of docs/reference/exit-codes.md."""
    if os.getpid() == 1:  # the kernel drops a signal that PID 1 has no handler for: keep these until somebody reads them
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP))
    try:
        code = launcher.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except LauncherError as error:
        tell(error)
        sys.exit(error.exit_code)
    except Exception as error:  # the last resort: a bug gets one sentence too
        if os.environ.get("LAUNCHER_DEBUG"):
            raise
        click.echo(f"launcher: internal error: {type(error).__name__}: {error}", err=True)
        click.echo("hint: LAUNCHER_DEBUG=1 shows where; please report it", err=True)
        sys.exit(LauncherError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def tell(error: LauncherError) -> None:
    """Print an error: its sentence, every problem of a spec on a line of its own, the remedy."""
    if isinstance(error, SpecInvalid) and error.problems:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        return
    click.echo(f"launcher: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
