"""cloud-hypervisor's VmConfig as we send it: the fields we set, in its own spelling, ``None`` left out on the wire.

Source: cloud-hypervisor ``vmm/src/vm_config.rs`` (v53.0). Defaults of the server are not repeated here: what is absent
stays the VMM's business. Sizes are bytes. Enumerations are its exact CamelCase strings.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

BODY_LIMIT = 51200  # bytes of a request's body that every release up to v53.0 takes (micro_http's default)


@dataclass(frozen=True, slots=True)
class CpuTopology:
    threads_per_core: int
    cores_per_die: int
    dies_per_package: int
    packages: int


@dataclass(frozen=True, slots=True)
class CpuAffinity:
    vcpu: int
    host_cpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CpusConfig:
    boot_vcpus: int
    max_vcpus: int
    topology: CpuTopology
    affinity: tuple[CpuAffinity, ...] | None = None


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    size: int
    hugepages: bool | None = None
    hugepage_size: int | None = None
    shared: bool | None = None


@dataclass(frozen=True, slots=True)
class PayloadConfig:
    """A kernel with its command line, or a firmware."""

    kernel: str | None = None
    cmdline: str | None = None
    initramfs: str | None = None
    firmware: str | None = None


@dataclass(frozen=True, slots=True)
class DiskConfig:
    id: str
    path: str
    readonly: bool
    image_type: Literal["Raw", "Qcow2"]  # always said: a guest could make a detected one lie
    serial: str | None = None  # at most 20 bytes
    direct: bool | None = None
    backing_files: bool | None = None  # let a qcow2 file read from the base it names; off unless said (v51)


@dataclass(frozen=True, slots=True)
class NetConfig:
    id: str
    tap: str
    mac: str
    num_queues: int  # RX and TX queues together: twice the queue pairs


@dataclass(frozen=True, slots=True)
class FsConfig:
    id: str
    tag: str  # at most 36 bytes; the VMM cuts a longer one
    socket: str
    num_queues: int
    queue_size: int


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    mode: Literal["Off", "Socket"]
    socket: str | None = None


@dataclass(frozen=True, slots=True)
class VmConfig:
    cpus: CpusConfig
    memory: MemoryConfig
    payload: PayloadConfig
    disks: tuple[DiskConfig, ...] | None
    net: tuple[NetConfig, ...] | None
    fs: tuple[FsConfig, ...] | None
    serial: ConsoleConfig
    console: ConsoleConfig
    pvpanic: bool


def wire(config: VmConfig) -> dict[str, Any]:
    """The JSON object for ``vm.create``."""
    result: dict[str, Any] = _wire(config)
    return result


def body_size(config: VmConfig) -> int:
    """How many bytes ``vm.create`` sends."""
    return len(json.dumps(wire(config), separators=(",", ":")))


def _wire(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, _wire(getattr(value, field.name))) for field in dataclasses.fields(value))
        return {name: item for name, item in pairs if item is not None}
    if isinstance(value, tuple):
        return [_wire(item) for item in value]
    return value
