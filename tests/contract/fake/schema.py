"""The field rules of v53.0's vm.create and of the device calls: names, types, defaults, what must be there.

Source: vmm/src/vm_config.rs of v53.0, default features, x86-64. Unknown fields are taken, as the real one takes them
(except in a rate limiter), but they are among the ``objections`` that strict mode reports.
"""

from __future__ import annotations

import copy
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

REQUIRED = object()
OPTIONAL = object()


class DecodeError(Exception):
    """As serde would say it, without the position."""


@dataclass
class Context:
    nulls: bool = False  # unset optional fields are told as null (up to v52)
    objections: list[str] = field(default_factory=list)


def named(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f'string "{value}"'
        case list():
            return "sequence"
        case _:
            return "map"


def scalar(kind: type, expected: str) -> Callable[[Any, str, Context], Any]:
    def rule(value: Any, _where: str, _context: Context) -> Any:
        if type(value) is not kind:
            raise DecodeError(f"invalid type: {named(value)}, expected {expected}")
        return value

    return rule


def unsigned(bits: int) -> Callable[[Any, str, Context], Any]:
    def rule(value: Any, _where: str, _context: Context) -> Any:
        if type(value) is not int:
            raise DecodeError(f"invalid type: {named(value)}, expected u{bits}")
        if not 0 <= value < 1 << bits:
            raise DecodeError(f"invalid value: {named(value)}, expected u{bits}")
        return value

    return rule


def one_of(*names: str) -> Callable[[Any, str, Context], Any]:
    def rule(value: Any, _where: str, _context: Context) -> Any:
        if value not in names:
            raise DecodeError(f"unknown variant `{value}`, expected one of {', '.join(f'`{name}`' for name in names)}")
        return value

    return rule


def array(item: Callable[[Any, str, Context], Any]) -> Callable[[Any, str, Context], Any]:
    def rule(value: Any, where: str, context: Context) -> Any:
        if not isinstance(value, list):
            raise DecodeError(f"invalid type: {named(value)}, expected a sequence")
        return [item(each, f"{where}[{i}]", context) for i, each in enumerate(value)]

    return rule


def mac(value: Any, _where: str, _context: Context) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
        raise DecodeError(f"invalid value: {named(value)}, expected a MAC address")
    return value.lower()


def address(value: Any, _where: str, _context: Context) -> Any:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise DecodeError("invalid IP address syntax") from None


def dropped(value: Any, where: str, context: Context) -> Any:
    """Descriptors in a body mean nothing; the real one puts -1 in their place and then drops them."""
    context.objections.append(f"{where}: descriptors go with SCM_RIGHTS")
    return value


class Struct:
    """``fields`` maps a name to (rule, default); OPTIONAL ones may be null. Keys come out in this order."""

    def __init__(
        self, name: str, fields: dict[str, tuple[Any, Any]], *, deny: bool = False, alias: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.fields = fields
        self.deny = deny
        self.alias = alias or {}

    def __call__(self, value: Any, where: str, context: Context) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DecodeError(f"invalid type: {named(value)}, expected struct {self.name}")
        given = {self.alias.get(key, key): item for key, item in value.items()}
        for key in given.keys() - self.fields.keys():
            context.objections.append(f"{where}.{key}: v53.0 does not know it")
            if self.deny:
                raise DecodeError(f"unknown field `{key}`, expected {' or '.join(f'`{name}`' for name in self.fields)}")
        out = {}
        for key, (rule, default) in self.fields.items():
            if key in given and not (given[key] is None and default is OPTIONAL):
                out[key] = rule(given[key], f"{where}.{key}", context)
            elif default is REQUIRED:
                raise DecodeError(f"missing field `{key}`")
            elif default is not OPTIONAL:
                out[key] = copy.deepcopy(default)
            elif context.nulls:
                out[key] = None
        if "mac" in self.fields and "mac" not in given:
            context.objections.append(f"{where}.mac: unset; a static glibc build dies by SIGSYS drawing one")
        for key in [key for key, (rule, _) in self.fields.items() if rule is dropped]:
            out.pop(key, None)
        if out.get("iommu") is False and "pci_segment" in out:
            del out["iommu"]  # the only false that is not told
        return out


BOOL = scalar(bool, "a boolean")
TEXT = scalar(str, "a string")
PATH = scalar(str, "path string")
U8, U16, U32, U64, SIZE = unsigned(8), unsigned(16), unsigned(32), unsigned(64), unsigned(64)

PCI: dict[str, tuple[Any, Any]] = {
    "id": (TEXT, OPTIONAL),
    "iommu": (BOOL, False),
    "pci_segment": (U16, 0),
    "pci_device_id": (U8, OPTIONAL),
}
BUCKET = Struct(
    "TokenBucketConfig", {"size": (U64, REQUIRED), "one_time_burst": (U64, OPTIONAL), "refill_time": (U64, REQUIRED)}
)
LIMITER = Struct("RateLimiterConfig", {"bandwidth": (BUCKET, OPTIONAL), "ops": (BUCKET, OPTIONAL)}, deny=True)
AFFINITY = Struct("CpuAffinity", {"vcpu": (U32, REQUIRED), "host_cpus": (array(SIZE), REQUIRED)})
TOPOLOGY = Struct(
    "CpuTopology",
    dict.fromkeys(("threads_per_core", "cores_per_die", "dies_per_package", "packages"), (U16, REQUIRED)),
)
CPUS = Struct(
    "CpusConfig",
    {
        "boot_vcpus": (U32, REQUIRED),
        "max_vcpus": (U32, REQUIRED),
        "topology": (TOPOLOGY, OPTIONAL),
        "kvm_hyperv": (BOOL, False),
        "max_phys_bits": (U8, 46),
        "affinity": (array(AFFINITY), OPTIONAL),
        "features": (Struct("CpuFeatures", {"amx": (BOOL, False)}), {"amx": False}),
        "nested": (BOOL, True),
        "core_scheduling": (one_of("Vm", "Vcpu", "Off"), "Vm"),
        "profile": (one_of("Host"), "Host"),
    },
)
ZONE = Struct(
    "MemoryZoneConfig",
    {
        "id": (TEXT, REQUIRED),
        "size": (U64, REQUIRED),
        "file": (PATH, OPTIONAL),
        "shared": (BOOL, False),
        "hugepages": (BOOL, False),
        "hugepage_size": (U64, OPTIONAL),
        "host_numa_node": (U32, OPTIONAL),
        "hotplug_size": (U64, OPTIONAL),
        "hotplugged_size": (U64, OPTIONAL),
        "prefault": (BOOL, False),
        "reserve": (BOOL, False),
        "mergeable": (BOOL, False),
    },
)
MEMORY = Struct(
    "MemoryConfig",
    {
        "size": (U64, REQUIRED),
        "mergeable": (BOOL, False),
        "hotplug_method": (one_of("Acpi", "VirtioMem"), "Acpi"),
        "hotplug_size": (U64, OPTIONAL),
        "hotplugged_size": (U64, OPTIONAL),
        "shared": (BOOL, False),
        "hugepages": (BOOL, False),
        "hugepage_size": (U64, OPTIONAL),
        "prefault": (BOOL, False),
        "reserve": (BOOL, False),
        "zones": (array(ZONE), OPTIONAL),
        "thp": (BOOL, True),
    },
)
PAYLOAD = Struct("PayloadConfig", dict.fromkeys(("firmware", "kernel", "cmdline", "initramfs"), (TEXT, OPTIONAL)))
QUEUE_AFFINITY = Struct("VirtQueueAffinity", {"queue_index": (U16, REQUIRED), "host_cpus": (array(SIZE), REQUIRED)})
DISK = Struct(
    "DiskConfig",
    {
        **PCI,
        "path": (PATH, OPTIONAL),
        "readonly": (BOOL, False),
        "direct": (BOOL, False),
        "num_queues": (SIZE, 1),
        "queue_size": (U16, 128),
        "vhost_user": (BOOL, False),
        "vhost_socket": (TEXT, OPTIONAL),
        "rate_limit_group": (TEXT, OPTIONAL),
        "rate_limiter_config": (LIMITER, OPTIONAL),
        "disable_io_uring": (BOOL, False),
        "disable_aio": (BOOL, False),
        "serial": (TEXT, OPTIONAL),
        "queue_affinity": (array(QUEUE_AFFINITY), OPTIONAL),
        "backing_files": (BOOL, False),
        "sparse": (BOOL, True),
        "image_type": (one_of("FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"), "Unknown"),
        "lock_granularity": (one_of("ByteRange", "Full"), "ByteRange"),
    },
)
NET = Struct(
    "NetConfig",
    {
        **PCI,
        "tap": (TEXT, OPTIONAL),
        "ip": (address, OPTIONAL),
        "mask": (address, OPTIONAL),
        "mac": (mac, "2e:89:a8:00:00:01"),  # random in the real one
        "host_mac": (mac, OPTIONAL),
        "mtu": (U16, OPTIONAL),
        "num_queues": (SIZE, 2),
        "queue_size": (U16, 256),
        "vhost_user": (BOOL, False),
        "vhost_socket": (TEXT, OPTIONAL),
        "vhost_mode": (one_of("Client", "Server"), "Client"),
        "fds": (dropped, OPTIONAL),
        "rate_limiter_config": (LIMITER, OPTIONAL),
        "offload_tso": (BOOL, True),
        "offload_ufo": (BOOL, True),
        "offload_csum": (BOOL, True),
    },
)
MODE = one_of("Off", "Pty", "Tty", "File", "Socket", "Null")
SERIAL = Struct("SerialConfig", {"file": (PATH, OPTIONAL), "mode": (MODE, REQUIRED), "socket": (PATH, OPTIONAL)})
CONSOLE = Struct("ConsoleConfig", {**SERIAL.fields, **PCI})
DEBUG_CONSOLE = Struct(
    "DebugConsoleConfig", {"file": (PATH, OPTIONAL), "mode": (MODE, REQUIRED), "iobase": (U16, OPTIONAL)}
)
FS = Struct(
    "FsConfig",
    {**PCI, "tag": (TEXT, REQUIRED), "socket": (PATH, REQUIRED), "num_queues": (SIZE, 1), "queue_size": (U16, 1024)},
)
PMEM = Struct("PmemConfig", {**PCI, "file": (PATH, REQUIRED), "size": (U64, OPTIONAL), "discard_writes": (BOOL, False)})
VDPA = Struct("VdpaConfig", {**PCI, "path": (PATH, REQUIRED), "num_queues": (SIZE, 1)})
VSOCK = Struct("VsockConfig", {**PCI, "cid": (U32, REQUIRED), "socket": (PATH, REQUIRED)})
DEVICE = Struct(
    "DeviceConfig",
    {
        **PCI,
        "path": (PATH, OPTIONAL),
        "fd": (dropped, OPTIONAL),
        "x_nv_gpudirect_clique": (U8, OPTIONAL),
        "x_exclude_mmap_bars": (array(U64), []),
    },
)
USER_DEVICE = Struct("UserDeviceConfig", {**PCI, "socket": (PATH, REQUIRED)})
GENERIC_VHOST_USER = Struct(
    "GenericVhostUserConfig",
    {**PCI, "socket": (PATH, REQUIRED), "queue_sizes": (array(U16), REQUIRED), "device_type": (U32, REQUIRED)},
)
RNG = Struct("RngConfig", {**PCI, "src": (PATH, REQUIRED)})
BALLOON = Struct(
    "BalloonConfig",
    {**PCI, "size": (U64, REQUIRED), "deflate_on_oom": (BOOL, False), "free_page_reporting": (BOOL, False)},
)
DISTANCE = Struct("NumaDistance", {"destination": (U32, 0), "distance": (U8, 0)})
NUMA = Struct(
    "NumaConfig",
    {
        "guest_numa_id": (U32, REQUIRED),
        "cpus": (array(U32), OPTIONAL),
        "distances": (array(DISTANCE), OPTIONAL),
        "memory_zones": (array(TEXT), OPTIONAL),
        "pci_segments": (array(U16), OPTIONAL),
        "device_id": (TEXT, OPTIONAL),
    },
)
PLATFORM = Struct(
    "PlatformConfig",
    {
        "num_pci_segments": (U16, 1),
        "iommu_segments": (array(U16), OPTIONAL),
        "iommu_address_width_bits": (U8, 64),
        "system_serial_number": (TEXT, OPTIONAL),
        "system_uuid": (TEXT, OPTIONAL),
        "oem_strings": (array(TEXT), OPTIONAL),
        **dict.fromkeys(
            (
                "system_manufacturer",
                "system_product_name",
                "system_version",
                "system_family",
                "system_sku_number",
                "chassis_asset_tag",
            ),
            (TEXT, OPTIONAL),
        ),
        "iommufd": (BOOL, False),
        "iommufd_fd": (dropped, OPTIONAL),
        "vfio_p2p_dma": (BOOL, True),
    },
    alias={"uuid": "system_uuid", "serial_number": "system_serial_number"},
)
SEGMENT = Struct(
    "PciSegmentConfig",
    {"pci_segment": (U16, 0), "mmio32_aperture_weight": (U32, 1), "mmio64_aperture_weight": (U32, 1)},
)
GROUP = Struct("RateLimiterGroupConfig", {"id": (TEXT, ""), "rate_limiter_config": (LIMITER, {})})
VM = Struct(
    "VmConfig",
    {
        "cpus": (CPUS, CPUS({"boot_vcpus": 1, "max_vcpus": 1}, "", Context())),
        "memory": (MEMORY, MEMORY({"size": 512 << 20}, "", Context())),
        "payload": (PAYLOAD, OPTIONAL),
        "rate_limit_groups": (array(GROUP), OPTIONAL),
        "disks": (array(DISK), OPTIONAL),
        "net": (array(NET), OPTIONAL),
        "rng": (RNG, {"pci_segment": 0, "src": "/dev/urandom"}),
        "balloon": (BALLOON, OPTIONAL),
        "generic_vhost_user": (array(GENERIC_VHOST_USER), OPTIONAL),
        "fs": (array(FS), OPTIONAL),
        "pmem": (array(PMEM), OPTIONAL),
        "serial": (SERIAL, {"mode": "Null"}),
        "console": (CONSOLE, {"mode": "Tty", "pci_segment": 0}),
        "debug_console": (DEBUG_CONSOLE, {"mode": "Off", "iobase": 233}),
        "devices": (array(DEVICE), OPTIONAL),
        "user_devices": (array(USER_DEVICE), OPTIONAL),
        "vdpa": (array(VDPA), OPTIONAL),
        "vsock": (VSOCK, OPTIONAL),
        "pvpanic": (BOOL, False),
        "iommu": (BOOL, False),
        "numa": (array(NUMA), OPTIONAL),
        "watchdog": (BOOL, False),
        "rtc": (Struct("RtcConfig", PCI), OPTIONAL),
        "pci_segments": (array(SEGMENT), OPTIONAL),
        "platform": (PLATFORM, OPTIONAL),
        "tpm": (Struct("TpmConfig", {"socket": (PATH, REQUIRED)}), OPTIONAL),
        "landlock_enable": (BOOL, False),
        "landlock_rules": (
            array(Struct("LandlockConfig", {"path": (PATH, REQUIRED), "access": (TEXT, REQUIRED)})),
            OPTIONAL,
        ),
    },
)
RESIZE = Struct("VmResizeData", {f"desired_{name}": (U64, OPTIONAL) for name in ("vcpus", "ram", "balloon")})
RESIZE_DISK = Struct("VmResizeDiskData", {"id": (TEXT, REQUIRED), "desired_size": (U64, REQUIRED)})
REMOVE = Struct("VmRemoveDeviceData", {"id": (TEXT, REQUIRED)})
SNAPSHOT = Struct("VmSnapshotConfig", {"destination_url": (TEXT, REQUIRED)})
RESTORE = Struct(
    "RestoreConfig",
    {
        "source_url": (PATH, REQUIRED),
        "prefault": (BOOL, False),
        "memory_restore_mode": (one_of("Copy", "OnDemand"), "Copy"),
        "net_fds": (
            array(Struct("RestoredNetConfig", {"id": (TEXT, REQUIRED), "num_fds": (SIZE, REQUIRED)})),
            OPTIONAL,
        ),
        "resume": (BOOL, False),
    },
)
SEND = Struct(
    "VmSendMigrationData",
    {
        "destination_url": (TEXT, REQUIRED),
        "local": (BOOL, False),
        "downtime_ms": (U64, 300),
        "timeout_s": (U64, 3600),
        "timeout_strategy": (one_of("Cancel", "Ignore"), "Cancel"),
        "connections": (U32, 1),
        "tls_dir": (PATH, OPTIONAL),
        "memory_mode": (TEXT, OPTIONAL),
    },
)
RECEIVE = Struct(
    "VmReceiveMigrationData",
    {"receiver_url": (TEXT, REQUIRED), "tls_dir": (PATH, OPTIONAL), "memory_mode": (TEXT, OPTIONAL)},
)
