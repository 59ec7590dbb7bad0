"""What a bootable kernel looks like, and taking one out of an image.

Sources: Linux Documentation/arch/x86/boot.rst (bzImage), include/xen/interface/elfnote.h (PVH entry, note type 18),
Documentation/arch/arm64/booting.rst (Image), drivers/firmware/efi/libstub/zboot-header.S (EFI zboot).
"""

from __future__ import annotations

import codecs
import os
import secrets
import struct
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from launcher.errors import ImageInvalid, StorageFailed
from launcher.image.limits import DEFAULT
from launcher.image.manifest import oci_architecture
from launcher.image.source import open_image
from launcher.image.sparse import write_sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from launcher.image.limits import Limits
    from launcher.image.source import FoundFile, Image

    # Reads up to ``count`` bytes at ``offset``; fewer only at the end.
    ReadAt: TypeAlias = Callable[[int, int], bytes]

KERNEL_PATH = "/vmlinux"
INITRAMFS_PATH = "/initramfs"
_XEN_PHYS32_ENTRY = 18
_EM_X86_64, _EM_AARCH64 = 62, 183
_MACHINES = {3: "32-bit x86", _EM_X86_64: "x86-64", 40: "32-bit arm", _EM_AARCH64: "arm64", 243: "RISC-V"}
_NOTE_LIMIT = 1 << 20  # bytes of a note segment; a kernel's has a few hundred
_HEADER_LIMIT = 64  # program headers; a kernel has five or so


class KernelKind(Enum):
    """A kernel cloud-hypervisor boots directly."""

    PVH_ELF = "pvh-elf"  # x86-64 ELF with a PVH note
    BZIMAGE = "bzimage"
    ARM64_IMAGE = "arm64-image"


_BOOTS_ON = {KernelKind.PVH_ELF: "amd64", KernelKind.BZIMAGE: "amd64", KernelKind.ARM64_IMAGE: "arm64"}
_WANTED = {
    "amd64": "an x86-64 ELF with a PVH note (CONFIG_PVH=y) or a bzImage",
    "arm64": "an uncompressed arm64 Image",
}
_MAGICS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"\x02\x21\x4c\x18", "an lz4 file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
    (b"\x5d\0\0", "an lzma file"),
    (b"070701", "a cpio archive, as an initramfs is"),
    (b"hsqs", "a squashfs file system"),
    (b"\x27\x05\x19\x56", "a U-Boot uImage"),
    (b"QFI\xfb", "a qcow2 disk"),
    (b"#!", "a script"),
)


def inspect_kernel(read_at: ReadAt, size: int, arch: str, what: str) -> KernelKind:
    """Which kind of bootable kernel a file of ``size`` bytes is.

    Raises ImageInvalid, beginning with ``what``, that says what was found instead.
    """
    arch = oci_architecture(arch)
    kind = _identify(read_at, size)
    if isinstance(kind, KernelKind):
        if _BOOTS_ON[kind] == arch:
            return kind
        kind = f"an {_BOOTS_ON[kind]} kernel on an {arch} machine"
    raise ImageInvalid(
        f"{what} is {kind}, not a kernel this machine can boot", hint=f"expected {_WANTED.get(arch, 'a known machine')}"
    )


def _identify(read_at: ReadAt, size: int) -> KernelKind | str:
    head = read_at(0, 4096)
    if not head:
        return "an empty file"
    if head.startswith(b"\x7fELF"):
        return _identify_elf(read_at, head, size)
    if head[0x202:0x206] == b"HdrS" and head[0x1FE:0x200] == b"\x55\xaa":
        # loadflags bit 0, LOADED_HIGH: a zImage lacks it and does not run above 1 MiB
        return KernelKind.BZIMAGE if head[0x211] & 1 else "an x86 zImage"
    if head[0x38:0x3C] == b"ARM\x64":
        return KernelKind.ARM64_IMAGE
    if head.startswith(b"MZ"):
        return "an EFI zboot image" if head[4:8] == b"zimg" else "an EFI program without a Linux boot header"
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    if not any(head):
        return "a file that begins with zeros"
    return "a text file" if _is_text(head) else "a file of an unknown kind"


def _is_text(head: bytes) -> bool:
    words = codecs.getincrementaldecoder("utf-8")()  # a character cut in two at the end of the head is fine
    try:
        return all(character.isprintable() or character in "\t\n\r\f" for character in words.decode(head))
    except UnicodeDecodeError:
        return False


def _identify_elf(read_at: ReadAt, head: bytes, size: int) -> KernelKind | str:
    if len(head) < 64:
        return "a cut-off ELF"
    if head[5] != 1:
        return "a big-endian ELF"
    (machine,) = struct.unpack_from("<H", head, 18)
    if head[4] != 2 or machine != _EM_X86_64:
        if machine == _EM_AARCH64:
            return "an arm64 ELF (arm64 boots the flat Image, arch/arm64/boot/Image)"
        return f"an ELF for {_MACHINES.get(machine, f'machine {machine}')}"
    (offset,) = struct.unpack_from("<Q", head, 32)
    entry_size, count = struct.unpack_from("<HH", head, 54)
    if entry_size != 56 or not 0 < count <= _HEADER_LIMIT:
        return "an ELF without usable program headers"
    table = read_at(offset, entry_size * count) if offset < size else b""
    if len(table) < entry_size * count:
        return "a cut-off ELF"
    for type_, _, start, _, _, length, _, _ in struct.iter_unpack("<IIQQQQQQ", table):
        if start + length > size and type_ in {1, 4}:
            return "a cut-off ELF"
        if type_ == 4 and any(
            owner == b"Xen" and note == _XEN_PHYS32_ENTRY
            for owner, note in _notes(read_at(start, min(length, _NOTE_LIMIT)))
        ):
            return KernelKind.PVH_ELF
    return "an ELF without a PVH note"


def _notes(segment: bytes) -> Iterator[tuple[bytes, int]]:
    """Owner and type of every note of a PT_NOTE segment (elf(5), Notes; four-byte alignment as Linux has it)."""
    position = 0
    while position + 12 <= len(segment):
        name_size, data_size, type_ = struct.unpack_from("<III", segment, position)
        position += 12
        yield segment[position : position + name_size].rstrip(b"\0"), type_
        position += -(-name_size // 4) * 4 + -(-data_size // 4) * 4


def find_kernel(image: Image, *, arch: str) -> tuple[FoundFile, KernelKind]:
    """The image's kernel and what it is. Raises ImageInvalid unless this machine can boot it."""
    found = _kernel_file(image)
    return found, inspect_kernel(found.read_at, found.size, arch, f"{image.what}: {KERNEL_PATH}")


def _kernel_file(image: Image) -> FoundFile:
    found = image.find_file(KERNEL_PATH)
    if found is None:
        raise ImageInvalid(f"{image.what}: has no {KERNEL_PATH}", hint="a kernel image holds the kernel at /vmlinux")
    return found


def extract_kernel(
    image: Path, kernel: Path, initramfs: Path | None, *, arch: str, limits: Limits = DEFAULT
) -> KernelKind:
    """Write the image's kernel to ``kernel`` and its initramfs to ``initramfs``, unless that is None.

    Each appears under its name, readable by all, only when it is whole; folders are made. Raises ImageInvalid when there
    is no kernel that ``arch`` can boot or no initramfs, StorageFailed when the files cannot be written.
    """
    with open_image(image, arch=arch, limits=limits) as opened:
        found = _kernel_file(opened)
        ramdisk = opened.find_file(INITRAMFS_PATH) if initramfs else None
        if initramfs and not ramdisk:
            raise ImageInvalid(f"{opened.what}: has no {INITRAMFS_PATH}")
        with _new_file(kernel) as fd:
            write_sparse(found.chunks(), found.size, fd)
            # Judged as it was written: to read it from the image is to decompress it once more.
            kind = inspect_kernel(_reader(fd), found.size, arch, f"{opened.what}: {KERNEL_PATH}")
        if initramfs and ramdisk:
            with _new_file(initramfs) as fd:
                write_sparse(ramdisk.chunks(), ramdisk.size, fd)
    return kind


def _reader(fd: int) -> ReadAt:
    return lambda offset, count: os.pread(fd, count, offset)


@contextmanager
def _new_file(to: Path) -> Iterator[int]:
    """A file made aside, which gets its name when the context ends well; what a killed run left of it goes first."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        for stale in to.parent.glob(f".{to.name}.*.new"):
            stale.unlink(missing_ok=True)
        aside = to.with_name(f".{to.name}.{secrets.token_hex(4)}.new")
        fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            yield fd
            os.fchmod(fd, 0o644)  # the VMM reads it as another user, whatever the umask
            os.fsync(fd)
            aside.replace(to)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageFailed(f"cannot write {to}: {error.strerror}") from error
