"""Reads the pod's network namespace into facts. Changes nothing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit
from launcher.facts import Address, Link, Neighbour, NetworkFacts, Route
from launcher.host.netlink import AF_INET, IFF_UP, NUD_PERMANENT, RTNH_F_ONLINK, Message, Netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

RT_TABLE_LOCAL = 255
RTM_F_CLONED = 0x200
FAMILY_OF_AF = {2: 4, 10: 6}
# Whose IFLA_LINK is what they ride on; a veth has its peer there.
STACKED = {"ipvlan", "ipvtap", "macvlan", "macvtap", "vlan"}

# What ``Route`` carries, and what says nothing about the configuration.
_CARRIED = {"RTA_DST", "RTA_OIF", "RTA_GATEWAY", "RTA_PRIORITY", "RTA_PREFSRC", "RTA_METRICS", "RTA_TABLE"}
_STATE = {"RTA_CACHEINFO"}


def observe_network(resolv_conf: Path = Path("/etc/resolv.conf")) -> NetworkFacts:
    """The links of this netns with everything on them, and the pod's resolver. Raises HostUnfit or NetworkFailed."""
    with Netlink() as netlink:
        links = observe_links(netlink)
        has_dummy = netlink.has_kind("dummy")
    nameservers, search = _resolver(resolv_conf)
    # Without NET_ADMIN the kernel does not tell; nearly every kernel has dummy.
    return NetworkFacts(links, nameservers, search, has_dummy=has_dummy is not False)


def observe_links(netlink: Netlink) -> tuple[Link, ...]:
    """The links of the netns with their addresses, routes (but the kernel's local ones) and permanent neighbours."""
    messages = netlink.links()
    by_index = {message["index"]: str(message.get_attr("IFLA_IFNAME")) for message in messages}
    addresses: dict[int, list[Address]] = defaultdict(list)
    routes: dict[int, list[Route]] = defaultdict(list)
    neighbours: dict[int, list[Neighbour]] = defaultdict(list)
    for message in netlink.addresses():
        if message["family"] in FAMILY_OF_AF:
            addresses[message["index"]].append(_address(message, by_index.get(message["index"])))
    for message in netlink.routes():
        if _table(message) != RT_TABLE_LOCAL and not message["flags"] & RTM_F_CLONED:
            for index in _outputs(message):
                routes[index].append(_route(message))
    for message in netlink.neighbours():
        address, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
        if message["state"] & NUD_PERMANENT and message["family"] in FAMILY_OF_AF and address and mac:
            neighbours[message["ifindex"]].append(Neighbour(FAMILY_OF_AF[message["family"]], address, mac))
    return tuple(
        replace(
            _link(message, by_index),
            addresses=tuple(addresses[message["index"]]),
            routes=tuple(routes[message["index"]]),
            neighbours=tuple(neighbours[message["index"]]),
        )
        for message in messages
    )


def find_link(netlink: Netlink, name: str) -> Link | None:
    """One link alone, without what is on it: a fifth of the requests."""
    messages = netlink.links()
    by_index = {message["index"]: str(message.get_attr("IFLA_IFNAME")) for message in messages}
    return next((_link(message, by_index) for message in messages if by_index[message["index"]] == name), None)


def _link(message: Message, by_index: dict[int, str]) -> Link:
    kind = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
    # With the other one's netns beside it the index counts there.
    here = kind in STACKED and message.get_attr("IFLA_LINK_NETNSID") is None
    return Link(
        name=by_index[message["index"]],
        index=message["index"],
        kind=kind,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & IFF_UP),
        master=by_index.get(message.get_attr("IFLA_MASTER") or 0),
        alias=message.get_attr("IFLA_IFALIAS"),
        lower=by_index.get(message.get_attr("IFLA_LINK") or 0) if here else None,
    )


def _address(message: Message, link: str | None) -> Address:
    local, peer = message.get_attr("IFA_LOCAL"), message.get_attr("IFA_ADDRESS")
    label = message.get_attr("IFA_LABEL")
    flags = message.get_attr("IFA_FLAGS")
    return Address(
        family=FAMILY_OF_AF[message["family"]],
        local=local or peer,
        prefix=message["prefixlen"],
        peer=peer if local and peer != local else None,
        broadcast=message.get_attr("IFA_BROADCAST"),
        label=label if label != link else None,  # the link's name is the default
        scope=message["scope"],
        flags=message["flags"] if flags is None else flags,
    )


def _table(message: Message) -> int:
    return int(message.get_attr("RTA_TABLE") or message["table"])


def _outputs(message: Message) -> set[int]:
    """The links a route leads through: several for a multipath route."""
    if output := message.get_attr("RTA_OIF"):
        return {output}
    return {hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()}


def _route(message: Message) -> Route:
    family = FAMILY_OF_AF[message["family"]]
    anywhere = "0.0.0.0" if message["family"] == AF_INET else "::"  # noqa: S104  # a destination, nothing is bound
    metrics = message.get_attr("RTA_METRICS")
    named = tuple((str(name), value) for name, value in (metrics["attrs"] if metrics else ()))
    return Route(
        family=family,
        destination=f"{message.get_attr('RTA_DST') or anywhere}/{message['dst_len']}",
        gateway=message.get_attr("RTA_GATEWAY"),
        source=message.get_attr("RTA_PREFSRC"),
        metric=message.get_attr("RTA_PRIORITY") or 0,
        table=_table(message),
        protocol=message["proto"],
        scope=message["scope"],
        kind=message["type"],
        tos=message["tos"],
        onlink=bool(message["flags"] & RTNH_F_ONLINK),
        metrics=tuple(metric for metric in named if isinstance(metric[1], int)),
        foreign=tuple(_foreign(message, named)),
    )


def _foreign(message: Message, metrics: tuple[tuple[str, object], ...]) -> Iterator[str]:
    for name, value in message["attrs"]:
        if name in _CARRIED or name in _STATE or (name == "RTA_PREF" and value == 0):
            continue
        yield f"attribute {value['header']['type']} of linux/rtnetlink.h" if name == "UNKNOWN" else str(name)
    yield from (name for name, value in metrics if not isinstance(value, int))


def _resolver(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The name servers and search list of a resolv.conf; as in the resolver, the last search or domain line wins."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return (), ()
    except OSError as error:
        raise HostUnfit(f"cannot read {path}: {error.strerror}") from error
    servers: list[str] = []
    search: list[str] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search", *domains]:
                search = domains
            case ["domain", domain, *_]:
                search = [domain]
            case _:
                pass
    return tuple(servers), tuple(search)
