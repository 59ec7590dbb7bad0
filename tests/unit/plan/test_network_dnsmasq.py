from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import NetworkFailed
from launcher.facts import Address, HostFacts, NetworkFacts, Route
from launcher.paths import Paths
from launcher.plan.dnsmasq import DNSMASQ_ID, classless_routes, make_lease, plan_dnsmasq, render
from launcher.plan.types import MakeFolder, PodNic, WriteFile

ANYWHERE, ON_LINK = IPv4Network("0.0.0.0/0"), IPv4Address("0.0.0.0")
MAC = "0a:58:0a:f4:01:05"


def nic(address: str, *routes: Route) -> PodNic:
    local, prefix = address.split("/")
    return PodNic("eth0", MAC, 1450, (Address(4, local, int(prefix)),), routes)


def option_121(routes: tuple[tuple[IPv4Network, IPv4Address], ...]) -> bytes:
    """RFC 3442: for each route the prefix length, as many octets of the destination as count, the router."""
    return b"".join(
        bytes([network.prefixlen]) + network.network_address.packed[: (network.prefixlen + 7) // 8] + gateway.packed
        for network, gateway in routes
    )


hosts = st.integers(0x01000000, 0xDFFFFFFF).map(IPv4Address)
networks = st.tuples(hosts, st.integers(0, 32)).map(lambda pair: IPv4Network(pair, strict=False))
interfaces = st.tuples(hosts, st.integers(1, 32)).map(IPv4Interface)
gateways = st.one_of(st.just(ON_LINK), hosts)


@given(interfaces, st.lists(st.tuples(networks, gateways), max_size=12))
def test_classless_routes_hold_whatever_the_pod_has(
    address: IPv4Interface, routes: list[tuple[IPv4Network, IPv4Address]]
) -> None:
    result = classless_routes(address, routes)
    destinations = [network for network, _ in result]
    assert len(set(destinations)) == len(destinations)
    assert {network for network, _ in routes} - {address.network} <= set(destinations)
    if any(network != address.network for network, _ in routes):
        assert option_121(result)  # present, so not empty
    if ANYWHERE in destinations:
        assert destinations[-1] == ANYWHERE
    assert [network.prefixlen for network in destinations] == sorted(
        (network.prefixlen for network in destinations), reverse=True
    )
    for _, gateway in result:  # each gateway is in the subnet or on a link that the guest is told of
        links = [network for network, via in result if via == ON_LINK and network != ANYWHERE]
        assert gateway == ON_LINK or any(gateway in network for network in (address.network, *links))


def test_a_gateway_outside_the_subnet_is_reached_by_an_on_link_route_first() -> None:
    lease = make_lease(nic("192.168.7.5/32", Route(4, "0.0.0.0/0", gateway="169.254.1.1")), 1440, "vm1", (), ())
    assert lease.routes == ((IPv4Network("169.254.1.1/32"), ON_LINK), (ANYWHERE, IPv4Address("169.254.1.1")))
    assert option_121(lease.routes).hex() == "20a9fe01010000000000a9fe0101"
    assert lease.router == IPv4Address("169.254.1.1")


def test_the_route_of_least_metric_counts_and_other_tables_do_not() -> None:
    lease = make_lease(
        nic(
            "10.0.0.5/24",
            Route(4, "0.0.0.0/0", gateway="10.0.0.2", metric=200),
            Route(4, "0.0.0.0/0", gateway="10.0.0.1", metric=100),
            Route(4, "10.9.0.0/16", gateway="10.0.0.3", table=100),
            Route(4, "10.8.0.0/16", gateway="10.0.0.3", tos=16),
            Route(4, "10.7.0.0/16", kind=7),
        ),
        1500,
        "vm1",
        (),
        (),
    )
    assert lease.routes == ((ANYWHERE, IPv4Address("10.0.0.1")),)
    assert lease.router == IPv4Address("10.0.0.1")


def test_without_routes_the_option_is_absent_and_no_router_is_offered() -> None:
    text = render(make_lease(nic("10.0.0.5/24"), 1500, "vm1", (), ()), "br-eth0", "/leases")
    assert "classless" not in text
    assert "dhcp-option=option:router\n" in text  # without a value: dnsmasq would name itself otherwise
    assert "dhcp-option=option:dns-server\n" in text
    assert "domain" not in text


def test_more_routes_than_the_option_holds_are_refused() -> None:
    routes = [(IPv4Network(f"10.{at}.0.0/16"), IPv4Address("10.0.0.1")) for at in range(1, 38)]
    with pytest.raises(NetworkFailed, match="37 routes, which take 259 bytes"):
        classless_routes(IPv4Interface("10.0.0.5/16"), routes)


def test_only_names_and_addresses_that_help_the_guest_are_passed_on() -> None:
    servers = ("10.96.0.10", "fd00::10", "127.0.0.53", "10.96.0.300", "nonsense")
    search = ("cluster.local", ".", "a,b", "x\ndhcp-script=/bin/sh", "ok-1.example.")
    facts = HostFacts(
        "x86_64", 4096, (0,), paths=Paths(Path("/run/x")), network=NetworkFacts((), servers, search), dnsmasq="/d"
    )
    plan = plan_dnsmasq(nic("10.0.0.5/24"), 1450, "vm1", facts, bridge="br-eth0")
    config = next(action.content for action in plan.actions if isinstance(action, WriteFile))
    assert "dhcp-option=option:dns-server,10.96.0.10\n" in config
    assert "dhcp-option=option:domain-search,cluster.local,ok-1.example.\n" in config
    assert "dhcp-script" not in config
    assert len(plan.warnings) == 7


def test_dnsmasq_may_write_to_its_leases_only() -> None:
    facts = HostFacts("x86_64", 4096, (0,), paths=Paths(Path("/run/x")))
    plan = plan_dnsmasq(nic("10.0.0.5/24"), 1450, "vm1", facts, bridge="br-eth0")
    owned = [action.path for action in plan.actions if isinstance(action, MakeFolder) and action.uid == DNSMASQ_ID]
    assert owned == [Path("/run/x/dnsmasq/leases")]
    assert plan.helper.argv == (
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/run/x/dnsmasq/br-eth0.conf",
        "--log-facility=-",
    )
    assert plan.helper.confinement.uid == DNSMASQ_ID != facts.vmm_uid


def test_a_vm_name_that_is_no_host_name_is_kept_out_of_the_configuration() -> None:
    facts = HostFacts("x86_64", 4096, (0,), paths=Paths(run_dir=Path("/run/x")))
    plan = plan_dnsmasq(nic("10.0.0.5/24"), 1450, "vm,1 or so", facts, bridge="br-eth0")
    (config,) = (action.content for action in plan.actions if isinstance(action, WriteFile))
    assert "vm,1" not in config
    assert "dhcp-option-force=12" not in config
    assert plan.warnings == ("'vm,1 or so' is no host name: the guest is not told its name by DHCP",)


def test_a_long_search_list_is_cut_to_what_the_option_holds() -> None:
    domains = tuple(f"namespace-{number:02}.svc.cluster.example" for number in range(32))  # the most Kubernetes allows
    facts = HostFacts("x86_64", 4096, (0,), network=NetworkFacts(search=domains))
    plan = plan_dnsmasq(nic("10.9.8.5/24"), 1500, "vm1", facts, bridge="br-eth0")
    config = next(action for action in plan.actions if isinstance(action, WriteFile)).content
    assert f"option:domain-search,{','.join(domains[:7])}\n" in config  # each takes 36 of the 255 bytes
    assert len(plan.warnings) == 32 - 7


def test_a_vm_name_too_long_for_a_host_name_is_left_out() -> None:
    name = ".".join(["a" * 63] * 4)
    assert make_lease(nic("10.9.8.5/24"), 1500, name, (), ()).hostname is None
    assert make_lease(nic("10.9.8.5/24"), 1500, name[:253], (), ()).hostname == name[:253]
