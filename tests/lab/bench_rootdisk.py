"""The root disk's part of the bench: a distribution's tree as an image, built by us and by ``tar`` + ``mke2fs -d``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.debian import run
from tests.lab.pod import LAUNCHER

if TYPE_CHECKING:
    from collections.abc import Iterator

# What `make setup` and Debian itself put on every machine of ours: a small server with Python, Perl and QEMU.
PACKAGES = re.compile(r"libpython3\.\d+-(stdlib|minimal)|perl-(base|modules-.*)|qemu-.*|iproute2|skopeo|umoci")
LEAST_MB = 100  # of the plain layer
SIZE_MIB = 1024
ROOM_MIB = 4096  # of memory that must be free to work in a tmpfs
RESTLESS = {"dev", "proc", "run", "sys", "tmp", "var"}  # tar complains about what changes while it reads


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder in memory where there is room: on ext4, making files is slow for minutes after others were deleted (the
    kernel keeps their inodes back), which would slow the peer down and not us.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        in_memory = int(meminfo["MemAvailable"].split()[0]) >> 10 >= ROOM_MIB
        if in_memory:
            run("mount", "-t", "tmpfs", "-o", f"size={ROOM_MIB // 2}M,mode=755", "bench", folder)
        try:
            yield folder
        finally:
            if in_memory:
                run("umount", folder)


def make_image(folder: Path) -> tuple[Path, Path, int, int]:
    """An OCI layout of one gzip layer, made by umoci: the layout, the layer's blob, entries and bytes of the tree."""
    names = _installed_files()
    plain = folder / "layer.tar"
    listing = folder / "names"
    listing.write_text("".join(f"{name}\0" for name in names))
    run("tar", "-C", "/", "--no-recursion", "--xattrs", "--null", "-T", listing, "-cf", plain)
    layout = folder / "image"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:latest")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:latest", plain)
    run("umoci", "gc", "--layout", layout)
    size = plain.stat().st_size
    assert size >> 20 >= LEAST_MB, "too little is installed here for a tree worth measuring: run `make setup`"
    plain.unlink()
    layer = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    return layout, layer, len(names), size


def _installed_files() -> list[str]:
    """The files of Debian's essential packages and of ours, relative to the root, every directory before its files."""
    told = run("dpkg-query", "-W", "-f", "${Priority} ${binary:Package}\n").splitlines()
    wanted = [
        package
        for priority, package in map(str.split, told)
        if priority in {"required", "important"} or PACKAGES.fullmatch(package.split(":")[0])
    ]
    names: set[str] = set()
    for line in run("dpkg", "-L", *wanted).splitlines():
        path = Path(line)
        if path.is_absolute() and os.path.lexists(path) and path != Path("/"):
            # /bin/sh is usr/bin/sh since /bin is a link
            real = path.parent.resolve() / path.name
            names.add(str(real))
            names.update(str(parent) for parent in real.parents if parent != Path("/"))
    return [name.removeprefix("/") for name in sorted(names) if name.split("/")[1] not in RESTLESS]


def ours(layout: Path, folder: Path) -> float:
    """Seconds of ``launcher image rootfs``, the whole process."""
    disk = folder / "ours.raw"
    began = time.monotonic()
    run(LAUNCHER, "image", "rootfs", layout, disk, "--size", f"{SIZE_MIB}Mi")
    seconds = time.monotonic() - began
    _check(disk)
    disk.unlink()
    return seconds


def theirs(layer: Path, folder: Path) -> float:
    """Seconds of ``tar x`` into a fresh folder and ``mke2fs -d`` of it."""
    tree, disk = folder / "tree", folder / "theirs.raw"
    tree.mkdir()
    began = time.monotonic()
    run("tar", "-C", tree, "--xattrs", "-xzpf", layer)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, disk, f"{SIZE_MIB}M")
    seconds = time.monotonic() - began
    _check(disk)
    disk.unlink()
    shutil.rmtree(tree)
    return seconds


def _check(disk: Path) -> None:
    """A fast disk that is wrong counts for nothing."""
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
