"""Looking at the images and at what is prepared already."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from launcher.errors import LauncherError
from launcher.facts import DiskFacts, ImageFacts
from launcher.image.kernel import INITRAMFS_PATH, find_kernel
from launcher.image.source import open_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.image.source import Image
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
        _, kind = find_kernel(image, arch=arch)
        initramfs = image.find_file(INITRAMFS_PATH) is not None
        return ImageFacts(path.name, image.form.value, image.digest, kind.value, initramfs)

    return _observe_image(path, arch, look)


def _observe_image(path: Path, arch: str, look: Callable[[Image], ImageFacts]) -> ImageFacts | None:
    if not os.path.lexists(path):
        return None
    try:
        with open_image(path, arch=arch) as image:
            return look(image)
    except LauncherError as error:
        return ImageFacts(path.name, problem=error.message, hint=error.hint)
