"""Root disks made by the real mke2fs, read back with e2fsck and debugfs; nothing is mounted."""

from __future__ import annotations

import bisect
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from launcher.errors import HostUnfit, ImageInvalid, StorageFailed
from launcher.host import ext4, process, storage
from launcher.host.ext4_tree import Plan, plan_tree
from launcher.host.storage import build_root_disk
from launcher.host.workspace import workspace
from launcher.image.source import open_image
from launcher.image.stream import flatten
from launcher.plan.types import BuildRootDisk
from tests.unit.image.build import PACK, folder, hardlink, item, layout, symlink, tar

pytestmark = pytest.mark.root

MIB = 1 << 20
ACL = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000600ffffffff 20000400ffffffff")
CAP_NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")


def build(image: Path, disk: Path, size: int = 64 * MIB) -> storage.RootDisk:
    return build_root_disk(BuildRootDisk("root", image, disk, size, "a test"), arch="x86_64")


def debugfs(disk: Path, request: str) -> str:
    return subprocess.run(["debugfs", "-R", request, disk], check=True, capture_output=True, text=True).stdout


def check(disk: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def status(disk: Path, path: str) -> dict[str, str]:
    told = debugfs(disk, f'stat "{path}"')
    found = re.search(
        r"Inode: (?P<inode>\d+) +Type: (?P<type>.+?) +Mode: +(?P<mode>\d+).*?User: +(?P<user>\d+) +Group: +(?P<group>\d+)"
        r".*?Size: (?P<size>\d+).*?Links: (?P<links>\d+).*?mtime: 0x(?P<mtime>\w+:\w+)",
        told,
        re.DOTALL,
    )
    assert found, told
    return {**found.groupdict(), "device": "".join(re.findall(r"Device major/minor number: (\S+)", told))}


def xattr(disk: Path, path: str, name: str, tmp_path: Path) -> bytes:
    debugfs(disk, f'ea_get -f {tmp_path}/value "{path}" {name}')
    return (tmp_path / "value").read_bytes()


def content(disk: Path, path: str, tmp_path: Path) -> bytes:
    debugfs(disk, f'dump "{path}" {tmp_path}/content')
    return (tmp_path / "content").read_bytes()


def left(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with one of everything."""
    surrogates = {"errors": "surrogateescape"}
    pax = {
        "SCHILY.xattr.security.capability": CAP_NET_RAW.decode(**surrogates),
        "SCHILY.xattr.user.note": b"a\0\xff\nb".decode(**surrogates),
        "SCHILY.xattr.system.posix_acl_access": ACL.decode(**surrogates),
        "mtime": "1600000000.123456789",
    }
    low = tar(
        folder("./", mode=0o750, uid=5, gid=6, mtime=1_234_567),
        folder("d", mode=0o2775, uid=123_456, gid=70_000, mtime=1_500_000_000),
        item("d/su", os.urandom(100_000), mode=0o4711, uid=3_000_000, gid=3_000_001, mtime=1_400_000_000),
        item("d/capable", "c" * 5000, mode=0o755, pax_headers=pax),
        item("gone", "g"),
        item("sparse", bytes(8 * MIB) + b"end"),
    )
    high = tar(
        item(".wh.gone"),
        symlink("link", "d/su"),
        symlink("long", "x/" * 100),
        hardlink("hard", "d/su"),
        item("null", type_=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        item("disk", type_=tarfile.BLKTYPE, devmajor=259, devminor=70_000, mode=0o660),
        item("fifo", type_=tarfile.FIFOTYPE),
        item('odd "näme" \\ #;', "odd", pax_headers={"mtime": "5.5"}),
        item("n" * 255, "long name"),
        item("deep/" * 60 + "file", "deep"),
        item("old", "o", mtime=-5),
        item("late", "l", mtime=5_000_000_000),
    )
    return layout(tmp_path_factory.mktemp("rich") / "image", low, high, pack="+gzip")


def test_everything_arrives_intact(rich: Path, tmp_path: Path) -> None:
    disk = tmp_path / "rootfs.raw"
    built = build(rich, disk)
    assert built == storage.RootDisk(disk, 64 * MIB, built=True, digest=built.digest)
    assert disk.stat().st_size == 64 * MIB
    assert disk.stat().st_blocks * 512 < 4 * MIB
    assert left(tmp_path) == ["rootfs.raw"]
    check(disk)

    def fields(path: str, *names: str) -> tuple[str, ...]:
        found = status(disk, path)
        return tuple(found[name] for name in names)

    assert fields("/", "mode", "user", "group", "mtime") == ("0750", "5", "6", f"{1_234_567:08x}:00000000")
    assert fields("/d", "mode", "user", "group", "mtime") == (
        "02775",
        "123456",
        "70000",
        f"{1_500_000_000:08x}:00000000",
    )
    assert fields("/d/su", "type", "mode", "user", "group", "links") == ("regular", "04711", "3000000", "3000001", "2")
    assert fields("/hard", "inode") == fields("/d/su", "inode")
    assert fields("/d/capable", "mtime") == (f"{1_600_000_000:08x}:{123_456_789 << 2:08x}",)
    assert fields("/null", "type", "mode", "device") == ("character special", "0666", "01:03")
    assert fields("/disk", "type", "mode") == ("block special", "0660")
    assert fields("/fifo", "type") == ("FIFO",)
    assert fields("/link", "type", "size", "mode") == ("symlink", "4", "0777")
    assert fields("/long", "type", "size") == ("symlink", "200")
    assert fields("/old", "mtime") == ("fffffffb:00000000",)
    assert fields("/late", "mtime") == (f"{5_000_000_000 - 2**32:08x}:00000001",)
    assert fields('/odd ""näme"" \\ #;', "size", "mtime") == ("3", f"{5:08x}:{500_000_000 << 2:08x}")
    assert xattr(disk, "/d/capable", "security.capability", tmp_path) == CAP_NET_RAW
    assert xattr(disk, "/d/capable", "user.note", tmp_path) == b"a\0\xff\nb"
    acl = xattr(disk, "/d/capable", "system.posix_acl_access", tmp_path)
    assert acl == ACL.replace(b"\xff" * 4, bytes(4))  # debugfs fills the unused numbers with zeros
    assert content(disk, "/hard", tmp_path) == content(disk, "/d/su", tmp_path)
    assert len(content(disk, "/d/su", tmp_path)) == 100_000
    assert content(disk, "/sparse", tmp_path) == bytes(8 * MIB) + b"end"
    assert content(disk, "/" + "deep/" * 60 + "file", tmp_path) == b"deep"
    assert content(disk, "/" + "n" * 255, tmp_path) == b"long name"
    assert " gone" not in debugfs(disk, "ls -l /")


def test_the_same_image_gives_the_same_bytes(rich: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        build(rich, tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_root_directory_keeps_its_own_attributes(tmp_path: Path) -> None:
    tree = tmp_path / "image/rootfs"
    (tree / "d").mkdir(parents=True)
    (tree / "d/f").write_text("x")
    os.link(tree / "d/f", tree / "g")
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(tree / "p")
    os.chown(tree / "d/f", 77_777, 88_888)  # takes a capability away, so it goes first
    os.setxattr(tree / "d/f", "user.k", b"v")
    os.setxattr(tree / "d/f", "security.capability", CAP_NET_RAW)
    os.utime(tree, ns=(0, 1_700_000_000_500_000_000))
    disk = tmp_path / "disk"
    assert build(tmp_path / "image", disk).lost == ()
    check(disk)
    found = status(disk, "/d/f")
    assert (found["user"], found["group"], found["links"]) == ("77777", "88888", "2")
    assert status(disk, "/")["mtime"] == f"{1_700_000_000:08x}:{500_000_000 << 2:08x}"
    assert xattr(disk, "/g", "user.k", tmp_path) == b"v"
    assert xattr(disk, "/g", "security.capability", tmp_path) == CAP_NET_RAW


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    image = layout(
        tmp_path / "i", tar(item(b"\xff\xfe".decode("utf-8", "surrogateescape"), "x"), format_=tarfile.GNU_FORMAT)
    )
    build(image, tmp_path / "disk")
    check(tmp_path / "disk")
    listed = subprocess.run(["debugfs", "-R", "ls -p /", tmp_path / "disk"], check=True, capture_output=True).stdout
    assert b"/\xff\xfe/" in listed


def test_an_existing_disk_is_left_alone(rich: Path, tmp_path: Path) -> None:
    disk = tmp_path / "rootfs.raw"
    disk.write_bytes(b"a guest's data")
    assert build(rich, disk) == storage.RootDisk(disk, 14, built=False)
    assert disk.read_bytes() == b"a guest's data"
    assert build(tmp_path / "no image at all", disk).built is False


def test_what_is_no_disk_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/shadow")
    (tmp_path / "folder").mkdir()
    for name, what in (("link", "is a symbolic link"), ("folder", "is not a file")):
        with pytest.raises(StorageFailed, match=what):
            build(tmp_path / "no image at all", tmp_path / name)


def test_too_small_a_size_says_how_much_is_needed(tmp_path: Path) -> None:
    items = [item(f"d{number % 7}/{number:05}-{'x' * (number % 90)}", b"x" * (number % 9000)) for number in range(1500)]
    image = layout(tmp_path / "i", tar(*items, item("big", os.urandom(20 * MIB))))
    with pytest.raises(StorageFailed, match=r"needs a disk of \d+Mi, volume root has 16777216 bytes") as caught:
        build(image, tmp_path / "disk", 16 * MIB)
    needed = int(re.findall(r"of (\d+)Mi", caught.value.message)[0])
    assert left(tmp_path) == ["i"]
    with pytest.raises(StorageFailed, match=f"needs a disk of {needed}Mi"):
        build(image, tmp_path / "disk", (needed - 1) * MIB)
    build(image, tmp_path / "disk", needed * MIB)
    check(tmp_path / "disk")


def test_the_measure_holds_to_the_block(tmp_path: Path) -> None:
    """At the smallest size that passes the check mke2fs finds room for everything, and what is restored fits too."""
    attributes = {"SCHILY.xattr.user.k": "v" * 300}
    items = [
        *(item(f"d/{number:05}-{'x' * (number % 90)}", b"x" * (number * 37 % 9000)) for number in range(600)),
        *(symlink(f"s/{number}", "t" * (number % 120 + 1)) for number in range(200)),
        *(item(f"x/{number}", "x", pax_headers=attributes) for number in range(100)),
        item("big", os.urandom(9 * MIB)),
    ]
    image = layout(tmp_path / "i", tar(*items))
    with open_image(image, arch="amd64") as opened:
        plan = plan_tree(flatten(opened.tree(), "it"))
    assert len(plan.extras) == 100

    def fits(blocks: int) -> bool:
        trial = ext4.Ext4(blocks * 4096, plan.inodes, "00000000-0000-4000-8000-000000000000", 1)
        return ext4.free_blocks(tmp_path / "trial", trial) >= plan.blocks

    smallest = bisect.bisect_left(range(2 * plan.blocks), x=True, key=fits)
    with pytest.raises(StorageFailed, match="needs a disk of"):
        build(image, tmp_path / "disk", (smallest - 1) * 4096)
    build(image, tmp_path / "disk", smallest * 4096)
    check(tmp_path / "disk")


def test_mke2fs_running_out_of_blocks_is_a_storage_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_check_fit", lambda *_: None)
    image = layout(tmp_path / "i", tar(item("f", os.urandom(9 * MIB))))
    with pytest.raises(StorageFailed, match="the disk is too small for its tree: Could not allocate block"):
        build(image, tmp_path / "disk", 8 * MIB)
    assert left(tmp_path) == ["i"]


def test_a_size_is_rounded_up_to_blocks(rich: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert build(rich, tmp_path / "disk", 64 * MIB - 1).size == 64 * MIB
    assert "rounded" in caplog.text
    check(tmp_path / "disk")


@pytest.mark.parametrize("early", [True, False])
def test_no_space_left_is_told(tmp_path: Path, early: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001  # a parameter
    if not early:
        monkeypatch.setattr(storage, "_check_room", lambda *_: None)
    full = tmp_path / "full"
    full.mkdir()
    big = layout(tmp_path / "big", tar(item("f", os.urandom(6 * MIB))))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", full], check=True)
    try:
        with pytest.raises(StorageFailed, match="no space is left for the disk"):
            build(big, full / "disk")
        assert left(full) == []
    finally:
        subprocess.run(["umount", full], check=True)


def test_a_bad_image_fails_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(PACK["+gzip"](tar(item("f", os.urandom(MIB))))[:-100_000])
    with pytest.raises(ImageInvalid, match="the gzip data is cut off"):
        build(path, tmp_path / "disk")
    path.write_bytes(tar())
    with pytest.raises(ImageInvalid, match="is empty"):
        build(path, tmp_path / "disk")
    assert left(tmp_path) == ["layer"]


def test_an_image_that_changes_while_it_is_read_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i/f").write_bytes(bytes(MIB))
    checked = storage._check_room

    def shrink(disk: Path, plan: Plan) -> None:
        checked(disk, plan)
        os.truncate(tmp_path / "i/f", 10)

    monkeypatch.setattr(storage, "_check_room", shrink)
    with pytest.raises(ImageInvalid, match=r"/f: the file ends after 10 of 1048576 bytes"):
        build(tmp_path / "i", tmp_path / "disk")
    assert left(tmp_path) == ["i"]


def test_a_killed_build_leaves_no_disk_and_the_next_one_cleans_up(rich: Path, tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; from pathlib import Path; from launcher.host import ext4, storage\n"
        "from launcher.plan.types import BuildRootDisk\n"
        "storage.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"storage.build_root_disk(BuildRootDisk('root', Path({str(rich)!r}), Path({str(tmp_path / 'disk')!r}), 1 << 26, ''), "
        "arch='x86_64')"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert [name.endswith(".building") for name in left(tmp_path)] == [True]
    build(rich, tmp_path / "disk")
    assert left(tmp_path) == ["disk"]


def test_a_build_at_work_is_left_alone(rich: Path, tmp_path: Path) -> None:
    with workspace(tmp_path / "disk") as other:
        build(rich, tmp_path / "disk")
        assert other.is_dir()


def fake_program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setitem(process.BASE_ENV, "PATH", f"{folder}:{process.BASE_ENV['PATH']}")


def test_an_old_mke2fs_is_a_reason_not_to_start(rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path, "mke2fs", "echo 'mke2fs 1.47.0 (5-Feb-2023)' >&2", monkeypatch)
    with pytest.raises(HostUnfit, match=r"mke2fs 1\.47\.0 cannot read a tar \(install e2fsprogs 1\.47\.1 or later"):
        build(rich, tmp_path / "disk")


def test_a_missing_libarchive_is_told(rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libarchive.so.13").write_bytes(b"")
    monkeypatch.setitem(process.BASE_ENV, "LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(HostUnfit, match=r"without libarchive \(install e2fsprogs .* and libarchive13"):
        build(rich, tmp_path / "disk")
    assert left(tmp_path) == ["libarchive.so.13"]


def test_debugfs_refusing_is_a_storage_failure(rich: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(
        tmp_path, "debugfs", "echo 'debugfs 1.47.2' >&2; echo '/x: File not found by ext2_lookup' >&2", monkeypatch
    )
    with pytest.raises(StorageFailed, match="debugfs could not restore file attributes: /x: File not found"):
        build(rich, tmp_path / "disk")
    assert left(tmp_path) == ["debugfs"]


def test_what_cannot_be_kept_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    big = {"SCHILY.xattr.user.big": "x" * 5000}
    image = layout(tmp_path / "i", tar(item("a", pax_headers=big), item("b\nc", pax_headers={"mtime": "5.5"})))
    assert build(image, tmp_path / "disk").lost == ("1 extended attributes", "1 sub-second times")
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.message for record in warnings] == ["ext4 cannot keep everything the image has"]
    check(tmp_path / "disk")


def test_features_fit_a_guest_of_linux_5_4(rich: Path, tmp_path: Path) -> None:
    build(rich, tmp_path / "disk")
    told = subprocess.run(["dumpe2fs", "-h", tmp_path / "disk"], check=True, capture_output=True, text=True).stdout
    features = re.findall(r"Filesystem features: +(.*)", told)[0].split()
    assert set(features) == set(ext4._FEATURES.split(",")[1:])
    assert {"orphan_file", "metadata_csum_seed"}.isdisjoint(features)
