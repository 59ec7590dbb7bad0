"""What the user asked for: Virtink's ``VirtualMachine`` (v1alpha1) as frozen values, defaults filled in.

Source of every field: virtink ``pkg/apis/virt/v1alpha1/types.go``. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class RunPolicy(Enum):
    """What the cluster's controller does when the VM ends; the launcher only reports it."""

    ALWAYS = "Always"
    RERUN_ON_FAILURE = "RerunOnFailure"
    ONCE = "Once"
    MANUAL = "Manual"
    HALTED = "Halted"


@dataclass(frozen=True, slots=True)
class Cpu:
    sockets: int = 1
    cores_per_socket: int = 1
    dedicated_cpu_placement: bool = False

    @property
    def vcpus(self) -> int:
        return self.sockets * self.cores_per_socket


@dataclass(frozen=True, slots=True)
class Memory:
    size: int
    hugepage_size: int | None = None  # bytes: 2 MiB or 1 GiB; None means ordinary pages


@dataclass(frozen=True, slots=True)
class Kernel:
    image: str
    cmdline: str


@dataclass(frozen=True, slots=True)
class Disk:
    name: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class FileSystem:
    name: str


@dataclass(frozen=True, slots=True)
class BridgeBinding:
    """The guest takes over the link's MAC and IP address."""


@dataclass(frozen=True, slots=True)
class MasqueradeBinding:
    cidr: str = "10.0.2.0/30"


@dataclass(frozen=True, slots=True)
class SriovBinding:
    """A PCI function given to the pod by a device plugin."""


@dataclass(frozen=True, slots=True)
class VdpaBinding:
    num_queues: int = 1
    iommu: bool = False


@dataclass(frozen=True, slots=True)
class VhostUserBinding:
    """A socket of a userspace switch."""


Binding: TypeAlias = BridgeBinding | MasqueradeBinding | SriovBinding | VdpaBinding | VhostUserBinding


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    mac: str  # six colon-separated octets, lower case; derived from the VM's identity when the spec gives none
    binding: Binding


@dataclass(frozen=True, slots=True)
class ContainerDiskVolume:
    name: str
    image: str


@dataclass(frozen=True, slots=True)
class ContainerRootfsVolume:
    name: str
    image: str
    size: int


@dataclass(frozen=True, slots=True)
class SecretRef:
    """The name of a Secret, mounted as a file; its content never passes through the spec."""

    name: str


@dataclass(frozen=True, slots=True)
class CloudInitVolume:
    """User and network data, decoded. ``None`` is absent, which differs from empty."""

    name: str
    user_data: bytes | SecretRef | None = None
    network_data: bytes | SecretRef | None = None


@dataclass(frozen=True, slots=True)
class PvcVolume:
    name: str
    claim_name: str
    hotpluggable: bool = False


@dataclass(frozen=True, slots=True)
class DataVolumeVolume:
    name: str
    volume_name: str
    hotpluggable: bool = False


Volume: TypeAlias = ContainerDiskVolume | ContainerRootfsVolume | CloudInitVolume | PvcVolume | DataVolumeVolume


@dataclass(frozen=True, slots=True)
class PodNetwork:
    name: str


@dataclass(frozen=True, slots=True)
class MultusNetwork:
    name: str
    network_name: str


Network: TypeAlias = PodNetwork | MultusNetwork


@dataclass(frozen=True, slots=True)
class Instance:
    memory: Memory
    cpu: Cpu = Cpu()
    kernel: Kernel | None = None
    disks: tuple[Disk, ...] = ()
    file_systems: tuple[FileSystem, ...] = ()
    interfaces: tuple[Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One VM. ``uid`` may be empty (a spec written by hand); ``namespace`` defaults to ``default``."""

    name: str
    namespace: str
    uid: str
    run_policy: RunPolicy
    instance: Instance
    volumes: tuple[Volume, ...] = ()
    networks: tuple[Network, ...] = ()

    def volume(self, name: str) -> Volume:
        """The volume a disk or file system refers to; the spec's rules guarantee that it exists."""
        return next(volume for volume in self.volumes if volume.name == name)

    def network(self, name: str) -> Network:
        """The network an interface refers to; the spec's rules guarantee that it exists."""
        return next(network for network in self.networks if network.name == name)
