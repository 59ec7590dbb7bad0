"""The command line. Each verb imports its layer when it is called, so that ``--help`` and the resident process stay small.

This is the one place that prints and that turns errors into exit codes.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import NoReturn

import click

from launcher import __version__
from launcher.cli import client, images, inspect, network, run
from launcher.errors import LauncherError, SpecInvalid, UsageError

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}  # of a stdout that takes no more


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
    if os.getpid() == 1:
        # The kernel drops a signal that PID 1 has no handler for: keep these until somebody reads them.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP))
    stdout = sys.stdout
    try:
        code = launcher.main(standalone_mode=False)
        if sys.stdout:  # closed with >&-, there is none
            sys.stdout.flush()
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (BrokenPipeError, SystemExit) as error:
        # When the reader of our output went away, click puts another stdout in place and exits with 1.
        if isinstance(error, SystemExit) and sys.stdout is stdout:
            raise
        _discard(1)
        sys.exit(141)
    except LauncherError as error:
        tell(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            _tell_bug(error)
        _discard(1)
        tell(UsageError(f"cannot write the output: {error.strerror}", hint="look after where it goes"))
        sys.exit(UsageError.exit_code)
    except Exception as error:  # noqa: BLE001  # the last resort: a bug gets one sentence too
        _tell_bug(error)
    sys.exit(code if isinstance(code, int) else 0)


def tell(error: LauncherError) -> None:
    """Print an error: its sentence, every problem of a spec on a line of its own, the remedy."""
    if isinstance(error, SpecInvalid) and error.problems:
        _complain(*map(str, error.problems))
    else:
        _complain(f"launcher: {error.message}", *([f"hint: {error.hint}"] if error.hint else []))


def _tell_bug(error: Exception) -> NoReturn:
    if os.environ.get("LAUNCHER_DEBUG"):
        raise error
    _complain(
        f"launcher: internal error: {type(error).__name__}: {error}",
        "hint: LAUNCHER_DEBUG=1 shows where; please report it",
    )
    sys.exit(LauncherError.exit_code)


def _complain(*lines: str) -> None:
    """Print to stderr. When nobody can hear us, the exit code still tells."""
    try:
        for line in lines:
            click.echo(line, err=True)
    except OSError:
        _discard(2)


def _discard(fd: int) -> None:
    """What is still buffered for stdout or stderr goes nowhere: the interpreter's last flush must not change our code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
