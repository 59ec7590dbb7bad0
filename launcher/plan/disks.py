"""What every disk's plan is made of: its configuration, how it is opened, whether its file can be used at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import StorageFailed
from launcher.plan.types import GiveToVmm, GuestDisk, MakeFolder
from launcher.plan.vmconfig import DiskConfig

if TYPE_CHECKING:
    from launcher.facts import DiskFacts, DiskFile, HostFacts
    from launcher.plan.types import Action
    from launcher.spec.types import Disk

SECTOR = 512  # what disks are written for, and what the VMM shows of a file
_SERIAL_BYTES = 20  # what virtio-blk has room for; cloud-hypervisor refuses more


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk of the spec. ``config`` is None for one that comes later, by hot-plug."""

    config: DiskConfig | None = None
    disk: GuestDisk | None = None
    actions: tuple[Action, ...] = ()
    groups: tuple[int, ...] = ()  # supplementary groups that let the VMM in
    warnings: tuple[str, ...] = ()


def raw_disk(name: str, path: Path, *, read_only: bool, direct: bool, io: str) -> tuple[DiskConfig, GuestDisk]:
    """A raw disk for the VMM, and for people."""
    config = DiskConfig(name, str(path), read_only, "Raw", serial(name), direct or None)
    return config, GuestDisk(name, path, "raw", read_only, io)


def overlay_disk(name: str, path: Path, base: Path, *, read_only: bool) -> tuple[DiskConfig, GuestDisk]:
    """A qcow2 overlay on ``base``. Never with direct I/O: the VMM reads qcow2 tables in pieces of any size."""
    config = DiskConfig(name, str(path), read_only, "Qcow2", serial(name), backing_files=True)
    return config, GuestDisk(
        name, path, f"a qcow2 overlay on {base}", read_only, "through the page cache: it is an overlay"
    )


def direct_io(block: int, sector: int = SECTOR) -> tuple[bool, str]:
    """Whether the VMM shall open a raw disk past the page cache, and why. ``block`` is ``DiskFacts.direct``.

    The VMM shows the guest sectors of that size (cloud-hypervisor issue 8477), where without direct I/O it would show
    ``sector``: disks are written for 512 bytes.
    """
    if not block:
        return False, "through the page cache: direct I/O is not possible there"
    if block > sector:
        return (
            False,
            f"through the page cache: with direct I/O the guest would see sectors of {block} bytes, not {sector}",
        )
    return True, f"direct I/O: it is possible there, in blocks of {block} bytes"


def check_file(disk: Disk, file: DiskFile) -> tuple[str, ...]:
    """Warnings about a disk that is there. Raises StorageFailed for what the VMM would refuse, or must not be given."""
    what = f"disk {disk.name}: {file.path}"
    if file.problem:
        raise StorageFailed(f"{what} {file.problem}", hint=file.hint)
    if not file.size:
        raise StorageFailed(f"{what} is empty", hint="put a raw disk there")
    if file.read_only and not disk.read_only:
        raise StorageFailed(f"{what} can only be read", hint="say readOnly: true of the disk, or mount it writable")
    if file.lock == "write" or (file.lock and not disk.read_only):
        raise StorageFailed(
            f"{what} is in use: {file.holder or 'another process'} holds a {file.lock} lock on it",
            hint="stop the VM that has it; only disks that are readOnly everywhere can be shared",
        )
    warnings = []
    if file.format == "raw" and file.size % SECTOR:
        warnings.append(f"{what} has {file.size} bytes: the guest does not see the last {file.size % SECTOR}")
    if file.table and file.table != file.sector:
        warnings.append(
            f"{what} has partitions made for sectors of {file.table} bytes, and the guest sees sectors of {file.sector}: "
            "it will not find them"
        )
    return tuple(warnings)


def let_in(disk: Disk, file: DiskFile, facts: HostFacts) -> tuple[tuple[int, ...], tuple[GiveToVmm, ...]]:
    """How the VMM's uid may open somebody's disk: groups for the VMM, or an action.

    The gentlest key first: the mode as it is, then the file's group, and only then a new owner.
    """
    needed = 0o4 if disk.read_only else 0o6
    if file.mode & needed == needed or (file.uid == facts.vmm_uid and file.mode >> 6 & needed == needed):
        return (), ()
    if file.mode >> 3 & needed == needed and file.gid != 0:
        return (file.gid,), ()
    why = f"the VMM opens disk {disk.name}, and its mode {file.mode:04o} lets in neither others nor a group: not a byte changes"
    return (), (GiveToVmm(file.path, facts.vmm_uid, facts.vmm_gid, write=not disk.read_only, reason=why),)


def folder_for(path: Path, found: DiskFacts) -> tuple[MakeFolder, ...]:
    """The folder of a disk that is to be made, unless it is there."""
    if found.folder:
        return ()
    return (MakeFolder(path.parent, 0o755, 0, 0, f"nothing is mounted for the volume {found.volume}"),)


def give(disk: DiskConfig, facts: HostFacts) -> GiveToVmm:
    """Of a disk that is ours, or was made for us."""
    why = f"the VMM opens disk {disk.id}"
    return GiveToVmm(Path(disk.path), facts.vmm_uid, facts.vmm_gid, write=not disk.readonly, reason=why)


def serial(name: str) -> str:
    """A name for /dev/disk/by-id/virtio-…; a long one is cut and told apart by a hash."""
    if len(name.encode()) <= _SERIAL_BYTES:
        return name
    return f"{name[:11]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
