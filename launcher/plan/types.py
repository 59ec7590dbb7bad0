"""What will be done: the boot plan and its host actions as frozen values.

An action says what the machine shall look like afterwards, not which steps lead there: its handler in ``host.apply``
compares and converges, so that a plan can be carried out any number of times, from any half-done state.
``reason`` is the one sentence a user reads behind the action in ``launcher plan``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # the codec resolves the annotations of what the supervisor is handed
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from launcher.facts import Address, Neighbour, Route
    from launcher.plan.vmconfig import VmConfig


@dataclass(frozen=True, slots=True)
class MakeFolder:
    path: Path
    mode: int
    uid: int
    gid: int
    reason: str

    def describe(self) -> str:
        return f"make folder {self.path} (mode {self.mode:04o}, owner {self.uid}:{self.gid})"


@dataclass(frozen=True, slots=True)
class WriteFile:
    path: Path
    content: str
    mode: int
    reason: str

    def describe(self) -> str:
        return f"write {self.path} ({len(self.content.encode())} bytes)"


@dataclass(frozen=True, slots=True)
class GiveToVmm:
    """Make a file or device node openable by the VMM's uid: it becomes the owner, unless its mode lets it in already."""

    path: Path
    uid: int
    gid: int
    write: bool  # else it is only read
    reason: str

    def describe(self) -> str:
        return f"let uid {self.uid} {'read and write' if self.write else 'read'} {self.path}"


@dataclass(frozen=True, slots=True)
class ExtractKernel:
    image: Path
    kernel: Path
    initramfs: Path | None  # None when the image has none
    reason: str

    def describe(self) -> str:
        files = "/vmlinux and /initramfs" if self.initramfs else "/vmlinux"
        return f"extract {files} of {self.image} to {self.kernel.parent}"


@dataclass(frozen=True, slots=True)
class BuildRootDisk:
    volume: str
    image: Path
    disk: Path
    size: int  # bytes
    reason: str

    def describe(self) -> str:
        return f"build ext4 disk {self.disk} of {self.size} bytes from {self.image}"


CloneWay: TypeAlias = Literal["reflink", "overlay", "copy"]


@dataclass(frozen=True, slots=True)
class CloneRootDisk:
    """A root disk out of the cache, where it is built once. ``base`` is the hard link beside an overlay that pins it."""

    volume: str
    image: Path
    digest: str  # of the image, as it was observed
    disk: Path
    base: Path | None
    size: int  # bytes
    way: CloneWay
    cache: Path
    limit: int  # bytes the cache may take
    verify: bool  # look at all of what is cached
    reason: str

    def describe(self) -> str:
        of = f"the ext4 disk of {self.size} bytes from {self.image}, cached in {self.cache}"
        match self.way:
            case "reflink":
                return f"make {self.disk} a reflink of {of}"
            case "overlay":
                return f"make {self.disk} an overlay on {self.base}: {of}"
            case "copy":
                return f"make {self.disk} a sparse copy of {of}"


@dataclass(frozen=True, slots=True)
class MakeContainerDisk:
    """A containerDisk's disk: an overlay on ``base``, or a raw copy where there is none."""

    volume: str
    image: Path
    disk: Path
    base: Path | None
    in_place: bool  # the base is the image's own file; else it is extracted first
    mark: str  # tells the image's own file from another image's
    uid: int  # whom a converter runs as
    gid: int
    reason: str

    def describe(self) -> str:
        if self.base is None:
            return f"copy the disk in {self.image} to {self.disk}, as a raw disk"
        if self.in_place:
            return f"make {self.disk} an overlay on {self.base}"
        return f"extract the disk in {self.image} to {self.base}, and make {self.disk} an overlay on it"


@dataclass(frozen=True, slots=True)
class SeedFile:
    name: str
    content: bytes = field(repr=False)  # may hold passwords

    def describe(self) -> str:
        return f"{self.name} ({len(self.content)} bytes)"


@dataclass(frozen=True, slots=True)
class SecretSeedFile:
    """A file of the seed whose content is read from ``path`` when the seed is written, and from nowhere before."""

    name: str
    path: Path
    size: int  # bytes when it was observed, as is the digest: a plan of another content is another plan
    sha256: str

    def describe(self) -> str:
        return f"{self.name} ({self.size} bytes from {self.path})"


@dataclass(frozen=True, slots=True)
class BuildSeed:
    volume: str
    disk: Path
    files: tuple[SeedFile | SecretSeedFile, ...]
    reason: str

    def describe(self) -> str:
        return f"write cloud-init seed {self.disk}: {', '.join(file.describe() for file in self.files)}"


@dataclass(frozen=True, slots=True)
class PodNic:
    """What the CNI made of one pod interface, wherever in the netns it is kept at the moment."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class EnsureBridge:
    name: str
    mac: str
    mtu: int
    address: str  # CIDR text, link-local: where dnsmasq listens
    reason: str

    def describe(self) -> str:
        return f"bridge {self.name} ({self.address}, mtu {self.mtu}, arp_ignore 1)"


@dataclass(frozen=True, slots=True)
class StagePodNic:
    """Keep a complete copy of the pod interface on a link of its own, marked complete as the last step.

    Nothing is done when the interface's holder is complete already.
    """

    stage: str
    holder_kind: str  # "dummy", or "bridge" where the kernel has no dummy
    nic: PodNic
    reason: str

    def describe(self) -> str:
        return f"{self.holder_kind} {self.stage}: copy of the addresses, routes and neighbours of {self.nic.name}"


@dataclass(frozen=True, slots=True)
class ReleaseNic:
    """Take the real interface out of the pod's IP configuration: down, renamed, another MAC, no address."""

    name: str
    released: str
    mac: str
    reason: str

    def describe(self) -> str:
        return f"rename {self.name} to {self.released}, mac {self.mac}, without addresses"


@dataclass(frozen=True, slots=True)
class EnsureHolder:
    """The link that stands for the interface from now on, with everything the CNI gave it."""

    holder_kind: str
    nic: PodNic
    reason: str

    def describe(self) -> str:
        addresses = ", ".join(f"{address.local}/{address.prefix}" for address in self.nic.addresses)
        return (
            f"{self.holder_kind} {self.nic.name}: mac {self.nic.mac}, mtu {self.nic.mtu}, {addresses or 'no address'}"
        )


@dataclass(frozen=True, slots=True)
class DropStage:
    stage: str
    reason: str

    def describe(self) -> str:
        return f"delete {self.stage}"


@dataclass(frozen=True, slots=True)
class EnsureBridgePort:
    bridge: str
    port: str
    reason: str

    def describe(self) -> str:
        return f"{self.port}: port of {self.bridge}, up, learning off"


@dataclass(frozen=True, slots=True)
class EnsureTap:
    """A persistent tap that the VMM opens by name without any capability."""

    name: str
    bridge: str
    mtu: int
    uid: int  # the VMM's
    queue_pairs: int  # more than one sets MULTI_QUEUE, which must match the opener's
    reason: str

    def describe(self) -> str:
        return f"tap {self.name}: port of {self.bridge}, up, mtu {self.mtu}, owner uid {self.uid}, {self.queue_pairs} queue pair(s)"


NetworkAction: TypeAlias = (
    EnsureBridge | StagePodNic | ReleaseNic | EnsureHolder | DropStage | EnsureBridgePort | EnsureTap
)
Action: TypeAlias = (
    MakeFolder
    | WriteFile
    | GiveToVmm
    | ExtractKernel
    | BuildRootDisk
    | CloneRootDisk
    | MakeContainerDisk
    | BuildSeed
    | NetworkAction
)


@dataclass(frozen=True, slots=True)
class Confinement:
    """As whom a child runs: the exact identity, capabilities and limits, nothing inherited."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()  # lower case without the CAP_ prefix, as setpriv spells them
    nofile: int | None = None


@dataclass(frozen=True, slots=True)
class HelperSpec:
    """A long-lived helper process; described here, owned by the supervisor."""

    name: str
    argv: tuple[str, ...]
    confinement: Confinement
    listen: Path | None = None
    """A unix socket for the VMM. The supervisor binds it once and keeps it, and adds ``--fd=N`` to the command line: the
    VMM can connect before the helper is up. Such a helper serves one connection, the time until the guest reboots, and then
    ends with status 0."""


@dataclass(frozen=True, slots=True)
class VmmLaunch:
    binary: str
    version: tuple[int, ...]
    confinement: Confinement


@dataclass(frozen=True, slots=True)
class Nic:
    """One guest interface, for status and logs."""

    name: str
    binding: str
    mac: str
    tap: str
    addresses: tuple[str, ...] = ()  # CIDR text the guest is offered


@dataclass(frozen=True, slots=True)
class GuestDisk:
    """One disk of the guest, and how it is opened, for people."""

    name: str
    path: Path
    form: str
    read_only: bool
    io: str  # past or through the page cache, and why


@dataclass(frozen=True, slots=True)
class BootPlan:
    name: str
    namespace: str
    uid: str
    vmm: VmmLaunch
    vm_config: VmConfig
    actions: tuple[Action, ...] = ()
    helpers: tuple[HelperSpec, ...] = ()
    nics: tuple[Nic, ...] = ()
    disks: tuple[GuestDisk, ...] = ()
    warnings: tuple[str, ...] = ()
