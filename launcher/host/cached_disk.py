"""Root disks out of the cache: built once, then shared, by reflink, overlay or copy as the plan says."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher import __version__
from launcher.errors import ImageInvalid, StorageFailed
from launcher.host.cache import entry, evict
from launcher.host.clone import reflink, sparse_copy
from launcher.host.files import telling
from launcher.host.overlay import write_overlay
from launcher.host.storage import build_root_disk
from launcher.host.workspace import publish, sync, workspace
from launcher.image.limits import DEFAULT
from launcher.plan.types import BuildRootDisk

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.image.limits import Limits
    from launcher.plan.types import CloneRootDisk

_log = logging.getLogger(__name__)
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class ClonedDisk:
    """A disk that is there. ``built`` tells that the cache had none yet, ``copied`` how many bytes were copied out of it."""

    path: Path
    built: bool = False
    copied: int = 0


def clone_root_disk(action: CloneRootDisk, *, arch: str, limits: Limits = DEFAULT) -> ClonedDisk:
    """The disk is there, from the cache, where it is built when it is missing. One that exists is left alone.

    Raises what ``build_root_disk`` raises, ImageInvalid for an image that is not the planned one any more, and StorageFailed.
    """
    if os.path.lexists(action.disk):
        return ClonedDisk(action.disk)
    made_of: dict[str, str | int] = {
        "builder": f"launcher {__version__}",
        "image": action.digest,
        "arch": arch,
        "volume": action.volume,  # the file system's id is made of it, and of the image
        "size": action.size,
    }

    def build(path: Path) -> None:
        wanted = BuildRootDisk(action.volume, action.image, path, action.size, action.reason)
        made = build_root_disk(wanted, arch=arch, limits=limits)
        if made.digest != action.digest:
            raise ImageInvalid(f"image {action.image} changed while it was used", hint="start again")

    with ExitStack() as held:
        with telling("use the cache", action.cache):
            action.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            with entry(action.cache, made_of, build, verify=action.verify) as found:
                # What is open or linked stays, whatever is evicted from now on.
                source = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC)
                held.callback(os.close, source)
                if action.base:
                    _pin(found.path, action.base)
        with telling("make disk", action.disk), workspace(action.disk) as aside:
            copied = _make(action, source, aside / "disk")
            publish(aside / "disk", action.disk)
    fields = {"disk": str(action.disk), "way": action.way, "built": found.built, "copied": copied}
    _log.info("root disk out of the cache", extra={"fields": fields})
    try:
        evict(action.cache, action.limit)
    except OSError as error:  # the disk is there: no reason not to start
        _log.warning("cannot evict from the cache", extra={"fields": {"cache": str(action.cache), "error": str(error)}})
    return ClonedDisk(action.disk, found.built, copied)


def _make(action: CloneRootDisk, source: int, making: Path) -> int:
    """Make the disk and return how many bytes were copied."""
    if action.base:
        write_overlay(making, action.base, os.fstat(source).st_size)
        return 0
    target = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        if action.way == "reflink":
            if reflink(source, target):
                return 0
            _log.warning("no reflink can be made: copying", extra={"fields": {"disk": str(action.disk)}})
        return sparse_copy(source, target)
    finally:
        os.close(target)


def _pin(cached: Path, base: Path) -> None:
    """A hard link beside the overlay: the base stays when the cache lets it go. One that a killed start left is replaced."""
    with telling("make", base), workspace(base) as aside:
        try:
            os.link(cached, aside / "base")
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StorageFailed(
                f"cannot make {base} a hard link to the cached {cached}: {error.strerror}",
                hint="start without a cache, or keep it in a volume of its own: then disks are copied out of it",
            ) from error
        (aside / "base").rename(base)
        sync(base.parent)
