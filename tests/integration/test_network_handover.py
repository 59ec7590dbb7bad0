"""The hand-over on the shapes that CNIs leave behind, and what it refuses."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.errors import HostUnfit, NetworkFailed
from launcher.host.confine import confined_argv
from launcher.host.netlink import Message, Netlink
from launcher.host.network import apply_network, restore_network
from launcher.plan.types import Confinement, DropStage, EnsureTap, ReleaseNic
from tests.lab.dhcp import Client
from tests.lab.netns import FLANNEL, MAC, SHAPES, Shape, entered, ip_batch, netns, pod_netns
from tests.lab.pod_network import HOLDER_KINDS, hand_over, need_kind, network_plan, observed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.facts import NetworkFacts
    from tests.lab.netns import PodNetns

pytestmark = pytest.mark.root

BRIDGE = "169.254.200.1"
VMM = Confinement(107, 107)
# What a VMM does with its tap: TUNSETIFF with the flags in argv[2]. The device is stdin, for not every node lets any uid
# open it; the kernel checks the tap's owner against the caller of the ioctl.
OPEN_TAP = """
import fcntl, struct, sys
fcntl.ioctl(0, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), int(sys.argv[2])))
"""
ONE_QUEUE, MANY_QUEUES = 0x0002 | 0x1000 | 0x4000, 0x0002 | 0x1000 | 0x4000 | 0x0100


def opens_tap(pod: PodNetns, flags: int, identity: Confinement = VMM) -> bool:
    argv = confined_argv(["/usr/bin/python3", "-I", "-S", "-c", OPEN_TAP, "tap-eth0", str(flags)], identity)
    with pod.entered(), Path("/dev/net/tun").open("r+b", buffering=0) as tun:
        return subprocess.run(argv, stdin=tun, check=False, capture_output=True).returncode == 0


def configuration(facts: NetworkFacts) -> object:
    link = facts.link("eth0")
    assert link
    addresses = {
        (one.local, one.prefix, one.peer, one.broadcast, one.label) for one in link.addresses if one.scope == 0
    }
    return link.mac, link.mtu, link.up, addresses, set(link.routes), set(link.neighbours)


@pytest.mark.parametrize("kind", HOLDER_KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_holder_equals_what_the_cni_made_and_restoring_gives_it_back(shape: Shape, kind: str) -> None:
    need_kind(kind)
    with pod_netns(shape) as pod, pod.entered():
        before = configuration(observed())
        hand_over(kind=kind)
        assert configuration(observed()) == before
        assert restore_network()
        assert configuration(observed()) == before
        assert not restore_network()  # nothing left to do


def test_the_restored_pod_reaches_its_gateway() -> None:
    with pod_netns(FLANNEL) as pod:
        with pod.entered():
            hand_over()
            restore_network()
        pod.pod("ping", "-c1", "-w10", FLANNEL.gateway)


def test_a_guest_of_two_vcpus_gets_a_tap_of_two_queues_which_only_the_vmm_may_open() -> None:
    with pod_netns() as pod:
        with pod.entered():
            plan = hand_over(vcpus=2)
        assert plan.nets[0].num_queues == 4
        assert opens_tap(pod, MANY_QUEUES)
        assert not opens_tap(pod, ONE_QUEUE)
        assert not opens_tap(pod, MANY_QUEUES, Confinement(108, 108))


def test_a_tap_with_other_queues_or_of_another_owner_is_made_anew() -> None:
    with pod_netns() as pod, pod.entered():
        hand_over(vcpus=2)
        first = observed().link("tap-eth0")
        hand_over(vcpus=1)
        second = observed().link("tap-eth0")
        assert first
        assert second
        assert first.index != second.index
        assert opens_tap(pod, ONE_QUEUE)
        apply_network(EnsureTap("tap-eth0", "br-eth0", 1450, 4242, 1, ""))
        assert opens_tap(pod, ONE_QUEUE, Confinement(4242, 4242))


def test_a_tap_still_open_is_adopted() -> None:
    with pod_netns() as pod, pod.entered():
        hand_over()
        before = observed()
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tap-eth0", ONE_QUEUE))
            hand_over()
            assert observed() == before
        finally:
            os.close(tun)


def test_the_pod_does_not_answer_arp_for_the_guests_address() -> None:
    with pod_netns() as pod:
        with pod.entered():
            hand_over()
        with Client(pod.node_name, "pod", "02:00:00:00:00:99") as client:
            assert not client.answers_arp(FLANNEL.address, witness=BRIDGE)
            pod.pod("sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/br-eth0/arp_ignore")
            assert client.answers_arp(FLANNEL.address, witness=BRIDGE)  # so it was arp_ignore that kept it silent


def test_the_bridge_does_not_learn_the_guests_mac_from_the_wire() -> None:
    with pod_netns() as pod:
        with pod.entered():
            hand_over()
        with Client(pod.node_name, "pod", MAC) as guests_own_frame_coming_back:
            guests_own_frame_coming_back.answers_arp(BRIDGE, witness=BRIDGE)
        learned = [entry["mac"] for entry in json.loads(pod.pod("bridge", "-j", "fdb", "show", "br", "br-eth0"))]
        assert MAC not in learned
        pod.pod("bridge", "link", "set", "dev", "eth0-nic", "learning", "on")
        with Client(pod.node_name, "pod", MAC) as again:
            again.answers_arp(BRIDGE, witness=BRIDGE)
        assert MAC in pod.pod("bridge", "fdb", "show", "br", "br-eth0")  # so it was the switch that prevented it


HAND_OVER = "from tests.lab.pod_network import hand_over; hand_over()"
READ_ONLY_SYS = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'


def hand_over_as(pod: PodNetns, capabilities: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Hand over as uid 0 with these capabilities alone, /proc/sys read-only as in any container."""
    argv = confined_argv([sys.executable, "-c", HAND_OVER], Confinement(0, 0, capabilities=capabilities))
    command = ["unshare", "-m", "sh", "-c", READ_ONLY_SYS, "sh", *argv]
    with pod.entered():
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def test_net_admin_and_a_read_only_proc_sys_are_enough() -> None:
    with pod_netns() as pod:
        with pod.entered():
            before = configuration(observed())
        done = hand_over_as(pod, ("net_admin",))
        assert done.returncode == 0, done.stderr
        with pod.entered():
            facts = observed()
            assert facts.link("tap-eth0")
            assert configuration(facts) == before


def test_without_net_admin_it_says_so_and_changes_nothing() -> None:
    with pod_netns() as pod:
        with pod.entered():
            before = observed()
        done = hand_over_as(pod, ())
        assert done.stderr.splitlines()[-1] == (
            "launcher.errors.HostUnfit: not permitted to make the bridge br-eth0 "
            "(the container needs the capability NET_ADMIN)"
        )
        with pod.entered():
            assert observed() == before


def test_without_a_tun_device_there_is_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.host.tap.TUN", str(tmp_path / "tun"))
    with pod_netns() as pod, pod.entered():
        with pytest.raises(HostUnfit, match="is missing") as caught:
            hand_over()
        assert caught.value.hint
        (tmp_path / "tun").touch()
        with pytest.raises(NetworkFailed, match="cannot make the tap tap-eth0: Inappropriate ioctl"):
            hand_over()


def test_a_pod_without_eth0_is_refused() -> None:
    with netns("bare") as bare:
        ip_batch(bare, "link add eth1 type bridge")
        with entered(bare), pytest.raises(NetworkFailed, match="the pod has no eth0"):
            hand_over()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("route add 10.9.0.0/16 nexthop via 10.244.1.1 nexthop via 10.244.1.2", "RTA_MULTIPATH"),
        ("route add 10.9.0.0/16 via inet6 fe80::1 dev eth0", "RTA_VIA"),
        ("route add 10.9.0.0/16 via 10.244.1.1 realms 7", "RTA_FLOW"),
        ("route add 10.9.0.0/16 via 10.244.1.1 table 999999999", "table 999999999"),
        ("link set eth0 master other", "a port of other"),
        ("link add rider link eth0 type macvlan mode bridge", "rider would lose the link below"),
    ],
)
def test_what_cannot_be_copied_is_refused_before_the_first_change(change: str, words: str) -> None:
    with pod_netns() as pod, pod.entered():
        ip_batch(pod.pod_name, "link add other type bridge", change)
        before = observed()
        with pytest.raises(NetworkFailed, match=words):
            hand_over()
        assert observed() == before


def test_a_route_of_a_nexthop_object_is_refused() -> None:
    with pod_netns() as pod, pod.entered():
        ip_batch(pod.pod_name, "nexthop add id 5 via 10.244.1.9 dev eth0", "route add 10.9.0.0/16 nhid 5")
        with pytest.raises(NetworkFailed, match="attribute 30"):  # RTA_NH_ID
            hand_over()


def test_an_mtu_beyond_a_taps_stays_on_the_holder() -> None:
    with pod_netns(replace(FLANNEL, mtu=65535)) as pod, pod.entered():
        before = configuration(observed())
        hand_over()
        facts = observed()
        assert configuration(facts) == before
        assert [link.mtu for link in facts.links if link.name in {"br-eth0", "tap-eth0"}] == [65521, 65521]


def test_a_macvlan_cannot_be_handed_over() -> None:
    with pod_netns() as pod, pod.entered():
        ip_batch(
            pod.pod_name,
            "link set eth0 down",
            "link set eth0 name base",
            "link add eth0 link base type macvlan mode bridge",
        )
        with pytest.raises(NetworkFailed, match="macvlan links receive no frames"):
            hand_over()


def test_a_link_in_the_way_is_left_alone() -> None:
    with pod_netns() as pod, pod.entered():
        ip_batch(pod.pod_name, "link add br-eth0 type veth peer name other")
        before = observed()
        with pytest.raises(NetworkFailed, match="br-eth0 is a veth, not our bridge"):
            hand_over()
        assert not restore_network()
        assert observed() == before


def test_a_pod_with_ipv6_switched_off_is_handed_over_all_the_same() -> None:
    with pod_netns() as pod, pod.entered():
        pod.pod("sh", "-c", "for each in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >$each; done")
        before = configuration(observed())
        hand_over()
        assert configuration(observed()) == before
        assert restore_network()
        assert configuration(observed()) == before


def test_the_interface_is_never_released_without_a_complete_copy() -> None:
    with pod_netns() as pod, pod.entered():
        before = observed()
        release = next(one for one in network_plan(before).actions if isinstance(one, ReleaseNic))
        with pytest.raises(NetworkFailed, match="no complete copy"):
            apply_network(release)
        assert observed() == before


def test_a_lost_configuration_is_told_not_guessed() -> None:
    with pod_netns() as pod, pod.entered():
        hand_over()
        ip_batch(pod.pod_name, "link del eth0")
        for work in (hand_over, restore_network):
            with pytest.raises(NetworkFailed, match="the copy of its addresses is gone"):
                work()


def test_a_vanished_interface_is_told_and_the_holder_stays() -> None:
    with pod_netns() as pod, pod.entered():
        hand_over()
        ip_batch(pod.node_name, "link del pod")  # its peer, eth0-nic, goes with it
        before = observed()
        with pytest.raises(NetworkFailed, match="eth0-nic, the pod's own interface, is gone"):
            hand_over()
        with pytest.raises(NetworkFailed, match="eth0-nic, the pod's own interface, is gone"):
            restore_network()
        assert observed() == before


def test_a_list_that_changed_while_it_was_read_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Netlink._exchange
    torn: Iterator[bool] = iter([True, True])

    def interrupted(self: Netlink, message: Message, kind: int, flags: int) -> list[Message]:
        answers = real(self, message, kind, flags)
        if next(torn, False):
            del answers[1:]
            answers[0]["header"]["flags"] |= 0x10  # NLM_F_DUMP_INTR
        return answers

    with pod_netns() as pod, pod.entered():
        before = observed()
        monkeypatch.setattr(Netlink, "_exchange", interrupted)
        assert observed() == before
        torn = itertools.repeat(True)
        with pytest.raises(NetworkFailed, match="keep changing"):
            observed()


def test_deleting_a_stage_that_is_not_there_is_fine() -> None:
    with pod_netns() as pod, pod.entered():
        apply_network(DropStage("stage-eth0", ""))
