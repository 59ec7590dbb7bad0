"""Sparse members as GNU tar writes them, in each of its formats, read by us and by umoci."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.errors import ImageInvalid
from launcher.image.source import open_image
from tests.unit.image.build import PACK, Layout, item, tar

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

FORMATS = {
    "gnu": ("--format=gnu",),
    "0.0": ("--format=posix", "--sparse-version=0.0"),
    "0.1": ("--format=posix", "--sparse-version=0.1"),
    "1.0": ("--format=posix", "--sparse-version=1.0"),
}
SHAPES = {  # where there is data, as (offset, length); and the size
    "one": ([(1 << 20, 5000)], 3 << 20),
    "many": ([(number * 65536, 4096 + number) for number in range(1, 60)], 60 * 65536),
    "no data": ([], 1 << 20),
    "an end of data": ([(0, 4096), (200_000, 777)], 200_777),
}


def make(path: Path, segments: list[tuple[int, int]], size: int) -> bytes:
    with path.open("wb") as file:
        for offset, length in segments:
            file.seek(offset)
            file.write(os.urandom(length))
        file.truncate(size)
    return path.read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format_", FORMATS)
def test_every_sparse_format_is_read(tmp_path: Path, format_: str, shape: str) -> None:
    (tmp_path / "tree").mkdir()
    name = "n" * 120 + "-ü"
    content = make(tmp_path / "tree" / name, *SHAPES[shape])
    (tmp_path / "tree/z").write_text("what follows")
    packed = subprocess.run(
        ["tar", "-C", tmp_path / "tree", "--sparse", *FORMATS[format_], "-cf", "-", name, "z"],
        check=True,
        capture_output=True,
    ).stdout
    assert len(packed) < len(content) // 2 or shape == "an end of data"
    made = Layout(tmp_path / "image")
    image = made.finish(made.image(packed, pack="+gzip", annotations={"org.opencontainers.image.ref.name": "it"}))
    with open_image(image, arch="amd64") as opened:
        for path, expected in ((name, content), ("z", b"what follows")):
            found = opened.find_file(path)
            assert found is not None
            assert found.size == len(expected)
            assert b"".join(found.chunks()) == expected
            assert found.read_at(len(expected) // 2, 70_000) == expected[len(expected) // 2 :][:70_000]
    if format_ == "gnu":  # Go's reader knows it, umoci 0.4.7 refuses the type
        return
    subprocess.run(["umoci", "unpack", "--image", f"{image}:it", tmp_path / "bundle"], check=True, capture_output=True)
    assert (tmp_path / "bundle/rootfs" / name).read_bytes() == content


@pytest.mark.parametrize(
    "records",
    [
        {"major": "1", "minor": "0", "realsize": "10", "data": "2\n0\n5\n3\n5\n"},  # one upon the other
        {"major": "1", "minor": "0", "realsize": "9", "data": "1\n0\n10\n"},  # beyond the end
        {"major": "1", "minor": "0", "realsize": "10", "data": "1\n0\n9\n"},  # less than is stored
        {"major": "1", "minor": "0", "realsize": "10", "data": "99999999999999999999\n"},
        {"major": "1", "minor": "0", "realsize": "10", "data": "1000000\n0\n10\n"},
        {"major": "1", "minor": "0", "realsize": "10", "data": "x" * 512},
        {"major": "1", "minor": "0", "data": "1\n0\n10\n"},
        {"major": "0", "minor": "1", "realsize": "10", "map": "0,5,5"},
        {"major": "0", "minor": "1", "realsize": "10", "map": "0,-5,5,15"},
        {"major": "2", "minor": "0", "realsize": "10", "map": "0,10"},
    ],
)
def test_a_damaged_map_is_refused_with_the_entry(tmp_path: Path, records: dict[str, str]) -> None:
    data = records.pop("data", "").encode()
    stored = data + bytes(-len(data) % 512) + b"0123456789"
    headers = {f"GNU.sparse.{key}": value for key, value in records.items()} | {"GNU.sparse.name": "holes"}
    (tmp_path / "layer").write_bytes(PACK["+zstd"](tar(item("GNUSparseFile.0/holes", stored, pax_headers=headers))))
    with (
        open_image(tmp_path / "layer", arch="amd64") as image,
        pytest.raises(ImageInvalid, match="entry 'holes': the map of its sparse data is damaged"),
    ):
        image.find_file("holes")
