"""Every form of image, and what is wrong with bad ones."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from launcher.errors import ImageInvalid
from launcher.image.source import Form, open_image
from tests.unit.image.build import INDEX, PACK, Layout, item, layout, sha256, symlink, tar

LAYER = tar(item("vmlinux", b"K" * 3_000_000), item("small", "s"))


def kernel_size(path: Path, arch: str = "x86_64") -> int:
    with open_image(path, arch=arch) as image:
        found = image.find_file("/vmlinux")
        assert found is not None
        assert sum(len(chunk) for chunk in found.chunks()) == found.size
        return found.size


def as_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def archive_of(folder: Path, to: Path) -> Path:
    with tarfile.open(to, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder), recursive=False)
    return to


def docker_archive(path: Path, *layers: bytes, arch: str = "amd64", diff_ids: list[str] | None = None) -> Path:
    """As ``docker save`` before version 25 and skopeo write it: the layers' old names are symlinks."""
    config = json.dumps(
        {
            "architecture": arch,
            "os": "linux",
            "rootfs": {"diff_ids": diff_ids or [sha256(layer) for layer in layers]},
        }
    ).encode()
    name = sha256(config)[7:] + ".json"
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    items = [item(name, config)]
    for number, layer in enumerate(layers):
        items += [item(f"{number}.tar", layer), symlink(names[number], f"../{number}.tar")]
    manifest = json.dumps([{"Config": name, "RepoTags": ["x:y"], "Layers": names}])
    return as_file(path, tar(*items, item("manifest.json", manifest)))


@pytest.mark.parametrize("pack", PACK)
def test_all_forms_and_compressions_give_the_same(tmp_path: Path, pack: str) -> None:
    oci = layout(tmp_path / "oci", LAYER, pack=pack)
    root = tmp_path / "root"
    root.mkdir()
    (root / "vmlinux").write_bytes(b"K" * 3_000_000)
    forms = {
        Form.OCI_LAYOUT: oci,
        Form.OCI_ARCHIVE: archive_of(oci, tmp_path / "oci.tar"),
        Form.DOCKER_ARCHIVE: docker_archive(tmp_path / "docker.tar", LAYER),
        Form.LAYER: as_file(tmp_path / "layer", PACK[pack](LAYER)),
        Form.ROOT_DIRECTORY: root,
    }
    for form, path in forms.items():
        with open_image(path, arch="amd64") as image:
            assert image.form is form
            assert (image.digest is None) == (form is Form.ROOT_DIRECTORY)
        assert kernel_size(path) == 3_000_000


def test_gzip_members_may_follow_one_another(tmp_path: Path) -> None:
    both = PACK["+gzip"](LAYER[:1_000_000]) + PACK["+gzip"](LAYER[1_000_000:]) + bytes(700)
    assert kernel_size(as_file(tmp_path / "l", both)) == 3_000_000


def test_an_index_in_an_index_gives_this_machines_image(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    arm = made.image(tar(item("vmlinux", "arm")), arch="arm64", platform={"os": "linux", "architecture": "arm64"})
    amd = made.image(tar(item("vmlinux", "x86!")), platform={"os": "linux", "architecture": "amd64"})
    attestation = made.image(tar(), platform={"os": "unknown", "architecture": "unknown"})
    windows = made.image(tar(item("w", "w")), platform={"os": "windows", "architecture": "amd64"})
    path = made.finish(made.index(attestation, windows, arm, amd))
    assert kernel_size(path, "x86_64") == 4
    assert kernel_size(path, "aarch64") == 3
    with pytest.raises(
        ImageInvalid, match="has no image for linux/riscv64, only windows/amd64, linux/arm64, linux/amd64"
    ):
        open_image(path, arch="riscv64")


def test_a_single_image_for_another_machine_is_refused(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    path = made.finish(made.image(LAYER, arch="arm64"))
    with pytest.raises(ImageInvalid, match="has no image for linux/amd64, only linux/arm64"):
        open_image(path, arch="amd64")
    with pytest.raises(ImageInvalid, match="has no image for linux/amd64, only linux/arm64"):
        open_image(docker_archive(tmp_path / "d.tar", LAYER, arch="arm64"), arch="amd64")


def test_two_images_in_one_layout_are_named(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    key = "org.opencontainers.image.ref.name"
    path = made.finish(
        made.image(LAYER, annotations={key: "one"}), made.image(tar(item("x", "x")), annotations={key: "two"})
    )
    with pytest.raises(ImageInvalid, match=r"holds 2 images \(one, two\); one is expected"):
        open_image(path, arch="amd64")


def test_one_image_with_two_names_is_one_image(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    key = "org.opencontainers.image.ref.name"
    path = made.finish(*(made.image(LAYER, annotations={key: name}) for name in ("one", "two")))
    assert kernel_size(path) == 3_000_000


def test_a_wrong_digest_is_told_before_anything_is_read(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    path = made.finish(made.image(LAYER))
    blob = made.file(sha256(LAYER))
    blob.write_bytes(LAYER[:-1] + b"x")
    with (
        open_image(path, arch="amd64") as image,
        pytest.raises(
            ImageInvalid, match=r"layer 1 of 1 \(sha256:\w{12}\): its content has the digest sha256:\w{12}, not"
        ),
    ):
        image.find_file("/vmlinux")


def test_a_wrong_diff_id_of_a_docker_archive_is_told(tmp_path: Path) -> None:
    for number, layer in enumerate((LAYER, PACK["+gzip"](LAYER))):
        path = docker_archive(tmp_path / str(number), layer, diff_ids=[sha256(b"other")])
        with (
            open_image(path, arch="amd64") as image,
            pytest.raises(ImageInvalid, match=r"layer 1 of 1 .*: its content has the digest"),
        ):
            image.find_file("/vmlinux")


def test_a_compressed_layer_of_a_docker_archive_is_known_by_its_tar(tmp_path: Path) -> None:
    assert kernel_size(docker_archive(tmp_path / "d", PACK["+gzip"](LAYER), diff_ids=[sha256(LAYER)])) == 3_000_000


def _wrong_size(made: Layout) -> None:
    blob = made.file(sha256(LAYER))
    blob.write_bytes(LAYER + b"x")


def _missing(made: Layout) -> None:
    made.file(sha256(LAYER)).unlink()


def _linked_away(made: Layout) -> None:
    blob = made.file(sha256(LAYER))
    blob.rename(made.path.parent / "elsewhere")
    blob.symlink_to(made.path.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_wrong_size, "has .* bytes, its manifest says"),
        (_missing, "the blob is missing"),
        (_linked_away, "is a symlink to .*, which the image does not have"),
    ],
)
def test_blobs_are_judged_before_they_are_read(tmp_path: Path, damage: object, sentence: str) -> None:
    made = Layout(tmp_path / "i")
    path = made.finish(made.image(LAYER))
    assert callable(damage)
    damage(made)
    with pytest.raises(ImageInvalid, match=f"layer 1 of 1 .*{sentence}"):
        open_image(path, arch="amd64")


def test_indexes_nested_without_end_are_refused(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    descriptor = made.image(LAYER)
    for _ in range(20):
        descriptor = made.index(descriptor)
    with pytest.raises(ImageInvalid, match="its indexes are nested more than 8 deep"):
        open_image(made.finish(descriptor), arch="amd64")


def test_an_index_that_names_itself_fails_its_digest(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    digest = "sha256:" + "0" * 64
    document = json.dumps({"manifests": [{"mediaType": INDEX, "digest": digest, "size": 1}]})
    made.file(digest).write_text(document)
    with pytest.raises(ImageInvalid, match="its content has the digest"):
        open_image(made.finish({"mediaType": INDEX, "digest": digest, "size": len(document)}), arch="amd64")


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "md5:" + "0" * 32, "sha256:", 7, None])
def test_a_digest_is_never_just_a_path(tmp_path: Path, digest: object) -> None:
    made = Layout(tmp_path / "i")
    with pytest.raises(ImageInvalid, match="is not a sha256 or sha512 digest"):
        open_image(made.finish({"mediaType": INDEX, "digest": digest, "size": 1}), arch="amd64")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("index.json", None, "index.json is missing"),
        ("index.json", "[", "index.json: is not JSON"),
        ("index.json", "[" * 100_000, "index.json: is not JSON"),
        ("index.json", "[]", "index.json: is not a JSON object"),
        ("index.json", "{}", "has no list of manifests"),
        ("index.json", '{"manifests": []}', "only no image at all"),
        ("index.json", '{"manifests": [{"mediaType": "text/x"}]}', "only something of type 'text/x'"),
        ("oci-layout", "{}", "OCI layout version None is not 1.0.0"),
    ],
)
def test_a_damaged_layout_is_told(tmp_path: Path, name: str, content: str | None, sentence: str) -> None:
    path = layout(tmp_path / "i", LAYER)
    (path / name).unlink()
    if content is not None:
        (path / name).write_text(content)
    with pytest.raises(ImageInvalid, match=sentence) as caught:
        open_image(path, arch="amd64")
    assert str(path) in str(caught.value)


def test_dockers_media_types_are_known(tmp_path: Path) -> None:
    docker = "application/vnd.docker.distribution.manifest"
    made = Layout(tmp_path / "i")
    config = made.json({"architecture": "amd64", "os": "linux"}, "application/vnd.docker.container.image.v1+json")
    layer = made.blob(PACK["+gzip"](LAYER), "application/vnd.docker.image.rootfs.diff.tar.gzip")
    manifest = made.json({"config": config, "layers": [layer]}, f"{docker}.v2+json")
    path = made.finish(made.json({"manifests": [manifest]}, f"{docker}.list.v2+json"))
    assert kernel_size(path) == 3_000_000


def test_a_layer_of_another_kind_is_refused(tmp_path: Path) -> None:
    made = Layout(tmp_path / "i")
    config = made.json({}, "application/vnd.oci.image.config.v1+json")
    chart = made.blob(b"x", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    manifest = made.json({"config": config, "layers": [chart]}, "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(ImageInvalid, match=r"its media type .*helm.* is not that of a file-system layer"):
        open_image(made.finish(manifest), arch="amd64")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is an empty file"),
        (b"hello\n" * 200, "is not a tar"),
        (b"short", "the tar is cut off"),
        (LAYER[:-600_000], "entry 'vmlinux': the data is cut off"),
        (LAYER[: 3_000_832 + 100], "the tar is cut off after entry 'vmlinux'"),
        (PACK["+gzip"](LAYER)[:-4], "the gzip data is cut off after"),
        (PACK["+gzip"](LAYER)[:300], "the gzip data is cut off after 300 bytes"),
        (PACK["+zstd"](LAYER)[:100], "the zstd data is cut off after 100 bytes"),
        (PACK["+gzip"](LAYER)[:-8] + bytes(8), "the gzip data is corrupt"),
        (PACK["+gzip"](LAYER) + b"trailing", "the gzip data is corrupt"),
        (PACK["+gzip"](tar(item("manifest.json", "[]"))), "is a compressed archive of an image"),
        (tar(item("manifest.json", "[]")), "manifest.json lists no image"),
        (tar(item("x", "x", type_=b"S")), "entry 'x': the map of its sparse data is damaged"),
        (
            tar(item("x", "x", pax_headers={"GNU.sparse.major": "1"})),
            "entry 'x': the map of its sparse data is damaged",
        ),
        (tar(item("x", "x", type_=b"Z")), "entry 'x': has the unknown tar type"),
        (tar(item("x", "x", pax_headers={"comment": "c" * 2_000_000})), "an extended tar header has 2000017 bytes"),
        (tar(item("x", "x", pax_headers={"mtime": "soon"})), "a pax header has no number as its mtime"),
        (tar(item("x", "x"))[:110] + b"7" + tar(item("x", "x"))[111:], "is not a tar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = as_file(tmp_path / "bad", content)

    def look() -> None:
        with open_image(path, arch="amd64") as image:
            image.find_file("/vmlinux")

    with pytest.raises(ImageInvalid, match=sentence) as caught:
        look()
    assert str(path) in str(caught.value)


def test_a_layer_without_its_last_padding_is_whole_when_its_digest_says_so(tmp_path: Path) -> None:
    """umoci's insert leaves out the padding of the last entry and the end of the archive."""
    content = b"k" * 1000
    unpadded = tar(item("vmlinux", content))[: 512 + len(content)]
    path = layout(tmp_path / "i", unpadded)

    with open_image(path, arch="amd64") as image:
        found = image.find_file("/vmlinux")
        assert found is not None
        assert b"".join(found.chunks()) == content

    with pytest.raises(ImageInvalid, match="the tar is cut off after entry 'vmlinux'"):
        open_image(as_file(tmp_path / "bare", unpadded), arch="amd64").find_file("/vmlinux")


def test_a_missing_image_is_told(tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match=r"image .*/no: cannot be opened: No such file or directory"):
        open_image(tmp_path / "no", arch="amd64")
    with pytest.raises(ImageInvalid, match="is neither a directory nor a file"):
        open_image(Path("/dev/null"), arch="amd64")
