"""Kernels told from what is none, and taken out of images."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING

import pytest

from launcher.errors import ImageInvalid, StorageFailed
from launcher.image.kernel import KernelKind, extract_kernel, find_kernel, inspect_kernel
from launcher.image.source import open_image
from tests.unit.image.build import item, layout, tar

if TYPE_CHECKING:
    from pathlib import Path


def elf(
    *notes: tuple[bytes, int],
    machine: int = 62,
    class_: int = 2,
    order: int = 1,
    at: int = 0x2000,
    cut: int | None = None,
) -> bytes:
    """An ELF with one PT_LOAD and a PT_NOTE, as ``readelf -nW`` shows for a kernel."""
    segment = b"".join(
        struct.pack("<III", len(name) + 1, 8, kind)
        + (name + b"\0").ljust(-(-(len(name) + 1) // 4) * 4, b"\0")
        + bytes(8)
        for name, kind in notes
    )
    ident = b"\x7fELF" + bytes([class_, order, 1]) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x1000000, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0x1000, 0x1000, 0x1000)
    note = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(segment), len(segment), 4)
    return ((header + load + note).ljust(at, b"\0") + segment)[:cut]


def setup_header(flags: int = 1) -> bytes:
    return (
        (b"MZ".ljust(0x1FE, b"\0") + b"\x55\xaa" + b"\xeb\x66" + b"HdrS").ljust(0x211, b"\0")
        + bytes([flags])
        + bytes(99)
    )


PVH = elf((b"Linux", 257), (b"Xen", 18))
BZIMAGE = setup_header()
ARM64 = b"MZ".ljust(0x38, b"\0") + b"ARM\x64" + bytes(100)


@pytest.mark.parametrize(
    ("content", "arch", "kind"),
    [
        (PVH, "x86_64", KernelKind.PVH_ELF),
        (PVH, "amd64", KernelKind.PVH_ELF),
        (elf((b"Xen", 18), at=0x400000), "amd64", KernelKind.PVH_ELF),
        (BZIMAGE, "x86_64", KernelKind.BZIMAGE),
        (ARM64, "aarch64", KernelKind.ARM64_IMAGE),
    ],
    ids=["elf", "elf-oci-name", "far-note", "bzimage", "arm64"],
)
def test_bootable_kernels_are_known(content: bytes, arch: str, kind: KernelKind) -> None:
    assert inspect_kernel(lambda at, count: content[at : at + count], len(content), arch, "it") is kind


@pytest.mark.parametrize(
    ("content", "arch", "found"),
    [
        (b"", "x86_64", "an empty file"),
        (b"#!/bin/sh\n", "x86_64", "a script"),
        ("Grüße\n".encode() * 900, "x86_64", "a text file"),
        (gzip.compress(PVH), "x86_64", "a gzip file"),
        (b"\x28\xb5\x2f\xfdxxxx", "x86_64", "a zstd file"),
        (b"070701" + bytes(100), "x86_64", "a cpio archive, as an initramfs is"),
        (bytes(8192), "x86_64", "a file that begins with zeros"),
        (bytes(range(256)), "x86_64", "a file of an unknown kind"),
        (elf((b"Linux", 18), (b"Xen", 5)), "x86_64", "an ELF without a PVH note"),
        (elf(), "x86_64", "an ELF without a PVH note"),
        (elf((b"Xen", 18), cut=0x1800), "x86_64", "a cut-off ELF"),
        (elf((b"Xen", 18), cut=100), "x86_64", "a cut-off ELF"),
        (elf((b"Xen", 18), cut=20), "x86_64", "a cut-off ELF"),
        (elf((b"Xen", 18), machine=3, class_=1), "x86_64", "an ELF for 32-bit x86"),
        (elf((b"Xen", 18), order=2), "x86_64", "a big-endian ELF"),
        (elf(machine=183), "aarch64", "an arm64 ELF"),
        (setup_header(0), "x86_64", "an x86 zImage"),
        (b"MZ\0\0zimg" + bytes(0x400), "aarch64", "an EFI zboot image"),
        (b"MZ" + bytes(0x400), "x86_64", "an EFI program without a Linux boot header"),
        (PVH, "aarch64", "an amd64 kernel on an arm64 machine"),
        (BZIMAGE, "aarch64", "an amd64 kernel on an arm64 machine"),
        (ARM64, "x86_64", "an arm64 kernel on an amd64 machine"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_called_by_its_name(content: bytes, arch: str, found: str) -> None:
    with pytest.raises(ImageInvalid, match=f"^it is {found}.*, not a kernel this machine can boot") as caught:
        inspect_kernel(lambda at, count: content[at : at + count], len(content), arch, "it")
    assert caught.value.hint


@pytest.mark.parametrize("pack", ["", "+gzip"])
def test_kernel_and_initramfs_are_written_whole(tmp_path: Path, pack: str) -> None:
    kernel = PVH + bytes(1 << 20) + b"end" + bytes(5000)
    path = layout(tmp_path / "i", tar(item("vmlinux", kernel, mode=0o600), item("initramfs", "ramdisk")), pack=pack)
    to = tmp_path / "boot"
    to.mkdir()
    (to / ".vmlinux.dead.new").write_text("left by a killed run")
    assert extract_kernel(path, to / "vmlinux", to / "initramfs", arch="x86_64") is KernelKind.PVH_ELF
    assert (to / "vmlinux").read_bytes() == kernel
    assert (to / "vmlinux").stat().st_mode & 0o777 == 0o644
    assert (to / "vmlinux").stat().st_blocks * 512 < len(kernel) // 2
    assert (to / "initramfs").read_bytes() == b"ramdisk"
    assert sorted(file.name for file in to.iterdir()) == ["initramfs", "vmlinux"]


def test_a_bad_kernel_leaves_nothing(tmp_path: Path) -> None:
    path = layout(tmp_path / "i", tar(item("vmlinux", "just text")))
    to = tmp_path / "boot"
    with pytest.raises(ImageInvalid, match=r"image .*/i: /vmlinux is a text file, not a kernel"):
        extract_kernel(path, to / "vmlinux", None, arch="x86_64")
    assert not list(to.iterdir())


def test_an_image_without_kernel_says_so(tmp_path: Path) -> None:
    path = layout(tmp_path / "i", tar(item("boot", "x")))
    with open_image(path, arch="x86_64") as image, pytest.raises(ImageInvalid, match="has no /vmlinux"):
        find_kernel(image, arch="x86_64")


def test_a_folder_that_cannot_be_written_is_a_storage_failure(tmp_path: Path) -> None:
    path = layout(tmp_path / "i", tar(item("vmlinux", PVH)))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match=r"cannot write .*/file/vmlinux: "):
        extract_kernel(path, tmp_path / "file/vmlinux", None, arch="x86_64")
