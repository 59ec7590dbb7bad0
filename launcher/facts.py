"""What was seen of the machine: values only, with a JSON round trip, so that a plan can be made anywhere.

``host.observe`` fills these in; ``launcher facts`` prints them; ``launcher plan --facts`` reads them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # the codec resolves the annotations

from launcher.paths import Paths


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a link, as ``RTM_GETADDR`` has it. ``local`` is text; ``prefix`` is a bit count."""

    family: int  # 4 or 6
    local: str
    prefix: int
    peer: str | None = None  # the other end of a point-to-point address
    broadcast: str | None = None
    label: str | None = None
    scope: int = 0  # RT_SCOPE_*
    flags: int = 0  # IFA_F_*, of which PERMANENT and the like are the kernel's


@dataclass(frozen=True, slots=True)
class Route:
    """One route through a link, as ``RTM_GETROUTE`` has it. ``destination`` is CIDR text; the default is 0.0.0.0/0."""

    family: int  # 4 or 6
    destination: str
    gateway: str | None = None
    source: str | None = None  # the preferred source address
    metric: int = 0
    table: int = 254
    protocol: int = 3  # RTPROT_*; 2 is the kernel's own
    scope: int = 0  # RT_SCOPE_*
    kind: int = 1  # RTN_*; 1 is unicast
    tos: int = 0
    onlink: bool = False
    metrics: tuple[tuple[str, int], ...] = ()  # RTAX_* by pyroute2's names, e.g. ("RTAX_MTU", 1400)
    foreign: tuple[str, ...] = ()  # attributes not represented here, e.g. "RTA_MULTIPATH": no faithful copy can be made


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One permanent neighbour entry of a link."""

    family: int
    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class Link:
    """One network link of the pod with what is on it. ``kind`` is empty for a physical device."""

    name: str
    index: int
    kind: str
    mac: str
    mtu: int
    up: bool
    master: str | None = None
    alias: str | None = None
    lower: str | None = None  # the link that a VLAN, macvlan or ipvlan rides on
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()  # of every table but the kernel's local one
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """The pod's network namespace."""

    links: tuple[Link, ...] = ()
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    has_dummy: bool = True  # the kernel can make dummy links
    problem: str | None = None  # why nothing could be seen; the rest is then empty
    hint: str | None = None

    def link(self, name: str) -> Link | None:
        return next((link for link in self.links if link.name == name), None)


@dataclass(frozen=True, slots=True)
class DiskImageFacts:
    """The disk in a containerDisk image that is a root directory: a file that an overlay can read from where it is."""

    path: Path
    format: str  # "raw" or "qcow2"
    size: int  # bytes that the guest sees
    mark: str  # tells it from the disk of another image
    uid: int = 0
    gid: int = 0
    mode: int = 0o644  # permission bits
    closed: bool = False  # a folder on the way to it keeps others out


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image under the images folder. ``problem`` is why it cannot be used; the rest is then empty."""

    name: str
    form: str = ""
    digest: str | None = None
    kernel: str | None = None  # what /vmlinux is: "pvh-elf", "bzimage", "arm64-image"; a wrong one is a problem
    initramfs: bool = False
    disk: DiskImageFacts | None = None
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """The folder that root disks are cached in, as asked for, and what it is. ``problem`` is why it cannot be used."""

    folder: Path
    limit: int  # bytes its entries may take
    verify: bool = False  # look at all of an entry before it is used
    file_system: str = ""  # xfs, ext4 …
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A disk that is there: a file, or a block device. ``problem`` is why it cannot be used; the rest is then empty."""

    path: Path
    block: bool = False
    size: int = 0  # bytes
    format: str = "raw"  # "qcow2" when it begins like one
    uid: int = 0
    gid: int = 0
    mode: int = 0o666  # permission bits
    sector: int = 512  # bytes: a block device's logical sector
    table: int = 0  # bytes: the sector its GPT was written for; 0 without a GPT
    read_only: bool = False  # the device is, or the file system below the file
    base: Path | None = None  # of an overlay: the file it reads from
    mark: str = ""  # the mark of the disk it was made on, when that was an image's own
    lock: str | None = None  # "read" or "write": what another process holds on it
    holder: str | None = None  # who, when that can be seen
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What is at ``<disks>/<volume>`` already."""

    volume: str
    folder: bool = False  # the folder exists
    rootfs_raw: bool = False
    rootfs_overlay: bool = False
    overlay_problem: str | None = None  # why the overlay cannot be used
    cache_reflink: bool = False  # a disk made there can share blocks with the cache
    cache_link: bool = False  # a hard link can lead from the cache to there
    file: DiskFile | None = None  # the disk itself, where one is there
    direct: int = 0  # bytes: the blocks that direct I/O goes by on it, or on one to be made there; 0 without direct I/O
    cloud_init_iso: bool = False
    cloud_init_ours: bool = False  # a launcher wrote it: it follows its input, where somebody else's is left alone


@dataclass(frozen=True, slots=True)
class SecretFacts:
    """A Secret's value that the pod mounts as a file; its content is never among the facts.

    ``problem`` is why it cannot be used; the rest is then empty.
    """

    size: int = 0  # bytes
    sha256: str = ""  # hexadecimal
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class VmmFacts:
    """The VMM's binary. ``version`` is empty when it could not be run; ``problem`` then says why."""

    path: str = ""
    version: tuple[int, ...] = ()
    emulated: bool = False
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """A helper's program. ``problem`` is why it cannot be used."""

    path: str = ""
    version: tuple[int, ...] = ()
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class FirmwareFacts:
    """What boots a VM without a kernel. ``problem`` is why there is none."""

    path: Path | None = None
    problem: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device node, /dev/kvm or /dev/net/tun. ``problem`` is why it cannot be used at all."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o666  # permission bits
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Everything a plan depends on besides the spec."""

    arch: str  # as uname says: x86_64, aarch64
    page_size: int
    cpus: tuple[int, ...]  # CPUs this process may run on
    hugepages: tuple[tuple[int, int], ...] = ()  # page size in bytes, pages neither used nor reserved
    kernel_release: str = ""
    paths: Paths = Paths()  # noqa: RUF009  # frozen, in another module
    vmm: VmmFacts = VmmFacts()
    vmm_uid: int = 107
    vmm_gid: int = 107
    kvm: DeviceFacts = DeviceFacts()
    tun: DeviceFacts = DeviceFacts()
    capabilities: tuple[str, ...] = ()  # effective ones, by name
    prepared_kernel: bool = False  # <disks>/virtink-kernel/vmlinux is there
    kernel_image: ImageFacts | None = None
    firmware: FirmwareFacts | None = None  # looked for when the VM has no kernel
    images: tuple[ImageFacts, ...] = ()
    disks: tuple[DiskFacts, ...] = ()
    cache: CacheFacts | None = None  # None: nothing is cached
    user_data_secret: SecretFacts | None = None  # None when nothing is mounted there
    network_data_secret: SecretFacts | None = None
    network: NetworkFacts = NetworkFacts()
    dnsmasq: str | None = None  # its path, None when it is not installed
    virtiofsd: ProgramFacts | None = None  # None when it is not installed, or no file system asks for it
    block_volumes: tuple[str, ...] = ()  # $BLOCK_VOLUMES: the claims that the pod has as block devices
    container_disk: str = "overlay"  # $LAUNCHER_CONTAINER_DISK: or "raw"
    receive_migration: bool = False  # $RECEIVE_MIGRATION: the pod is the target of a migration

    def image(self, name: str) -> ImageFacts | None:
        return next((image for image in self.images if image.name == name), None)

    def disk(self, volume: str) -> DiskFacts:
        return next((disk for disk in self.disks if disk.volume == volume), DiskFacts(volume))
