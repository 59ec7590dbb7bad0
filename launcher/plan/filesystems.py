"""Folders that the guest mounts by virtio-fs, each served by a virtiofsd of its own.

A virtiofsd runs as root without a sandbox of its own making, since the kernel's ways to make one need more than the
container has; with SYS_CHROOT in the container it shuts itself up in the folder. File handles need DAC_READ_SEARCH and
are off. Sources: virtiofsd's README and ``src/main.rs`` (1.13.2); cloud-hypervisor's page on fs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit, StorageFailed
from launcher.plan.types import Confinement, HelperSpec, MakeFolder
from launcher.plan.vmconfig import FsConfig

if TYPE_CHECKING:
    from launcher.facts import HostFacts
    from launcher.plan.types import Action
    from launcher.spec.types import VmSpec

# What it takes to make files with the guest's owners and modes. SETPCAP lets virtiofsd empty its bounding set, after
# which it has the others alone; without it, libcap-ng makes a system call that virtiofsd's own seccomp filter kills it for.
_CAPABILITIES = ("chown", "dac_override", "fowner", "setgid", "setpcap", "setuid")
_UNASKED = "--modcaps=-fsetid:-mknod:-setfcap"  # which it would insist on having
_QUEUES, _QUEUE_SIZE = 1, 1024  # as Virtink has them
_SHARED_MEMORY = (
    "the guest's memory is shared with virtiofsd: the pod pays for it as shared memory, "
    "and it has no transparent huge pages unless the node has them for shared memory"
)


@dataclass(frozen=True, slots=True)
class FileSystemsPlan:
    configs: tuple[FsConfig, ...] = ()
    actions: tuple[Action, ...] = ()
    helpers: tuple[HelperSpec, ...] = ()
    warnings: tuple[str, ...] = ()


def plan_file_systems(spec: VmSpec, facts: HostFacts) -> FileSystemsPlan:
    """The file systems in the spec's order. Raises HostUnfit without a virtiofsd, StorageFailed without the folder."""
    file_systems = spec.instance.file_systems
    if not file_systems:
        return FileSystemsPlan()
    program, paths = facts.virtiofsd, facts.paths
    if program is None:
        raise HostUnfit("virtiofsd is not installed", hint="install it in the launcher's image")
    if program.problem:
        raise HostUnfit(program.problem, hint=program.hint)
    for file_system in file_systems:
        if not facts.disk(file_system.name).folder:
            raise StorageFailed(
                f"there is no folder {paths.volume(file_system.name)} for the file system {file_system.name}",
                hint="mount the claim there, one with volumeMode Filesystem",
            )
    folder = MakeFolder(paths.virtiofsd_dir, 0o711, 0, 0, "the VMM reaches each virtiofsd by a socket in it")
    return FileSystemsPlan(
        configs=tuple(
            FsConfig(fs.name, fs.name, str(paths.file_system_socket(fs.name)), _QUEUES, _QUEUE_SIZE)
            for fs in file_systems
        ),
        actions=(folder,),
        helpers=tuple(_virtiofsd(program.path, fs.name, facts) for fs in file_systems),
        warnings=(_SHARED_MEMORY,),
    )


def _virtiofsd(program: str, name: str, facts: HostFacts) -> HelperSpec:
    chroot = ("sys_chroot",) if "sys_chroot" in facts.capabilities else ()
    argv = (
        program,
        f"--shared-dir={facts.paths.volume(name)}",
        f"--sandbox={'chroot' if chroot else 'none'}",
        "--inode-file-handles=never",
        _UNASKED,
        "--cache=auto",
        "--log-level=warn",
    )
    confinement = Confinement(0, 0, capabilities=(*_CAPABILITIES, *chroot))
    return HelperSpec(f"virtiofsd-{name}", argv, confinement, listen=facts.paths.file_system_socket(name))
