"""The kernel's links, addresses, routes and neighbours over rtnetlink. The only module that imports pyroute2.

One method is one request. Messages are built attribute by attribute instead of through pyroute2's high-level calls:
nothing is then sent that was not meant, and ``arp_ignore`` can be set where /proc/sys is read-only.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

from pyroute2 import IPRoute
from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    nlmsg,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from launcher.errors import HostUnfit, NetworkFailed

if TYPE_CHECKING:
    from types import TracebackType

    from launcher.facts import Address, Link, Neighbour, Route

Message: TypeAlias = Any  # pyroute2 is untyped
Attributes: TypeAlias = list[tuple[str, Any]]

AF_INET, AF_INET6 = 2, 10
AF_OF_FAMILY = {4: AF_INET, 6: AF_INET6}
IFF_UP = 1
NUD_PERMANENT = 0x80
IFF_TAP = 2
RTNH_F_ONLINK = 4
DUMP_ATTEMPTS = 20
RT_TABLE_COMPAT = 252  # what rtm_table says when the number is in RTA_TABLE

# Nested attributes of IFLA_AF_SPEC (linux/if_link.h) and the knob's number (linux/ip.h).
IFLA_INET_CONF, IPV4_DEVCONF_ARP_IGNORE = 1, 19
IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE, ADDR_GEN_EUI64 = 8, 1, 0


class _LinkOptions(nlmsg):  # type: ignore[misc]  # pyroute2 is untyped
    """A link message with IFLA_AF_SPEC alone, given as bytes: pyroute2 can read IFLA_INET_CONF but not write it."""

    __slots__ = ()
    prefix = "IFLA_"
    fields = ifinfmsg.fields
    nla_map = ((26, "IFLA_AF_SPEC", "cdata"),)


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


class Netlink:
    """One rtnetlink socket in the netns of the calling thread. Use as a context manager.

    Every method raises HostUnfit when NET_ADMIN is missing and NetworkFailed, in the kernel's words, for any other
    refusal.
    """

    def __init__(self) -> None:
        try:
            self._route = IPRoute(ext_ack=True, groups=0)
        except OSError as error:
            raise HostUnfit(f"cannot open a netlink socket: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._route.close()

    # --- reading ---

    def links(self) -> list[Message]:
        return self._dump(ifinfmsg(), RTM_GETLINK, "links")

    def addresses(self) -> list[Message]:
        return self._dump(ifaddrmsg(), RTM_GETADDR, "addresses")

    def routes(self) -> list[Message]:
        """The routes of both families and all tables."""
        messages = []
        for family in (AF_INET, AF_INET6):
            message = rtmsg()
            message["family"] = family
            messages += self._dump(message, RTM_GETROUTE, "routes")
        return messages

    def neighbours(self) -> list[Message]:
        return self._dump(ndmsg(), RTM_GETNEIGH, "neighbours")

    def is_tap(self, link: Link, *, owner: int, multi_queue: bool) -> bool:
        """Whether the tap is persistent, belongs to this uid and has as many queues as its opener will want."""
        for message in self.links():
            if message["index"] == link.index:
                told = dict((message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA") or {"attrs": ()})["attrs"])
                wanted = {
                    "IFLA_TUN_OWNER": owner,
                    "IFLA_TUN_TYPE": IFF_TAP,
                    "IFLA_TUN_PI": 0,
                    "IFLA_TUN_VNET_HDR": 1,
                    "IFLA_TUN_PERSIST": 1,
                    "IFLA_TUN_MULTI_QUEUE": int(multi_queue),
                }
                return all(told.get(name) == value for name, value in wanted.items())
        return False

    def has_kind(self, kind: str) -> bool | None:
        """Whether the kernel can make links of this kind, its module loaded if need be; None without NET_ADMIN.

        Asks for a link with an impossible name: nothing is ever made, and the kernel looks for the kind first.
        """
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", "."), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]
        try:
            self._exchange(message, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            return None if error.code == errno.EPERM else error.code != errno.EOPNOTSUPP
        except OSError as error:
            raise NetworkFailed(f"cannot ask the kernel about {kind} links: {error.strerror}") from error
        return True

    # --- links ---

    def add_link(self, name: str, kind: str, *, mac: str, mtu: int, data: Attributes | None = None) -> None:
        info: Attributes = [("IFLA_INFO_KIND", kind)]
        if data:
            info.append(("IFLA_INFO_DATA", {"attrs": data}))
        message = ifinfmsg()
        message["attrs"] = [
            ("IFLA_IFNAME", name),
            ("IFLA_ADDRESS", mac),
            ("IFLA_MTU", mtu),
            ("IFLA_LINKINFO", {"attrs": info}),
        ]
        self._change(message, RTM_NEWLINK, f"make the {kind} {name}", create=NLM_F_CREATE | NLM_F_EXCL)

    def delete_link(self, link: Link) -> None:
        message = ifinfmsg()
        message["index"] = link.index
        self._change(message, RTM_DELLINK, f"delete {link.name}")

    def set_up(self, link: Link, *, up: bool) -> None:
        message = ifinfmsg()
        message["index"] = link.index
        message["flags"] = IFF_UP if up else 0
        message["change"] = IFF_UP
        self._change(message, RTM_NEWLINK, f"set {link.name} {'up' if up else 'down'}")

    def rename(self, link: Link, name: str) -> None:
        self._set(link, f"rename {link.name} to {name}", ("IFLA_IFNAME", name))

    def set_mac(self, link: Link, mac: str) -> None:
        self._set(link, f"give {link.name} the MAC {mac}", ("IFLA_ADDRESS", mac))

    def set_mtu(self, link: Link, mtu: int) -> None:
        self._set(link, f"give {link.name} the MTU {mtu}", ("IFLA_MTU", mtu))

    def set_alias(self, link: Link, alias: str) -> None:
        self._set(link, f"mark {link.name}", ("IFLA_IFALIAS", alias))

    def set_master(self, link: Link, master: Link | None) -> None:
        what = f"make {link.name} a port of {master.name}" if master else f"take {link.name} out of its bridge"
        self._set(link, what, ("IFLA_MASTER", master.index if master else 0))

    def set_bridge(self, link: Link, data: Attributes) -> None:
        info = {"attrs": [("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", {"attrs": data})]}
        self._set(link, f"configure the bridge {link.name}", ("IFLA_LINKINFO", info))

    def set_learning_off(self, link: Link) -> None:
        port = {"attrs": [("IFLA_BRPORT_LEARNING", 0)]}
        info = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", port)]}
        self._set(link, f"switch learning off on {link.name}", ("IFLA_LINKINFO", info))

    def set_arp_ignore(self, link: Link) -> None:
        """arp_ignore 1: answer only for addresses of the very link the question came in by."""
        knob = _attribute(IPV4_DEVCONF_ARP_IGNORE, struct.pack("I", 1))
        spec = _attribute(AF_INET, _attribute(IFLA_INET_CONF, knob))
        self._set_options(link, f"set arp_ignore on {link.name}", spec)

    def set_link_local(self, link: Link, *, on: bool) -> None:
        """Whether the kernel gives the link an IPv6 link-local address when it comes up. No-op without IPv6."""
        mode = ADDR_GEN_EUI64 if on else ADDR_GEN_NONE
        spec = _attribute(AF_INET6, _attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([mode])))
        self._set_options(link, f"set addrgenmode on {link.name}", spec, ignore=(errno.EAFNOSUPPORT,))

    # --- what is on a link ---

    def add_address(self, link: Link, address: Address) -> None:
        self._change(
            _address(link, address),
            RTM_NEWADDR,
            f"add {address.local} to {link.name}",
            create=NLM_F_CREATE | NLM_F_EXCL,
        )

    def delete_address(self, link: Link, address: Address) -> None:
        """Delete an address; one that is gone already (a secondary goes with its primary) is fine."""
        what = f"delete {address.local} from {link.name}"
        self._change(_address(link, address), RTM_DELADDR, what, ignore=(errno.EADDRNOTAVAIL,))

    def add_route(self, link: Link, route: Route) -> None:
        """Add a route; the very same one being there already (the kernel makes some itself) is fine.

        For IPv4 it is appended: EEXIST then means the same route, not merely one for the same destination.
        """
        message = rtmsg()
        message["family"] = AF_OF_FAMILY[route.family]
        destination, length = route.destination.split("/")
        message["dst_len"] = int(length)
        message["tos"] = route.tos
        message["table"] = route.table if route.table < 256 else RT_TABLE_COMPAT
        message["proto"] = route.protocol
        message["scope"] = route.scope
        message["type"] = route.kind
        message["flags"] = RTNH_F_ONLINK if route.onlink else 0
        attributes: Attributes = [("RTA_OIF", link.index), ("RTA_TABLE", route.table)]
        if message["dst_len"]:
            attributes.append(("RTA_DST", destination))
        if route.gateway:
            attributes.append(("RTA_GATEWAY", route.gateway))
        if route.source:
            attributes.append(("RTA_PREFSRC", route.source))
        if route.metric:
            attributes.append(("RTA_PRIORITY", route.metric))
        if route.metrics:
            attributes.append(("RTA_METRICS", {"attrs": list(route.metrics)}))
        message["attrs"] = attributes
        what = f"add the route {route.destination} to {link.name}"
        create = NLM_F_CREATE | (NLM_F_APPEND if route.family == 4 else 0)
        self._change(message, RTM_NEWROUTE, what, create=create, ignore=(errno.EEXIST,))

    def add_neighbour(self, link: Link, neighbour: Neighbour) -> None:
        """Add a permanent neighbour, in place of a learned entry for the same address."""
        message = _neighbour(link, neighbour)
        message["state"] = NUD_PERMANENT
        message["attrs"].append(("NDA_LLADDR", neighbour.mac))
        what = f"add the neighbour {neighbour.address} to {link.name}"
        self._change(message, RTM_NEWNEIGH, what, create=NLM_F_CREATE | NLM_F_REPLACE)

    def delete_neighbour(self, link: Link, neighbour: Neighbour) -> None:
        """Delete a neighbour; one that is gone already is fine."""
        what = f"delete the neighbour {neighbour.address} from {link.name}"
        self._change(_neighbour(link, neighbour), RTM_DELNEIGH, what, ignore=(errno.ENOENT,))

    # --- the wire ---

    def _set(self, link: Link, what: str, attribute: tuple[str, Any]) -> None:
        message = ifinfmsg()
        message["index"] = link.index
        message["attrs"] = [attribute]
        self._change(message, RTM_NEWLINK, what)

    def _set_options(self, link: Link, what: str, spec: bytes, *, ignore: tuple[int, ...] = ()) -> None:
        message = _LinkOptions()
        message["index"] = link.index
        message["attrs"] = [("IFLA_AF_SPEC", spec)]
        self._change(message, RTM_NEWLINK, what, ignore=ignore)

    def _change(self, message: Message, kind: int, what: str, *, create: int = 0, ignore: tuple[int, ...] = ()) -> None:
        try:
            self._exchange(message, kind, NLM_F_REQUEST | NLM_F_ACK | create)
        except NetlinkError as error:
            if error.code not in ignore:
                _fail(what, error.code, error.args[1], error)
        except OSError as error:
            _fail(what, error.errno or 0, str(error.strerror), error)

    def _dump(self, message: Message, kind: int, what: str) -> list[Message]:
        """All answers of a list, asked for again when something changed meanwhile: it might lack an entry."""
        for _ in range(DUMP_ATTEMPTS):
            try:
                answers = self._exchange(message, kind, NLM_F_REQUEST | NLM_F_DUMP)
            except NetlinkError as error:
                _fail(f"list the {what}", error.code, error.args[1], error)
            except OSError as error:
                _fail(f"list the {what}", error.errno or 0, str(error.strerror), error)
            if not any(answer["header"]["flags"] & NLM_F_DUMP_INTR for answer in answers):
                return [
                    answer for answer in answers if answer["header"]["type"] == kind - 2
                ]  # RTM_NEWx is RTM_GETx - 2
        raise NetworkFailed(f"the {what} of the pod keep changing", hint="something else configures the pod's network")

    def _exchange(self, message: Message, kind: int, flags: int) -> list[Message]:
        message["header"]["type"] = kind
        message["header"]["flags"] = flags
        answers: list[Message] = self._route.nlm_request_batch([message])
        return answers


def _fail(what: str, code: int, words: str, error: Exception) -> NoReturn:
    if code == errno.EPERM:
        raise HostUnfit(f"not permitted to {what}", hint="the container needs the capability NET_ADMIN") from error
    raise NetworkFailed(f"cannot {what}: {words}") from error


def _address(link: Link, address: Address) -> Message:
    message = ifaddrmsg()
    message["family"] = AF_OF_FAMILY[address.family]
    message["prefixlen"] = address.prefix
    message["scope"] = address.scope
    message["index"] = link.index
    attributes: Attributes = [
        ("IFA_LOCAL", address.local),
        ("IFA_ADDRESS", address.peer or address.local),
        ("IFA_FLAGS", address.flags),
    ]
    if address.broadcast:
        attributes.append(("IFA_BROADCAST", address.broadcast))
    if address.label:
        attributes.append(("IFA_LABEL", address.label))
    message["attrs"] = attributes
    return message


def _neighbour(link: Link, neighbour: Neighbour) -> Message:
    message = ndmsg()
    message["family"] = AF_OF_FAMILY[neighbour.family]
    message["ifindex"] = link.index
    message["attrs"] = [("NDA_DST", neighbour.address)]
    return message
