"""What a VM holds while it exists: locked disks, taps, and the tree of its devices."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import tempfile
from typing import Any

TUNSETIFF = 0x400454CA
TUNGETIFF = 0x800454D2
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
F_OFD_SETLK = 37  # linux/fcntl.h; the fcntl module names it from 3.14 on only
PVH_NOTE = 18
QCOW2 = b"QFI\xfb"


class Refused(Exception):
    """An error chain without its outermost links. ``kind`` decides the status from v54 on."""

    def __init__(self, *chain: str, kind: str = "other") -> None:
        super().__init__(*chain)
        self.chain = chain
        self.kind = kind


def os_error(error: OSError) -> str:
    return f"{error.strerror} (os error {error.errno})"


def device_error(*chain: str) -> Refused:
    return Refused("Error from device manager", *chain)


class Disk:
    """An open image. The lock is the kernel's: it goes with the descriptor, and another process sees it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.path: str = config.get("path") or ""
        self.readonly: bool = config["readonly"]
        self.full = config.get("lock_granularity") == "Full"
        try:
            self.fd = os.open(self.path, os.O_CLOEXEC | (os.O_RDONLY if self.readonly else os.O_RDWR))
        except OSError as error:
            raise device_error(
                "Cannot open disk path", f"I/O error (path={self.path} op=open)", os_error(error)
            ) from error
        try:
            self.check_type(config)
        except Refused:
            self.close()
            raise

    def check_type(self, config: dict[str, Any]) -> None:
        head = os.pread(self.fd, 512, 0)
        if len(head) < 512:
            raise device_error(
                "Cannot open disk path", "I/O error (op=detect_image_type)", "failed to fill whole buffer"
            )
        detected = "Qcow2" if head.startswith(QCOW2) else "Raw"
        if config["image_type"] == "Unknown":
            config["image_type"] = detected
        elif config["image_type"] in {"Raw", "Qcow2"} and config["image_type"] != detected:
            given = config["image_type"].lower()
            raise device_error(
                f"Disk image type does not match expected type: specified = {given}, detected = {detected.lower()}"
            )

    def lock(self) -> None:
        kind, name = (fcntl.F_RDLCK, "Read") if self.readonly else (fcntl.F_WRLCK, "Write")
        length = 0 if self.full else os.fstat(self.fd).st_size
        try:
            fcntl.fcntl(self.fd, F_OFD_SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, length, 0))
        except BlockingIOError as error:
            raise Refused(
                "Cannot lock images of all block devices",
                f"Failed to get {name} lock for disk image: {self.path}",
                "The file is already locked",
            ) from error

    def resize(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def close(self) -> None:
        os.close(self.fd)


def tap_error(*chain: str) -> Refused:
    return device_error("Cannot create virtio-net device", "Failed to open taps", *chain)


class Taps:
    """The taps of one net device: by descriptors that were handed over, else by name, busy while held."""

    def __init__(self, config: dict[str, Any], fds: list[int]) -> None:
        self.fds: list[int] = []
        self.owned: list[int] = []
        if fds:
            for fd in fds:
                self.check(fd)
            self.fds = fds
            return
        for _ in range(config["num_queues"] // 2):
            self.owned.append(self.open(config.get("tap"), multi=config["num_queues"] > 2))

    @staticmethod
    def check(fd: int) -> None:
        try:
            fcntl.ioctl(fd, TUNGETIFF, bytes(40))
        except OSError as error:
            raise device_error(
                "Cannot create virtio-net device", "Using existing tap", f"Ioctl failed ({TUNGETIFF})", os_error(error)
            ) from error

    @staticmethod
    def open(name: str | None, *, multi: bool) -> int:
        if name is not None and len(name) > 15:
            raise tap_error("Open tap device failed", f"Interface name too long (max length is 15): {name}")
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi else 0)
        fd = -1
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", (name or "vmtap%d").encode(), flags))
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if os.geteuid() and error.errno in {errno.EPERM, errno.EACCES, errno.ENOENT}:
                return Taps.pretend(name or "vmtap")
            raise tap_error("Open tap device failed", "Unable to configure tap interface", os_error(error)) from error
        return fd

    @staticmethod
    def pretend(name: str) -> int:
        """Without root there are no taps: a locked file stands for one, so that a busy one is still busy."""
        path = f"{tempfile.gettempdir()}/fake-tap-{os.geteuid()}-{name}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            raise tap_error("Open tap device failed", "Unable to configure tap interface", os_error(busy)) from None
        return fd

    def close(self) -> None:
        for fd in self.owned:
            with contextlib.suppress(OSError):
                os.close(fd)


def check_kernel(path: str) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # the path is the user's text, kept as it is
            image = file.read(1 << 20)
    except OSError as error:
        raise Refused("Cannot open kernel file", os_error(error)) from error
    if has_pvh_note(image) or image[0x202:0x206] == b"HdrS":
        return
    raise Refused(
        "Cannot load the kernel into memory",
        "Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage",
        "Kernel Loader: Invalid bzImage",
    )


def has_pvh_note(image: bytes) -> bool:
    if image[:5] != b"\x7fELF\x02" or len(image) < 64:
        return False
    (phoff,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    for i in range(count):
        at = phoff + i * size
        if at + 56 > len(image):
            return False
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", image, at)
        if kind == 4 and pvh_in(image[offset : offset + length]):
            return True
    return False


def pvh_in(notes: bytes) -> bool:
    while len(notes) >= 12:
        name, desc, kind = struct.unpack_from("<III", notes)
        if kind == PVH_NOTE and notes[12 : 12 + name] == b"Xen\0":
            return True
        notes = notes[12 + (name + 3 & ~3) + (desc + 3 & ~3) :]
    return False


class Tree:
    """Device id → what vm.info tells of it. PCI slots are dealt from 1 up, in the order of the adds."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.slot = 0
        for name in ("__ioapic", "__serial"):
            self.nodes[name] = {"id": name, "resources": [], "children": []}

    def add(self, name: str) -> str:
        self.slot += 1
        bdf = f"0000:00:{self.slot:02x}.0"
        parent = f"_virtio-pci-{name}"
        bar = {
            "index": 0,
            "base": 0xE8000000 + self.slot * 0x80000,
            "size": 0x80000,
            "type_": "Mmio32",
            "prefetchable": False,
        }
        self.nodes[parent] = {"id": parent, "resources": [{"PciBar": bar}], "children": [name], "pci_bdf": bdf}
        self.nodes[name] = {"id": name, "resources": [], "parent": parent, "children": []}
        return bdf

    def remove(self, name: str) -> str:
        del self.nodes[name]
        return str(self.nodes.pop(f"_virtio-pci-{name}")["pci_bdf"])

    def virtio(self) -> list[str]:
        return [name for name, node in self.nodes.items() if "parent" in node]
