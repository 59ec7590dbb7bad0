"""Looking at the machine. Nothing is changed, and nothing raises for what it sees: a flaw is a value of the facts."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import LauncherError
from launcher.facts import DeviceFacts, HostFacts, NetworkFacts, VmmFacts
from launcher.host import process
from launcher.host.confine import confined_argv
from launcher.host.observe_cache import observe_cache, observe_root_disk
from launcher.host.observe_disks import observe_disk
from launcher.host.observe_files import (
    is_file,
    observe_disk_image,
    observe_kernel_image,
    observe_secret,
    observe_volume_image,
)
from launcher.host.observe_firmware import observe_firmware
from launcher.host.observe_network import observe_network
from launcher.host.observe_virtiofsd import observe_virtiofsd
from launcher.image.limits import DEFAULT
from launcher.plan.devices import KVM, TUN
from launcher.plan.types import Confinement
from launcher.spec.types import ContainerDiskVolume, ContainerRootfsVolume

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.facts import CacheFacts, DiskFacts, ImageFacts
    from launcher.image.limits import Limits
    from launcher.paths import Paths
    from launcher.spec.types import VmSpec

_VERSION_TIMEOUT = 20.0  # seconds; an emulator is a Python program on what may be a busy machine
_KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h
_KVM_API_VERSION = 12

# linux/capability.h, by number
_CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
)


@dataclass(frozen=True, slots=True)
class VmmChoice:
    """Which VMM: ``path``, else cloud-hypervisor on PATH; or the bundled emulator."""

    path: Path | None = None
    emulate: bool = False
    firmware: Path | None = None  # None: one of the known places


def observe(
    spec: VmSpec | None,
    paths: Paths,
    vmm: VmmChoice,
    *,
    judge: Callable[[str, str], tuple[int, ...]],
    vmm_uid: int,
    vmm_gid: int,
    block_volumes: tuple[str, ...] = (),
    container_disk: str = "overlay",
    receive_migration: bool = False,
    limits: Limits = DEFAULT,
    cache: CacheFacts | None = None,
) -> HostFacts:
    """What a plan for ``spec`` depends on; without one, every image and volume there is.

    ``cache`` is the one asked for. ``judge`` turns a VMM's path and the output of its ``--version`` into its version, or raises HostUnfit.
    """
    machine = os.uname()
    cache = observe_cache(cache) if cache else None
    if spec:
        disks = tuple(observe_disk(paths, volume.name, volume) for volume in spec.volumes)
    else:
        disks = tuple(observe_disk(paths, name) for name in _names(paths.disks))
    disks = tuple(observe_root_disk(disk, paths, cache) for disk in disks)
    return HostFacts(
        arch=machine.machine,
        page_size=os.sysconf("SC_PAGE_SIZE"),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        hugepages=_hugepages(Path("/sys/kernel/mm/hugepages")),
        kernel_release=machine.release,
        paths=paths,
        vmm=_observe_vmm(vmm, judge, Confinement(vmm_uid, vmm_gid)),
        vmm_uid=vmm_uid,
        vmm_gid=vmm_gid,
        kvm=DeviceFacts() if vmm.emulate else observe_device(KVM, _kvm_problem),
        tun=observe_device(TUN),
        capabilities=effective_capabilities(_read(Path("/proc/self/status"))),
        prepared_kernel=is_file(paths.prepared_kernel),
        kernel_image=_kernel_image(spec, paths, machine.machine, limits),
        firmware=(
            observe_firmware(vmm.firmware, machine.machine, emulated=vmm.emulate)
            if spec is None or spec.instance.kernel is None
            else None
        ),
        images=_images(spec, paths, machine.machine, disks, limits),
        disks=disks,
        cache=cache,
        user_data_secret=observe_secret(paths.user_data_secret),
        network_data_secret=observe_secret(paths.network_data_secret),
        network=_network(),
        dnsmasq=shutil.which("dnsmasq", path=process.BASE_ENV["PATH"]),
        virtiofsd=observe_virtiofsd() if spec is None or spec.instance.file_systems else None,
        block_volumes=block_volumes,
        container_disk=container_disk,
        receive_migration=receive_migration,
    )


def _network() -> NetworkFacts:
    try:
        return observe_network()
    except LauncherError as error:
        return NetworkFacts(problem=error.message, hint=error.hint)


def _kernel_image(spec: VmSpec | None, paths: Paths, arch: str, limits: Limits) -> ImageFacts | None:
    """Not looked at when it is not needed: looking means unpacking it."""
    if spec and (spec.instance.kernel is None or is_file(paths.prepared_kernel)):
        return None
    return observe_kernel_image(paths.kernel_image, arch, limits)


def _images(
    spec: VmSpec | None, paths: Paths, arch: str, disks: tuple[DiskFacts, ...], limits: Limits
) -> tuple[ImageFacts, ...]:
    if spec:
        built = {disk.volume for disk in disks if disk.rootfs_raw or disk.rootfs_overlay}
        roots = [volume.name for volume in spec.volumes if isinstance(volume, ContainerRootfsVolume)]
        names = [name for name in roots if name not in built]
    else:
        names = [name for name in _names(paths.images) if paths.volume_image(name) != paths.kernel_image]
    found = [observe_volume_image(paths.volume_image(name), arch, limits) for name in names]
    if spec:
        copied = {disk.volume for disk in disks if disk.file and disk.file.path == paths.copied_disk(disk.volume)}
        wanted = [volume.name for volume in spec.volumes if isinstance(volume, ContainerDiskVolume)]
        found += [observe_disk_image(paths.volume_image(name), arch, limits) for name in wanted if name not in copied]
    return tuple(image for image in found if image)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _hugepages(folder: Path) -> tuple[tuple[int, int], ...]:
    """Each size with its pages that are neither used nor promised (Documentation/admin-guide/mm/hugetlbpage.rst)."""
    sizes = []
    for name in _names(folder):
        kilobytes = name.removeprefix("hugepages-").removesuffix("kB")
        free, reserved = _read(folder / name / "free_hugepages"), _read(folder / name / "resv_hugepages")
        if kilobytes.isdecimal() and free.strip().isdecimal() and reserved.strip().isdecimal():
            sizes.append((int(kilobytes) << 10, int(free) - int(reserved)))
    return tuple(sorted(sizes))


def effective_capabilities(status: str) -> tuple[str, ...]:
    """The effective capabilities in the text of /proc/<pid>/status, by name, lower case without the CAP_ prefix."""
    lines = (line.partition(":") for line in status.splitlines())
    bits = next((int(value, 16) for key, _, value in lines if key == "CapEff"), 0)
    return tuple(sorted(name for number, name in enumerate(_CAPABILITIES.split()) if bits >> number & 1))


def observe_device(path: Path, check: Callable[[int], str | None] = lambda _: None) -> DeviceFacts:
    """A character device that must open for reading and writing. ``check`` gets its descriptor and may find a problem."""
    try:
        node = path.stat()
    except FileNotFoundError:
        return DeviceFacts(problem=f"there is no {path}")
    except OSError as error:
        return DeviceFacts(problem=f"{path} cannot be looked at: {error.strerror}")
    facts = DeviceFacts(node.st_uid, node.st_gid, stat.S_IMODE(node.st_mode))
    if not stat.S_ISCHR(node.st_mode):
        return replace(facts, problem=f"{path} is not a device")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return replace(facts, problem=f"{path} cannot be opened: {error.strerror}")
    try:
        problem = check(fd)
    finally:
        os.close(fd)
    return replace(facts, problem=f"{path} {problem}" if problem else None)


def _kvm_problem(fd: int) -> str | None:
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    except OSError as error:
        return f"does not answer as KVM: {error.strerror}"
    return None if version == _KVM_API_VERSION else f"has KVM API version {version}, not {_KVM_API_VERSION}"


def _observe_vmm(choice: VmmChoice, judge: Callable[[str, str], tuple[int, ...]], identity: Confinement) -> VmmFacts:
    facts = VmmFacts(emulated=choice.emulate)
    if choice.emulate:
        binary = _find_emulator()
        missing = "the emulator, vmm-emulator, is not installed beside this launcher"
    else:
        binary = shutil.which(str(choice.path or "cloud-hypervisor"))
        missing = _missing(choice.path) if choice.path else "cloud-hypervisor is not on PATH"
    if binary is None:
        return replace(facts, problem=missing, hint="name the VMM with --vmm or $LAUNCHER_VMM")
    facts = replace(facts, path=str(Path(binary).absolute()))
    try:
        # As whom it will run later: a VMM below root's home, say, is there for us and not for the VMM's uid.
        argv = [facts.path, "--version"]
        answer = process.run(
            confined_argv(argv, identity) if _may_change_identity() else argv, timeout=_VERSION_TIMEOUT
        )
        if answer.killed_after is not None:
            problem = f"{facts.path} --version did not answer within {answer.killed_after:g} s"
            return replace(facts, problem=problem, hint="name another VMM with --vmm or $LAUNCHER_VMM")
        if answer.returncode:
            return replace(
                facts,
                problem=f"{facts.path} does not run as uid {identity.uid}: {answer.failure}",
                hint="install it where that uid can read and execute it",
            )
        return replace(facts, version=judge(facts.path, answer.stdout.decode(errors="replace")))
    except LauncherError as error:
        return replace(facts, problem=error.message, hint=error.hint)


def _may_change_identity() -> bool:
    """Without these capabilities a plan says that they are missing, and nothing needs to be tried."""
    return {"setuid", "setgid"} <= set(effective_capabilities(_read(Path("/proc/self/status"))))


def _missing(program: Path) -> str:
    if is_file(program):
        return f"{program} is not executable"
    return f"{program} is not a program" if os.path.lexists(program) else f"there is no program {program}"


def _find_emulator() -> str | None:
    beside = Path(sys.executable).with_name("vmm-emulator")
    return str(beside) if is_file(beside) else shutil.which("vmm-emulator")
