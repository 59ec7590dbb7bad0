"""Carries out the network actions of a plan, and takes them back.

Each handler compares and converges: carried out again, after a kill between any two requests, it ends in the same state.
``plan.podnic`` says in which order things are safe and why.
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING, assert_never

from launcher.errors import NetworkFailed
from launcher.facts import Address, Link, NetworkFacts
from launcher.host.netlink import Netlink
from launcher.host.observe_network import find_link, observe_links
from launcher.host.tap import make_tap
from launcher.plan.podnic import POD_LINK, holder_mark, names, pod_nic, stage_mark, staged
from launcher.plan.types import (
    DropStage,
    EnsureBridge,
    EnsureBridgePort,
    EnsureHolder,
    EnsureTap,
    ReleaseNic,
    StagePodNic,
)

if TYPE_CHECKING:
    from launcher.plan.types import NetworkAction, PodNic

# No spanning tree and no delay before a port forwards; no snooping, which would hold back a guest's IPv6 neighbour
# discovery until a querier shows up.
BRIDGE_DATA = [
    ("IFLA_BR_FORWARD_DELAY", 0),
    ("IFLA_BR_STP_STATE", 0),
    ("IFLA_BR_MCAST_SNOOPING", 0),
]


def apply_network(action: NetworkAction) -> None:
    """Bring the netns of the calling thread to where the action wants it. Raises HostUnfit or NetworkFailed."""
    with Netlink() as netlink:
        match action:
            case EnsureBridge():
                _ensure_bridge(netlink, action)
            case StagePodNic():
                _stage(netlink, action.holder_kind, action.nic)
            case ReleaseNic():
                _release(netlink, action)
            case EnsureHolder():
                _ensure_holder(netlink, action)
            case DropStage():
                _delete(netlink, action.stage)
            case EnsureBridgePort():
                _ensure_port(netlink, action)
            case EnsureTap():
                _ensure_tap(netlink, action)
            case other:
                assert_never(other)


def restore_network() -> bool:
    """Put the pod's network back as the CNI made it; False when nothing of ours was there.

    Goes the way of the hand-over backwards, and is as safe to kill: the stage holds the configuration in between.
    """
    interface, ours = POD_LINK, names(POD_LINK)
    with Netlink() as netlink:
        facts = NetworkFacts(observe_links(netlink))
        stage, released = facts.link(ours.stage), facts.link(ours.released)
        made = (_of_kind(facts.link(ours.tap), "tun"), _of_kind(facts.link(ours.bridge), "bridge"))
        if not any((stage, released, *made)):
            return False
        nic = pod_nic(facts, interface)
        if released or (stage and stage.alias == stage_mark(interface)):
            _stage(netlink, "dummy" if netlink.has_kind("dummy") else "bridge", nic, even_if_held=True)
            if released:
                _delete(netlink, interface)  # the holder
            _give_back(netlink, nic)
        for name in (ours.stage, *(link.name for link in made if link)):
            _delete(netlink, name)
    return True


def _ensure_bridge(netlink: Netlink, action: EnsureBridge) -> None:
    bridge = find_link(netlink, action.name)
    if bridge is None:
        netlink.add_link(action.name, "bridge", mac=action.mac, mtu=action.mtu, data=BRIDGE_DATA)
        bridge = _get(netlink, action.name)
    elif bridge.kind != "bridge":
        raise _foreign(bridge, "bridge")
    netlink.set_bridge(bridge, BRIDGE_DATA)
    netlink.set_mac(bridge, action.mac)
    netlink.set_mtu(bridge, action.mtu)
    netlink.set_arp_ignore(bridge)
    netlink.set_link_local(bridge, on=False)
    wanted = ip_interface(action.address)
    present = False
    for address in _with_addresses(netlink, bridge).addresses:
        if (address.local, address.prefix) == (str(wanted.ip), wanted.network.prefixlen):
            present = True
        else:
            netlink.delete_address(bridge, address)
    if not present:
        netlink.add_address(bridge, Address(4, str(wanted.ip), wanted.network.prefixlen))
    netlink.set_up(bridge, up=True)


def _stage(netlink: Netlink, kind: str, nic: PodNic, *, even_if_held: bool = False) -> None:
    holder = find_link(netlink, nic.name)
    if not even_if_held and holder and holder.alias == holder_mark(nic.name):
        return
    _make_copy(netlink, names(nic.name).stage, kind, staged(nic), stage_mark(nic.name))


def _ensure_holder(netlink: Netlink, action: EnsureHolder) -> None:
    nic = action.nic
    if find_link(netlink, nic.name) and not find_link(netlink, names(nic.name).released):
        raise NetworkFailed(f"{nic.name} is still the pod's own interface and cannot be replaced by a holder")
    _make_copy(netlink, nic.name, action.holder_kind, nic, holder_mark(nic.name))


def _make_copy(netlink: Netlink, name: str, kind: str, nic: PodNic, mark: str) -> None:
    """A link with this configuration, complete when it bears the mark; one without it is debris and made anew."""
    link = find_link(netlink, name)
    if link and link.alias == mark:
        return
    if link:
        netlink.delete_link(link)
    netlink.add_link(name, kind, mac=nic.mac, mtu=nic.mtu)
    link = _get(netlink, name)
    netlink.set_link_local(link, on=False)
    netlink.set_up(link, up=True)
    _configure(netlink, link, nic)
    netlink.set_alias(link, mark)


def _configure(netlink: Netlink, link: Link, nic: PodNic) -> None:
    for address in nic.addresses:
        netlink.add_address(link, address)
    for route in nic.routes:
        netlink.add_route(link, route)
    for neighbour in nic.neighbours:
        netlink.add_neighbour(link, neighbour)


def _release(netlink: Netlink, action: ReleaseNic) -> None:
    """The renaming comes last: the released name means that all of it is done."""
    if find_link(netlink, action.released):
        return
    nic, stage = _get(netlink, action.name), find_link(netlink, names(action.name).stage)
    if stage is None or stage.alias != stage_mark(action.name):
        raise NetworkFailed(f"{action.name} cannot be released: no complete copy of its addresses was made before")
    netlink.set_link_local(nic, on=False)
    netlink.set_up(nic, up=False)
    for address in _with_addresses(netlink, nic).addresses:
        netlink.delete_address(nic, address)
    netlink.set_mac(nic, action.mac)
    netlink.rename(nic, action.released)


def _give_back(netlink: Netlink, nic: PodNic) -> None:
    """Make the real interface what it was, from any state between released and whole.

    The renaming comes first: under its released name the interface is always bare.
    """
    link = _with_addresses(netlink, find_link(netlink, names(nic.name).released) or _get(netlink, nic.name))
    if link.master:
        netlink.set_master(link, None)
    netlink.set_up(link, up=False)
    if link.name != nic.name:
        netlink.rename(link, nic.name)
    for address in link.addresses:
        netlink.delete_address(link, address)
    for neighbour in link.neighbours:
        netlink.delete_neighbour(link, neighbour)
    netlink.set_mac(link, nic.mac)
    netlink.set_mtu(link, nic.mtu)
    netlink.set_link_local(link, on=True)
    netlink.set_up(link, up=True)
    _configure(netlink, link, nic)


def _ensure_port(netlink: Netlink, action: EnsureBridgePort) -> None:
    port = _get(netlink, action.port)
    netlink.set_master(port, _get(netlink, action.bridge))
    netlink.set_learning_off(port)
    netlink.set_up(port, up=True)


def _ensure_tap(netlink: Netlink, action: EnsureTap) -> None:
    multi_queue = action.queue_pairs > 1
    tap = find_link(netlink, action.name)
    if tap and tap.kind != "tun":
        raise _foreign(tap, "tap")
    if tap and not netlink.is_tap(tap, owner=action.uid, multi_queue=multi_queue):
        netlink.delete_link(tap)
        tap = None
    if tap is None:
        make_tap(action.name, uid=action.uid, multi_queue=multi_queue)
        tap = _get(netlink, action.name)
    netlink.set_link_local(tap, on=False)
    netlink.set_mtu(tap, action.mtu)
    netlink.set_master(tap, _get(netlink, action.bridge))
    netlink.set_up(tap, up=True)


def _delete(netlink: Netlink, name: str) -> None:
    if link := find_link(netlink, name):
        netlink.delete_link(link)


def _get(netlink: Netlink, name: str) -> Link:
    link = find_link(netlink, name)
    if link is None:
        raise NetworkFailed(f"the link {name} is gone", hint="something else changes the pod's network")
    return link


def _of_kind(link: Link | None, kind: str) -> Link | None:
    """The link if it is one that we could have made: another's of the same name is not ours to delete."""
    return link if link and link.kind == kind else None


def _with_addresses(netlink: Netlink, link: Link) -> Link:
    return NetworkFacts(observe_links(netlink)).link(link.name) or link


def _foreign(link: Link, wanted: str) -> NetworkFailed:
    kind = link.kind or "physical link"
    return NetworkFailed(f"{link.name} is a {kind}, not our {wanted}", hint=f"delete it: ip link delete {link.name}")
