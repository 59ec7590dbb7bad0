"""Disks out of containerDisk images, with real qcow2 files: made once, kept, never out of somebody else's file."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from launcher.cli import launcher
from launcher.errors import ImageInvalid, StorageFailed
from launcher.host.container_disk import make_container_disk
from launcher.host.observe_disks import observe_disk
from launcher.host.observe_files import observe_disk_image
from launcher.paths import Paths
from launcher.plan.types import MakeContainerDisk
from launcher.spec.types import ContainerDiskVolume

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
VOLUME = ContainerDiskVolume("os", "lab/disk")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for folder in ("images", "disks/os"):
        (tmp_path / folder).mkdir(parents=True)
    return Paths(tmp_path / "run", tmp_path / "images", tmp_path / "disks", tmp_path / "hotplug")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """64 MiB with 3 MiB of data."""
    path = tmp_path / "source.raw"
    with path.open("wb") as file:
        for at in (0, 20, 63):
            file.seek(at * MIB)
            file.write(os.urandom(MIB))
    return path


@pytest.fixture
def qcow2(tmp_path: Path, raw: Path) -> Path:
    path = tmp_path / "source.qcow2"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", raw, path], check=True)
    return path


def as_folder(paths: Paths, disk: Path) -> Path:
    image = paths.volume_image("os")
    (image / "disk").mkdir(parents=True)
    subprocess.run(["cp", "--sparse=always", disk, image / "disk/a.img"], check=True)
    return image


def as_layer(paths: Paths, disk: Path) -> Path:
    image = paths.volume_image("os")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(disk, "disk")
    image.write_bytes(gzip.compress(packed.getvalue(), 1))
    return image


def action(paths: Paths, image: Path, base: Path | None, mark: str = "") -> MakeContainerDisk:
    disk = paths.disk_overlay("os") if base else paths.copied_disk("os")
    return MakeContainerDisk(
        "os", image, disk, base, in_place=bool(mark), mark=mark, uid=107, gid=107, reason="for a test"
    )


def content(disk: Path, kind: str) -> str:
    """The digest of what a guest would see, as QEMU reads it."""
    seen = disk.with_name("seen")
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "raw", disk, seen], check=True)
    digest = sha256(seen)
    seen.unlink()
    return digest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("source", ["raw", "qcow2"])
def test_an_overlay_in_place_copies_nothing(
    paths: Paths, raw: Path, source: str, request: pytest.FixtureRequest
) -> None:
    image = as_folder(paths, request.getfixturevalue(source))
    seen = observe_disk_image(image, "x86_64")
    assert seen is not None
    assert seen.disk is not None
    assert (seen.disk.format, seen.disk.size) == (source, 64 * MIB)
    make_container_disk(action(paths, image, seen.disk.path, seen.disk.mark), arch="x86_64")

    overlay = paths.disk_overlay("os")
    assert overlay.stat().st_size < MIB
    assert content(overlay, "qcow2") == sha256(raw)
    found = observe_disk(paths, "os", VOLUME).file
    assert found is not None
    assert (found.path, found.base, found.mark, found.problem) == (overlay, seen.disk.path, seen.disk.mark, None)


@pytest.mark.parametrize("source", ["raw", "qcow2"])
def test_a_disk_in_a_layer_is_extracted_once(
    paths: Paths, raw: Path, source: str, request: pytest.FixtureRequest
) -> None:
    disk: Path = request.getfixturevalue(source)
    image, base = as_layer(paths, disk), paths.disk_base("os")
    make_container_disk(action(paths, image, base), arch="x86_64")
    assert sha256(base) == sha256(disk)
    assert base.stat().st_mode & 0o777 == 0o444
    assert base.stat().st_blocks * 512 < 4 * MIB  # sparse
    assert content(paths.disk_overlay("os"), "qcow2") == sha256(raw)

    # Killed between the two: the next start takes the base as it is, and needs no image for it.
    paths.disk_overlay("os").unlink()
    image.unlink()
    inode = base.stat().st_ino
    make_container_disk(action(paths, image, base), arch="x86_64")
    assert base.stat().st_ino == inode
    assert content(paths.disk_overlay("os"), "qcow2") == sha256(raw)


def test_what_the_guest_wrote_is_never_overwritten(paths: Paths, raw: Path) -> None:
    image, base = as_layer(paths, raw), paths.disk_base("os")
    make = action(paths, image, base)
    make_container_disk(make, arch="x86_64")
    overlay = paths.disk_overlay("os")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", overlay], check=True, capture_output=True)
    written, pristine = sha256(overlay), sha256(base)
    make_container_disk(make, arch="x86_64")
    assert (sha256(overlay), sha256(base)) == (written, pristine)


@pytest.mark.root
@pytest.mark.parametrize("packed", [as_folder, as_layer])
@pytest.mark.parametrize("source", ["raw", "qcow2"])
def test_a_raw_copy_is_sparse_and_the_same(
    paths: Paths, raw: Path, source: str, packed: object, request: pytest.FixtureRequest
) -> None:
    image = packed(paths, request.getfixturevalue(source))  # type: ignore[operator]  # one of the two above
    make_container_disk(action(paths, image, None), arch="x86_64")
    copy = paths.copied_disk("os")
    assert sha256(copy) == sha256(raw)
    assert copy.stat().st_blocks * 512 < 4 * MIB
    assert [path.name for path in copy.parent.iterdir()] == ["disk.raw"]


def test_no_room_is_told_before_anything_is_written(paths: Paths, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = as_layer(paths, raw)
    usage = shutil.disk_usage(paths.disks)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * MIB))
    with pytest.raises(StorageFailed, match="it takes 3Mi, 2Mi are free"):
        make_container_disk(action(paths, image, paths.disk_base("os")), arch="x86_64")
    assert not list((paths.disks / "os").iterdir())


def test_a_backing_file_is_refused_wherever_it_is(paths: Paths, tmp_path: Path, raw: Path) -> None:
    hostile = tmp_path / "hostile.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", hostile], check=True)
    image = as_layer(paths, hostile)
    for base in (paths.disk_base("os"), None):
        with pytest.raises(ImageInvalid, match="names a backing file"):
            make_container_disk(action(paths, image, base), arch="x86_64")
    assert not list((paths.disks / "os").iterdir())
    image.unlink()
    seen = observe_disk_image(as_folder(paths, hostile), "x86_64")
    assert seen is not None
    assert "names a backing file" in (seen.problem or "")


def test_an_overlay_that_lost_its_base_says_so(paths: Paths, raw: Path) -> None:
    image, base = as_layer(paths, raw), paths.disk_base("os")
    make_container_disk(action(paths, image, base), arch="x86_64")
    base.unlink()
    found = observe_disk(paths, "os", VOLUME).file
    assert found is not None
    assert found.problem == f"reads from {base}, which is not there"


def test_another_image_in_the_same_place_has_another_mark(paths: Paths, raw: Path) -> None:
    image = as_folder(paths, raw)
    first = observe_disk_image(image, "x86_64")
    (image / "disk/a.img").write_bytes(b"x" * MIB)
    second = observe_disk_image(image, "x86_64")
    assert first is not None
    assert second is not None
    assert first.disk is not None
    assert second.disk is not None
    assert first.disk.mark != second.disk.mark
    assert replace(first, disk=None) == replace(second, disk=None)


def test_the_verb(paths: Paths, raw: Path, qcow2: Path, tmp_path: Path) -> None:
    image = as_layer(paths, qcow2)
    for options, kind in (((), "qcow2"), (("--raw",), "raw")):
        out = tmp_path / f"out.{kind}"
        done = CliRunner().invoke(launcher, ["image", "disk", str(image), str(out), *options])
        assert done.exit_code == 0, done.output
        assert f"{'qcow2' if kind == 'qcow2' else 'raw'}, {64 * MIB} bytes" in done.output
        assert content(out, kind) == sha256(raw)
    again = CliRunner().invoke(launcher, ["image", "disk", str(image), str(out)])
    assert "was there already" in again.output
