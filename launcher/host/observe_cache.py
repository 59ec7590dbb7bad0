"""Looking at the cache, and at how a disk would come out of it. Nothing is changed."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from launcher.host.clone import can_link, can_reflink, file_system, nearest
from launcher.host.observe_files import is_file
from launcher.host.overlay import overlay_flaw

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.facts import CacheFacts, DiskFacts
    from launcher.paths import Paths


def observe_cache(asked: CacheFacts) -> CacheFacts:
    """The cache that was asked for, with its file system, and why it cannot be used."""
    return replace(asked, file_system=file_system(nearest(asked.folder)), problem=_flaw(asked.folder))


def observe_root_disk(disk: DiskFacts, paths: Paths, cache: CacheFacts | None) -> DiskFacts:
    """The disk with what is there of an overlay, and how one would come out of the cache."""
    overlay, base = paths.rootfs_overlay(disk.volume), paths.rootfs_base(disk.volume)
    there = is_file(overlay)
    seen = replace(disk, rootfs_overlay=there, overlay_problem=overlay_flaw(overlay, base) if there else None)
    if cache is None or cache.problem:
        return seen
    source, target = nearest(cache.folder), nearest(paths.volume(disk.volume))
    return replace(seen, cache_reflink=can_reflink(source, target), cache_link=can_link(source, target))


def _flaw(folder: Path) -> str | None:
    """Why no cache can be in the folder; None when one can, or when it is still to be made."""
    try:
        if not folder.is_dir():
            return f"{folder} is not a folder" if os.path.lexists(folder) else None
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"{folder} cannot be written"
    except OSError as error:
        return f"{folder} cannot be looked at: {error.strerror}"
    return None
