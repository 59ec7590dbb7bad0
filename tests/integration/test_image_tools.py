"""Images made by real tools, and our merge against theirs."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.image.source import open_image
from launcher.image.tree import Entry, Kind, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.image.source import Image

pytestmark = pytest.mark.root

Fingerprint = dict[str, tuple[object, ...]]


def tool(*argv: str | Path) -> None:
    # Blob caches are kept per home; a shared one makes skopeo reuse blobs of another compression.
    subprocess.run(argv, check=True, capture_output=True, timeout=60, env={**os.environ, "HOME": "/nonexistent"})


def first_layer(root: Path) -> None:
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/lib/gone").write_text("gone")
    (root / "usr/lib/kept").write_text("kept")
    (root / "opaque/inner").mkdir(parents=True)
    (root / "opaque/inner/low").write_text("low")
    (root / "vmlinux").write_bytes(os.urandom(200_000))
    os.link(root / "vmlinux", root / "linked")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "ünï\n").write_text("odd name")
    (root / ("n" * 200)).write_text("long name")


def second_layer(root: Path) -> None:
    (root / "usr/lib/gone").unlink()
    (root / "vmlinux").unlink()  # its hard link stays
    (root / "opaque/inner/low").unlink()
    (root / "opaque/inner").rmdir()
    (root / "opaque").rmdir()
    (root / "opaque").write_text("now a file")
    (root / "usr/lib/kept").chmod(0o4755)
    os.chown(root / "usr/lib/kept", 123456, 70000)
    os.setxattr(root / "usr/lib/kept", "user.note", b"x\0y")
    (root / "link").symlink_to("/linked")


def third_layer(root: Path) -> None:
    os.utime(root / "usr/lib", ns=(0, 1_600_000_000_123_456_789))
    (root / "opaque").unlink()
    (root / "opaque").mkdir()
    (root / "opaque/new").write_text("new")


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout of three layers, whose one image is called ``:final``."""
    folder = tmp_path_factory.mktemp("oci")
    image, steps = folder / "work", (first_layer, second_layer, third_layer)
    tool("umoci", "init", "--layout", image)
    tool("umoci", "new", "--image", f"{image}:0")
    for number, step in enumerate(steps):
        bundle = folder / f"bundle{number}"
        tool("umoci", "unpack", "--image", f"{image}:{number}", bundle)
        step(bundle / "rootfs")
        tool("umoci", "repack", "--image", f"{image}:{number + 1}", bundle)
    tool("skopeo", "copy", f"oci:{image}:{len(steps)}", f"oci:{folder}/one:final")
    return folder / "one"


def of_disk(root: Path) -> Fingerprint:
    found: Fingerprint = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        found[str(path.relative_to(root))] = (
            {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFCHR: "c"}[kind],
            0o777 if kind == stat.S_IFLNK else stat.S_IMODE(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            path.read_bytes() if kind == stat.S_IFREG else b"",
            str(path.readlink()) if kind == stat.S_IFLNK else "",
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


def of_image(image: Image) -> Fingerprint:
    letters = {Kind.FILE: "f", Kind.DIRECTORY: "d", Kind.SYMLINK: "l", Kind.FIFO: "p", Kind.CHAR: "c"}
    nodes = {path: node if isinstance(node, Entry) else node.meta for path, node in walk(image.root)}
    files = [entry for entry in nodes.values() if entry.kind is Kind.FILE]
    data = {entry: b"".join(chunks) for entry, chunks in image.contents(files)}
    return {
        path: (
            letters[entry.kind],
            0o777 if entry.kind is Kind.SYMLINK else entry.mode,
            (entry.uid, entry.gid),
            entry.mtime_ns,
            data.get(entry, b""),
            entry.target,
            dict(entry.xattrs),
        )
        for path, entry in nodes.items()
    }


def test_the_merged_tree_is_what_umoci_unpacks(oci: Path, tmp_path: Path) -> None:
    tool("umoci", "unpack", "--image", f"{oci}:final", tmp_path / "bundle")
    theirs = of_disk(tmp_path / "bundle/rootfs")
    assert {"usr/lib/gone", "opaque/inner/low", "vmlinux"}.isdisjoint(theirs)
    with open_image(oci, arch="amd64") as image:
        assert len(image.layers) == 3
        assert of_image(image) == theirs
    with open_image(tmp_path / "bundle/rootfs", arch="amd64") as image:
        assert of_image(image) == theirs


@pytest.mark.parametrize(
    "copy",
    [
        lambda oci, to: tool("skopeo", "copy", f"oci:{oci}:final", f"oci-archive:{to}:x"),
        lambda oci, to: tool("skopeo", "copy", f"oci:{oci}:final", f"docker-archive:{to}:x:y"),
        lambda oci, to: tool("skopeo", "copy", "--dest-compress-format", "zstd", f"oci:{oci}:final", f"oci:{to}:x"),
    ],
    ids=["oci-archive", "docker-archive", "zstd"],
)
def test_every_form_gives_the_same_tree(oci: Path, tmp_path: Path, copy: Callable[[Path, Path], None]) -> None:
    copy(oci, tmp_path / "other")
    with open_image(oci, arch="amd64") as image, open_image(tmp_path / "other", arch="amd64") as other:
        assert of_image(other) == of_image(image)
