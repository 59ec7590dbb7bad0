"""Opening an image, whatever its form, and looking into it."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Self

from launcher.errors import ImageInvalid
from launcher.image import inflate, limits
from launcher.image.blob import CHUNK, Blob, check_digest, stamp_of
from launcher.image.folder import Folder
from launcher.image.manifest import Layer, Manifest, oci_architecture, read_docker_archive, read_oci_layout
from launcher.image.merge import Merge
from launcher.image.tar_read import read_members
from launcher.image.tree import Entry, Kind, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from launcher.image.limits import Limits
    from launcher.image.tree import Directory


class Form(Enum):
    """What an image may be given as."""

    ROOT_DIRECTORY = "image root directory"
    OCI_LAYOUT = "OCI layout"
    OCI_ARCHIVE = "OCI archive"
    DOCKER_ARCHIVE = "docker archive"
    LAYER = "single layer"


class FoundFile:
    """A regular file of an image, of ``size`` bytes."""

    def __init__(self, image: Image, entry: Entry) -> None:
        self.size = entry.size
        self.origin = entry.origin  # in a root directory the file's path below it, links resolved
        self._image = image
        self._entry = entry
        self._rest: Iterator[bytes | memoryview] = iter(())
        self._buffer = b""
        self._position: int | None = None  # where the buffer begins in the file

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The content, from the beginning."""
        for _, chunks in self._image.contents([self._entry]):
            yield from chunks

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset``. Going forward is cheap; going back reads the layer again."""
        if self._position is None or offset < self._position:
            self._rest, self._buffer, self._position = self.chunks(), b"", 0
        parts = []
        while count > 0:
            skip = offset - self._position
            part = self._buffer[skip : skip + count]
            if part:
                parts.append(part)
                offset += len(part)
                count -= len(part)
                continue
            self._position += len(self._buffer)
            self._buffer = bytes(next(self._rest, b""))
            if not self._buffer:
                break
        return b"".join(parts)


class Image:
    """An open image; a context manager that closes its descriptors.

    ``digest`` is the manifest's (the config's in a docker archive, the file's for a single layer), None for a directory.
    ``layers`` go from the lowest up and are empty for a root directory.
    """

    def __init__(
        self, path: Path, form: Form, manifest: Manifest, folder: Folder | None, held: ExitStack, *, limits: Limits
    ) -> None:
        self.path = path
        self.form = form
        self.limits = limits
        self.layers = manifest.layers
        self.digest = manifest.digest
        self._folder = folder
        self._held = held

    def watch(self, on_read: Callable[[int], None]) -> int:
        """Tell of every read of a layer's blob, in bytes. Returns how many ``root`` will read, at most."""
        self.layers = tuple(replace(layer, blob=replace(layer.blob, on_read=on_read)) for layer in self.layers)
        return 2 * sum(layer.blob.size for layer in self.layers)  # verified first, then read

    @property
    def what(self) -> str:
        """How errors call it."""
        return f"image {self.path}"

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def root(self) -> Directory:
        """The merged tree. Every layer is verified before its first entry is read."""
        if self._folder is not None:
            return self._folder.root
        merge = Merge(self.limits)
        left = self.limits.bytes
        for number, layer in enumerate(self.layers):
            _verify(layer, self.limits, left)
            stream = inflate.LayerStream(layer.blob, self.limits, left)
            members = read_members(stream, need_end=not (layer.digest or layer.diff_id))
            merge.apply(number, members, layer.blob.what)
            left -= stream.position
        if self.form is Form.LAYER and inflate.compression(self.layers[0].blob) != "none" and _archive_form(merge.root):
            raise ImageInvalid(f"{self.what}: is a compressed archive of an image", hint="decompress it first")
        return merge.root

    def tree(self, under: str = "rootfs") -> Directory:
        """The tree below ``/under`` where the image has such a directory, else the whole."""
        below = resolve(self.root, under, self.what)
        return self.root if below is None or isinstance(below, Entry) else below

    def find_file(self, path: str) -> FoundFile | None:
        """The regular file that ``path`` names, links followed inside the image; None when it is not there."""
        node = resolve(self.root, path, self.what)
        if node is None:
            return None
        if not isinstance(node, Entry) or node.kind is not Kind.FILE:
            kind = node.kind if isinstance(node, Entry) else Kind.DIRECTORY
            raise ImageInvalid(f"{self.what}: {path} is {kind.value}, not a file")
        return FoundFile(self, node)

    def contents(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Iterator[bytes | memoryview]]]:
        """The data of regular files, each as exactly ``size`` bytes in chunks. They come in the order they lie in the image:
        by ``layer`` and ``offset``.
        """
        if self._folder is not None:
            for entry in entries:
                yield entry, _file_chunks(self._folder, entry)
            return
        stream, current = None, -1
        for entry in entries:
            if stream is None or entry.layer != current:
                stream, current = inflate.LayerStream(self.layers[entry.layer].blob, self.limits), entry.layer
            yield entry, stream.content(entry)


def open_image(path: Path, *, arch: str, limits: Limits = limits.DEFAULT) -> Image:
    """Open an image of any form (contract, "An image is any of").

    ``arch`` is this machine's, as images (amd64) or the kernel (x86_64) call it: it picks from a multi-arch index. Raises
    ImageInvalid, naming the image and the place, for whatever is missing, corrupt, beyond the limits or of no known form.
    """
    what = f"image {path}"
    arch = oci_architecture(arch)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ImageInvalid(f"{what}: cannot be opened: {error.strerror}") from error
    with ExitStack() as held:
        folder = None
        if stat.S_ISDIR(mode):
            folder = Folder(path, what, limits)
            held.callback(folder.close)
            form, manifest = _open_directory(folder, arch, what, held)
        elif stat.S_ISREG(mode):
            form, manifest = _open_file(path, arch, limits, what, held)
        else:
            raise ImageInvalid(f"{what}: is neither a directory nor a file")
        return Image(
            path, form, manifest, folder if form is Form.ROOT_DIRECTORY else None, held.pop_all(), limits=limits
        )


def _open_directory(folder: Folder, arch: str, what: str, held: ExitStack) -> tuple[Form, Manifest]:
    root = folder.root
    if root.get("oci-layout") is None:
        return Form.ROOT_DIRECTORY, Manifest(None, ())

    def open_file(name: str, place: str) -> Blob | None:
        entry = _regular(root, name, place)
        if entry is None:
            return None
        fd = folder.open_file(entry)
        held.callback(os.close, fd)
        return Blob(fd, 0, os.fstat(fd).st_size, place, stamp_of(fd))

    return Form.OCI_LAYOUT, read_oci_layout(open_file, arch, what)


def _open_file(path: Path, arch: str, limits: Limits, what: str, held: ExitStack) -> tuple[Form, Manifest]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageInvalid(f"{what}: cannot be opened: {error.strerror}") from error
    held.callback(os.close, fd)
    whole = Blob(fd, 0, os.fstat(fd).st_size, what, stamp_of(fd))
    if whole.size == 0:
        raise ImageInvalid(f"{what}: is an empty file")
    stream = inflate.LayerStream(whole, limits)
    if inflate.compression(whole) != "none":
        return Form.LAYER, _single(whole)
    members = Merge(limits)
    members.apply(0, read_members(stream, need_end=True), what)

    def open_file(name: str, place: str) -> Blob | None:
        entry = _regular(members.root, name, place)
        if entry is not None and entry.segments is not None:
            raise ImageInvalid(f"{place}: {name} is stored as a sparse file")
        return None if entry is None else replace(whole, offset=entry.offset, size=entry.size, what=place)

    match _archive_form(members.root):
        case Form.OCI_ARCHIVE:
            return Form.OCI_ARCHIVE, read_oci_layout(open_file, arch, what)
        case Form.DOCKER_ARCHIVE:
            return Form.DOCKER_ARCHIVE, read_docker_archive(open_file, arch, what)
        case _:
            return Form.LAYER, _single(whole)


def _single(whole: Blob) -> Manifest:
    """A file that is one layer; its digest is only told, since nothing says what it should be."""
    return Manifest(whole.digest("sha256"), (Layer(whole),))


def _archive_form(root: Directory) -> Form | None:
    """Which archive a file tree is by its top-level names; None for one that is a plain layer."""
    if isinstance(root.get("oci-layout"), Entry) and isinstance(root.get("index.json"), Entry):
        return Form.OCI_ARCHIVE
    return Form.DOCKER_ARCHIVE if isinstance(root.get("manifest.json"), Entry) else None


def _regular(root: Directory, name: str, what: str) -> Entry | None:
    node = resolve(root, name, what)
    if node is None:
        return None
    if not isinstance(node, Entry) or node.kind is not Kind.FILE:
        raise ImageInvalid(f"{what}: {name} is not a file")
    return node


def _verify(layer: Layer, limits: Limits, most: int) -> None:
    """Raise ImageInvalid unless the layer is what its manifest or config says, as far as they say it."""
    if layer.digest:
        layer.blob.verify(layer.digest)
    elif layer.diff_id:
        if inflate.compression(layer.blob) == "none":
            layer.blob.verify(layer.diff_id)
            return
        algorithm = layer.diff_id.split(":")[0]
        state = hashlib.new(algorithm)
        stream = inflate.LayerStream(layer.blob, limits, most)
        while data := stream.read(CHUNK):
            state.update(data)
        check_digest(f"{algorithm}:{state.hexdigest()}", layer.diff_id, layer.blob.what)


def _file_chunks(folder: Folder, entry: Entry) -> Iterator[bytes]:
    fd = folder.open_file(entry)
    try:
        blob = Blob(fd, 0, entry.size, f"{folder.what}: /{entry.origin}")
        for position in range(0, entry.size, CHUNK):
            yield blob.read_at(position, CHUNK)
    finally:
        os.close(fd)
