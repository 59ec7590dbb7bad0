"""The disk in a containerDisk image: where it is, and what it is. It comes from strangers, so its header is judged here.

Format: QEMU docs/interop/qcow2.txt. Nothing but a header is looked at; what reads the rest is confined.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from launcher.errors import ImageInvalid
from launcher.image.source import Form, FoundFile
from launcher.image.tree import Entry, resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.image.source import Image

DISK_PATH = "/disk"  # a file (Virtink), or a folder with one file in it (KubeVirt)
SECTOR = 512
Format = Literal["raw", "qcow2"]

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # of version 2
_FEATURES_AT = 72  # where version 3 goes on
_QCOW2 = b"QFI\xfb"
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_LARGEST = 1 << 50  # bytes a guest may be made to see; cloud-hypervisor builds tables for them
_NAME_LIMIT = 1023

# What else people put there: magic at an offset, and what to call it.
_OTHERS = (
    (0, b"KDMV", "a VMDK disk"),
    (0, b"# Disk DescriptorFile", "a VMDK disk"),
    (0, b"vhdxfile", "a VHDX disk"),
    (0, b"conectix", "a VHD disk"),
    (0, b"QED\0", "a QED disk"),
    (64, b"\x7f\x10\xda\xbe", "a VDI disk"),
    (0, b"\x1f\x8b", "compressed by gzip"),
    (0, b"\xfd7zXZ\0", "compressed by xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (0, b"BZh", "compressed by bzip2"),
)


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk that may be used: its file, its format, and the bytes its guest sees."""

    file: FoundFile
    path: str  # in the image
    format: Format
    size: int


def find_disk(image: Image) -> DiskImage:
    """The one disk of a containerDisk image. Raises ImageInvalid when there is none, or none that may be used."""
    path = _locate(image)
    found = image.find_file(path)
    if found is None:
        raise ImageInvalid(
            f"{image.what}: has no {DISK_PATH}",
            hint="a containerDisk holds the disk at /disk, or alone in the folder /disk/",
        )
    what = f"{image.what}: {path}"
    format_, size = judge_disk(found.read_at, found.size, what)
    return DiskImage(found, path, format_, size)


def _locate(image: Image) -> str:
    node = resolve(image.root, DISK_PATH, image.what)
    if node is None or isinstance(node, Entry):
        return DISK_PATH
    names = sorted(name for name, _ in node.items())
    if len(names) != 1:
        several = f"has {len(names)} files: {', '.join(names[:4])}{' …' if names[4:] else ''}" if names else "is empty"
        raise ImageInvalid(f"{image.what}: the folder {DISK_PATH} {several}", hint="it holds the disk and nothing else")
    return f"{DISK_PATH}/{names[0]}"


def host_path(image: Image, disk: DiskImage) -> Path | None:
    """Where the disk lies on this machine, every link resolved inside the image; None in layers."""
    return image.path / disk.file.origin if image.form is Form.ROOT_DIRECTORY else None


def judge_disk(read_at: Callable[[int, int], bytes], size: int, what: str) -> tuple[Format, int]:
    """The format and the size a guest sees. Raises ImageInvalid, with ``what`` in front, for one that must not be used."""
    head = read_at(0, 128)
    if head.startswith(_QCOW2):
        return "qcow2", _judge_qcow2(head, read_at, size, what)
    for at, magic, name in _OTHERS:
        if head.startswith(magic, at):
            raise ImageInvalid(f"{what} is {name}, and a raw or qcow2 disk is expected", hint=_convert(name))
    if size < SECTOR:
        raise ImageInvalid(f"{what} has {size} bytes: that is no disk")
    return "raw", -(-size // SECTOR) * SECTOR


def _convert(name: str) -> str:
    return "decompress it first" if name.startswith("compressed") else "convert it: qemu-img convert -O qcow2"


def _judge_qcow2(head: bytes, read_at: Callable[[int, int], bytes], size: int, what: str) -> int:
    if len(head) < _HEADER.size:
        raise ImageInvalid(f"{what} is a cut-off qcow2 disk")
    _, version, backing_at, backing_size, cluster_bits, virtual, crypt, l1_size, l1_at, *_ = _HEADER.unpack_from(head)
    if version not in {2, 3}:
        raise ImageInvalid(f"{what} is a qcow2 disk of version {version}, and 2 and 3 are known")
    if backing_at or backing_size:
        name = os.fsdecode(read_at(backing_at, min(backing_size, _NAME_LIMIT)))
        raise ImageInvalid(
            f"{what} names a backing file, {name!r}: it would be a file of this machine",
            hint="put everything into one file: qemu-img convert -O qcow2",
        )
    features = struct.unpack_from(">Q", head, _FEATURES_AT)[0] if version == 3 and len(head) >= _FEATURES_AT + 8 else 0
    for bit, problem in (
        (_DATA_FILE, "keeps its data in another file"),
        (_CORRUPT, "is marked as corrupt"),
        (_EXTENDED_L2, "has extended L2 entries, which the VMM does not read"),
        (~_KNOWN, "needs features that are not known"),
    ):
        if features & bit:
            raise ImageInvalid(f"{what}, a qcow2 disk, {problem}", hint="convert it: qemu-img convert -O qcow2")
    if crypt:
        raise ImageInvalid(f"{what} is an encrypted qcow2 disk", hint="decrypt it: qemu-img convert -O qcow2")
    if not SECTOR <= virtual <= _LARGEST or not 9 <= cluster_bits <= 21:
        raise ImageInvalid(f"{what}, a qcow2 disk, says it has {virtual} bytes in clusters of 2^{cluster_bits}")
    covered = l1_size << (2 * cluster_bits - 3)
    if l1_at + 8 * l1_size > size or covered < virtual:
        raise ImageInvalid(f"{what} is a cut-off qcow2 disk")
    return int(-(-virtual // SECTOR) * SECTOR)
