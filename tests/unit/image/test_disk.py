from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.errors import ImageInvalid
from launcher.image.disk import find_disk, host_path, judge_disk
from launcher.image.source import open_image

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def qcow2(
    *,
    version: int = 3,
    backing: bytes = b"",
    virtual: int = 64 * MIB,
    crypt: int = 0,
    features: int = 0,
    l1_size: int = 1,
) -> bytes:
    """A header, and a backing file's name after it."""
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", version, 200 if backing else 0, len(backing), 16, virtual, crypt),
        *(l1_size, 0x30000, 0x10000, 1, 0, 0),
    )
    return (head + struct.pack(">QQQII", features, 0, 0, 4, 104)).ljust(200, b"\0") + backing + bytes(0x40000)


def judge(content: bytes) -> tuple[str, int]:
    return judge_disk(lambda at, count: content[at : at + count], len(content), "the disk")


def refused(content: bytes) -> ImageInvalid:
    with pytest.raises(ImageInvalid) as raised:
        judge(content)
    assert raised.value.message.startswith("the disk")
    return raised.value


def test_a_raw_disk_is_what_nothing_else_is() -> None:
    assert judge(b"\xeb\x63" + bytes(MIB)) == ("raw", MIB + 512)
    assert judge(bytes(MIB)) == ("raw", MIB)


@pytest.mark.parametrize("version", [2, 3])
def test_a_qcow2_disk_has_the_size_its_header_says(version: int) -> None:
    assert judge(qcow2(version=version)) == ("qcow2", 64 * MIB)


def test_a_backing_file_is_named() -> None:
    error = refused(qcow2(backing=b"/etc/shadow"))
    assert "names a backing file, '/etc/shadow'" in error.message
    assert "qemu-img convert" in (error.hint or "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (qcow2(features=1 << 2), "keeps its data in another file"),
        (qcow2(features=1 << 1), "marked as corrupt"),
        (qcow2(features=1 << 4), "extended L2 entries"),
        (qcow2(features=1 << 40), "features that are not known"),
        (qcow2(crypt=2), "encrypted"),
        (qcow2(version=4), "version 4"),
        (qcow2(virtual=1 << 60), "says it has"),
        (qcow2(virtual=0), "says it has"),
        (qcow2(virtual=1 << 40), "cut-off"),
        (qcow2()[:0x20000], "cut-off"),
        (qcow2()[:40], "cut-off"),
        (b"KDMV" + bytes(600), "VMDK"),
        (b"vhdxfile" + bytes(600), "VHDX"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed by gzip"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed by xz"),
        (b"short", "that is no disk"),
        (b"", "that is no disk"),
    ],
)
def test_what_cannot_be_used_is_called_by_its_name(content: bytes, words: str) -> None:
    assert words in refused(content).message


def test_a_dirty_or_compressed_one_is_fine() -> None:
    assert judge(qcow2(features=1 | 1 << 3))[0] == "qcow2"


@pytest.mark.parametrize("options", [(), ("-o", "compat=0.10"), ("-o", "compression_type=zstd,lazy_refcounts=on")])
def test_qemus_own_disks_are_taken(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "3G"], check=True)
    assert judge(path.read_bytes()) == ("qcow2", 3 << 30)


@pytest.mark.parametrize(
    "options", [("data_file=other.raw",), ("extended_l2=on",), ("backing_file=base.raw,backing_fmt=raw",)]
)
def test_qemus_own_references_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "disk.qcow2"
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", *options, path, "1M"], check=True, cwd=tmp_path)
    refused(path.read_bytes())


# --- where the disk is in its image ---


@pytest.mark.parametrize("name", ["disk", "disk/fedora.img"])
def test_the_disk_is_a_file_or_alone_in_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "image" / name).parent.mkdir(parents=True)
    (tmp_path / "image" / name).write_bytes(bytes(MIB))
    with open_image(tmp_path / "image", arch="x86_64") as image:
        disk = find_disk(image)
        assert (disk.path, disk.format, disk.size) == (f"/{name}", "raw", MIB)
        assert host_path(image, disk) == tmp_path / "image" / name


def test_a_link_is_followed_inside_the_image(tmp_path: Path) -> None:
    (tmp_path / "image/store").mkdir(parents=True)
    (tmp_path / "image/store/a.img").write_bytes(bytes(MIB))
    (tmp_path / "image/disk").symlink_to("/store/a.img")
    with open_image(tmp_path / "image", arch="x86_64") as image:
        assert host_path(image, find_disk(image)) == tmp_path / "image/store/a.img"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "has no /disk"),
        (("disk/",), "the folder /disk is empty"),
        (("disk/a", "disk/b"), "has 2 files: a, b"),
        (("disk/a/",), "is a directory, not a file"),
    ],
)
def test_an_image_without_one_disk_is_refused(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    (tmp_path / "image").mkdir()
    for name in names:
        path = tmp_path / "image" / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.write_bytes(bytes(MIB))
    with open_image(tmp_path / "image", arch="x86_64") as image, pytest.raises(ImageInvalid, match=words):
        find_disk(image)
