"""The disk of a containerDisk image, made ready to be written to: an overlay, or a raw copy.

Each file gets its name when it is whole. An overlay holds guest data: one that is there is left alone, as is a copy.
"""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING

from launcher.errors import StorageFailed
from launcher.host import clone
from launcher.host.files import telling
from launcher.host.overlay import write_overlay
from launcher.host.progress import Advance, Meter
from launcher.host.qemu_img import qcow2_to_raw
from launcher.host.workspace import publish, sync, workspace
from launcher.image.disk import DiskImage, find_disk, host_path, judge_disk
from launcher.image.limits import DEFAULT
from launcher.image.source import open_image
from launcher.image.sparse import data_bytes, write_sparse
from launcher.plan.types import Confinement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.image.limits import Limits
    from launcher.image.source import Image
    from launcher.plan.types import MakeContainerDisk

_log = logging.getLogger(__name__)
_MIB = 1 << 20
_SILENCE = 5.0  # seconds between two lines about the same work
_READ_ONLY = 0o444  # of a base: nobody has a reason to write to it, and the VMM's uid reads it


def make_container_disk(action: MakeContainerDisk, *, arch: str, limits: Limits = DEFAULT) -> None:
    """The disk is there. Raises ImageInvalid for the image, StorageFailed when the disk cannot be written, HostUnfit
    without qemu-img where it is needed.
    """
    meter = Meter(_log_advance, every=_SILENCE)
    with telling("make disk", action.disk):
        if os.path.lexists(action.disk):
            return
        if action.base is None:
            with open_image(action.image, arch=arch, limits=limits) as image:
                copy_raw(image, action.disk, Confinement(action.uid, action.gid), meter)
            return
        if not action.in_place and not os.path.lexists(action.base):
            with open_image(action.image, arch=arch, limits=limits) as image:
                copy_as_it_is(image, action.base, meter)
        _lay_over(action.base, action.disk, action.mark)


def _lay_over(base: Path, disk: Path, mark: str) -> None:
    with base.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        kind, virtual = judge_disk(lambda at, count: os.pread(file.fileno(), count, at), size, str(base))
    with workspace(disk) as making:
        if mark:
            _write_mark(making / "mark", mark, disk.with_suffix(".mark"))
        write_overlay(making / "disk", base, virtual, kind)
        publish(making / "disk", disk)


def _write_mark(making: Path, mark: str, path: Path) -> None:
    """Anew at each attempt: it belongs to the disk that follows, not to one that a killed run did not get to make."""
    making.write_text(mark)
    sync(making)
    making.replace(path)


def copy_as_it_is(image: Image, target: Path, meter: Meter) -> DiskImage:
    """``target`` is the image's disk, in its own format, for reading. Raises as ``make_container_disk``."""
    disk = find_disk(image)
    with workspace(target) as making:
        copy = making / "disk"
        _copy(image, disk, copy, target, meter)
        copy.chmod(_READ_ONLY)
        publish(copy, target)
    return disk


def copy_raw(image: Image, target: Path, identity: Confinement, meter: Meter) -> DiskImage:
    """``target`` is the image's disk as a sparse raw file; ``identity`` is whom a converter runs as. Raises likewise."""
    disk = find_disk(image)
    with workspace(target) as making:
        copy = making / "disk"
        if disk.format == "raw":
            _copy(image, disk, copy, target, meter)
            os.truncate(copy, disk.size)
        else:
            source = making / "source"
            _copy(image, disk, source, target, meter)
            copy.touch(0o600)
            os.truncate(copy, disk.size)
            if os.geteuid() == 0:
                for path in (source, copy):
                    os.chown(path, identity.uid, identity.gid)
            hear = _heard(meter, "converting the disk", disk.size)
            qcow2_to_raw(source, copy, identity, lambda percent: hear(int(disk.size * percent / 100)))
        publish(copy, target)
    return disk


def _copy(image: Image, disk: DiskImage, copy: Path, target: Path, meter: Meter) -> None:
    """The disk's file, sharing its blocks where that is possible, without its zeros elsewhere."""
    hear = _heard(meter, "copying the disk", disk.file.size)
    with copy.open("xb") as file:
        there = host_path(image, disk)
        if there:
            with there.open("rb") as source:
                if not clone.reflink(source.fileno(), file.fileno()):
                    _check_room(target, os.fstat(source.fileno()).st_blocks * 512)
                    clone.sparse_copy(source.fileno(), file.fileno())
            return
        if disk.file.size > shutil.disk_usage(target.parent).free:
            _check_room(target, data_bytes(disk.file.chunks()))
        write_sparse(disk.file.chunks(), disk.file.size, file.fileno(), hear)


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise StorageFailed(
            f"no space is left for the disk {target}: it takes {-(-needed // _MIB)}Mi, {free // _MIB}Mi are free",
            hint="make room, or mount a larger volume there",
        )


def _log_advance(advance: Advance) -> None:
    _log.info("making a disk", extra={"fields": {"progress": str(advance)}})


def _heard(meter: Meter, stage: str, total: int) -> Callable[[int], None]:
    """A stage of ``total`` bytes, for somebody who tells how many are done in all."""
    meter.begin(stage, total)
    last = 0

    def hear(done: int) -> None:
        nonlocal last
        meter.add(done - last)
        last = done

    return hear
