"""Images made to take time, memory or disk, or to change under our eyes: each refused, with its place and the remedy."""

from __future__ import annotations

import dataclasses
import gzip
import sys
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from launcher.errors import ImageInvalid
from launcher.image.limits import Limits
from launcher.image.source import open_image
from launcher.image.stream import flatten
from launcher.image.tree import walk
from tests.unit.image.build import PACK, Layout, folder, hardlink, item, layout, symlink, tar

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FEW = Limits(entries=100, bytes=1 << 20, metadata=10_000, directory=50)


def look(path: Path, limits: Limits = FEW) -> list[str]:
    with open_image(path, arch="amd64", limits=limits) as image:
        flatten(image.tree(), image.what, limits)
        return [name for name, _ in walk(image.root)]


def chain(length: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Links that take a long way each."""
    return [folder("d"), symlink("l0", "d"), *(symlink(f"l{n}", f"l{n - 1}/" + "./" * 200) for n in range(1, length))]


@pytest.mark.parametrize(
    ("layer", "sentence", "variable"),
    [
        (tar(*(item(f"f{n}") for n in range(101))), "entry 'f100': too many entries", "ENTRIES"),
        (tar(item("/".join("d" * 101), "x")), "too many entries", "ENTRIES"),  # directories that only a path implies
        (tar(item("f", pax_headers={"SCHILY.xattr.user.x": "v" * 10_000})), "entry 'f': too many bytes of", "METADATA"),
        (tar(*(item(f"{n}" * 120) for n in range(10, 60))), "too many bytes of names", "METADATA"),
        (tar(*chain(30), *(item(f"l29/{n}") for n in range(60))), "too many bytes of names, links", "METADATA"),
        (tar(item("d" * 200 + "/f"), *(symlink(f"l{n}", "d" * 200) for n in range(2))), "", ""),
        (tar(item("f", bytes(1 << 20))), "too large when it is inflated", "BYTES"),
    ],
)
@pytest.mark.parametrize("pack", PACK)
def test_what_goes_beyond_a_limit_is_refused_with_the_remedy(
    tmp_path: Path, layer: bytes, sentence: str, variable: str, pack: str
) -> None:
    path = layout(tmp_path / "i", layer, pack=pack)
    look(path, Limits())
    if not sentence:
        look(path)
        return
    with pytest.raises(ImageInvalid, match=sentence) as caught:
        look(path)
    assert str(path) in caught.value.message
    assert f"LAUNCHER_IMAGE_MAX_{variable}" in str(caught.value.hint)


def test_the_limits_are_of_all_layers_together(tmp_path: Path) -> None:
    layers = [tar(*(item(f"{number}-{n}", bytes(6000)) for n in range(60))) for number in range(3)]
    with pytest.raises(ImageInvalid, match=r"layer 2 of 3 .*entry '1-40': too many entries"):
        look(layout(tmp_path / "a", *layers))
    with pytest.raises(ImageInvalid, match=r"layer 3 of 3 .*too large"):
        look(layout(tmp_path / "b", *layers), dataclasses.replace(FEW, entries=1000))


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_bomb_is_put_down_early(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """64 GiB in a file of a few MB would take minutes to inflate; what follows the tar's end counts too."""
    zeros = pack(bytes(64 << 20))
    path = tmp_path / "bomb"
    path.write_bytes(pack(tar(item("f", "x"))) + zeros * 20)
    began = time.monotonic()
    with pytest.raises(ImageInvalid, match="too large when it is inflated"):
        look(path)
    assert time.monotonic() - began < 5


def test_a_zstd_frame_that_wants_much_memory_is_refused(tmp_path: Path) -> None:
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    packer = zstd.ZstdCompressor(options=options)
    path = tmp_path / "layer"
    path.write_bytes(packer.compress(tar(item("f", bytes(1 << 20))), zstd.ZstdCompressor.FLUSH_BLOCK) + packer.flush())
    with pytest.raises(ImageInvalid, match=r"zstd data is corrupt: .*memory"):
        look(path, Limits())


def test_many_tiny_gzip_members_take_linear_time(tmp_path: Path) -> None:
    """As one of 20 bytes after the other once took 128 KiB of copying each."""
    path = tmp_path / "layer"
    path.write_bytes(gzip.compress(tar(item("f", "x"))) + gzip.compress(b"") * 200_000)
    began = time.monotonic()
    assert look(path, Limits()) == ["f"]
    assert time.monotonic() - began < 20


def test_a_sparse_member_of_10_tb_is_refused(tmp_path: Path) -> None:
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.realsize": str(10**13)}
    layer = tar(item("huge", "x", pax_headers=headers | {"GNU.sparse.map": "0,1"}))
    with pytest.raises(ImageInvalid, match="entry 'huge': too large"):
        look(layout(tmp_path / "i", layer), Limits())


def test_whiteouts_without_end_take_linear_time(tmp_path: Path) -> None:
    low = tar(*(item(f"d/{n}") for n in range(5000)))
    high = tar(*(item(f"d/n{n}") for n in range(5000)), *(item("d/.wh..wh..opq") for _ in range(5000)))
    began = time.monotonic()
    assert len(look(layout(tmp_path / "i", low, high), Limits())) == 5001
    assert time.monotonic() - began < 5


def test_an_absolute_path_is_one_from_the_root_of_the_image(tmp_path: Path) -> None:
    layer = tar(item("/etc/passwd", "x"), item("//usr//x", "x"), hardlink("/link", "/etc/passwd"))
    assert look(layout(tmp_path / "i", layer)) == ["etc", "etc/passwd", "link", "usr", "usr/x"]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([item("a\0b", pax_headers={"path": "a\0b"})], r"entry 'a\\x00b': its name holds a NUL byte"),
        ([item("a", pax_headers={"path": "a/" * 2100})], "its name has more than 4095 bytes"),
        ([symlink("a", "")], "entry 'a': what it links to is empty"),
        (
            [item("a", type_=tarfile.SYMTYPE, pax_headers={"linkpath": "x" * 5000})],
            "entry 'a': what it links to is too",
        ),
        ([item("a", uid=2**32 - 1)], "entry 'a': its owner is out of range"),
        ([item("a", type_=tarfile.CHRTYPE, devmajor=1 << 12)], "entry 'a': its device number is out of range"),
        ([item("a\nb", type_=b"Z")], r"entry 'a\\nb': has the unknown tar type"),
        ([item("x/../../etc/passwd")], "its path 'x/../../etc/passwd' leads out of the image"),
        ([symlink("out", "/"), item("out/../x")], "leads out of the image"),
    ],
)
def test_hostile_entries_are_named(tmp_path: Path, items: list[tuple[tarfile.TarInfo, bytes]], sentence: str) -> None:
    with pytest.raises(ImageInvalid, match=sentence):
        look(layout(tmp_path / "i", tar(*items)), Limits())


def test_links_of_one_layer_do_not_lead_an_entry_of_another_out(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    low = tar(symlink("up", "../../.."), symlink("abs", str(tmp_path / "outside")), symlink("far", "up/up/../.."))
    found = look(layout(tmp_path / "i", low, tar(item("up/a"), item("abs/b"), item("far/c"))), Limits())
    inside = str(tmp_path / "outside")[1:]
    assert {"a", "c", f"{inside}/b"} < set(found)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_blob_that_changes_after_it_was_verified_is_not_used(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    layer = tar(item("f", b"good" * 500_000))
    path = made.finish(made.image(layer))
    blob = next(file for file in (path / "blobs/sha256").iterdir() if file.stat().st_size == len(layer))
    with open_image(path, arch="amd64") as image:
        found = image.find_file("f")  # verified by now
        assert found is not None
        blob.write_bytes(layer.replace(b"good", b"evil"))
        with pytest.raises(ImageInvalid, match=r"layer 1 of 1 .*: was changed while it was read"):
            b"".join(found.chunks())


def test_a_global_pax_header_says_nothing_about_entries(tmp_path: Path) -> None:
    """As Go's reader has it, with which every other tool reads layers."""
    header = tarfile.TarInfo.create_pax_global_header({"path": "other", "uid": "7"})
    assert look(layout(tmp_path / "i", header + tar(item("f", "x")))) == ["f"]
