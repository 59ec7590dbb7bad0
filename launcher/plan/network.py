"""How the guest gets the pod's network: what is done to the pod's links, and what the VMM and dnsmasq are told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.codec import to_json
from launcher.errors import NetworkFailed
from launcher.plan.dnsmasq import plan_dnsmasq
from launcher.plan.podnic import POD_LINK, derived_mac, names, pod_nic
from launcher.plan.types import (
    DropStage,
    EnsureBridge,
    EnsureBridgePort,
    EnsureHolder,
    EnsureTap,
    Nic,
    ReleaseNic,
    StagePodNic,
    WriteFile,
)
from launcher.plan.vmconfig import NetConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.facts import HostFacts
    from launcher.plan.types import Action, HelperSpec, NetworkAction, PodNic
    from launcher.spec.types import VmSpec

MAX_QUEUE_PAIRS = 8  # each pair is a thread of the VMM; more do not pay on a pod's interface
MAX_MTU = 65521  # a tap's (drivers/net/tun.c: 65535 less an Ethernet header)
BRIDGE_ADDRESS = "169.254.200.1/30"  # link-local (RFC 3927): in nobody's way


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The network's share of a boot plan."""

    nets: tuple[NetConfig, ...] = ()
    actions: tuple[Action, ...] = ()
    helpers: tuple[HelperSpec, ...] = ()
    nics: tuple[Nic, ...] = ()
    warnings: tuple[str, ...] = ()


def plan_bridge(spec: VmSpec, facts: HostFacts) -> NetworkPlan:
    """The guest's interface on the pod network, bound by a bridge: it takes the pod interface's MAC and IPv4 address.

    Raises NetworkFailed when the pod has no interface that could be handed over.
    """
    interface = spec.instance.interfaces[0]
    ours = names(POD_LINK)
    nic = pod_nic(facts.network, POD_LINK)
    ipv4 = tuple(address for address in nic.addresses if address.family == 4)
    if nic.addresses and not ipv4:
        raise NetworkFailed(
            f"{POD_LINK} has IPv6 addresses only: handing those to a guest is not supported yet",
            hint="use a cluster network with IPv4, or with both",
        )
    mtu = guest_mtu(nic)
    pairs = min(spec.instance.cpu.vcpus, MAX_QUEUE_PAIRS)
    dhcp = plan_dnsmasq(nic, mtu, spec.name, facts, bridge=ours.bridge) if ipv4 else None
    return NetworkPlan(
        nets=(NetConfig(id=_device_id(interface.name, spec), tap=ours.tap, mac=nic.mac, num_queues=2 * pairs),),
        actions=(
            WriteFile(
                facts.paths.network,
                json.dumps(to_json(nic), indent=2) + "\n",
                0o600,
                f"a record, for people, of what the CNI made of {POD_LINK}; nothing reads it back",
            ),
            *_links(nic, mtu, pairs, facts),
            *(dhcp.actions if dhcp else ()),
        ),
        helpers=(dhcp.helper,) if dhcp else (),
        nics=(
            Nic(
                name=interface.name,
                binding="bridge",
                mac=nic.mac,
                tap=ours.tap,
                addresses=tuple(f"{address.local}/{address.prefix}" for address in ipv4[:1]),
            ),
        ),
        warnings=(*_warnings(nic), *(dhcp.warnings if dhcp else ())),
    )


def _device_id(name: str, spec: VmSpec) -> str:
    """The interface's name, told from a disk's of the same name: the VMM wants ids to be unique over all devices."""
    return f"{name}_net" if any(disk.name == name for disk in spec.instance.disks) else name


def guest_mtu(nic: PodNic) -> int:
    """The smaller of the link's MTU and the default route's: some CNIs leave the link at 1500 and set only the route. At
    most what a tap can do.
    """
    on_routes = (
        value
        for route in nic.routes
        if route.destination == "0.0.0.0/0"
        for name, value in route.metrics
        if name == "RTAX_MTU" and value
    )
    return min(nic.mtu, MAX_MTU, *on_routes)


def _links(nic: PodNic, mtu: int, pairs: int, facts: HostFacts) -> tuple[NetworkAction, ...]:
    ours = names(nic.name)
    kind = "dummy" if facts.network.has_dummy else "bridge"
    queues = "one queue pair per vCPU" if pairs < MAX_QUEUE_PAIRS else f"one queue pair per vCPU, at most {pairs}"
    return (
        EnsureBridge(
            ours.bridge,
            derived_mac(ours.bridge, nic.mac),
            mtu,
            BRIDGE_ADDRESS,
            "joins the pod's interface and the guest's tap; arp_ignore keeps the pod from answering for the guest's address",
        ),
        StagePodNic(
            ours.stage,
            kind,
            nic,
            f"whatever is killed from here on, the addresses and routes of {nic.name} are not lost",
        ),
        ReleaseNic(
            nic.name,
            ours.released,
            derived_mac(ours.released, nic.mac),
            "its MAC and IPv4 address go to the guest, its name to the holder",
        ),
        EnsureHolder(
            kind, nic, f"the kubelet and the CNI go on seeing {nic.name} with its addresses, MAC, MTU and routes"
        ),
        DropStage(ours.stage, f"the holder is complete, so the second copy of {nic.name} is not needed any more"),
        EnsureBridgePort(
            ours.bridge,
            ours.released,
            "the guest reaches the node through it; with learning, its own frames coming back would mislead the bridge",
        ),
        EnsureTap(
            ours.tap,
            ours.bridge,
            mtu,
            facts.vmm_uid,
            pairs,
            f"the VMM opens it by name without a capability; {queues}",
        ),
    )


def _warnings(nic: PodNic) -> Iterator[str]:
    ipv4 = [address for address in nic.addresses if address.family == 4]
    if not nic.addresses:
        yield f"{nic.name} has no IP address: the guest gets no DHCP lease and configures itself"
    if ipv4 and not any(route.destination == "0.0.0.0/0" for route in nic.routes):
        yield f"{nic.name} has no default route: the guest gets a lease without a router"
    if len(ipv4) > 1:
        others = ", ".join(address.local for address in ipv4[1:])
        yield f"{nic.name} has several IPv4 addresses: the guest is offered {ipv4[0].local}, not {others}"
    if len(ipv4) != len(nic.addresses):
        yield f"{nic.name} has IPv6 addresses: they stay with the pod, the guest gets IPv4 only"
    if nic.neighbours:
        fixed = ", ".join(neighbour.address for neighbour in nic.neighbours)
        yield (
            f"{nic.name} has permanent neighbour entries ({fixed}): DHCP cannot hand them over, "
            "so the guest reaches these only if they answer ARP"
        )
