"""From the wire's JSON to our types, defaults filled in; one function per object of the API.

Source: virtink ``pkg/apis/virt/v1alpha1/types.go``, its CRD, and the webhooks' rules about one object alone
(``pkg/controller/vm_webhook.go``); rules between objects are in ``rules``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.spec.fields import image, label, size_in_bytes
from launcher.spec.jsonpath import quote
from launcher.spec.networks import parse_interface, parse_network
from launcher.spec.quantity import Quantity
from launcher.spec.types import Cpu, Disk, FileSystem, Instance, Kernel, Memory, RunPolicy, VmSpec
from launcher.spec.volumes import parse_volume

if TYPE_CHECKING:
    from launcher.spec.cursor import Cursor

API_VERSION = "virt.virtink.smartx.com/v1alpha1"
KIND = "VirtualMachine"
PAGE_SIZES = {"2Mi": 2 << 20, "1Gi": 1 << 30}

_SCHEDULING = ("nodeSelector", "affinity", "tolerations", "resources", "livenessProbe", "readinessProbe")
_SPEC = (*_SCHEDULING, "runPolicy", "instance", "volumes", "networks")
_INSTANCE = ("cpu", "memory", "kernel", "disks", "fileSystems", "interfaces")

_DEFAULT_MEMORY = Quantity.of(1 << 30)
_MAX_UINT32 = (1 << 32) - 1
_TAG_BYTES = 36  # linux/virtio_fs.h, struct virtio_fs_config


@dataclass(frozen=True, slots=True)
class Resources:
    """The pod's requests and limits that rules speak of: cpu, memory and hugepages-*."""

    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


@dataclass(frozen=True, slots=True)
class Draft:
    """A spec of which only the objects one by one have been judged."""

    spec: VmSpec
    memory_size: Quantity  # exact, for comparison with the resources
    resources: Resources


def parse(root: Cursor) -> Draft:
    """Read a whole VirtualMachine. Problems go to the cursor's log; with any there, the draft holds stand-ins."""
    metadata = root.get("metadata").object()
    name = _identity(metadata.get("name"), required=True)
    namespace = _identity(metadata.get("namespace")) or "default"
    uid = _identity(metadata.get("uid"))
    spec = root.get("spec").required_object(_SPEC)
    resources = _resources(spec.get("resources").object())
    instance = spec.get("instance").required_object(_INSTANCE)
    memory, memory_size = _memory(instance.get("memory"), resources)
    return Draft(
        spec=VmSpec(
            name=name,
            namespace=namespace,
            uid=uid,
            run_policy=_run_policy(spec.get("runPolicy")),
            instance=Instance(
                cpu=_cpu(instance.get("cpu")),
                memory=memory,
                kernel=_kernel(instance.get("kernel")),
                disks=tuple(map(_disk, instance.get("disks").items())),
                file_systems=tuple(map(_file_system, instance.get("fileSystems").items())),
                interfaces=tuple(
                    parse_interface(item, uid or f"{namespace}/{name}") for item in instance.get("interfaces").items()
                ),
            ),
            volumes=tuple(map(parse_volume, spec.get("volumes").items())),
            networks=tuple(map(parse_network, spec.get("networks").items())),
        ),
        memory_size=memory_size,
        resources=resources,
    )


def _identity(cursor: Cursor, *, required: bool = False) -> str:
    text = cursor.required_text() if required else cursor.text()
    if not text.isprintable():
        cursor.problem(f"{quote(text)} holds unprintable characters")
    return text


def _resources(cursor: Cursor) -> Resources:
    return Resources(requests=_quantities(cursor.get("requests")), limits=_quantities(cursor.get("limits")))


def _quantities(cursor: Cursor) -> dict[str, Quantity]:
    names = cursor.object().value
    found = {
        name: cursor.get(name).quantity()
        for name in (names if isinstance(names, dict) else ())
        if name in {"cpu", "memory"} or name.startswith("hugepages-")
    }
    return {name: quantity for name, quantity in found.items() if quantity is not None}


def _run_policy(cursor: Cursor) -> RunPolicy:
    text = cursor.text()
    try:
        return RunPolicy(text or "Once")
    except ValueError:
        cursor.problem(f"{quote(text)} is not one of {', '.join(policy.value for policy in RunPolicy)}")
        return RunPolicy.ONCE


def _cpu(cursor: Cursor) -> Cpu:
    cpu = cursor.object(("sockets", "coresPerSocket", "dedicatedCPUPlacement"))
    return Cpu(
        sockets=cpu.get("sockets").integer(most=_MAX_UINT32) or 1,
        cores_per_socket=cpu.get("coresPerSocket").integer(most=_MAX_UINT32) or 1,
        dedicated_cpu_placement=cpu.get("dedicatedCPUPlacement").boolean(),
    )


def _memory(cursor: Cursor, resources: Resources) -> tuple[Memory, Quantity]:
    memory = cursor.object(("size", "hugepages"))
    size = memory.get("size").quantity()
    if size is None or size.is_zero:
        size = resources.requests.get("memory")
    if size is None or size.is_zero:
        size = _DEFAULT_MEMORY
    return Memory(size_in_bytes(memory.get("size"), size), _page_size(memory.get("hugepages"))), size


def _page_size(cursor: Cursor) -> int | None:
    if not cursor.present:
        return None
    field = cursor.object(("pageSize",)).get("pageSize")
    text = field.text() if field.present else "1Gi"
    if text not in PAGE_SIZES and not field.log.failed(field.path):
        field.problem(f"{quote(text)} is not one of {', '.join(PAGE_SIZES)}")
    return PAGE_SIZES.get(text)


def _kernel(cursor: Cursor) -> Kernel | None:
    if not cursor.present:
        return None
    kernel = cursor.object(("image", "imagePullPolicy", "cmdline"))
    return Kernel(image=image(kernel), cmdline=kernel.get("cmdline").required_text())


def _disk(cursor: Cursor) -> Disk:
    disk = cursor.object(("name", "readOnly"))
    return Disk(name=label(disk.get("name")), read_only=disk.get("readOnly").boolean())


def _file_system(cursor: Cursor) -> FileSystem:
    field = cursor.object(("name",)).get("name")
    name = label(field)
    if len(name) > _TAG_BYTES and not field.log.failed(field.path):
        field.problem(f"{quote(name)} is the tag that the guest mounts, which has room for {_TAG_BYTES} bytes")
    return FileSystem(name)
