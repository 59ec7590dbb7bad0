"""The cloud-init seed, looked at with the tools a guest's distribution has."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.errors import StorageFailed
from launcher.host.seed import is_ours, write_seed
from launcher.plan.types import BuildSeed, SecretSeedFile, SeedFile

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

FILES = {
    "meta-data": b"instance-id: i\n",
    "user-data": b"#cloud-config\n" + b"x" * 100_000,
    "network-config": b"version: 2\n",
}


def seed(disk: Path, files: dict[str, bytes]) -> bool:
    return write_seed(
        BuildSeed("seed", disk, tuple(SeedFile(name, content) for name, content in files.items()), "a test")
    )


def tool(*argv: str | Path) -> bytes:
    return subprocess.run(argv, check=True, capture_output=True).stdout


def test_cloud_init_finds_label_and_files(tmp_path: Path) -> None:
    disk = tmp_path / "cloud-init.iso"
    assert seed(disk, FILES)
    told = tool("blkid", "-p", "-o", "export", disk).decode().splitlines()
    assert {"LABEL=cidata", "TYPE=iso9660"} <= set(told)
    assert disk.stat().st_mode & 0o777 == 0o600
    assert disk.stat().st_size % 2048 == 0
    for name, content in FILES.items():
        assert tool("bsdtar", "-xOf", disk, name) == content
        assert tool("bsdtar", "--options", "!rockridge", "-xOf", disk, name) == content  # by Joliet alone
    listed = set(tool("bsdtar", "-tf", disk).decode().split())
    assert listed == {".", *FILES}
    assert [path.name for path in tmp_path.iterdir()] == ["cloud-init.iso"]


def content(disk: Path) -> dict[str, bytes]:
    names = set(tool("bsdtar", "-tf", disk).decode().split()) - {"."}
    return {name: tool("bsdtar", "-xOf", disk, name) for name in names}


@pytest.mark.parametrize("files", [{"meta-data": b"m", "user-data": b""}, FILES])
def test_the_same_files_are_not_written_again(tmp_path: Path, files: dict[str, bytes]) -> None:
    disk = tmp_path / "cloud-init.iso"
    assert seed(disk, files)
    before = disk.stat()
    assert content(disk) == files
    assert not seed(disk, files)
    assert disk.stat() == before


@pytest.mark.parametrize("other", [{"meta-data": b"m"}, {**FILES, "user-data": b"new"}, {}])
def test_other_files_replace_it(tmp_path: Path, other: dict[str, bytes]) -> None:
    disk = tmp_path / "cloud-init.iso"
    seed(disk, other)
    (tmp_path / ".cloud-init.iso.dead.new").write_text("left by a killed run")
    assert seed(disk, FILES)
    assert content(disk) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["cloud-init.iso"]


def test_ours_is_told_from_anybody_elses(tmp_path: Path) -> None:
    ours, theirs, text, pipe = (tmp_path / name for name in ("ours", "theirs", "text", "pipe"))
    seed(ours, FILES)
    (tmp_path / "meta-data").write_bytes(FILES["meta-data"])
    tool("xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", theirs, tmp_path / "meta-data")
    text.write_text("hello")
    os.mkfifo(pipe)
    assert is_ours(ours)
    assert not any(map(is_ours, (theirs, text, pipe, tmp_path, tmp_path / "missing")))
    marked = tool("blkid", "-p", "-o", "value", "-s", "APPLICATION_ID", ours).decode()
    assert re.fullmatch(r"LAUNCHER SEED [0-9A-F]{48}\s*", marked)


def test_a_secret_is_read_when_the_seed_is_written(tmp_path: Path) -> None:
    value, disk = tmp_path / "value", tmp_path / "cloud-init.iso"
    action = BuildSeed("seed", disk, (SeedFile("meta-data", b"m"), SecretSeedFile("user-data", value, 3, "")), "a test")
    value.write_bytes(b"one")
    assert write_seed(action)
    assert content(disk)["user-data"] == b"one"
    assert not write_seed(action)
    value.write_bytes(b"two")
    assert write_seed(action)
    assert content(disk)["user-data"] == b"two"
    value.unlink()
    with pytest.raises(StorageFailed, match=r"cannot read .*/value: No such file or directory"):
        write_seed(action)
    assert content(disk)["user-data"] == b"two"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"cannot write seed .*/no/seed.iso: No such file or directory"):
        seed(tmp_path / "no/seed.iso", FILES)
