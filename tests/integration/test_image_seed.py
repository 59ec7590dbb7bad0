"""The cloud-init seed, looked at with the tools a guest's distribution has."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.errors import StorageFailed
from launcher.host.seed import read_seed, write_seed
from launcher.plan.types import BuildSeed, SeedFile

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


@pytest.mark.parametrize("files", [{"meta-data": b"m", "user-data": b""}, FILES])
def test_the_same_files_are_not_written_again(tmp_path: Path, files: dict[str, bytes]) -> None:
    disk = tmp_path / "cloud-init.iso"
    assert seed(disk, files)
    before = disk.stat()
    assert read_seed(disk) == files
    assert not seed(disk, files)
    assert disk.stat() == before


@pytest.mark.parametrize("other", [{"meta-data": b"m"}, {**FILES, "user-data": b"new"}, {}])
def test_other_files_replace_it(tmp_path: Path, other: dict[str, bytes]) -> None:
    disk = tmp_path / "cloud-init.iso"
    seed(disk, other)
    (tmp_path / ".cloud-init.iso.dead.new").write_text("left by a killed run")
    assert seed(disk, FILES)
    assert read_seed(disk) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["cloud-init.iso"]


def test_what_is_no_seed_reads_as_none(tmp_path: Path) -> None:
    assert read_seed(tmp_path / "missing") is None
    (tmp_path / "text").write_text("hello")
    assert read_seed(tmp_path / "text") is None
    assert seed(tmp_path / "text", FILES)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"cannot write seed .*/no/seed.iso: No such file or directory"):
        seed(tmp_path / "no/seed.iso", FILES)
