"""Layers in any order, made by hypothesis: our merge of them and umoci's are the same tree."""

from __future__ import annotations

import json
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher.host.storage import build_root_disk
from launcher.image.source import open_image
from launcher.image.tree import Entry, Kind, walk
from launcher.plan.types import BuildRootDisk
from tests.unit.image.build import Layout, item, tar

if TYPE_CHECKING:
    from launcher.image.source import Image

pytestmark = pytest.mark.root

MTIME = 1_600_000_000
LETTERS = {Kind.FILE: "f", Kind.DIRECTORY: "d", Kind.SYMLINK: "l", Kind.FIFO: "p"}
KINDS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p"}

Tree = dict[str, tuple[object, ...]]
# What to do (file, directory, symlink, hard link, fifo, whiteout, opaque), where, and with what.
Step = tuple[str, str, str]

# Mostly directories have other names than files, so that most images are sound.
_above = st.sampled_from(["", "", "lib/", "usr/", "usr/lib/", "lib/usr/", "a/"])
_paths = st.builds(str.__add__, _above, st.sampled_from(["a", "b", "c", "a", "b", "c", "lib", "usr"]))
_targets = st.one_of(_paths, _paths.map("/".__add__), _paths.map("../".__add__), st.just(".."), st.just("/"))
_steps = st.one_of(
    st.tuples(st.sampled_from("fdp"), _paths, st.text("xyz", max_size=3)),
    st.tuples(st.just("l"), _paths, _targets),
    st.tuples(st.just("h"), _paths, st.sampled_from("0123456789")),
    st.tuples(st.sampled_from("wo"), _paths, st.just("")),
)
_layers = st.lists(st.lists(_steps, min_size=1, max_size=8), min_size=1, max_size=4)


def layer(steps: list[Step], number: int, files: list[str]) -> bytes:
    """One layer; a hard link names one of the ``files`` so far by its place from the end."""
    types = {"d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "p": tarfile.FIFOTYPE}
    items = []
    for place, (what, path, more) in enumerate(steps):
        above, _, base = path.rpartition("/")
        name = {"w": f"{above}/.wh.{base}", "o": f"{path}/.wh..wh..opq"}.get(what, path)
        data = more if what in "fl" else ""
        if what == "h":
            data = files[-1 - int(more) % len(files)] if files else "nothing"
        elif what in "flp":
            files.append(path)
        meta = {"mode": 0o600 + 8 * number, "uid": place, "gid": 3_000_000, "mtime": MTIME + place}
        items.append(item(name, data, types.get(what, tarfile.REGTYPE), **meta))
    return tar(*items)


def make(folder: Path, layers: list[list[Step]]) -> Path:
    made = Layout(folder)
    files: list[str] = []
    blobs = [layer(steps, number, files) for number, steps in enumerate(layers)]
    return made.finish(made.image(*blobs, annotations={"org.opencontainers.image.ref.name": "it"}))


def theirs(image: Path, bundle: Path) -> Tree | None:
    """None when umoci refuses the image."""
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{image}:it", bundle], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        return None
    return of_folder(bundle / "rootfs")


def of_folder(root: Path) -> Tree:
    found: Tree = {}
    inodes: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        name = str(path.relative_to(root))
        found[name] = (
            kind,
            0o777 if kind == "l" else stat.S_IMODE(status.st_mode),
            (status.st_uid, status.st_gid),
            path.read_bytes() if kind == "f" else b"",
            str(path.readlink()) if kind == "l" else "",
            inodes.setdefault(status.st_ino, name),
            status.st_mtime_ns if status.st_gid else 0,  # a directory of no entry has the time of the unpacking
        )
    return found


def ours(image: Image) -> Tree:
    nodes = {path: node if isinstance(node, Entry) else node.meta for path, node in sorted(walk(image.root))}
    files = {entry for entry in nodes.values() if entry.kind is Kind.FILE}
    ordered = sorted(files, key=lambda entry: (entry.layer, entry.offset))
    data = {entry: b"".join(chunks) for entry, chunks in image.contents(ordered)}
    first: dict[Entry, str] = {}
    return {
        path: (
            LETTERS[entry.kind],
            0o777 if entry.kind is Kind.SYMLINK else entry.mode,
            (entry.uid, entry.gid),
            data.get(entry, b""),
            entry.target,
            first.setdefault(entry, path),
            entry.mtime_ns,
        )
        for path, entry in nodes.items()
    }


@given(_layers)
@example(
    [[("d", "usr/lib", ""), ("f", "usr/lib/x", "1"), ("l", "lib", "usr/lib")], [("d", "lib", ""), ("w", "lib/x", "")]]
)
@example([[("f", "a/b", "x")], [("h", "b", "0"), ("w", "b", ""), ("w", "a/b", "")]])
@example([[("f", "a/b", "x"), ("f", "a/usr", "y")], [("f", "a/lib", "z"), ("w", "a", "")]])
@example([[("f", "a/b", "x"), ("l", "lib", "a")], [("f", "lib/usr", "z"), ("o", "a", ""), ("w", "a/usr", "")]])
@settings(
    max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_any_layers_make_the_tree_that_umoci_unpacks(layers: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        image = make(Path(name) / "image", layers)
        expected = theirs(image, Path(name) / "bundle")
        if expected is None:
            return
        with open_image(image, arch="amd64") as opened:
            found = ours(opened)
        assert found == expected, json.dumps(layers)


@given(_layers)
@settings(max_examples=30, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_the_disk_holds_what_umoci_unpacks(layers: list[list[Step]]) -> None:
    """Read back by debugfs, which passes over fifos and makes two files of a hard link."""
    with tempfile.TemporaryDirectory() as name:
        image = make(Path(name) / "image", layers)
        unpacked = theirs(image, Path(name) / "bundle")
        if not unpacked:
            return
        disk, root = Path(name) / "disk", Path(name) / "root"
        build_root_disk(BuildRootDisk("root", image, disk, 16 << 20, ""), arch="amd64")
        subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
        root.mkdir()
        subprocess.run(["debugfs", "-R", f"rdump / {root}", disk], check=True, capture_output=True)
        (root / "lost+found").rmdir()
        found = of_folder(root)
        kept = {path: entry for path, entry in unpacked.items() if entry[0] != "p"}
        assert found.keys() == kept.keys(), json.dumps(layers)
        for path, (kind, mode, owner, content, target, _, mtime) in found.items():
            expected = kept[path]
            assert (kind, content, target) == (expected[0], *expected[3:5])
            assert kind == "l" or (mode, owner, mtime) == (*expected[1:3], expected[6])  # debugfs gives none to a link
