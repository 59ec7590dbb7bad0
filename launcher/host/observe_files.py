"""Looking at the images and at what is prepared already."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid
from launcher.facts import DiskFacts, ImageFacts
from launcher.image.kernel import INITRAMFS_PATH, KERNEL_PATH, inspect_kernel
from launcher.image.source import open_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from launcher.image.source import FoundFile, Image
    from launcher.paths import Paths


def is_file(path: Path) -> bool:
    """Whether a regular file can be seen there."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def observe_disk(paths: Paths, volume: str) -> DiskFacts:
    """What is prepared for a volume."""
    return DiskFacts(
        volume,
        folder=stat.S_ISDIR(_mode(paths.volume(volume))),
        rootfs_raw=is_file(paths.rootfs_disk(volume)),
        cloud_init_iso=is_file(paths.seed_disk(volume)),
    )


def observe_volume_image(path: Path, arch: str) -> ImageFacts | None:
    """A volume's image: its form and its digest, not its content. None when nothing is there."""
    return _observe_image(path, arch, lambda image: ImageFacts(path.name, image.form.value, image.digest))


def observe_kernel_image(path: Path, arch: str) -> ImageFacts | None:
    """The kernel image, looked into: every layer verified, the kernel one that boots here. None when nothing is there."""

    def look(image: Image) -> ImageFacts:
        kernel = image.find_file(KERNEL_PATH)
        if kernel is None:
            raise ImageInvalid(
                f"{image.what}: has no {KERNEL_PATH}", hint="a kernel image holds the kernel at /vmlinux"
            )
        kind = inspect_kernel(_reader(kernel), kernel.size, arch, f"{image.what}: {KERNEL_PATH}")
        initramfs = image.find_file(INITRAMFS_PATH) is not None
        return ImageFacts(path.name, image.form.value, image.digest, kind.value, initramfs)

    return _observe_image(path, arch, look)


def _observe_image(path: Path, arch: str, look: Callable[[Image], ImageFacts]) -> ImageFacts | None:
    if not os.path.lexists(path):
        return None
    try:
        with open_image(path, arch=arch) as image:
            return look(image)
    except ImageInvalid as error:
        return ImageFacts(path.name, problem=error.message, hint=error.hint)


def _reader(found: FoundFile) -> Callable[[int, int], bytes]:
    """Random access to a file of an image, which comes as a stream: what was read is kept, no more is read than asked for."""
    kept = bytearray()
    chunks: Iterator[bytes | memoryview] = found.chunks

    def read_at(offset: int, count: int) -> bytes:
        while len(kept) < offset + count and (chunk := next(chunks, None)) is not None:
            kept.extend(chunk)
        return bytes(kept[offset : offset + count])

    return read_at
