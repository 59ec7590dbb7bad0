"""Disks that boot by firmware: GPT, systemd-boot on an EFI system partition, ext4. Made of plain files: no loop device.

Debian packages: systemd-boot-efi, fdisk, dosfstools, mtools, e2fsprogs.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.lab.debian import LabError, run

LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
MIB = 1 << 20
_ESP_MIB = 128


def make_efi_disk(disk: Path, *, vmlinuz: Path, initramfs: Path, root: Path, size_mib: int, cmdline: str) -> None:
    """Write a raw disk whose second partition, of ``size_mib``, is an ext4 file system with ``root``.

    ``root`` is a folder or a tar. The kernel boots with ``cmdline`` and root=/dev/vda2.
    """
    if not LOADER.exists():
        raise LabError(f"{LOADER} is not there: run `make setup`")
    with tempfile.TemporaryDirectory() as scratch:
        esp, system = Path(scratch, "esp"), Path(scratch, "root")
        _make_esp(esp, vmlinuz, initramfs, f"root=/dev/vda2 {cmdline}", Path(scratch))
        run("mke2fs", "-q", "-t", "ext4", "-d", root, system, f"{size_mib}M")
        with disk.open("wb") as file:
            file.truncate((1 + _ESP_MIB + size_mib + 1) * MIB)
        table = (
            f"label: gpt\nstart=1MiB, size={_ESP_MIB}MiB, type=U\nstart={1 + _ESP_MIB}MiB, size={size_mib}MiB, type=L\n"
        )
        subprocess.run(["sfdisk", "-q", disk], input=table, text=True, check=True, capture_output=True)
        for part, at in ((esp, 1), (system, 1 + _ESP_MIB)):
            run("dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={at}", "conv=notrunc,sparse")


def _make_esp(esp: Path, vmlinuz: Path, initramfs: Path, options: str, scratch: Path) -> None:
    with esp.open("wb") as file:
        file.truncate(_ESP_MIB * MIB)
    run("mkfs.vfat", "-F", "32", esp)
    entry, settings = scratch / "lab.conf", scratch / "loader.conf"
    entry.write_text(f"title Lab\nlinux /vmlinuz\ninitrd /initramfs\noptions {options}\n")
    settings.write_text("timeout 0\ndefault lab.conf\n")
    run("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
    for source, target in (
        (LOADER, "EFI/BOOT/BOOTX64.EFI"),
        (settings, "loader/loader.conf"),
        (entry, "loader/entries/lab.conf"),
        (vmlinuz, "vmlinuz"),
        (initramfs, "initramfs"),
    ):
        run("mcopy", "-i", esp, source, f"::/{target}")
