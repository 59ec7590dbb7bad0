"""Which layers an image has: OCI layouts and ``docker save`` archives, read from any tree that holds their files.

Formats: opencontainers/image-spec (image-layout.md, image-index.md, manifest.md, config.md); moby image/spec, v1.2.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.errors import ImageInvalid
from launcher.image.blob import check_digest_form, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launcher.image.blob import Blob

    # Opens a file of the layout by its path; None when it is not there. The second argument names it in errors.
    Opener = Callable[[str, str], Blob | None]

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LAYER_TYPES = re.compile(
    r"application/vnd\.oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.(foreign\.)?diff\.tar(\.gzip|\.zstd)?"
)
REF_NAME = "org.opencontainers.image.ref.name"
_DOCUMENT_LIMIT = 4 << 20  # bytes of a manifest or config, as registries bound them
_DEPTH_LIMIT = 8  # indexes within indexes; real ones need two
_CONFIG_NAME = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")
_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. ``digest`` is that of the blob as it lies there, ``diff_id`` that of the tar inside; either may be None
    where the format does not say it.
    """

    blob: Blob
    digest: str | None = None
    diff_id: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image for one platform. ``digest`` is the manifest's, or the config's where there is no manifest."""

    digest: str | None
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    digest: str
    document: dict[str, Any]


def oci_architecture(arch: str) -> str:
    """The architecture as images call it, from that or from the kernel's name (uname -m)."""
    return _ARCH.get(arch, arch)


def read_oci_layout(open_file: Opener, arch: str, what: str) -> Manifest:
    """The one image for ``arch`` of a layout. Raises ImageInvalid naming the platforms it has when there is none."""
    layout = _document(_required(open_file, "oci-layout", what))
    if layout.get("imageLayoutVersion") != "1.0.0":
        raise ImageInvalid(f"{what}: OCI layout version {layout.get('imageLayoutVersion')!r} is not 1.0.0")
    index = _document(_required(open_file, "index.json", what))
    search = _Search(open_file, arch, what)
    # Below one entry of index.json the first match wins, as in a registry; several entries are several images.
    found = [
        first
        for descriptor in _objects(index, "manifests", f"{what}, index.json")
        if (first := next(search.images(descriptor), None))
    ]
    if not found:
        listed = ", ".join(dict.fromkeys(search.has)) or "no image at all"
        raise ImageInvalid(
            f"{what}: has no image for linux/{arch}, only {listed}", hint="build it for this platform too"
        )
    if len({image.digest for image in found}) > 1 and len({image.name for image in found}) > 1:
        names = ", ".join(image.name or short(image.digest) for image in found)
        raise ImageInvalid(
            f"{what}: holds {len(found)} images ({names}); one is expected", hint="copy the one you mean"
        )
    image = found[0]
    config = _config(open_file, image.document, what)
    diff_ids = _diff_ids(config, what)
    descriptors = list(_objects(image.document, "layers", f"{what}, manifest {short(image.digest)}"))
    layers = []
    for number, descriptor in enumerate(descriptors, 1):
        place = f"{what}, layer {number} of {len(descriptors)}"
        media_type = descriptor.get("mediaType", "")
        if not isinstance(media_type, str) or not LAYER_TYPES.fullmatch(media_type):
            raise ImageInvalid(f"{place}: its media type {media_type!r} is not that of a file-system layer")
        blob, digest = _blob(open_file, descriptor, place)
        layers.append(Layer(blob, digest, diff_ids[number - 1] if len(diff_ids) == len(descriptors) else None))
    return Manifest(image.digest, tuple(layers))


def read_docker_archive(open_file: Opener, arch: str, what: str) -> Manifest:
    """The one image of a ``docker save`` archive. Its layers are known by the digest of their tar, from the config."""
    listed = _json(_required(open_file, "manifest.json", what))
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed) or not listed:
        raise ImageInvalid(f"{what}: manifest.json lists no image")
    if len(listed) > 1:
        names = ", ".join(str(tag) for item in listed for tag in item.get("RepoTags") or ["an untagged one"])
        raise ImageInvalid(
            f"{what}: holds {len(listed)} images ({names}); one is expected", hint="save the one you mean"
        )
    config_name, names = listed[0].get("Config"), listed[0].get("Layers")
    if not isinstance(config_name, str) or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ImageInvalid(f"{what}: manifest.json does not name a config and layers")
    hexadecimal = _CONFIG_NAME.fullmatch(config_name)
    digest = f"sha256:{hexadecimal[1]}" if hexadecimal else None
    config = _document(_required(open_file, config_name, what), digest)
    platform = _platform(config)
    if platform not in {"", f"linux/{arch}"}:
        raise ImageInvalid(
            f"{what}: has no image for linux/{arch}, only {platform}", hint="build it for this platform too"
        )
    diff_ids = _diff_ids(config, what)
    if len(diff_ids) != len(names):
        raise ImageInvalid(f"{what}: its config tells {len(diff_ids)} layers, manifest.json {len(names)}")
    layers = []
    for number, (name, diff_id) in enumerate(zip(names, diff_ids, strict=True), 1):
        place = f"{what}, layer {number} of {len(names)} ({short(diff_id)})"
        blob = open_file(name, place)
        if blob is None:
            raise ImageInvalid(f"{place}: {name} is missing")
        layers.append(Layer(blob, diff_id=diff_id))
    return Manifest(digest, tuple(layers))


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for images of one platform; what is passed over is noted in ``has``."""

    open_file: Opener
    arch: str
    what: str
    has: list[str] = field(default_factory=list)

    def images(self, descriptor: dict[str, Any], name: str = "", depth: int = 0) -> Iterator[_Found]:
        """The images that a descriptor of an index leads to, in its order."""
        annotations = descriptor.get("annotations")
        if isinstance(annotations, dict):
            name = str(annotations.get(REF_NAME, name))
        media_type = descriptor.get("mediaType")
        told = _platform(descriptor.get("platform"))
        if told and told != f"linux/{self.arch}":
            if not told.startswith("unknown"):  # attestations that build tools put beside the images
                self.has.append(told)
            return
        if media_type in INDEX_TYPES:
            if depth == _DEPTH_LIMIT:
                raise ImageInvalid(f"{self.what}: its indexes are nested more than {_DEPTH_LIMIT} deep")
            digest, document = self._verified(descriptor)
            for below in _objects(document, "manifests", f"{self.what}, index {short(digest)}"):
                yield from self.images(below, name, depth + 1)
        elif media_type in MANIFEST_TYPES:
            digest, document = self._verified(descriptor)
            platform = told or _platform(_config(self.open_file, document, self.what))
            if platform in {"", f"linux/{self.arch}"}:
                yield _Found(name, digest, document)
            else:
                self.has.append(platform)
        else:
            self.has.append(f"something of type {media_type!r}")

    def _verified(self, descriptor: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        blob, digest = _blob(self.open_file, descriptor, self.what)
        return digest, _document(blob, digest)


def _platform(value: object) -> str:
    """``os/architecture`` of a descriptor's platform or of a config; empty when it does not say."""
    if not isinstance(value, dict) or not value.get("architecture"):
        return ""
    return f"{value.get('os') or 'linux'}/{value['architecture']}"


def _config(open_file: Opener, manifest: dict[str, Any], what: str) -> dict[str, Any]:
    descriptor = manifest.get("config")
    if not isinstance(descriptor, dict):
        raise ImageInvalid(f"{what}: its manifest names no config")
    blob, digest = _blob(open_file, descriptor, what)
    return _document(blob, digest)


def _diff_ids(config: dict[str, Any], what: str) -> list[str]:
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list):
        return []
    return [check_digest_form(diff_id, f"{what}, config") for diff_id in diff_ids]


def _blob(open_file: Opener, descriptor: dict[str, Any], what: str) -> tuple[Blob, str]:
    """The blob of a descriptor, its size checked; its digest is still to be verified."""
    digest = check_digest_form(descriptor.get("digest"), what)
    place = f"{what} ({short(digest)})"
    blob = open_file("blobs/" + digest.replace(":", "/"), place)
    if blob is None:
        raise ImageInvalid(f"{place}: the blob is missing", hint="the image was copied in part; copy it again")
    if blob.size != descriptor.get("size"):
        raise ImageInvalid(f"{place}: has {blob.size} bytes, its manifest says {descriptor.get('size')}")
    return blob, digest


def _required(open_file: Opener, name: str, what: str) -> Blob:
    blob = open_file(name, f"{what}, {name}")
    if blob is None:
        raise ImageInvalid(f"{what}: {name} is missing")
    return blob


def _json(blob: Blob, digest: str | None = None) -> object:
    try:
        return json.loads(blob.read_all(_DOCUMENT_LIMIT, digest))
    except (ValueError, RecursionError) as error:
        raise ImageInvalid(f"{blob.what}: is not JSON") from error


def _document(blob: Blob, digest: str | None = None) -> dict[str, Any]:
    document = _json(blob, digest)
    if not isinstance(document, dict):
        raise ImageInvalid(f"{blob.what}: is not a JSON object")
    return document


def _objects(document: dict[str, Any], key: str, what: str) -> Iterator[dict[str, Any]]:
    items = document.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ImageInvalid(f"{what}: has no list of {key}")
    yield from items
