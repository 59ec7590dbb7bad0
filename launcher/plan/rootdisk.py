"""Where a containerRootfs's disk comes from: it is there, out of the cache, or built. docs/adr/0010-a-cache-that-shares-blocks.md says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import StorageFailed
from launcher.plan.images import usable
from launcher.plan.types import BuildRootDisk, CloneRootDisk

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.facts import CacheFacts, DiskFacts, HostFacts, ImageFacts
    from launcher.plan.types import Action, CloneWay
    from launcher.spec.types import ContainerRootfsVolume


@dataclass(frozen=True, slots=True)
class RootDiskPlan:
    """``base`` is what an overlay reads from; without one the disk is raw. ``shared`` tells that blocks are a reflink's."""

    path: Path
    base: Path | None = None
    shared: bool = False
    actions: tuple[Action, ...] = ()


def plan_root_disk(volume: ContainerRootfsVolume, facts: HostFacts) -> RootDiskPlan:
    """A disk that is there is used as it is. Raises ImageInvalid for an unusable image, StorageFailed for an overlay that has
    lost its base.
    """
    name, reference, paths, found = volume.name, volume.image, facts.paths, facts.disk(volume.name)
    raw, overlay, base = paths.rootfs_disk(name), paths.rootfs_overlay(name), paths.rootfs_base(name)
    if found.file or found.rootfs_raw:
        return RootDiskPlan(raw)
    if found.rootfs_overlay:
        if found.overlay_problem:
            raise StorageFailed(
                f"{overlay} {found.overlay_problem}",
                hint=f"put back what belongs to it, or move it away: then a new disk is made of {reference}",
            )
        return RootDiskPlan(overlay, base)
    path = paths.volume_image(name)
    image = usable(facts.image(name), path, reference, f"or prepare {raw}")
    reason = f"disk {name} has the root file system of {reference}"
    way, why = choose_way(image, found, facts.cache)
    if way is None or facts.cache is None or image.digest is None:
        build = BuildRootDisk(name, path, raw, volume.size, f"{reason}; {why}" if why else reason)
        return RootDiskPlan(raw, actions=(build,))
    clone = CloneRootDisk(
        volume=name,
        image=path,
        digest=image.digest,
        disk=overlay if way == "overlay" else raw,
        base=base if way == "overlay" else None,
        size=volume.size,
        way=way,
        cache=facts.cache.folder,
        limit=facts.cache.limit,
        verify=facts.cache.verify,
        reason=f"{reason}; {why}",
    )
    return RootDiskPlan(clone.disk, clone.base, shared=way == "reflink", actions=(clone,))


def choose_way(image: ImageFacts, disk: DiskFacts, cache: CacheFacts | None) -> tuple[CloneWay | None, str]:
    """How the disk comes out of the cache, and why so; None when it does not."""
    if cache is None:
        return None, ""
    if cache.problem:
        return None, f"without the cache: {cache.problem}"
    if image.digest is None:
        return None, f"without the cache: an {image.form} has no digest to know it by"
    file_system = cache.file_system or "the file system"
    if disk.cache_reflink:
        return "reflink", f"a reflink of the cached one: {file_system} lets files share their blocks"
    if disk.cache_link:
        return (
            "overlay",
            f"an overlay on the cached one: {file_system} has no reflinks, but it is one mount with the disk",
        )
    return "copy", "a sparse copy of the cached one: the cache is another mount, and no blocks can be shared with it"
