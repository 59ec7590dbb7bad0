"""The lab guest: Debian's cloud kernel and busybox, made into the two OCI images that the launcher takes.

``lab_guest()`` downloads the kernel package by apt (once per version), extracts the ELF vmlinux from its bzImage, packs
an initramfs with the drivers a virtual machine needs, makes a small root tree (guest_files/init says what it prints on
the console) and builds real OCI layouts with umoci. Everything is cached under ``$XDG_CACHE_HOME/launcher-lab``, keyed
by the kernel's version and by this recipe; concurrent callers wait for each other.

``python -m tests.lab.guest DIR`` puts kernel/, rootfs/ (OCI layouts), vmlinux and initramfs into DIR.

Debian packages: busybox-static, umoci (apt and dpkg are there).
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.bzimage import extract_vmlinux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = Path(__file__).with_name("guest_files")
BZIMAGE = Path(__file__).with_name("bzimage.py")
BUSYBOX = Path("/bin/busybox")
META_PACKAGE = "linux-image-cloud-amd64"

# What the guest needs from the modules; ext4 is built into the cloud flavour. A name it lacks is an error.
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "evdev", "button", "pvpanic_pci", "isofs")
MODULE_SUFFIX = re.compile(r"\.ko(\.xz)?$")


@dataclass(frozen=True, slots=True)
class LabGuest:
    """Paths into the cache, never to be written to: two OCI layouts (tag ``latest``) and what went into them."""

    kernel_image: Path  # /vmlinux and /initramfs
    rootfs_image: Path  # the tree under /rootfs
    kernel_version: str  # as ``uname -r`` says it
    vmlinux: Path
    initramfs: Path
    rootfs_tree: Path


class LabError(RuntimeError):
    """The lab guest cannot be made here; the sentence says what is missing."""


def lab_guest() -> LabGuest:
    """The guest of this machine's Debian, made on the first call (about 6 s) and taken from the cache afterwards."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "launcher-lab"
    root.mkdir(parents=True, exist_ok=True)
    package, version = _kernel_package()
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = (Path(__file__), BZIMAGE)
        kernel = _cached(root / f"{package}_{version}_{_digest(*code)}", lambda out: _make_kernel(package, out))
        recipe = _digest(*code, BUSYBOX, *sorted(FILES.iterdir()))
        guest = _cached(root / f"guest_{version}_{recipe}", lambda out: _make_guest(kernel, out))
    return LabGuest(
        kernel_image=guest / "kernel",
        rootfs_image=guest / "rootfs",
        kernel_version=package.removeprefix("linux-image-"),
        vmlinux=kernel / "vmlinux",
        initramfs=guest / "initramfs",
        rootfs_tree=guest / "tree",
    )


def make_kernel_image(directory: Path) -> Path:
    """Write the kernel image as an OCI layout to ``directory``, which must not exist yet."""
    return Path(shutil.copytree(lab_guest().kernel_image, directory))


def make_rootfs_image(directory: Path) -> Path:
    """Write the root tree's image as an OCI layout to ``directory``, which must not exist yet."""
    return Path(shutil.copytree(lab_guest().rootfs_image, directory))


def _cached(path: Path, make: Callable[[Path], None]) -> Path:
    """The folder ``path``, made aside and renamed when it is not there: half a result is never seen."""
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            make(made)
            made.rename(path)
    return path


def _digest(*paths: Path) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


def _run(*argv: str | Path, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed: run `make setup`") from error
    except subprocess.CalledProcessError as error:
        raise LabError(f"{' '.join(map(str, argv))}: {error.stderr.strip()}") from error
    return done.stdout


# --- the kernel -------------------------------------------------------------------------------------------------------


def _kernel_package() -> tuple[str, str]:
    """Name and version of the newest cloud kernel that apt knows."""
    depends = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", META_PACKAGE))
    if depends is None:
        raise LabError(f"apt does not know {META_PACKAGE}: run `apt-get update`")
    record = _run("apt-cache", "show", "--no-all-versions", depends[1])
    version = re.search(r"^Version: (\S+)$", record, re.MULTILINE)
    if version is None:
        raise LabError(f"apt does not know {depends[1]}: run `apt-get update`")
    return depends[1], version[1]


@contextlib.contextmanager
def _package_tree(package: str) -> Iterator[Path]:
    """The package's files: those installed here, else downloaded and unpacked for as long as the context lasts."""
    if Path(f"/boot/vmlinuz-{package.removeprefix('linux-image-')}").exists():
        yield Path("/")
        return
    with tempfile.TemporaryDirectory() as scratch:
        sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        _run("apt-get", *sandbox, "download", package, cwd=Path(scratch))
        (deb,) = Path(scratch).glob("*.deb")
        _run("dpkg-deb", "-x", deb, Path(scratch, "tree"))
        yield Path(scratch, "tree")


def _make_kernel(package: str, out: Path) -> None:
    """Write ``vmlinux`` and ``modules/NN-NAME.ko``, numbered in the order they must be loaded."""
    release = package.removeprefix("linux-image-")
    with _package_tree(package) as tree:
        (out / "vmlinux").write_bytes(extract_vmlinux((tree / "boot" / f"vmlinuz-{release}").read_bytes()))
        known = {
            MODULE_SUFFIX.sub("", path.name).replace("-", "_"): path
            for path in (tree / "lib/modules" / release).rglob("*.ko*")
        }
        (out / "modules").mkdir()
        loaded: list[str] = []
        for name in MODULES:
            _load(name, known, loaded, out / "modules")


def _load(name: str, known: dict[str, Path], loaded: list[str], out: Path) -> None:
    """Write a module after those it depends on (``depends=`` of its .modinfo section)."""
    if name in loaded:
        return
    if name not in known:
        raise LabError(f"the kernel package has no module {name}")
    path = known[name]
    code = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    depends = re.search(rb"\0depends=([^\0]*)\0", code)
    for needed in depends[1].decode().split(",") if depends else []:
        if needed:
            _load(needed.replace("-", "_"), known, loaded, out)
    (out / f"{len(loaded):02d}-{name}.ko").write_bytes(code)
    loaded.append(name)


# --- the images -------------------------------------------------------------------------------------------------------


def _make_guest(kernel: Path, out: Path) -> None:
    (out / "initramfs").write_bytes(gzip.compress(_initramfs(kernel / "modules"), 1, mtime=0))
    _root_tree(out / "tree")
    _oci_image(out / "kernel", {kernel / "vmlinux": "/vmlinux", out / "initramfs": "/initramfs"})
    _oci_image(out / "rootfs", {out / "tree": "/rootfs"})


def _initramfs(modules: Path) -> bytes:
    directory, program, node = 0o040755, 0o100755, 0o020600
    archive = b"".join(_cpio(name, directory) for name in ("bin", "dev", "proc", "sys", "root", "modules"))
    archive += _cpio("dev/console", node, device=(5, 1))  # the kernel opens it for PID 1 before devtmpfs is there
    archive += _cpio("bin/busybox", program, BUSYBOX.read_bytes())
    archive += _cpio("init", program, (FILES / "initramfs-init").read_bytes())
    for module in sorted(modules.iterdir()):
        archive += _cpio(f"modules/{module.name}", 0o100644, module.read_bytes())
    return archive + _cpio("TRAILER!!!", 0)


def _cpio(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member in the newc format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    links = 2 if mode & 0o040000 and not content else 1
    fields = (0, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _root_tree(tree: Path) -> None:
    for folder in ("bin", "sbin", "dev", "proc", "sys", "run", "mnt", "tmp", "var", "etc/acpi/PWRF", "root"):
        (tree / folder).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    shutil.copyfile(BUSYBOX, tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    for applet in _run(BUSYBOX, "--list-full").split():
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
    _run("umoci", "init", "--layout", layout)
    _run("umoci", "new", "--image", image)
    for source, target in content.items():
        _run("umoci", "insert", *rootless, "--image", image, source, target)
    _run("umoci", "gc", "--layout", layout)


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
