"""Disk images: opened, recognised and locked as cloud-hypervisor v53.0 does (block/src/factory.rs, fcntl.rs).

The lock is an OFD lock over the image's bytes, so an image in use by a real cloud-hypervisor is refused and the other
way round. It is held by the emulator; QEMU is told not to lock.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import Any

from launcher.emulator.refusal import Refused, not_emulated, os_words

QCOW2_MAGIC = b"QFI\xfb"
FORMATS = {"Raw": "raw", "Qcow2": "qcow2"}


def open_disk(disk: dict[str, Any]) -> int:
    """Open and lock a DiskConfig's image; the descriptor holds the lock. Fills a detected ``image_type`` in."""
    path = disk.get("path")
    if path is None:
        raise not_emulated("a disk without a path")
    try:
        fd = os.open(path, (os.O_RDONLY if disk["readonly"] else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(
            "Error from device manager", "Cannot open disk path", f"I/O error (path={path} op=open)", os_words(error)
        ) from error
    try:
        _recognise(fd, disk)
        _lock(fd, path, disk)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _recognise(fd: int, disk: dict[str, Any]) -> None:
    head = os.pread(fd, 4, 0)
    if not head:
        raise Refused(
            *("Error from device manager", "Cannot open disk path"),
            *("I/O error (op=detect_image_type)", "failed to fill whole buffer"),
        )
    detected = "Qcow2" if head == QCOW2_MAGIC else "Raw"
    wanted = disk["image_type"]
    if wanted == "Unknown":
        disk["image_type"] = detected
    elif wanted not in FORMATS:
        raise not_emulated(f"image type {wanted}")
    elif wanted != detected:
        raise Refused(
            "Error from device manager",
            f"Disk image type does not match expected type: specified = {FORMATS[wanted]}, detected = {FORMATS[detected]}",
        )


def _lock(fd: int, path: str, disk: dict[str, Any]) -> None:
    kind, word = (fcntl.F_RDLCK, "Read") if disk["readonly"] else (fcntl.F_WRLCK, "Write")
    length = 0 if disk["lock_granularity"] == "Full" else os.lseek(fd, 0, os.SEEK_END)
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, length, 0)  # struct flock, 64 bits
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except BlockingIOError as error:
        raise Refused(
            "Error locking disk images: Another instance likely holds a lock",
            "Cannot lock images of all block devices",
            f"Failed to get {word} lock for disk image: {path}",
            "The file is already locked",
        ) from error


def blockdev(node: str, disk: dict[str, Any]) -> dict[str, Any]:
    """QEMU's ``-blockdev`` for an opened disk."""
    device = stat.S_ISBLK(os.stat(disk["path"]).st_mode)  # noqa: PTH116  # one field of it, no path to build
    options: dict[str, Any] = {
        "driver": FORMATS[disk["image_type"]],
        "node-name": node,
        "read-only": disk["readonly"],
        "discard": "unmap" if disk["sparse"] else "ignore",
        "cache": {"direct": disk["direct"]},
        "file": {"driver": "host_device" if device else "file", "filename": disk["path"], "locking": "off"},
    }
    if options["driver"] == "qcow2" and not disk["backing_files"]:
        options["backing"] = None  # a guest must not choose files of ours
    return options
