"""Looking for the firmware that boots a VM without a kernel of its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from launcher.facts import FirmwareFacts

FOLDER = Path("/var/lib/cloud-hypervisor")  # where Virtink's image has them
NAMES = {"x86_64": ("CLOUDHV.fd", "hypervisor-fw"), "aarch64": ("CLOUDHV_EFI.fd",)}
OVMF = Path("/usr/share/ovmf/OVMF.fd")  # Debian's; the emulator runs no other


def observe_firmware(asked: Path | None, arch: str, *, emulated: bool) -> FirmwareFacts:
    """The firmware asked for, else the first of the known ones that is there. A missing or unreadable one is a problem."""
    if asked is not None:
        candidates = [asked]
    else:
        candidates = [FOLDER / name for name in NAMES.get(arch, ())]
        if emulated:
            candidates.append(OVMF)
    for path in candidates:
        if found := _look(path):
            return found
    if asked is not None:
        return FirmwareFacts(asked, problem=f"there is no firmware {asked}", hint="check --firmware")
    where = ", ".join(map(str, candidates)) or f"any place known for {arch}"
    hint = (
        "install the package ovmf"
        if emulated
        else "put cloud-hypervisor's CLOUDHV.fd there, or name one with --firmware"
    )
    return FirmwareFacts(problem=f"the VM has no kernel, and there is no firmware at {where}", hint=hint)


def _look(path: Path) -> FirmwareFacts | None:
    try:
        node = path.stat()
        if not stat.S_ISREG(node.st_mode):
            return FirmwareFacts(path, problem=f"the firmware {path} is not a file", hint="check --firmware")
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return None
    except OSError as error:
        return FirmwareFacts(
            path, problem=f"the firmware {path} cannot be read: {error.strerror}", hint="make it readable to all"
        )
    return FirmwareFacts(path)
