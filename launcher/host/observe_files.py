"""Looking at the images and at what is prepared already."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid, LauncherError
from launcher.facts import DiskImageFacts, ImageFacts, SecretFacts
from launcher.host.files import telling
from launcher.host.seed import read_secret
from launcher.image.disk import find_disk
from launcher.image.kernel import INITRAMFS_PATH, find_kernel
from launcher.image.limits import DEFAULT
from launcher.image.source import Form, open_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from launcher.image.limits import Limits
    from launcher.image.source import Image


def is_file(path: Path) -> bool:
    """Whether a regular file can be seen there."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def observe_secret(path: Path) -> SecretFacts | None:
    """A Secret's mounted value by size and digest. None when nothing is there."""
    if not os.path.lexists(path):
        return None
    try:
        content = read_secret(path)
    except LauncherError as error:
        return SecretFacts(problem=error.message, hint=error.hint)
    return SecretFacts(len(content), hashlib.sha256(content).hexdigest())


def observe_volume_image(path: Path, arch: str, limits: Limits = DEFAULT) -> ImageFacts | None:
    """A volume's image: its form and its digest, not its content. None when nothing is there."""
    return _observe_image(path, arch, limits, lambda image: ImageFacts(path.name, image.form.value, image.digest))


def observe_disk_image(path: Path, arch: str, limits: Limits = DEFAULT) -> ImageFacts | None:
    """A containerDisk's image: of a root directory the disk too, of layers, which would have to be unpacked, the digest."""

    def look(image: Image) -> ImageFacts:
        if image.form is not Form.ROOT_DIRECTORY:
            return ImageFacts(path.name, image.form.value, image.digest)
        found = find_disk(image)
        file = path / found.file.origin
        with telling("look at", file, ImageInvalid):
            node = file.stat()
            closed = any(not above.stat().st_mode & 0o001 for above in file.parents)
        disk = DiskImageFacts(
            path=file,
            format=found.format,
            size=found.size,
            mark=f"{node.st_size} bytes of {node.st_mtime_ns}",
            uid=node.st_uid,
            gid=node.st_gid,
            mode=stat.S_IMODE(node.st_mode),
            closed=closed,
        )
        return ImageFacts(path.name, image.form.value, disk=disk)

    return _observe_image(path, arch, limits, look)


def observe_kernel_image(path: Path, arch: str, limits: Limits = DEFAULT) -> ImageFacts | None:
    """The kernel image, looked into: every layer verified, the kernel one that boots here. None when nothing is there."""

    def look(image: Image) -> ImageFacts:
        _, kind = find_kernel(image, arch=arch)
        initramfs = image.find_file(INITRAMFS_PATH) is not None
        return ImageFacts(path.name, image.form.value, image.digest, kind.value, initramfs)

    return _observe_image(path, arch, limits, look)


def _observe_image(path: Path, arch: str, limits: Limits, look: Callable[[Image], ImageFacts]) -> ImageFacts | None:
    if not os.path.lexists(path):
        return None
    try:
        with open_image(path, arch=arch, limits=limits) as image:
            return look(image)
    except LauncherError as error:
        return ImageFacts(path.name, problem=error.message, hint=error.hint)
