"""The lab guest: Debian's cloud kernel and busybox, made into the two OCI images that the launcher takes.

``lab_guest()`` downloads the kernel package by apt (once per version), extracts the ELF vmlinux from its bzImage, packs
an initramfs with the drivers a virtual machine needs, makes a small root tree (guest_files/init says what it prints on
the console) and builds real OCI layouts with umoci. Everything is cached under ``$XDG_CACHE_HOME/launcher-lab``, keyed
by the kernel's version and by this recipe; concurrent callers wait for each other.

``python -m tests.lab.guest DIR`` puts kernel/, rootfs/ (OCI layouts), vmlinux and initramfs into DIR.

Debian packages: busybox-static, umoci (apt and dpkg are there).
"""

from __future__ import annotations

import functools
import gzip
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.bzimage import extract_vmlinux
from tests.lab.debian import (
    BUSYBOX,
    CHAR_DEVICE,
    CPIO_END,
    DIRECTORY,
    FILE,
    PROGRAM,
    KernelPackage,
    LabError,
    cached,
    cpio,
    digest,
    in_load_order,
    locked_cache,
    modules_of,
    newest_kernel,
    package_tree,
    run,
)

FILES = Path(__file__).with_name("guest_files")
CODE = (Path(__file__), *(Path(__file__).with_name(name) for name in ("bzimage.py", "debian.py")))
META_PACKAGE = "linux-image-cloud-amd64"

# What the guest needs from the modules; ext4 is built into the cloud flavour. A name it lacks is an error.
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "evdev",
    "button",
    "pvpanic_pci",
    "isofs",
    "virtiofs",
)


@dataclass(frozen=True, slots=True)
class LabGuest:
    """Paths into the cache, never to be written to: two OCI layouts (tag ``latest``) and what went into them."""

    kernel_image: Path  # /vmlinux and /initramfs
    rootfs_image: Path  # the tree under /rootfs
    kernel_version: str  # as ``uname -r`` says it
    vmlinux: Path
    vmlinuz: Path  # as the package has it: firmware boots it
    initramfs: Path
    rootfs_tree: Path


@functools.cache
def lab_guest() -> LabGuest:
    """The guest of this machine's Debian, made on the first call (about 6 s) and taken from the cache afterwards."""
    package = newest_kernel(META_PACKAGE)
    with locked_cache() as root:
        kernel = cached(
            root / f"{package.name}_{package.version}_{digest(*CODE)}", lambda out: _make_kernel(package, out)
        )
        recipe = digest(*CODE, BUSYBOX, *sorted(FILES.iterdir()))
        guest = cached(root / f"guest_{package.version}_{recipe}", lambda out: _make_guest(kernel, out))
    return LabGuest(
        kernel_image=guest / "kernel",
        rootfs_image=guest / "rootfs",
        kernel_version=package.release,
        vmlinux=kernel / "vmlinux",
        vmlinuz=kernel / "vmlinuz",
        initramfs=guest / "initramfs",
        rootfs_tree=guest / "tree",
    )


def make_kernel_image(directory: Path) -> Path:
    """Write the kernel image as an OCI layout to ``directory``, which must not exist yet."""
    return Path(shutil.copytree(lab_guest().kernel_image, directory))


def make_rootfs_image(directory: Path) -> Path:
    """Write the root tree's image as an OCI layout to ``directory``, which must not exist yet."""
    return Path(shutil.copytree(lab_guest().rootfs_image, directory))


def _make_kernel(package: KernelPackage, out: Path) -> None:
    """Write ``vmlinuz``, ``vmlinux`` and ``modules/NN-NAME.ko``, numbered in the order they must be loaded."""
    with package_tree(package) as tree:
        packed = (tree / "boot" / f"vmlinuz-{package.release}").read_bytes()
        (out / "vmlinuz").write_bytes(packed)
        (out / "vmlinux").write_bytes(extract_vmlinux(packed))
        modules = in_load_order(MODULES, modules_of(tree / "lib/modules" / package.release))
    (out / "modules").mkdir()
    for number, (name, code) in enumerate(modules.items()):
        (out / "modules" / f"{number:02d}-{name}.ko").write_bytes(code)


# --- the images -------------------------------------------------------------------------------------------------------


def _make_guest(kernel: Path, out: Path) -> None:
    (out / "initramfs").write_bytes(gzip.compress(_initramfs(kernel / "modules"), 1, mtime=0))
    _root_tree(out / "tree")
    _oci_image(out / "kernel", {kernel / "vmlinux": "/vmlinux", out / "initramfs": "/initramfs"})
    _oci_image(out / "rootfs", {out / "tree": "/rootfs"})


def _initramfs(modules: Path) -> bytes:
    archive = b"".join(cpio(name, DIRECTORY) for name in ("bin", "dev", "proc", "sys", "root", "modules"))
    archive += cpio("dev/console", CHAR_DEVICE, device=(5, 1))  # the kernel opens it for PID 1 before devtmpfs is there
    archive += cpio("bin/busybox", PROGRAM, BUSYBOX.read_bytes())
    archive += cpio("init", PROGRAM, (FILES / "initramfs-init").read_bytes())
    for module in sorted(modules.iterdir()):
        archive += cpio(f"modules/{module.name}", FILE, module.read_bytes())
    return archive + CPIO_END


def _root_tree(tree: Path) -> None:
    for folder in ("bin", "sbin", "dev", "proc", "sys", "run", "mnt", "tmp", "var", "etc/acpi/PWRF", "root"):
        (tree / folder).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    shutil.copyfile(BUSYBOX, tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    for applet in run(BUSYBOX, "--list-full").split():
        link = tree / applet.removeprefix("usr/")
        if link.parent.is_dir() and not link.exists():
            link.symlink_to("/bin/busybox")
    programs = {"init": "sbin/init", "crash": "bin/crash", "udhcpc.script": "etc/udhcpc.script"}
    for source, target in (programs | {"power-button": "etc/acpi/PWRF/00000080"}).items():
        (tree / target).unlink(missing_ok=True)  # busybox's own init
        shutil.copyfile(FILES / source, tree / target)
        (tree / target).chmod(0o755)
    (tree / "var/boots").write_text("0\n")
    (tree / "etc/hostname").write_text("lab-guest\n")
    (tree / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")


def _oci_image(layout: Path, content: dict[Path, str]) -> None:
    """An OCI layout with one layer for each file or tree in ``content``; everything in it belongs to root."""
    image = f"{layout}:latest"
    rootless = ["--rootless"] if os.geteuid() else []
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    for source, target in content.items():
        run("umoci", "insert", *rootless, "--image", image, source, target)
    run("umoci", "gc", "--layout", layout)


def main(directory: Path) -> None:
    """Put the two images, the kernel and the initramfs into ``directory``."""
    began = time.monotonic()
    guest = lab_guest()
    directory.mkdir(parents=True, exist_ok=True)
    for source, name in (
        (guest.kernel_image, "kernel"),
        (guest.rootfs_image, "rootfs"),
        (guest.vmlinux, "vmlinux"),
        (guest.initramfs, "initramfs"),
    ):
        target = directory / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    sys.stdout.write(f"Linux {guest.kernel_version} in {directory} after {time.monotonic() - began:.1f} s\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.lab.guest DIR")
    try:
        main(Path(sys.argv[1]))
    except (LabError, ValueError) as error:
        sys.exit(f"error: {error}")
