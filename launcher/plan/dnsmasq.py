"""dnsmasq as the guest's DHCP server: one static lease, its options, and as whom it runs.

The offer is dnsmasq's, the content is ours: nothing is left to its defaults, which would name the bridge as router and
name server. RFC 2132, RFC 3397 (119), RFC 3442 (121).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TYPE_CHECKING

from launcher.errors import NetworkFailed
from launcher.plan.types import Confinement, HelperSpec, MakeFolder, WriteFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from launcher.facts import HostFacts
    from launcher.plan.types import Action, PodNic

DNSMASQ_ID = 108  # uid and gid; its own, so that neither the VMM nor dnsmasq can touch the other's files
NOFILE = 1024  # it walks through all possible descriptors at start: minutes with a container's usual limit
RT_TABLE_MAIN = 254
RTN_UNICAST = 1

OPTION_BYTES = 255  # RFC 2132: the length is one byte

_DOMAIN = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_ANYWHERE = IPv4Network("0.0.0.0/0")
_ON_LINK = IPv4Address(0)


@dataclass(frozen=True, slots=True)
class DnsmasqPlan:
    helper: HelperSpec
    actions: tuple[Action, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """What the guest is told, all of it. ``routes`` are (destination, gateway) as option 121 has them."""

    mac: str
    address: IPv4Interface
    mtu: int
    hostname: str | None = None
    router: IPv4Address | None = None
    routes: tuple[tuple[IPv4Network, IPv4Address], ...] = ()
    nameservers: tuple[IPv4Address, ...] = ()
    search: tuple[str, ...] = ()


def plan_dnsmasq(nic: PodNic, mtu: int, vm_name: str, facts: HostFacts, *, bridge: str) -> DnsmasqPlan:
    """A dnsmasq of its own for one bridge; ``nic`` has an IPv4 address."""
    folder = facts.paths.dnsmasq_dir
    config, leases = folder / f"{bridge}.conf", folder / "leases"
    servers, search = facts.network.nameservers, facts.network.search
    lease = make_lease(nic, mtu, vm_name, servers, search)
    left_out = [server for server in servers if server not in map(str, lease.nameservers)]
    left_out += [domain for domain in search if domain not in lease.search]
    return DnsmasqPlan(
        helper=HelperSpec(
            f"dnsmasq-{bridge}",
            (facts.dnsmasq or "dnsmasq", "--keep-in-foreground", f"--conf-file={config}", "--log-facility=-"),
            # The port; and dnsmasq refuses to start without NET_ADMIN. NET_RAW would be for pings, which are off.
            Confinement(DNSMASQ_ID, DNSMASQ_ID, capabilities=("net_admin", "net_bind_service"), nofile=NOFILE),
        ),
        actions=(
            MakeFolder(folder, 0o711, 0, 0, "dnsmasq's configuration"),
            MakeFolder(leases, 0o700, DNSMASQ_ID, DNSMASQ_ID, "the one place dnsmasq may write to"),
            WriteFile(
                config,
                render(lease, bridge, f"{leases}/{bridge}.leases"),
                0o644,
                f"the guest is offered {lease.address.ip} by DHCP, for ever: a renewal could not reach the bridge's address",
            ),
        ),
        warnings=(
            *([] if lease.hostname else [f"{vm_name!r} is no host name: the guest is not told its name by DHCP"]),
            *(
                f"{name} of the pod's resolv.conf is not passed to the guest: it is no name or address that DHCP can carry "
                "or the guest can reach"
                for name in left_out
            ),
        ),
    )


def make_lease(nic: PodNic, mtu: int, vm_name: str, nameservers: tuple[str, ...], search: tuple[str, ...]) -> Lease:
    """The lease for the interface's first IPv4 address. Only unicast routes of the main table concern the guest."""
    first = next(address for address in nic.addresses if address.family == 4)
    address = IPv4Interface(f"{first.local}/{first.prefix}")
    routes = [
        (IPv4Network(route.destination), IPv4Address(route.gateway) if route.gateway else _ON_LINK)
        for route in sorted(nic.routes, key=lambda route: route.metric)
        if route.family == 4 and route.table == RT_TABLE_MAIN and route.kind == RTN_UNICAST and route.tos == 0
    ]
    router = next((gateway for network, gateway in routes if network == _ANYWHERE and gateway != _ON_LINK), None)
    servers = map(_ipv4, nameservers)
    return Lease(
        mac=nic.mac,
        address=address,
        mtu=mtu,
        hostname=vm_name if _DOMAIN.fullmatch(vm_name) else None,
        router=router,
        routes=classless_routes(address, routes),
        nameservers=tuple(server for server in servers if server and not server.is_loopback),
        search=search_list(domain for domain in search if _DOMAIN.fullmatch(domain)),
    )


def search_list(domains: Iterable[str]) -> tuple[str, ...]:
    """The first of the domains, as many as option 119 holds without compression: with a longer list dnsmasq may not start."""
    fitting: list[str] = []
    room = OPTION_BYTES
    for domain in domains:
        room -= len(domain.rstrip(".")) + 2  # a length before each label, and a zero at the end
        if room < 0:
            break
        fitting.append(domain)
    return tuple(fitting)


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except ValueError:
        return None


def classless_routes(
    address: IPv4Interface, routes: list[tuple[IPv4Network, IPv4Address]]
) -> tuple[tuple[IPv4Network, IPv4Address], ...]:
    """The routes as option 121 wants them, of which the first for a destination counts.

    The guest makes the route to its own subnet by itself. A gateway outside of it (Calico's 169.254.1.1, say) needs an
    on-link route first; specific routes come before general ones, so the default comes last.
    """
    wanted: dict[IPv4Network, IPv4Address] = {}
    for network, gateway in routes:
        if network != address.network:
            wanted.setdefault(network, gateway)
    on_link = [network for network, gateway in wanted.items() if gateway == _ON_LINK]
    for gateway in list(wanted.values()):
        reachable = (address.network, *on_link)
        if gateway != _ON_LINK and not any(gateway in network for network in reachable if network != _ANYWHERE):
            wanted[IPv4Network(gateway)] = _ON_LINK
    order = sorted(wanted.items(), key=lambda item: (-item[0].prefixlen, item[1] != _ON_LINK, item[0]))
    if (size := sum(5 + (network.prefixlen + 7) // 8 for network, _ in order)) > OPTION_BYTES:
        raise NetworkFailed(
            f"the pod has {len(order)} routes, which take {size} bytes in DHCP's option 121; it holds {OPTION_BYTES}",
            hint="let the CNI configure fewer routes",
        )
    return tuple(order)


def render(lease: Lease, bridge: str, lease_file: str) -> str:
    """dnsmasq.conf. Forced options reach a client that forgot to ask for them: without them it would have no network."""
    routes = ",".join(f"{network},{gateway}" for network, gateway in lease.routes)
    servers = ",".join(map(str, lease.nameservers))
    lines = [
        "port=0",  # DHCP only
        "no-resolv",
        "no-hosts",
        "no-ping",
        "pid-file",
        f"interface={bridge}",
        "except-interface=lo",
        "bind-interfaces",
        f"dhcp-leasefile={lease_file}",
        "dhcp-authoritative",
        # The bridge has no address of the pod's network; and a reply by unicast would be delivered to the pod itself,
        # which keeps the guest's address on the holder.
        f"shared-network={bridge},{lease.address.ip}",
        f"dhcp-range={lease.address.ip},static,{lease.address.netmask},infinite",
        "dhcp-broadcast",
        "dhcp-ignore=tag:!known",
        f"dhcp-host={lease.mac},{lease.address.ip},infinite",
        f"dhcp-option-force=option:mtu,{lease.mtu}",
        *([f"dhcp-option-force=12,{lease.hostname}"] if lease.hostname else []),
        f"dhcp-option=option:router{f',{lease.router}' if lease.router else ''}",
        f"dhcp-option=option:dns-server{f',{servers}' if servers else ''}",
    ]
    if routes:  # an empty option 121 would switch the router option off
        lines.append(f"dhcp-option-force=option:classless-static-route,{routes}")
    if lease.search:
        lines.append(f"dhcp-option=option:domain-name,{lease.search[0]}")
        lines.append(f"dhcp-option=option:domain-search,{','.join(lease.search)}")
    return "\n".join(lines) + "\n"
