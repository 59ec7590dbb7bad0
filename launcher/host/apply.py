"""Carrying out a plan's actions, each by its handler. A handler compares and converges: it may run any number of times."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, assert_never

from launcher.host import files
from launcher.host.cached_disk import clone_root_disk
from launcher.host.container_disk import make_container_disk
from launcher.host.network import apply_network
from launcher.host.seed import write_seed
from launcher.host.storage import build_root_disk
from launcher.image.kernel import extract_kernel
from launcher.image.limits import DEFAULT
from launcher.plan.types import (
    BuildRootDisk,
    BuildSeed,
    CloneRootDisk,
    DropStage,
    EnsureBridge,
    EnsureBridgePort,
    EnsureHolder,
    EnsureTap,
    ExtractKernel,
    GiveToVmm,
    MakeContainerDisk,
    MakeFolder,
    ReleaseNic,
    StagePodNic,
    WriteFile,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from launcher.image.limits import Limits
    from launcher.plan.types import Action


def apply(
    actions: Iterable[Action],
    *,
    arch: str,
    on_action: Callable[[Action, float | None], None],
    limits: Limits = DEFAULT,
) -> None:
    """Carry out the actions in order; ``on_action`` hears of each before (None) and after it (how many seconds it took).

    ``arch`` is the machine's, as uname says: it picks from multi-arch images; ``limits`` bound what is taken of
    them. Raises the LauncherError of the first action that cannot be carried out; what was done stays, for the next start
    goes on from there.
    """
    for action in actions:
        on_action(action, None)
        started = time.monotonic()
        _carry_out(action, arch, limits)
        on_action(action, time.monotonic() - started)


def _carry_out(action: Action, arch: str, limits: Limits) -> None:
    match action:
        case MakeFolder():
            files.make_folder(action.path, action.mode, action.uid, action.gid)
        case WriteFile():
            files.write_file(action.path, action.content.encode(), action.mode)
        case GiveToVmm():
            files.give(action.path, action.uid, action.gid, write=action.write)
        case ExtractKernel():
            extract_kernel(action.image, action.kernel, action.initramfs, arch=arch, limits=limits)
        case BuildRootDisk():
            build_root_disk(action, arch=arch, limits=limits)
        case CloneRootDisk():
            clone_root_disk(action, arch=arch, limits=limits)
        case MakeContainerDisk():
            make_container_disk(action, arch=arch, limits=limits)
        case BuildSeed():
            write_seed(action)
        case (
            EnsureBridge()
            | StagePodNic()
            | ReleaseNic()
            | EnsureHolder()
            | DropStage()
            | EnsureBridgePort()
            | EnsureTap()
        ):
            apply_network(action)
        case _:
            assert_never(action)
