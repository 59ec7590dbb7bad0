"""The checkout where everybody can read it, as an image's launcher is.

The VMM and dnsmasq run as uids of their own, which cannot pass through a closed folder: a clone below /root, say. There
the process takes a mount namespace in which an open folder, with only what is needed in it, has the closed one's place.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLONE_NEWNS = 0x00020000


def open_checkout() -> None:
    """For this process and its children; does nothing where nothing is closed, or without root."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = [path for path in {ROOT, cache, Path(sys.base_prefix)} if _closed_above(path) and path.exists()]
    closed = {_closed_above(path) for path in kept}
    if _closed_above(ROOT) is None or os.geteuid() != 0:
        return
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):  # os.unshare needs Python 3.12
        raise OSError(ctypes.get_errno(), "unshare")
    _run("mount", "--make-rprivate", "/")
    with tempfile.TemporaryDirectory() as aside:
        for number, path in enumerate(kept):
            Path(aside, str(number)).mkdir()
            _run("mount", "--rbind", str(path), f"{aside}/{number}")
        for folder in closed:
            _run("mount", "-t", "tmpfs", "-o", "mode=755", "none", str(folder))
        for number, path in enumerate(kept):
            path.mkdir(parents=True, exist_ok=True)
            _run("mount", "--move", f"{aside}/{number}", str(path))
    os.chdir(Path.cwd())  # the same folder by its new mount


def _closed_above(path: Path) -> Path | None:
    """The topmost parent that others may not pass through."""
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True)
