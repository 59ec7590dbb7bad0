"""How the VMM is started, and which versions of it can be.

v46 and later: from v46 on the VMM locks disk images, so that no disk is ever open for writing in two VMs. Up to v51 there is no
``--no-shutdown``: a guest's power-off and a fatal vCPU error then end the process alike, with status 0. Error bodies are
plain text in v46 and lists from v47 on; a missing VM is 500 up to v52 and 404 from v53 on: ``api`` reads both. Newer
versions than we know are taken: the API only ever grew.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit

if TYPE_CHECKING:
    from collections.abc import Sequence

Version = tuple[int, int, int]

MINIMUM: Version = (46, 0, 0)
NO_SHUTDOWN: Version = (52, 0, 0)  # since then a guest's power-off can leave the process alive

_VERSION = re.compile(r"cloud-hypervisor v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-+.~ ].*)?\Z")


def parse_version(text: str) -> Version | None:
    """The version in the output of ``cloud-hypervisor --version``; None when it is none.

    Its first line is ``cloud-hypervisor v53.0``, ``… v53.0.1``, or what git describes: ``… v53.0-246-gae44c2971-dirty``.
    """
    lines = text.strip().splitlines()
    match = _VERSION.match(lines[0].strip()) if lines else None
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def check_version(binary: str, version: Sequence[int] | None) -> None:
    """Raise HostUnfit when ``version``, which parse_version made of ``binary``'s answer, cannot be used."""
    if not version:
        raise HostUnfit(f"{binary} does not say that it is cloud-hypervisor", hint="set --vmm or $LAUNCHER_VMM")
    if tuple(version) < MINIMUM:
        raise HostUnfit(
            f"{binary} is cloud-hypervisor v{'.'.join(map(str, version))}, which does not lock disk images",
            hint=f"v{MINIMUM[0]}.0 or later is needed",
        )


def vmm_argv(binary: str, *, api_fd: int, event_fd: int, version: Sequence[int]) -> list[str]:
    """The VMM's command line: ``api_fd`` is a listening unix socket, ``event_fd`` the event monitor's writing end.

    Nothing of the VM is in it: that goes through vm.create. Without ``-v`` the log has warnings and errors only, on
    stderr; more would print the whole config.
    """
    argv = [binary, "--api-socket", f"fd={api_fd}", "--event-monitor", f"fd={event_fd}"]
    if tuple(version) >= NO_SHUTDOWN:
        argv.append("--no-shutdown")
    return argv
