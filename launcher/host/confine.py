"""Wraps a command so that it runs as exactly what a Confinement says. Used for every long-lived child.

util-linux does it, not a preexec function: between fork and exec only async-signal-safe calls are sound, and a program
of two lines can be read in ``ps``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.plan.types import Confinement


def confined_argv(argv: Sequence[str], confinement: Confinement, *, pdeathsig: str | None = "KILL") -> list[str]:
    """The command with its confinement in front: uid, gid, groups, limits, no new privileges, and only the named
    capabilities, in every set; uid 0 keeps none but these either.

    ``pdeathsig`` names the signal that the child gets when the thread that started it ends, None for no such tie.
    """
    command = []
    if confinement.nofile is not None:
        command += ["prlimit", f"--nofile={confinement.nofile}:{confinement.nofile}", "--"]
    kept = ",".join(["-all", *(f"+{name}" for name in confinement.capabilities)])
    command += [
        "setpriv",
        f"--reuid={confinement.uid}",
        f"--regid={confinement.gid}",
        f"--groups={','.join(map(str, confinement.groups))}" if confinement.groups else "--clear-groups",
        f"--inh-caps={kept}",
        f"--ambient-caps={kept}",
        f"--bounding-set={kept}",
        "--no-new-privs",
    ]
    if pdeathsig is not None:
        command.append(f"--pdeathsig={pdeathsig}")
    return [*command, "--", *argv]
