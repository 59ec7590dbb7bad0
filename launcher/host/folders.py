"""Folders on the way to ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_parents(path: Path) -> None:
    """Make missing parents, open to all whatever the umask: the VMM's uid passes through them. Raises OSError."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)
