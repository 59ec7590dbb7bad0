"""What must hold between the objects of a spec: Virtink's webhook rules, and the ones it forgets.

Source: virtink ``pkg/controller/vm_webhook.go``. A rule keeps silent about what has already been found unreadable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from launcher.spec.jsonpath import Path, did_you_mean, quote
from launcher.spec.parse import PAGE_SIZES, Draft, Resources
from launcher.spec.quantity import Quantity, format_bytes
from launcher.spec.types import (
    ContainerRootfsVolume,
    Disk,
    FileSystem,
    Interface,
    MasqueradeBinding,
    Network,
    PodNetwork,
    VhostUserBinding,
    VmSpec,
    Volume,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from launcher.spec.cursor import Log

MEMORY_OVERHEAD = Quantity.of(256 << 20)  # what Virtink reckons for the VMM and its helpers

_SPEC: Path = ("spec",)
_INSTANCE: Path = ("spec", "instance")
_RESOURCES: Path = ("spec", "resources")
_SIZE: Path = (*_INSTANCE, "memory", "size")
_ZERO = Quantity(0)

# Where the figures come from that a rule compares: when one is unreadable, the rule keeps silent.
_MODES: tuple[Path, ...] = (
    (*_INSTANCE, "cpu"),
    (*_INSTANCE, "cpu", "dedicatedCPUPlacement"),
    (*_INSTANCE, "memory"),
    (*_INSTANCE, "memory", "hugepages"),
    (*_INSTANCE, "memory", "hugepages", "pageSize"),
)
_VCPUS: tuple[Path, ...] = ((*_INSTANCE, "cpu", "sockets"), (*_INSTANCE, "cpu", "coresPerSocket"))
_MEMORY: tuple[Path, ...] = (_SIZE, _RESOURCES, (*_RESOURCES, "requests"), (*_RESOURCES, "requests", "memory"))

_Named: TypeAlias = Disk | FileSystem | Interface | Volume | Network


def check(draft: Draft, log: Log) -> None:
    """Log every broken rule of a parsed spec."""
    _check_resources(draft, log)
    instance, spec = draft.spec.instance, draft.spec
    disks = (
        *_places(instance.disks, (*_INSTANCE, "disks")),
        *_places(instance.file_systems, (*_INSTANCE, "fileSystems")),
    )
    interfaces = _places(instance.interfaces, (*_INSTANCE, "interfaces"))
    volumes = _places(spec.volumes, (*_SPEC, "volumes"))
    networks = _places(spec.networks, (*_SPEC, "networks"))
    for named in (disks, interfaces, volumes, networks):
        _check_unique(named, log)
    _check_references(disks, volumes, "volume", (*_SPEC, "volumes"), log)
    _check_references(interfaces, networks, "network", (*_SPEC, "networks"), log)
    _check_references(networks, interfaces, "interface", (*_INSTANCE, "interfaces"), log)
    _check_boot(spec, log)
    _check_bindings(spec, log)


def _places(named: Iterable[_Named], parent: Path) -> list[tuple[Path, str]]:
    return [((*parent, at, "name"), item.name) for at, item in enumerate(named)]


def _check_unique(names: Sequence[tuple[Path, str]], log: Log) -> None:
    seen: set[str] = set()
    for path, name in names:
        if name in seen:
            log.problem(path, f"duplicate name {quote(name)}")
        if name:
            seen.add(name)


def _check_references(
    names: Sequence[tuple[Path, str]], targets: Sequence[tuple[Path, str]], what: str, where: Path, log: Log
) -> None:
    """Every name must be one of the targets' names; when those could not all be read, nobody can tell."""
    known = {name for _, name in targets}
    if "" in known or log.failed(where):
        return
    for path, name in names:
        if name and name not in known and not log.failed(path):
            log.problem(path, f"there is no {what} named {quote(name)}{did_you_mean(name, known)}")


def _check_boot(spec: VmSpec, log: Log) -> None:
    disks = spec.instance.disks
    first = next((volume for volume in spec.volumes if disks and volume.name == disks[0].name), None)
    if spec.instance.kernel is None and isinstance(first, ContainerRootfsVolume):
        log.problem(
            (*_INSTANCE, "kernel"),
            f"required: the first disk, {quote(first.name)}, is a containerRootfs, which has no boot loader",
        )


def _check_bindings(spec: VmSpec, log: Log) -> None:
    networks = {network.name: network for network in spec.networks}
    vhost_user_fit = spec.instance.cpu.dedicated_cpu_placement and spec.instance.memory.hugepage_size is not None
    for at, interface in enumerate(spec.instance.interfaces):
        place = (*_INSTANCE, "interfaces", at)
        network = networks.get(interface.name)
        match interface.binding:
            case MasqueradeBinding() if network is not None and not isinstance(network, PodNetwork):
                log.problem((*place, "masquerade"), "masquerade works on the pod network only")
            case VhostUserBinding() if not (vhost_user_fit or any(map(log.failed, _MODES))):
                log.problem(
                    (*place, "vhostUser"),
                    "may not use vhost-user interface without dedicated CPU placement and hugepages",
                )
            case _:
                pass


def _check_resources(draft: Draft, log: Log) -> None:
    if any(map(log.failed, (*_MODES, *_MEMORY))):
        return
    resources = _with_defaults(draft)
    if draft.spec.instance.cpu.dedicated_cpu_placement:
        _check_dedicated_cpu(draft, resources, log)
    if draft.spec.instance.memory.hugepage_size is not None:
        _check_hugepages(draft, resources, draft.spec.instance.memory.hugepage_size, log)


def _with_defaults(draft: Draft) -> Resources:
    """The requests and limits as the mutating webhook completes them."""
    instance = draft.spec.instance
    requests, limits = dict(draft.resources.requests), dict(draft.resources.limits)
    if instance.cpu.dedicated_cpu_placement:
        wanted = {"cpu": Quantity.of(instance.cpu.vcpus), "memory": _dedicated_memory(draft)}
        for listed in (requests, limits):
            for name, quantity in wanted.items():
                if listed.get(name, _ZERO).is_zero:
                    listed[name] = quantity
    if instance.memory.hugepage_size is not None:
        name = _hugepages_resource(instance.memory.hugepage_size)
        requests.setdefault(name, limits.setdefault(name, draft.memory_size))
        if all(listed.get(name, _ZERO).is_zero for listed in (requests, limits) for name in ("cpu", "memory")):
            requests["memory"] = MEMORY_OVERHEAD
    return Resources(requests, limits)


def _dedicated_memory(draft: Draft) -> Quantity:
    """What a VM with dedicated CPUs must request; hugepages are a resource of their own."""
    if draft.spec.instance.memory.hugepage_size is not None:
        return MEMORY_OVERHEAD
    return MEMORY_OVERHEAD + draft.memory_size


def _hugepages_resource(page_size: int) -> str:
    return f"hugepages-{next(text for text, size in PAGE_SIZES.items() if size == page_size)}"


def _check_dedicated_cpu(draft: Draft, resources: Resources, log: Log) -> None:
    requests, limits = resources.requests, resources.limits
    vcpus = draft.spec.instance.cpu.vcpus
    if not any(map(log.failed, _VCPUS)):
        if requests["cpu"].ceil() != vcpus:
            _resource_problem(log, "requests", "cpu", f"must equal to number of vCPUs, {vcpus}")
        if limits["cpu"] != requests["cpu"]:
            _resource_problem(log, "limits", "cpu", "must equal to CPU request")
    required = _dedicated_memory(draft)
    if requests["memory"] < required:
        _resource_problem(log, "requests", "memory", f"must not be less than {format_bytes(required.ceil())}")
    if limits["memory"] != requests["memory"]:
        _resource_problem(log, "limits", "memory", "must equal to memory request")


def _check_hugepages(draft: Draft, resources: Resources, page_size: int, log: Log) -> None:
    name = _hugepages_resource(page_size)
    request, limit = resources.requests[name], resources.limits[name]
    if request != draft.memory_size:
        _resource_problem(log, "requests", name, "must equal to instance memory size")
    if limit != request:
        _resource_problem(log, "limits", name, "must equal to hugepages request")
    if draft.spec.instance.memory.size % page_size:
        log.problem(
            _SIZE, f"{draft.spec.instance.memory.size} is not positive integer multiple of {format_bytes(page_size)}"
        )


def _resource_problem(log: Log, listed: str, name: str, message: str) -> None:
    """Log a rule about a request or limit, unless its list or one of both values was unreadable to begin with."""
    unreadable = (
        _RESOURCES,
        *((*_RESOURCES, each, *rest) for each in ("requests", "limits") for rest in ((), (name,))),
    )
    if not any(map(log.failed, unreadable)):
        log.problem((*_RESOURCES, listed, name), message)
