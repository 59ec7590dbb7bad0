"""Where the pod interface's configuration is at the moment, and how it is kept on the way.

The network namespace itself is the journal: it outlives the container and its files. A hand-over goes

    eth0 (the CNI's)  →  + stage, a complete copy  →  eth0 renamed and bare  →  + holder named eth0  →  stage deleted

and at each instant exactly one of holder, stage and interface is the truth (``locate``). Copies are marked complete by
their ifalias, set last; what lacks the mark is the debris of a killed run and made anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING

from launcher.errors import NetworkFailed
from launcher.plan.types import PodNic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from launcher.facts import Address, Link, NetworkFacts, Route

POD_LINK = "eth0"  # how every CNI runtime names the interface on the pod network

REMAKE = "delete the pod: its network has to be made anew"
NAME_BYTES = 15  # IFNAMSIZ without its NUL
MAC_TEXT = 17  # characters; a tunnel has its IP address there, InfiniBand 20 octets
IFA_F_NODAD, IFA_F_PERMANENT, IFA_F_NOPREFIXROUTE = 0x02, 0x80, 0x200
RT_SCOPE_LINK = 253
RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_RA = 1, 2, 9
RT_TABLE_MAIN = 254

# A stage's routes lie in tables nobody looks up: the number with this bit, and with the other for an onlink route.
STAGED, STAGED_ONLINK = 1 << 30, 1 << 29


@dataclass(frozen=True, slots=True)
class Names:
    """The links that belong to one pod interface. Each at most 15 bytes, the same at every start."""

    bridge: str
    stage: str
    released: str
    tap: str


def names(interface: str) -> Names:
    """Readable names where they fit; where not, a digest of the interface's name stands for it."""

    def fit(pattern: str) -> str:
        plain = pattern.format(interface)
        if len(plain.encode()) <= NAME_BYTES:
            return plain
        room = NAME_BYTES - len(pattern.format("").encode())
        return pattern.format(hashlib.sha256(interface.encode()).hexdigest()[:room])

    return Names(fit("br-{}"), fit("stage-{}"), fit("{}-nic"), fit("tap-{}"))


def derived_mac(purpose: str, mac: str) -> str:
    """A stable, locally administered unicast MAC for a link of ours, distinct from the pod's by its derivation."""
    octets = bytearray(hashlib.sha256(f"{purpose} {mac}".encode()).digest()[:6])
    octets[0] = octets[0] & 0xFC | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


def stage_mark(interface: str) -> str:
    """The ifalias of a complete stage."""
    return f"launcher: complete copy of {interface}"


def holder_mark(interface: str) -> str:
    """The ifalias of a complete holder."""
    return f"launcher: holder of {interface}"


class Place(Enum):
    """Which link tells the truth about the pod interface."""

    INTERFACE = "interface"
    STAGE = "stage"
    HOLDER = "holder"


def locate(facts: NetworkFacts, interface: str) -> tuple[Place, Link]:
    """The link that tells the truth. Raises NetworkFailed when there is no such interface in any form."""
    ours = names(interface)
    link = facts.link(interface)
    if link and link.alias == holder_mark(interface):
        if facts.link(ours.released) is None:
            raise NetworkFailed(f"{ours.released}, the pod's own interface, is gone", hint=REMAKE)
        return Place.HOLDER, link
    stage = facts.link(ours.stage)
    if stage and stage.alias == stage_mark(interface):
        return Place.STAGE, stage
    if facts.link(ours.released):
        raise NetworkFailed(
            f"{interface} was handed over before ({ours.released} exists), but the copy of its addresses is gone",
            hint=REMAKE,
        )
    if link is None:
        raise NetworkFailed(f"the pod has no {interface}", hint="the pod needs a network: hostNetwork cannot be used")
    return Place.INTERFACE, link


def pod_nic(facts: NetworkFacts, interface: str) -> PodNic:
    """What the CNI made of the interface, from wherever it is kept.

    Left out is what the kernel makes by itself: IPv6 link-local and autoconfigured addresses and their routes. Raises
    NetworkFailed when there is no interface, or when a faithful copy of it cannot be made.
    """
    place, link = locate(facts, interface)
    if place is Place.STAGE:
        link = replace(link, routes=tuple(map(_unstaged, link.routes)))
    addresses = tuple(address for address in link.addresses if _is_configured(address))
    routes = tuple(route for route in link.routes if _is_configured_route(route, addresses))
    if place is Place.INTERFACE:
        _check(link, routes, [other.name for other in facts.links if other.lower == link.name])
    return PodNic(
        name=interface,
        mac=link.mac,
        mtu=link.mtu,
        addresses=tuple(_canonical(address, routes) for address in addresses),
        routes=tuple(sorted(routes, key=_reachability)),
        neighbours=link.neighbours,
    )


def staged(nic: PodNic) -> PodNic:
    """The same configuration in the form a stage holds it, out of the way of the interface that is still in use.

    No prefix routes come with the addresses. Routes lie in tables of their own, and IPv4 gateways are declared on-link:
    the rules that made them reachable do not look into these tables.
    """
    return replace(
        nic,
        addresses=tuple(replace(address, flags=address.flags | IFA_F_NOPREFIXROUTE) for address in nic.addresses),
        routes=tuple(map(_staged, nic.routes)),
    )


def _staged(route: Route) -> Route:
    table = route.table | STAGED | (STAGED_ONLINK if route.onlink else 0)
    return replace(route, table=table, onlink=route.onlink or (route.family == 4 and route.gateway is not None))


def _unstaged(route: Route) -> Route:
    return replace(route, table=route.table & ~(STAGED | STAGED_ONLINK), onlink=bool(route.table & STAGED_ONLINK))


def _is_configured(address: Address) -> bool:
    if address.family == 4:
        return True
    return address.scope != RT_SCOPE_LINK and bool(address.flags & IFA_F_PERMANENT)


def _is_configured_route(route: Route, addresses: tuple[Address, ...]) -> bool:
    if route.family == 4:
        return True
    if route.protocol in {RTPROT_RA, RTPROT_REDIRECT}:
        return False
    return route.protocol != RTPROT_KERNEL or any(_is_prefix_route(route, address) for address in addresses)


def _canonical(address: Address, routes: tuple[Route, ...]) -> Address:
    """Flags as the CNI gave them: a stage's say nothing of prefix routes, so whether they are wanted is read off the routes."""
    flags = 0 if address.family == 4 else IFA_F_NODAD  # the address is known to be ours: probing would only delay it
    makes_one = address.family == 6 or address.prefix < 32 or address.peer is not None
    if makes_one and not any(_is_prefix_route(route, address) for route in routes):
        flags |= IFA_F_NOPREFIXROUTE
    return replace(address, flags=flags)


def _is_prefix_route(route: Route, address: Address) -> bool:
    """Whether the kernel makes this very route when the address is added."""
    return (
        route.family == address.family
        and route.protocol == RTPROT_KERNEL
        and route.table == RT_TABLE_MAIN
        and route.gateway is None
        and ip_network(route.destination) == network_of(address)
    )


def network_of(address: Address) -> IPv4Network | IPv6Network:
    """The network an address is in; for a point-to-point address, the other end's."""
    return ip_interface(f"{address.peer or address.local}/{address.prefix}").network


def _reachability(route: Route) -> tuple[bool, int]:
    """Order of adding: a gateway can be named only when the route to it is there."""
    return route.gateway is not None, -int(route.destination.split("/")[1])


def _check(link: Link, routes: tuple[Route, ...], riders: list[str]) -> None:
    if problem := next(_problems(link, routes, riders), None):
        raise NetworkFailed(
            f"{link.name} cannot be handed to the guest: {problem}", hint="use another CNI configuration"
        )


def _problems(link: Link, routes: tuple[Route, ...], riders: list[str]) -> Iterator[str]:
    if len(link.mac) != MAC_TEXT:
        yield "it is not an Ethernet interface"
    if link.kind in {"macvlan", "ipvlan"}:
        yield f"{link.kind} links receive no frames for a MAC other than their own, so they cannot be ports of a bridge"
    if link.master:
        yield f"it is a port of {link.master} already"
    if riders:
        yield f"{', '.join(riders)} would lose the link below"
    for route in routes:
        if route.foreign:
            yield f"its route {route.destination} has {', '.join(route.foreign)}, which cannot be copied"
        elif route.table >= STAGED_ONLINK:
            yield f"its route {route.destination} lies in table {route.table}; tables from {STAGED_ONLINK} on are ours"
