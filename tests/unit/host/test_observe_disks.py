from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from launcher.host.observe_disks import observe_disk
from launcher.paths import Paths
from launcher.spec.types import ContainerRootfsVolume, DataVolumeVolume, PvcVolume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from launcher.facts import DiskFile

CLAIM = PvcVolume("data", "c1")
_HOLD = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", int(sys.argv[2]), 0, 0, 100, 0))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "disks/data").mkdir(parents=True)
    return Paths(tmp_path / "run", tmp_path / "images", tmp_path / "disks", tmp_path / "hotplug")


def image(paths: Paths, content: bytes = b"x" * 4096) -> Path:
    path = paths.claim_disk("data")
    path.write_bytes(content)
    return path


def seen(paths: Paths, volume: PvcVolume | DataVolumeVolume = CLAIM) -> DiskFile:
    file = observe_disk(paths, "data", volume).file
    assert file is not None
    return file


def test_nothing_is_there(paths: Paths) -> None:
    facts = observe_disk(paths, "data", CLAIM)
    assert (facts.folder, facts.file) == (True, None)
    assert observe_disk(paths, "none", CLAIM).file is None


def test_a_file_is_seen_with_its_size_owner_and_mode(paths: Paths) -> None:
    path = image(paths)
    path.chmod(0o640)
    file = seen(paths)
    assert (file.path, file.size, file.mode, file.format, file.block) == (path, 4096, 0o640, "raw", False)
    assert (file.uid, file.gid) == (os.getuid(), os.getgid())
    assert (file.lock, file.holder, file.read_only, file.table, file.problem) == (None, None, False, 0, None)


def test_looking_changes_nothing(paths: Paths) -> None:
    path = image(paths, os.urandom(100_000))
    before = path.stat()
    digest = hashlib.sha256(path.read_bytes()).digest()
    observe_disk(paths, "data", CLAIM)
    after = path.stat()
    assert hashlib.sha256(path.read_bytes()).digest() == digest
    assert (before.st_mtime_ns, before.st_ctime_ns, before.st_mode, before.st_uid) == (
        after.st_mtime_ns,
        after.st_ctime_ns,
        after.st_mode,
        after.st_uid,
    )


def test_formats_and_tables_are_told_by_the_first_bytes(paths: Paths) -> None:
    image(paths, b"QFI\xfb" + bytes(4096))
    assert seen(paths).format == "qcow2"
    image(paths, bytes(512) + b"EFI PART" + bytes(8192))
    assert seen(paths).table == 512
    image(paths, bytes(4096) + b"EFI PART" + bytes(8192))
    assert seen(paths).table == 4096


def test_what_is_no_disk_is_a_problem(paths: Paths, tmp_path: Path) -> None:
    path = paths.claim_disk("data")
    path.symlink_to(tmp_path / "elsewhere")
    assert seen(paths).problem == "is a symbolic link"
    path.unlink()
    os.mkfifo(path)
    assert seen(paths).problem == "is neither a file nor a block device"
    path.unlink()
    path.mkdir()
    assert observe_disk(paths, "data", CLAIM).file is None


def test_hot_plugged_disks_are_where_virtink_puts_them(paths: Paths) -> None:
    paths.hotplug.mkdir()
    plugged = paths.hotplug / "data.img"
    plugged.write_bytes(b"x" * 512)
    assert observe_disk(paths, "data", CLAIM).file is None
    assert seen(paths, PvcVolume("data", "c1", hotpluggable=True)).path == plugged
    assert seen(paths, DataVolumeVolume("data", "d1", hotpluggable=True)).path == plugged
    mounted = image(paths)
    assert seen(paths, PvcVolume("data", "c1", hotpluggable=True)).path == mounted


def test_only_the_volumes_own_kind_of_disk_is_looked_at(paths: Paths) -> None:
    image(paths)
    assert observe_disk(paths, "data", ContainerRootfsVolume("data", "i", 1)).file is None
    paths.rootfs_disk("data").write_bytes(b"x")
    found = observe_disk(paths, "data").file  # without a spec, whatever is there
    assert found is not None
    assert found.path == paths.rootfs_disk("data")


@contextmanager
def held_by_another(path: Path, kind: int) -> Iterator[int]:
    """Another process holds an OFD lock, as a VMM does."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), str(kind)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield child.pid
        assert child.stdin is not None
        child.stdin.close()


@pytest.mark.parametrize(("kind", "word"), [(fcntl.F_RDLCK, "read"), (fcntl.F_WRLCK, "write")])
def test_a_lock_is_seen_with_its_holder(paths: Paths, kind: int, word: str) -> None:
    path = image(paths)
    with held_by_another(path, kind) as pid:
        file = seen(paths)
    assert file.lock == word
    assert (file.holder or "").endswith(f"(pid {pid})")
    assert seen(paths).lock is None


def test_looking_takes_no_lock(paths: Paths) -> None:
    path = image(paths)
    observe_disk(paths, "data", CLAIM)
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    finally:
        os.close(fd)
