"""A Debian system as clouds have it: systemd, Debian's kernel and initramfs, GPT and an EFI boot loader. Root has no password.

``debian_disk()`` makes it once, by mmdebstrap from the machine's own mirror (a minute), and keeps it in the lab's cache.

Debian packages: mmdebstrap, and those of ``efi_disk``.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from tests.lab.debian import cached, digest, locked_cache, newest_kernel, run
from tests.lab.efi_disk import make_efi_disk

SUITE = "bookworm"
PACKAGES = ("systemd-sysv", "udev", "dbus", "linux-image-cloud-amd64", "initramfs-tools", "zstd")


def debian_disk() -> Path:
    """The raw disk, never to be written to."""
    kernel = newest_kernel("linux-image-cloud-amd64")
    recipe = digest(Path(__file__), Path(__file__).with_name("efi_disk.py"))
    with locked_cache() as root:
        return cached(root / f"debian_{kernel.version}_{recipe}", _make) / "disk.raw"


def _make(out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        tree = Path(scratch, "root.tar")
        run(
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *("--customize-hook=echo cloudlike >$1/etc/hostname", "--customize-hook=chroot $1 passwd -q -d root"),
            *(SUITE, tree),
        )
        with tarfile.open(tree) as tar:
            for member in tar:
                for kind in ("vmlinuz", "initrd.img"):
                    if member.isfile() and member.name.startswith(f"./boot/{kind}-"):
                        content = tar.extractfile(member)
                        assert content is not None
                        Path(scratch, kind).write_bytes(content.read())
        make_efi_disk(
            out / "disk.raw",
            vmlinuz=Path(scratch, "vmlinuz"),
            initramfs=Path(scratch, "initrd.img"),
            root=tree,
            size_mib=1024,
            cmdline="console=ttyS0 rw",
        )
