from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import NetworkFailed
from launcher.facts import Address, Link, Neighbour, NetworkFacts, Route
from launcher.plan.podnic import Place, derived_mac, holder_mark, locate, names, pod_nic, stage_mark, staged

NOPREFIXROUTE, PERMANENT, NODAD = 0x200, 0x80, 0x02
REAL = Link(
    "eth0",
    2,
    "veth",
    "0a:58:0a:f4:01:05",
    1450,
    up=True,
    addresses=(Address(4, "10.244.1.5", 24, flags=PERMANENT),),
    routes=(
        Route(4, "0.0.0.0/0", gateway="10.244.1.1"),
        Route(4, "10.244.1.0/24", protocol=2, scope=253, source="10.244.1.5"),
    ),
    neighbours=(Neighbour(4, "10.244.1.9", "02:00:00:00:00:09"),),
)
HOLDER = replace(REAL, kind="dummy", alias=holder_mark("eth0"))
RELEASED = Link("eth0-nic", 2, "veth", "02:00:00:00:00:01", 1450, up=True, master="br-eth0")

# What Linux takes as a link's name.
interfaces = st.text(
    st.characters(codec="utf-8", exclude_characters="/:", exclude_categories=["Z", "C"]), min_size=1
).filter(lambda name: len(name.encode()) <= 15 and name not in {".", ".."})


def as_stage(link: Link) -> Link:
    """The link that StagePodNic makes of this interface, as the kernel would show it."""
    copy = staged(pod_nic(NetworkFacts((link,)), "eth0"))
    return Link(
        "stage-eth0",
        7,
        "dummy",
        copy.mac,
        copy.mtu,
        up=True,
        alias=stage_mark("eth0"),
        addresses=tuple(replace(one, flags=one.flags | PERMANENT) for one in copy.addresses),
        routes=copy.routes,
        neighbours=copy.neighbours,
    )


@given(interfaces)
def test_names_fit_differ_and_are_stable(interface: str) -> None:
    ours = names(interface)
    each = [ours.bridge, ours.stage, ours.released, ours.tap]
    assert all(0 < len(name.encode()) <= 15 for name in each)
    assert len({*each, interface}) == 5
    assert names(interface) == ours


@given(st.sets(interfaces.filter(lambda name: "-" not in name), min_size=2, max_size=8))
def test_names_of_different_interfaces_differ(several: set[str]) -> None:
    each = [name for one in several for name in all_names(one)]
    assert len(set(each)) == len(each)


def all_names(interface: str) -> tuple[str, str, str, str]:
    ours = names(interface)
    return ours.bridge, ours.stage, ours.released, ours.tap


@given(st.binary(min_size=6, max_size=6))
def test_derived_macs_are_local_unicast_and_not_the_pods(raw: bytes) -> None:
    mac = raw.hex(":")
    derived = [derived_mac(purpose, mac) for purpose in ("br-eth0", "eth0-nic")]
    assert len({mac, *derived}) == 3
    assert all(int(one[:2], 16) & 3 == 2 for one in derived)


def test_the_holder_is_believed_before_the_stage_and_the_stage_before_the_interface() -> None:
    stage = as_stage(REAL)
    assert locate(NetworkFacts((REAL,)), "eth0")[0] is Place.INTERFACE
    assert locate(NetworkFacts((REAL, stage)), "eth0")[0] is Place.STAGE
    assert locate(NetworkFacts((stage, RELEASED)), "eth0")[0] is Place.STAGE
    assert locate(NetworkFacts((HOLDER, stage, RELEASED)), "eth0")[0] is Place.HOLDER


def test_what_lacks_its_mark_is_not_believed() -> None:
    half_stage, half_holder = replace(as_stage(REAL), alias=None), replace(HOLDER, alias=None)
    assert locate(NetworkFacts((REAL, half_stage)), "eth0")[0] is Place.INTERFACE
    assert locate(NetworkFacts((half_holder, as_stage(REAL), RELEASED)), "eth0")[0] is Place.STAGE
    with pytest.raises(NetworkFailed, match="the copy of its addresses is gone"):
        locate(NetworkFacts((half_holder, half_stage, RELEASED)), "eth0")


def test_a_holder_without_the_interface_behind_it_is_of_no_use() -> None:
    with pytest.raises(NetworkFailed, match="eth0-nic, the pod's own interface, is gone"):
        locate(NetworkFacts((HOLDER,)), "eth0")


def test_no_interface_at_all() -> None:
    with pytest.raises(NetworkFailed, match="the pod has no eth0"):
        locate(NetworkFacts((replace(REAL, name="eth1"),)), "eth0")


routes = st.builds(
    Route,
    family=st.just(4),
    destination=st.sampled_from(["0.0.0.0/0", "10.1.0.0/16", "10.2.3.4/32"]),
    gateway=st.sampled_from([None, "10.244.1.1", "203.0.113.1"]),
    metric=st.integers(0, 2**32 - 1),
    table=st.sampled_from([254, 1, 253, 1000, 2**29 - 1]),
    tos=st.sampled_from([0, 16]),
    onlink=st.booleans(),
    metrics=st.sampled_from([(), (("RTAX_MTU", 1400), ("RTAX_LOCK", 4))]),
)


@given(st.lists(routes, max_size=6, unique=True), st.sampled_from([0, NOPREFIXROUTE]), st.sampled_from([24, 32]))
def test_a_stage_gives_back_exactly_what_was_put_in(several: list[Route], flags: int, prefix: int) -> None:
    address = Address(4, "10.244.1.5", prefix, flags=PERMANENT | flags, label="eth0:x")
    own = (Route(4, "10.244.1.0/24", protocol=2, scope=253),) if prefix == 24 and not flags else ()
    link = replace(REAL, addresses=(address,), routes=(*several, *own))
    real = pod_nic(NetworkFacts((link,)), "eth0")
    stage = as_stage(link)
    assert pod_nic(NetworkFacts((stage, RELEASED)), "eth0") == real
    assert all(route.table >= 2**30 for route in stage.routes)
    assert all(one.flags & NOPREFIXROUTE for one in stage.addresses)
    assert real.addresses[0].flags == (flags if prefix == 24 else 0)


def test_what_the_kernel_makes_by_itself_is_left_out() -> None:
    link = replace(
        REAL,
        addresses=(
            *REAL.addresses,
            Address(6, "fe80::1", 64, scope=253, flags=PERMANENT),
            Address(6, "2001:db8::77", 64),  # from a router advertisement: it has a lifetime
            Address(6, "fd00::5", 64, flags=PERMANENT),
        ),
        routes=(
            Route(6, "fe80::/64", protocol=2, metric=256),
            Route(6, "2001:db8::/64", protocol=2, metric=256),
            Route(6, "::/0", gateway="fe80::9", protocol=9, metric=1024),
            Route(6, "fd00::/64", protocol=2, metric=256),
            Route(6, "::/0", gateway="fd00::1", metric=1024),
        ),
    )
    nic = pod_nic(NetworkFacts((link,)), "eth0")
    assert [(one.local, one.flags) for one in nic.addresses if one.family == 6] == [("fd00::5", NODAD)]
    assert [(one.destination, one.gateway) for one in nic.routes] == [("fd00::/64", None), ("::/0", "fd00::1")]


def test_routes_that_make_gateways_reachable_come_first() -> None:
    several = (
        Route(4, "0.0.0.0/0", gateway="169.254.1.1"),
        Route(4, "10.0.0.0/8", gateway="169.254.1.1"),
        Route(4, "169.254.1.1/32", scope=253),
    )
    nic = pod_nic(NetworkFacts((replace(REAL, routes=several),)), "eth0")
    assert [route.destination for route in nic.routes] == ["169.254.1.1/32", "10.0.0.0/8", "0.0.0.0/0"]


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (replace(REAL, mac=""), "not an Ethernet interface"),
        (replace(REAL, mac="0a:09:08:05"), "not an Ethernet interface"),  # an IP tunnel's address
        (replace(REAL, kind="macvlan"), "macvlan links receive no frames"),
        (replace(REAL, kind="ipvlan"), "ipvlan links receive no frames"),
        (replace(REAL, master="bond0"), "a port of bond0"),
        (replace(REAL, routes=(Route(4, "10.0.0.0/8", foreign=("RTA_MULTIPATH",)),)), "RTA_MULTIPATH"),
        (replace(REAL, routes=(Route(4, "10.0.0.0/8", table=2**29),)), "table 536870912"),
    ],
)
def test_what_cannot_be_copied_is_refused(link: Link, words: str) -> None:
    with pytest.raises(NetworkFailed, match=words):
        pod_nic(NetworkFacts((link,)), "eth0")


def test_a_link_that_others_ride_on_is_refused() -> None:
    riders = (
        Link("eth0.5", 3, "vlan", REAL.mac, 1450, up=True, lower="eth0"),
        replace(REAL, name="eth1", lower="base"),
    )
    with pytest.raises(NetworkFailed, match=r"eth0\.5 would lose the link below"):
        pod_nic(NetworkFacts((REAL, *riders)), "eth0")
