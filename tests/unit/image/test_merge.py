"""What layers make together, and what is found in it."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

import pytest

from launcher.errors import ImageInvalid
from launcher.image.source import Form, Image, open_image
from launcher.image.stream import flatten, tar_stream
from launcher.image.tree import Entry, walk
from tests.unit.image.build import Layout, folder, hardlink, item, layout, symlink, tar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read(image: Image, path: str) -> bytes | None:
    found = image.find_file(path)
    return None if found is None else b"".join(found.chunks())


def merged(tmp_path: Path, *layers: bytes) -> dict[str, bytes | None]:
    """Path to content; None for what is no file."""
    with open_image(layout(tmp_path / "image", *layers), arch="amd64") as image:
        return {
            path: read(image, path) if isinstance(node, Entry) and node.target == "" else None
            for path, node in walk(image.root)
        }


def test_the_topmost_layer_wins(tmp_path: Path) -> None:
    assert merged(tmp_path, tar(item("a", "low"), item("b", "b")), tar(item("a", "high"))) == {"a": b"high", "b": b"b"}


def test_a_later_entry_of_a_layer_replaces_an_earlier(tmp_path: Path) -> None:
    assert merged(tmp_path, tar(item("a", "1"), item("a", "22"))) == {"a": b"22"}


@pytest.mark.parametrize(
    "whiteout",
    [
        [item("d/.wh.gone"), item("d/new", "n")],
        [item("d/new", "n"), item("d/.wh.gone")],
        [item("./d/new", "n"), item("./d/.wh.gone"), item("d/.wh.never-was"), item("nowhere/.wh.x")],
    ],
)
def test_a_whiteout_hides_what_lies_below(tmp_path: Path, whiteout: Sequence[tuple[tarfile.TarInfo, bytes]]) -> None:
    low = tar(folder("d"), item("d/gone", "g"), item("d/kept", "k"))
    assert merged(tmp_path, low, tar(*whiteout)) == {"d": None, "d/kept": b"k", "d/new": b"n"}


@pytest.mark.parametrize("turn", [1, -1])
def test_an_opaque_directory_hides_only_lower_layers(tmp_path: Path, turn: int) -> None:
    low = tar(folder("d"), item("d/gone", "g"), folder("d/sub"), item("d/sub/gone", "g"))
    high = tar(*[item("d/.wh..wh..opq"), item("d/new", "n")][::turn])
    assert merged(tmp_path, low, high) == {"d": None, "d/new": b"n"}


def test_a_whiteout_does_not_hide_its_own_layer(tmp_path: Path) -> None:
    assert merged(tmp_path, tar(item("f", "low")), tar(item("f", "high"), item(".wh.f"))) == {"f": b"high"}


def test_a_file_replaces_a_directory_and_a_directory_a_file(tmp_path: Path) -> None:
    low = tar(folder("d"), item("d/x", "x"), item("f", "f"))
    high = tar(item("d", "now a file"), folder("f"), item("f/y", "y"))
    assert merged(tmp_path, low, high) == {"d": b"now a file", "f": None, "f/y": b"y"}
    with pytest.raises(ImageInvalid, match=r"layer 2 of 2 .*entry 'f/y': 'f' on its way is no directory"):
        merged(tmp_path / "two", low, tar(item("f/y", "y")))


def test_a_directory_over_a_directory_keeps_its_children(tmp_path: Path) -> None:
    path = layout(tmp_path / "i", tar(folder("d"), item("d/x", "x")), tar(folder("d", mode=0o700, uid=7)))
    with open_image(path, arch="amd64") as image:
        node = image.root.get("d")
        assert not isinstance(node, Entry)
        assert node is not None
        assert (node.meta.mode, node.meta.uid) == (0o700, 7)
        assert read(image, "d/x") == b"x"


def test_entries_go_through_symlinked_parents(tmp_path: Path) -> None:
    low = tar(folder("usr"), folder("usr/lib"), symlink("lib", "/usr/lib"))
    assert merged(tmp_path, low, tar(item("lib/x", "x"))) == {
        "usr": None,
        "usr/lib": None,
        "usr/lib/x": b"x",
        "lib": None,
    }


def test_a_hard_link_outlives_its_target(tmp_path: Path) -> None:
    low = tar(item("a", "data"), hardlink("b", "a"))
    assert merged(tmp_path, low, tar(item(".wh.a"))) == {"b": b"data"}
    assert merged(tmp_path / "2", low, tar(item("a", "new"))) == {"a": b"new", "b": b"data"}


def test_a_hard_link_may_refer_to_a_lower_layer(tmp_path: Path) -> None:
    path = layout(tmp_path / "i", tar(item("a", "data")), tar(hardlink("b", "a")))
    with open_image(path, arch="amd64") as image:
        assert image.root.get("a") is image.root.get("b")


@pytest.mark.parametrize(
    ("links", "found"),
    [
        ([symlink("vmlinux", "boot/k")], b"K"),
        ([symlink("vmlinux", "/boot/k")], b"K"),
        ([symlink("vmlinux", "../../../boot/k")], b"K"),
        ([symlink("vmlinux", "one"), symlink("one", "two"), symlink("two", "./boot/../boot//k")], b"K"),
        ([symlink("b", "boot"), symlink("vmlinux", "b/k")], b"K"),
        ([hardlink("vmlinux", "boot/k")], b"K"),
        ([], None),
    ],
)
def test_links_are_followed_inside_the_image(
    tmp_path: Path, links: list[tuple[tarfile.TarInfo, bytes]], found: bytes | None
) -> None:
    path = layout(tmp_path / "i", tar(folder("boot"), item("boot/k", "K"), *links))
    with open_image(path, arch="amd64") as image:
        assert read(image, "/vmlinux") == found


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (
            [symlink("vmlinux", "/etc/shadow")],
            "'/vmlinux' is a symlink to '/etc/shadow', which the image does not have",
        ),
        ([symlink("vmlinux", "../../etc/shadow")], "'/vmlinux' is a symlink to '../../etc/shadow', which the image"),
        ([symlink("vmlinux", "vmlinux")], "'/vmlinux' runs in a loop of symlinks"),
        ([symlink("vmlinux", "a"), symlink("a", "b"), symlink("b", "/a")], "'/vmlinux' runs in a loop of symlinks"),
        (
            [item("vmlinux", type_=tarfile.CHRTYPE, devmajor=1, devminor=5)],
            "/vmlinux is a character device, not a file",
        ),
        ([item("vmlinux", type_=tarfile.FIFOTYPE)], "/vmlinux is a fifo, not a file"),
        ([folder("vmlinux")], "/vmlinux is a directory, not a file"),
        ([item("../../x", "x")], "layer 1 of 1 .*, entry '../../x': its path '../../x' leads out of the image"),
        ([item("a/../../x", "x")], "entry 'a/../../x': its path .* leads out of the image"),
        ([hardlink("x", "../../etc/shadow")], "entry 'x': its path '../../etc/shadow' leads out of the image"),
        ([hardlink("x", "missing")], "entry 'x': is a hard link to 'missing', which does not exist"),
        ([folder("d"), hardlink("x", "d")], "entry 'x': is a hard link to 'd', which is a directory"),
        ([symlink("a", "b"), symlink("b", "a"), item("a/x", "x")], "'a/x' runs in a loop of symlinks"),
        ([item("n" * 256, "x")], "a file name has more than 255 bytes"),
    ],
)
def test_hostile_content_is_refused_with_its_place(
    tmp_path: Path, items: list[tuple[tarfile.TarInfo, bytes]], sentence: str
) -> None:
    path = layout(tmp_path / "i", tar(*items))
    with open_image(path, arch="amd64") as image, pytest.raises(ImageInvalid, match=sentence) as caught:
        image.find_file("/vmlinux")
    assert str(path) in str(caught.value)


def test_a_symlink_in_a_root_directory_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "absolute").symlink_to(tmp_path / "secret")
    (root / "dots").symlink_to("../secret")
    (root / "out").symlink_to(tmp_path)
    (root / "d/loop").symlink_to("../d/loop")
    with open_image(root, arch="amd64") as image:
        assert image.form is Form.ROOT_DIRECTORY
        for path in ("absolute", "dots", "out/secret"):
            with pytest.raises(ImageInvalid, match="which the image does not have"):
                image.find_file(path)
        with pytest.raises(ImageInvalid, match="loop of symlinks"):
            image.find_file("/d/loop")
        (root / "secret").write_text("inner")
        assert read(image, "dots") == b"inner"


def test_the_canonical_stream_orders_a_messy_image(tmp_path: Path) -> None:
    low = tar(item("z/deep/file", "1"), symlink("lib", "z/deep"), hardlink("a", "z/deep/file"), item("lib/more", "2"))
    high = tar(
        item("z/deep/file", "new"), folder("z", mode=0o711), item("x" * 150 + "/" + "y" * 200, "long", uid=3_000_000)
    )
    with open_image(layout(tmp_path / "i", low, high), arch="amd64") as image:
        stream = b"".join(tar_stream(image, flatten(image.root, "it"), frozenset()))
    (tmp_path / "out.tar").write_bytes(stream)
    with tarfile.open(tmp_path / "out.tar") as archive:
        members = archive.getmembers()
        names = [member.name for member in members]
        assert names[0] == "."
        assert len(names) == len(set(names))
        for index, name in enumerate(names[1:], 1):
            assert name.rpartition("/")[0] in {"", *names[:index]}
        contents = {member.name: archive.extractfile(member).read() for member in members if member.isreg()}  # type: ignore[union-attr]  # a regular file has one
    assert contents == {
        "a": b"1",
        "z/deep/file": b"new",
        "z/deep/more": b"2",
        "x" * 150 + "/" + "y" * 200: b"long",
    }
    assert next(member for member in members if member.name == "z").mode == 0o711
    assert members[-1].uid == 3_000_000


def test_an_empty_image_is_no_tree(tmp_path: Path) -> None:
    with (
        open_image(layout(tmp_path / "i", tar()), arch="amd64") as image,
        pytest.raises(ImageInvalid, match="is empty"),
    ):
        flatten(image.tree(), image.what)


def test_the_tree_is_below_rootfs_where_there_is_one(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    path = made.finish(made.image(tar(item("outside", "o"), folder("rootfs", mode=0o750), item("rootfs/in", "i"))))
    with open_image(path, arch="amd64") as image:
        assert [name for name, _ in walk(image.tree())] == ["in"]
        assert image.tree().meta.mode == 0o750
