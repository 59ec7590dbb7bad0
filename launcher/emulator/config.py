"""VmConfig as the API takes it: types, defaults and rules of cloud-hypervisor v53.0 (vmm/src/vm_config.rs, config.rs).

A stored config is plain JSON data with the server's defaults filled in, since vm.info gives it back. Fields that the
server does not know are ignored, as it ignores them; fields that it knows and the emulator cannot honour are refused
with 501 when they ask for something. Placement hints (affinity, huge pages, sharing, queue depth, locking in memory)
change nothing that a guest sees and are accepted.
"""

from __future__ import annotations

import copy
import json
import random
from types import EllipsisType
from typing import Any, TypeAlias

from launcher.emulator.refusal import Refused, bad_json, not_emulated

# A kind is a Python type, a tuple of the words of an enumeration, [kind] for a list, or a table for an object. A default
# of None leaves the field out when it is unset; ... makes it required.
Kind: TypeAlias = "type | tuple[str, ...] | list[Kind] | dict[str, tuple[Kind, Any]]"
Table: TypeAlias = "dict[str, tuple[Kind, Any]]"
Json: TypeAlias = "dict[str, Any]"

PCI: Table = {"id": (str, None), "pci_segment": (int, 0)}
CPUS: Table = {
    "boot_vcpus": (int, ...),
    "max_vcpus": (int, ...),
    "topology": (
        dict.fromkeys(("threads_per_core", "cores_per_die", "dies_per_package", "packages"), (int, ...)),
        None,
    ),
    "kvm_hyperv": (bool, False),
    "max_phys_bits": (int, 46),
    "affinity": ([{"vcpu": (int, ...), "host_cpus": ([int], ...)}], None),
    "features": ({"amx": (bool, False)}, {"amx": False}),
    "nested": (bool, True),
    "core_scheduling": (("Vm", "Vcpu", "Off"), "Vm"),
    "profile": (("Host",), "Host"),
}
MEMORY: Table = {
    "size": (int, ...),
    "mergeable": (bool, False),
    "hotplug_method": (("Acpi", "VirtioMem"), "Acpi"),
    "shared": (bool, False),
    "hugepages": (bool, False),
    "hugepage_size": (int, None),
    "prefault": (bool, False),
    "reserve": (bool, False),
    "thp": (bool, True),
}
DISK: Table = {
    **PCI,
    "path": (str, None),
    "readonly": (bool, False),
    "direct": (bool, False),
    "num_queues": (int, 1),
    "queue_size": (int, 128),
    "vhost_user": (bool, False),
    "disable_io_uring": (bool, False),
    "disable_aio": (bool, False),
    "serial": (str, None),
    "backing_files": (bool, False),
    "sparse": (bool, True),
    "image_type": (("FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown"), "Unknown"),
    "lock_granularity": (("ByteRange", "Full"), "ByteRange"),
}
NET: Table = {
    **PCI,
    "tap": (str, None),
    "mac": (str, None),
    "mtu": (int, None),
    "num_queues": (int, 2),
    "queue_size": (int, 256),
    "vhost_user": (bool, False),
    "vhost_mode": (("Client", "Server"), "Client"),
    "offload_tso": (bool, True),
    "offload_ufo": (bool, True),
    "offload_csum": (bool, True),
}
FS: Table = {
    **PCI,
    "tag": (str, ...),
    "socket": (str, ...),
    "num_queues": (int, 1),
    "queue_size": (int, 1024),
}
MODES = ("Off", "Pty", "Tty", "File", "Socket", "Null")
CONSOLE: Table = {"file": (str, None), "mode": (MODES, ...), "socket": (str, None)}
VM: Table = {
    "cpus": (CPUS, {"boot_vcpus": 1, "max_vcpus": 1}),
    "memory": (MEMORY, {"size": 512 << 20}),
    "payload": (
        {"kernel": (str, None), "cmdline": (str, None), "initramfs": (str, None), "firmware": (str, None)},
        None,
    ),
    "disks": ([DISK], None),
    "net": ([NET], None),
    "fs": ([FS], None),
    "rng": ({**PCI, "src": (str, ...)}, {"src": "/dev/urandom"}),
    "serial": (CONSOLE, {"mode": "Null"}),
    "console": (CONSOLE, {"mode": "Tty"}),
    "pvpanic": (bool, False),
    "iommu": (bool, False),
    "watchdog": (bool, False),
    "landlock_enable": (bool, False),
}

SERIAL_BYTES = 20  # virtio-blk's own limit

# What cloud-hypervisor knows and this program does not do, by the object it stands in.
_PCI_UNKNOWN = ("iommu", "pci_segment", "pci_device_id")
NOT_EMULATED: dict[str, tuple[str, ...]] = {
    "": (
        *("balloon", "debug_console", "devices", "generic_vhost_user", "iommu", "ivshmem", "landlock_enable"),
        *("numa", "pci_segments", "platform", "pmem", "rate_limit_groups", "rtc", "tpm", "user_devices", "vdpa"),
        *("vsock", "watchdog"),
    ),
    "cpus": ("kvm_hyperv",),
    "memory": ("hotplug_size", "hotplugged_size", "zones"),
    "payload": ("igvm", "fw_cfg_config", "host_data"),
    "disks": (*_PCI_UNKNOWN, "rate_limit_group", "rate_limiter_config", "vhost_socket", "vhost_user"),
    "net": (*_PCI_UNKNOWN, "host_mac", "ip", "mask", "rate_limiter_config", "vhost_socket", "vhost_user"),
    "fs": _PCI_UNKNOWN,
    "rng": _PCI_UNKNOWN,
}


def parse_vm(body: bytes) -> Json:
    """The config of a vm.create with its defaults. Refused with 400 for JSON that does not fit, with 501 as said above."""
    given = _load(body)
    config: Json = _typed(given, VM, "VmConfig")
    _check_emulated(given, "")
    for room in ("cpus", "memory", "payload", "rng"):
        _check_emulated(given.get(room) or {}, room)
    for room in ("disks", "net", "fs"):
        for device in given.get(room) or ():
            _check_emulated(device, room)
    for net in config.get("net", ()):
        net.setdefault("mac", _random_mac())
    if config["console"]["mode"] not in {"Off", "Null"}:
        raise not_emulated(f"console mode {config['console']['mode']}")
    if config["serial"]["mode"] in {"File", "Socket"} and config["serial"]["mode"].lower() not in config["serial"]:
        raise not_emulated(f"serial mode {config['serial']['mode']} without a path")
    return config


def parse_net(body: bytes) -> Json:
    """The NetConfig of a vm.add-net with its defaults."""
    given = _load(body)
    net: Json = _typed(given, NET, "NetConfig")
    _check_emulated(given, "net")
    net.setdefault("mac", _random_mac())
    return net


def _load(body: bytes) -> Json:
    try:
        given = json.loads(body)
    except RecursionError as error:
        raise bad_json("recursion limit exceeded") from error
    except ValueError as error:
        raise bad_json(str(error)) from error
    if not isinstance(given, dict):
        raise bad_json(f"invalid type: {type(given).__name__}, expected a struct")
    return given


def _typed(value: Any, kind: Kind, where: str) -> Any:
    """``value`` with defaults filled in, when it has the shape of ``kind``."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise bad_json(f"invalid type: {value!r}, expected struct {where}")
        return _filled(value, kind)
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise bad_json(f"invalid type: {value!r}, expected a sequence for `{where}`")
        return [_typed(item, kind[0], where) for item in value]
    if isinstance(kind, tuple):
        if value not in kind:
            choices = ", ".join(f"`{word}`" for word in kind)
            raise bad_json(f"unknown variant `{value}`, expected one of {choices}")
        return value
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 1 << 64):
        raise bad_json(f"invalid type: {value!r}, expected {kind.__name__} for `{where}`")
    if isinstance(value, str):
        if any(0xD800 <= ord(character) < 0xE000 for character in value):
            raise bad_json(f"lone surrogate in `{where}`")
        if "\0" in value:
            raise not_emulated(f"a NUL in {where}")
    return value


def _filled(value: Json, table: Table) -> Json:
    filled: Json = {}
    for name, (kind, default) in table.items():
        given = value.get(name)
        if given is None:
            if isinstance(default, EllipsisType):
                raise bad_json(f"missing field `{name}`")
            if default is not None:
                if name in value:
                    raise bad_json(f"invalid type: null for `{name}`")
                filled[name] = _typed(copy.deepcopy(default), kind, name)
        else:
            filled[name] = _typed(given, kind, name)
    return filled


def _check_emulated(given: Json, room: str) -> None:
    for name in NOT_EMULATED[room]:
        value = given.get(name)
        if value and value != {"mode": "Off"}:
            raise not_emulated(f"{room}.{name}" if room else name)


def _random_mac() -> str:
    tail = (random.randrange(256) for _ in range(5))  # noqa: S311  # an address, not a secret
    return ":".join(f"{octet:02x}" for octet in (0x2E, *tail))


def validate(config: Json) -> None:
    """The rules that cloud-hypervisor applies at boot and at each hot-plug, as far as the emulated fields can break them."""

    def invalid(*chain: str) -> Refused:
        return Refused("Failed to validate config", *chain)

    payload = config.get("payload", {})
    if not payload.get("kernel") and not payload.get("firmware"):
        raise invalid("Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel")
    if payload.get("kernel") and payload.get("firmware"):
        raise invalid(
            "Payload configuration is not bootable", "Specifying a kernel is not supported when a firmware is provided"
        )
    cpus = config["cpus"]
    if cpus["max_vcpus"] < cpus["boot_vcpus"]:
        raise invalid(f"Max CPUs ({cpus['max_vcpus']}) lower than boot CPUs ({cpus['boot_vcpus']})")
    if (topology := cpus.get("topology")) is not None:
        total = 1
        for count in topology.values():
            total *= count
        if total != cpus["max_vcpus"]:
            raise invalid("Product of CPU topology parts does not match maximum vCPU")
    seen: set[str] = set()
    for device in (*config.get("disks", ()), *config.get("net", ()), *config.get("fs", ()), config["rng"]):
        name = device.get("id")
        if name is None:
            continue
        if name.startswith("__"):
            raise invalid(f"Identifier {name} is not invalid")  # sic, v53.0
        if name in seen:
            raise invalid(f"Identifier {name} is not unique")
        seen.add(name)
    for disk in config.get("disks", ()):
        if (length := len(disk.get("serial", "").encode())) > SERIAL_BYTES:
            raise invalid(f"Block device serial length ({length}) exceeds maximum allowed length ({SERIAL_BYTES})")
    for net in config.get("net", ()):
        queues, fds = net["num_queues"], net.get("fds")
        if queues < 2:
            raise invalid(f"Number of queues ({queues}) to virtio_net should be higher than 2")
        if fds is not None and queues != 2 * len(fds):
            raise invalid(
                f"Number of queues ({queues}) to virtio_net does not match the number of FDs ({2 * len(fds)})"
            )
        if queues // 2 > cpus["boot_vcpus"]:
            raise invalid(f"Queue count ({queues // 2}) must not exceed boot vCPUs ({cpus['boot_vcpus']})")
    for fs in config.get("fs", ()):
        if fs["num_queues"] > cpus["boot_vcpus"]:
            raise invalid(f"Queue count ({fs['num_queues']}) must not exceed boot vCPUs ({cpus['boot_vcpus']})")
        if not config["memory"]["shared"] and not config["memory"]["hugepages"]:
            raise invalid("Using vhost-user requires using shared memory or huge pages")


def fill_ids(config: Json) -> None:
    """Name the devices that have no id, from one counter over all of them."""
    counter = 0
    for room, label in (("disks", "_disk"), ("net", "_net"), ("fs", "_fs")):
        for device in config.get(room, ()):
            if "id" not in device:
                device["id"] = f"{label}{counter}"
                counter += 1
