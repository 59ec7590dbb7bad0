from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from launcher.errors import HostUnfit, StorageFailed
from launcher.host import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ME = (os.getuid(), os.getgid())


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def owner(path: Path) -> tuple[int, int]:
    have = path.lstat()
    return have.st_uid, have.st_gid


@pytest.mark.usefixtures("_umask")
def test_a_folder_and_a_file_have_their_mode_whatever_the_umask(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "run", 0o711, *ME)
    files.write_file(tmp_path / "run/file", b"text", 0o640)
    assert mode(tmp_path / "run") == 0o711
    assert mode(tmp_path / "run/file") == 0o640
    assert (tmp_path / "run/file").read_bytes() == b"text"


def test_a_folder_that_is_there_gets_its_mode_and_keeps_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(0o777)
    (folder / "kept").write_text("x")
    files.make_folder(folder, 0o711, *ME)
    assert mode(folder) == 0o711
    assert (folder / "kept").read_text() == "x"


def test_missing_parents_are_made(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a/b/c", 0o700, *ME)
    assert mode(tmp_path / "a/b/c") == 0o700


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_refused_and_not_followed(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    target.mkdir(0o755)
    there = tmp_path / "run"
    there.write_text("") if kind == "file" else there.symlink_to(target)
    with pytest.raises(HostUnfit, match=f"cannot make folder {there}"):
        files.make_folder(there, 0o700, *ME)
    assert mode(target) == 0o755


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "dnsmasq.conf"
    path.write_text("old")
    before = path.stat().st_ino
    (tmp_path / ".dnsmasq.conf.0badcafe.new").write_text("half")
    files.write_file(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["dnsmasq.conf"]


def test_a_file_that_is_right_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_file(path, b"same", 0o644)
    before = path.stat()
    files.write_file(path, b"same", 0o644)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    files.write_file(path, b"same", 0o600)
    assert mode(path) == 0o600


def test_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    files.write_file(tmp_path / "file", b"new", 0o644)
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "target").read_text() == "untouched"


def test_a_write_that_cannot_be_done_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit) as raised:
        files.write_file(tmp_path / "none/file", b"", 0o644)
    assert str(tmp_path / "none/file") in raised.value.message


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "larger volume"),
        (errno.EROFS, "writable volume"),
        (errno.EACCES, "as root"),
        (errno.EPERM, "as root"),
    ],
)
def test_the_usual_failures_have_their_remedy(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(StorageFailed) as raised, files.telling("write", tmp_path):
        raise OSError(number, os.strerror(number))
    assert raised.value.message == f"cannot write {tmp_path}: {os.strerror(number)}"
    assert words in (raised.value.hint or "")


@pytest.mark.root
def test_a_folder_gets_its_owner(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "vmm", 0o700, 107, 108)
    assert (owner(tmp_path / "vmm"), mode(tmp_path / "vmm")) == ((107, 108), 0o700)


@pytest.mark.root
@pytest.mark.parametrize(
    ("before", "write", "given", "after"),
    [
        (0o600, True, True, 0o600),
        (0o644, True, True, 0o644),
        (0o444, True, True, 0o644),
        (0o666, True, False, 0o666),
        (0o644, False, False, 0o644),
        (0o600, False, True, 0o600),
        (0o200, False, True, 0o600),
    ],
)
def test_the_vmm_becomes_the_owner_of_what_it_could_not_open(
    tmp_path: Path, *, before: int, write: bool, given: bool, after: int
) -> None:
    path = tmp_path / "disk"
    path.touch()
    path.chmod(before)
    for _ in range(2):
        files.give(path, 107, 108, write=write)
        assert owner(path) == ((107, 108) if given else ME)
        assert mode(path) == after


@pytest.mark.root
def test_a_device_node_is_given_without_being_opened(tmp_path: Path) -> None:
    path = tmp_path / "node"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(240, 77))  # no driver has it: opening fails
    files.give(path, 107, 107, write=True)
    assert owner(path) == (107, 107)


def test_a_link_is_given_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "target").touch(0o600)
    (tmp_path / "disk").symlink_to(tmp_path / "target")
    with pytest.raises(StorageFailed, match="symbolic link"):
        files.give(tmp_path / "disk", 107, 107, write=True)
    assert owner(tmp_path / "target") == ME


def test_a_disk_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        files.give(tmp_path / "disk", 107, 107, write=True)
