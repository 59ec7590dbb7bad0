"""From the wire's JSON to our types, defaults filled in; one function per object of the API.

Source: virtink ``pkg/apis/virt/v1alpha1/types.go``, its CRD, and the webhooks' rules about one object alone
(``pkg/controller/vm_webhook.go``); rules between objects are in ``rules``.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from launcher.spec.jsonpath import quote
from launcher.spec.mac import derive_mac, parse_mac
from launcher.spec.quantity import Quantity
from launcher.spec.types import (
    Binding,
    BridgeBinding,
    CloudInitVolume,
    ContainerDiskVolume,
    ContainerRootfsVolume,
    Cpu,
    DataVolumeVolume,
    Disk,
    FileSystem,
    Instance,
    Interface,
    Kernel,
    MasqueradeBinding,
    Memory,
    MultusNetwork,
    Network,
    PodNetwork,
    PvcVolume,
    RunPolicy,
    SecretRef,
    SriovBinding,
    VdpaBinding,
    VhostUserBinding,
    VmSpec,
    Volume,
)

if TYPE_CHECKING:
    from launcher.spec.cursor import Cursor

API_VERSION = "virt.virtink.smartx.com/v1alpha1"
KIND = "VirtualMachine"
PAGE_SIZES = {"2Mi": 2 << 20, "1Gi": 1 << 30}

_SCHEDULING = ("nodeSelector", "affinity", "tolerations", "resources", "livenessProbe", "readinessProbe")
_SPEC = (*_SCHEDULING, "runPolicy", "instance", "volumes", "networks")
_INSTANCE = ("cpu", "memory", "kernel", "disks", "fileSystems", "interfaces")
_BINDINGS = ("bridge", "masquerade", "sriov", "vdpa", "vhostUser")
_SOURCES = ("containerDisk", "cloudInit", "containerRootfs", "persistentVolumeClaim", "dataVolume")
_NETWORKS = ("pod", "multus")

_DEFAULT_MEMORY = Quantity.of(1 << 30)
_MAX_UINT32 = (1 << 32) - 1
_MAX_INT64 = (1 << 63) - 1
_MIN_SUBNET = 4  # network, gateway, guest, broadcast
_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBNET = re.compile(r"[^/%]+/[0-9]{1,3}")  # Python would also take a bare address, a netmask and a zone

_T = TypeVar("_T")


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
                    _interface(item, uid or f"{namespace}/{name}") for item in instance.get("interfaces").items()
                ),
            ),
            volumes=tuple(map(_volume, spec.get("volumes").items())),
            networks=tuple(map(_network, spec.get("networks").items())),
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
    return Memory(_bytes(memory.get("size"), size), _page_size(memory.get("hugepages"))), size


def _bytes(cursor: Cursor, size: Quantity) -> int:
    value = size.ceil()
    if value <= 0:
        cursor.problem("must be greater than 0")
    elif value > _MAX_INT64:
        cursor.problem("must be less than 8Ei")
    return value


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
    return Kernel(image=_image(kernel), cmdline=kernel.get("cmdline").required_text())


def _image(source: Cursor) -> str:
    source.get("imagePullPolicy").text()  # the kubelet's business; the API only wants a string
    return source.get("image").required_text()


def _disk(cursor: Cursor) -> Disk:
    disk = cursor.object(("name", "readOnly"))
    return Disk(name=_label(disk.get("name")), read_only=disk.get("readOnly").boolean())


def _file_system(cursor: Cursor) -> FileSystem:
    return FileSystem(name=_label(cursor.object(("name",)).get("name")))


def _label(cursor: Cursor) -> str:
    """A name that becomes a path."""
    name = cursor.required_text()
    if name and not _DNS_LABEL.fullmatch(name):
        cursor.problem(
            f"{quote(name)} is not a DNS label: at most 63 lower-case letters, digits and -, a letter or digit at both ends"
        )
    return name


def _link_name(cursor: Cursor) -> str:
    """A name that becomes part of a file's or a device's name, but that the API leaves free."""
    name = cursor.required_text()
    if len(name) > 63:
        cursor.problem("must be at most 63 characters")
    elif "/" in name or "\0" in name:
        cursor.problem(f"{quote(name)} holds a / or a NUL")
    elif name.startswith("__"):
        cursor.problem(f"{quote(name)} starts with __, which cloud-hypervisor keeps for itself")
    return name


def _interface(cursor: Cursor, identity: str) -> Interface:
    interface = cursor.object(("name", "mac", *_BINDINGS))
    name = _link_name(interface.get("name"))
    mac = interface.get("mac")
    text = mac.text()
    address = derive_mac(identity, name)
    if text:
        try:
            address = parse_mac(text)
        except ValueError as error:
            mac.problem(f"{quote(text)} is {error}")
    bindings: dict[str, Binding] = {}
    if (bridge := interface.get("bridge")).present:
        bridge.object(())
        bindings["bridge"] = BridgeBinding()
    if (masquerade := interface.get("masquerade")).present:
        bindings["masquerade"] = _masquerade(masquerade)
    if (sriov := interface.get("sriov")).present:
        sriov.object(())
        bindings["sriov"] = SriovBinding()
    if (vdpa := interface.get("vdpa")).present:
        fields = vdpa.object(("numQueues", "iommu"))
        queues = fields.get("numQueues").integer(most=_MAX_UINT32) or 1
        bindings["vdpa"] = VdpaBinding(queues, fields.get("iommu").boolean())
    if (vhost_user := interface.get("vhostUser")).present:
        vhost_user.object(())
        bindings["vhostUser"] = VhostUserBinding()
    return Interface(name, address, _single(interface, bindings, "binding method") or BridgeBinding())


def _single(parent: Cursor, given: dict[str, _T], what: str) -> _T | None:
    """The first of several alternatives in the API's order, the others being problems."""
    for extra in list(given)[1:]:
        parent.get(extra).problem(f"may not specify more than 1 {what}: {next(iter(given))} is given too")
    return next(iter(given.values()), None)


def _masquerade(cursor: Cursor) -> MasqueradeBinding:
    field = cursor.object(("cidr",)).get("cidr")
    text = field.text()
    if not text:
        return MasqueradeBinding()
    try:
        subnet = ipaddress.ip_network(text, strict=False) if _SUBNET.fullmatch(text) else None
    except ValueError:
        subnet = None
    if subnet is None:
        field.problem(f"{quote(text)} is not a subnet: an address and a prefix length are, such as 10.0.2.0/30")
        return MasqueradeBinding()
    if subnet.num_addresses < _MIN_SUBNET:
        field.problem(f"{quote(text)} must contain at least {_MIN_SUBNET} IPs")
    return MasqueradeBinding(str(subnet))


def _volume(cursor: Cursor) -> Volume:
    volume = cursor.object(("name", *_SOURCES))
    name = _label(volume.get("name"))
    sources: dict[str, Volume] = {}
    if (disk := volume.get("containerDisk")).present:
        sources["containerDisk"] = ContainerDiskVolume(name, _image(disk.object(("image", "imagePullPolicy"))))
    if (seed := volume.get("cloudInit")).present:
        sources["cloudInit"] = _cloud_init(name, seed)
    if (rootfs := volume.get("containerRootfs")).present:
        sources["containerRootfs"] = _container_rootfs(name, rootfs)
    if (claim := volume.get("persistentVolumeClaim")).present:
        fields = claim.object(("claimName", "hotpluggable"))
        sources["persistentVolumeClaim"] = PvcVolume(
            name, fields.get("claimName").required_text(), fields.get("hotpluggable").boolean()
        )
    if (data := volume.get("dataVolume")).present:
        fields = data.object(("volumeName", "hotpluggable"))
        sources["dataVolume"] = DataVolumeVolume(
            name, fields.get("volumeName").required_text(), fields.get("hotpluggable").boolean()
        )
    source = _single(volume, sources, "volume source")
    if source is None:
        volume.problem(f"at least 1 volume source is required: {', '.join(_SOURCES)}")
        return PvcVolume(name, "")  # a stand-in, valid wherever a volume may be
    return source


def _container_rootfs(name: str, cursor: Cursor) -> ContainerRootfsVolume:
    rootfs = cursor.object(("image", "imagePullPolicy", "size"))
    size = rootfs.get("size")
    quantity = size.quantity()
    if quantity is None and not size.log.failed(size.path):
        size.problem("required")
    return ContainerRootfsVolume(name, _image(rootfs), _bytes(size, quantity) if quantity is not None else 0)


def _cloud_init(name: str, cursor: Cursor) -> CloudInitVolume:
    kinds = ("userData", "networkData")
    seed = cursor.object([kind + form for kind in kinds for form in ("", "Base64", "SecretName")])
    user, network = (_seed_data(seed, kind) for kind in kinds)
    return CloudInitVolume(name, user_data=user, network_data=network)


def _seed_data(seed: Cursor, kind: str) -> bytes | SecretRef | None:
    given: dict[str, bytes | SecretRef] = {}
    if text := seed.get(kind).text():
        given[kind] = text.encode()
    if encoded := seed.get(f"{kind}Base64").text():
        given[f"{kind}Base64"] = _decode_base64(seed.get(f"{kind}Base64"), encoded)
    if secret := seed.get(f"{kind}SecretName").text():
        given[f"{kind}SecretName"] = SecretRef(secret)
    return _single(seed, given, "user data" if kind == "userData" else "network data")


def _decode_base64(cursor: Cursor, text: str) -> bytes:
    try:
        # base64(1) wraps its lines, and both Go and Virtink's init container skip them.
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        cursor.problem("not base64")  # the data may be secret: nothing of it is shown
        return b""


def _network(cursor: Cursor) -> Network:
    network = cursor.object(("name", *_NETWORKS))
    name = _link_name(network.get("name"))
    sources: dict[str, Network] = {}
    if (pod := network.get("pod")).present:
        pod.object(())
        sources["pod"] = PodNetwork(name)
    if (multus := network.get("multus")).present:
        sources["multus"] = MultusNetwork(name, multus.object(("networkName",)).get("networkName").required_text())
    source = _single(network, sources, "network source")
    if source is None:
        network.problem(f"at least 1 network source is required: {', '.join(_NETWORKS)}")
        return PodNetwork(name)  # a stand-in, valid wherever a network may be
    return source
