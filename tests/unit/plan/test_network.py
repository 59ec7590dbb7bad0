from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import NetworkFailed
from launcher.facts import Address, HostFacts, Link, Neighbour, NetworkFacts, Route
from launcher.paths import Paths
from launcher.plan.network import NetworkPlan, plan_bridge
from launcher.plan.types import EnsureBridge, EnsureHolder, EnsureTap, StagePodNic
from launcher.spec.types import BridgeBinding, Cpu, Instance, Interface, Memory, PodNetwork, RunPolicy, VmSpec

V4 = Address(4, "10.244.1.5", 24, flags=0x80)
V6 = Address(6, "fd00::5", 64, flags=0x80)
CONNECTED = Route(4, "10.244.1.0/24", protocol=2, scope=253, source="10.244.1.5")
CONNECTED6 = Route(6, "fd00::/64", protocol=2, metric=256)
DEFAULT = Route(4, "0.0.0.0/0", gateway="10.244.1.1")
ETH0 = Link("eth0", 2, "veth", "0a:58:0a:f4:01:05", 1450, up=True, addresses=(V4,), routes=(DEFAULT, CONNECTED))


def planned(link: Link = ETH0, *, vcpus: int = 1, has_dummy: bool = True) -> NetworkPlan:
    spec = VmSpec(
        "vm1",
        "default",
        "",
        RunPolicy.ONCE,
        Instance(
            Memory(1 << 30),
            Cpu(1, vcpus),
            interfaces=(Interface("pod", "52:54:00:00:00:01", BridgeBinding()),),
        ),
        networks=(PodNetwork("pod"),),
    )
    network = NetworkFacts((link,), has_dummy=has_dummy)
    return plan_bridge(spec, HostFacts("x86_64", 4096, (0,), paths=Paths(Path("/run/x")), network=network))


def test_the_guest_takes_the_pods_mac_not_the_specs() -> None:
    plan = planned()
    assert [(net.id, net.tap, net.mac, net.num_queues) for net in plan.nets] == [("pod", "tap-eth0", ETH0.mac, 2)]
    assert [(nic.name, nic.binding, nic.mac, nic.addresses) for nic in plan.nics] == [
        ("pod", "bridge", ETH0.mac, ("10.244.1.5/24",))
    ]
    assert plan.warnings == ()


def test_every_action_says_why() -> None:
    actions = planned().actions
    assert [type(action).__name__ for action in actions] == [
        "WriteFile",
        "EnsureBridge",
        "StagePodNic",
        "ReleaseNic",
        "EnsureHolder",
        "DropStage",
        "EnsureBridgePort",
        "EnsureTap",
        "MakeFolder",
        "MakeFolder",
        "WriteFile",
    ]
    assert all(action.reason and action.describe() for action in actions)


@pytest.mark.parametrize(("vcpus", "pairs"), [(1, 1), (2, 2), (8, 8), (9, 8), (64, 8)])
def test_queue_pairs_follow_the_vcpus_up_to_a_bound(vcpus: int, pairs: int) -> None:
    plan = planned(vcpus=vcpus)
    assert plan.nets[0].num_queues == 2 * pairs
    assert [action.queue_pairs for action in plan.actions if isinstance(action, EnsureTap)] == [pairs]


def test_the_route_can_lower_the_guests_mtu_but_not_the_holders() -> None:
    plan = planned(replace(ETH0, routes=(replace(DEFAULT, metrics=(("RTAX_MTU", 1400),)), CONNECTED)))
    assert {action.mtu for action in plan.actions if isinstance(action, EnsureBridge | EnsureTap)} == {1400}
    assert [action.nic.mtu for action in plan.actions if isinstance(action, EnsureHolder)] == [1450]


def test_the_guests_mtu_is_one_that_a_tap_can_have() -> None:
    plan = planned(replace(ETH0, mtu=65535))
    assert {action.mtu for action in plan.actions if isinstance(action, EnsureBridge | EnsureTap)} == {65521}


@pytest.mark.parametrize(("has_dummy", "kind"), [(True, "dummy"), (False, "bridge")])
def test_holder_and_stage_are_dummies_where_the_kernel_has_them(has_dummy: bool, kind: str) -> None:  # noqa: FBT001
    actions = planned(has_dummy=has_dummy).actions
    assert {one.holder_kind for one in actions if isinstance(one, StagePodNic | EnsureHolder)} == {kind}


def test_without_a_default_route_there_is_a_lease_and_a_warning() -> None:
    plan = planned(replace(ETH0, routes=(CONNECTED,)))
    assert plan.helpers
    assert plan.warnings == ("eth0 has no default route: the guest gets a lease without a router",)


def test_without_an_address_there_is_no_dhcp() -> None:
    plan = planned(replace(ETH0, addresses=(), routes=()))
    assert plan.helpers == ()
    assert plan.nics[0].addresses == ()
    assert plan.warnings == ("eth0 has no IP address: the guest gets no DHCP lease and configures itself",)


def test_dual_stack_gives_the_guest_ipv4_and_says_so() -> None:
    plan = planned(replace(ETH0, addresses=(V4, V6), routes=(DEFAULT, CONNECTED, CONNECTED6)))
    assert plan.nics[0].addresses == ("10.244.1.5/24",)
    assert plan.warnings == ("eth0 has IPv6 addresses: they stay with the pod, the guest gets IPv4 only",)


def test_ipv6_alone_is_refused() -> None:
    with pytest.raises(NetworkFailed, match="not supported yet"):
        planned(replace(ETH0, addresses=(V6,), routes=(CONNECTED6,)))


def test_permanent_neighbours_and_further_addresses_are_warned_about() -> None:
    second = Address(4, "10.244.1.6", 24, flags=0x81)
    neighbour = Neighbour(4, "169.254.1.1", "ee:ee:ee:ee:ee:ee")
    warnings = planned(replace(ETH0, addresses=(V4, second), neighbours=(neighbour,))).warnings
    assert len(warnings) == 2
    assert "10.244.1.6" in warnings[0]
    assert "169.254.1.1" in warnings[1]
