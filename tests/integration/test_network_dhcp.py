"""dnsmasq with the planned configuration and confinement, asked by hand-made packets and by a real client."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.host.confine import confined_argv
from launcher.host.observe_network import observe_network
from launcher.plan.types import MakeFolder, WriteFile
from tests.lab.dhcp import Client
from tests.lab.netns import AWS, CALICO, CILIUM, DUAL, FLANNEL, MAC, PLAIN, Shape, ip_batch, netns, pod_netns
from tests.lab.pod_network import hand_over, network_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.netns import PodNetns

pytestmark = pytest.mark.root

MASK, ROUTER, DNS, HOSTNAME, DOMAIN, MTU, LEASE_TIME, SEARCH, ROUTES = 1, 3, 6, 12, 15, 26, 51, 119, 121
NAMESERVERS = ("10.96.0.10", "fd00::10", "127.0.0.53", "10.96.0.11")
SEARCH_LIST = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")


@dataclass(frozen=True, slots=True)
class Lab:
    pod: PodNetns
    guest: str  # a netns whose eth0, with the pod's MAC, is a port of the bridge, as the VM's tap is
    dnsmasq: subprocess.Popen[str]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for one user only; dnsmasq is another
        path = Path(folder)
        path.chmod(0o711)
        yield path


@contextlib.contextmanager
def lab(shape: Shape, run_dir: Path) -> Iterator[Lab]:
    with pod_netns(shape) as pod, netns("guest") as guest:
        with pod.entered():
            facts = replace(observe_network(), nameservers=NAMESERVERS, search=SEARCH_LIST)
            hand_over()
        plan = network_plan(facts, run_dir=run_dir, name="my-vm.example")
        run_dir.joinpath("dnsmasq").mkdir(exist_ok=True)
        for action in plan.actions:
            if isinstance(action, MakeFolder):
                action.path.mkdir(exist_ok=True)
                action.path.chmod(action.mode)
                os.chown(action.path, action.uid, action.gid)
            elif isinstance(action, WriteFile):
                action.path.write_text(action.content)
                action.path.chmod(action.mode)
        ip_batch(
            pod.pod_name,
            f"link add guest mtu {shape.mtu} type veth peer name eth0 netns {guest} address {MAC}",
            "link set guest master br-eth0 up",
        )
        ip_batch(guest, "link set lo up", "link set eth0 up")
        argv = confined_argv(plan.helpers[0].argv, plan.helpers[0].confinement)
        command = ["ip", "netns", "exec", pod.pod_name, *argv]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as dnsmasq:
            assert dnsmasq.stderr
            try:
                said = []
                for line in dnsmasq.stderr:
                    said.append(line)
                    if "static leases only" in line:
                        break
                else:
                    pytest.fail(f"dnsmasq did not start: {said}")
                yield Lab(pod, guest, dnsmasq)
            finally:
                dnsmasq.kill()


def addresses(data: bytes) -> list[str]:
    return [str(IPv4Address(data[at : at + 4])) for at in range(0, len(data), 4)]


@dataclass(frozen=True, slots=True)
class Told:
    """What a guest on this shape is to be told; ``routes`` is option 121 in hexadecimal, None when it must be absent."""

    shape: Shape
    mask: str
    router: list[str]
    routes: str | None
    mtu: int


@pytest.mark.parametrize(
    "told",
    [
        Told(FLANNEL, "255.255.255.0", ["10.244.1.1"], "10 0af4 0af40101  00 0af40101", 1450),
        Told(CALICO, "255.255.255.255", ["169.254.1.1"], "20 a9fe0101 00000000  00 a9fe0101", 1440),
        Told(CILIUM, "255.255.255.255", ["10.0.0.1"], "20 0a000001 00000000  00 0a000001", 1450),
        Told(AWS, "255.255.255.255", ["169.254.1.1"], "20 a9fe0101 00000000  00 a9fe0101", 9001),
        Told(DUAL, "255.255.255.0", ["10.244.1.1"], "00 0af40101", 1400),
        Told(PLAIN, "255.255.255.0", [], None, 1500),
    ],
    ids=lambda told: told.shape.name,
)
def test_the_options_on_the_wire(told: Told, run_dir: Path) -> None:
    routes = bytes.fromhex(told.routes) if told.routes else None
    with lab(told.shape, run_dir) as it, Client(it.guest, "eth0", MAC) as client:
        forgetful = client.discover(asks_for=bytes([MASK]))  # a client that does not ask must get a network, too
        assert forgetful.options[MTU] == told.mtu.to_bytes(2, "big")
        assert forgetful.options.get(ROUTES) == routes
        everything = bytes([MASK, ROUTER, DNS, HOSTNAME, DOMAIN, MTU, SEARCH, ROUTES])
        ack = client.request(client.discover(asks_for=everything), asks_for=everything)
    assert ack.to == b"\xff" * 6  # by broadcast: a frame to the guest's address would be delivered to the holder
    assert ack.your_address == told.shape.address
    options = ack.options
    assert addresses(options[MASK]) == [told.mask]
    assert options[LEASE_TIME] == b"\xff\xff\xff\xff"
    assert addresses(options.get(ROUTER, b"")) == told.router
    assert options.get(ROUTES) == routes
    assert options[MTU] == told.mtu.to_bytes(2, "big")
    assert addresses(options[DNS]) == ["10.96.0.10", "10.96.0.11"]
    assert options[HOSTNAME] == b"my-vm.example"
    assert options[DOMAIN] == b"default.svc.cluster.local"
    # RFC 1035 compression: the second and third name point into the first.
    assert options[SEARCH] == b"\x07default\x03svc\x07cluster\x05local\x00\xc0\x08\xc0\x0c"


def test_only_the_guest_gets_a_lease(run_dir: Path) -> None:
    with lab(FLANNEL, run_dir) as it:
        ip_batch(it.guest, "link set eth0 address 02:00:00:00:00:42")
        with Client(it.guest, "eth0", "02:00:00:00:00:42") as stranger, Client(it.guest, "eth0", MAC) as guest:
            stranger.call_out()
            assert guest.discover().your_address == FLANNEL.address
            assert stranger.answers() == []


def test_dnsmasq_is_confined_and_survives_a_restart(run_dir: Path) -> None:
    with lab(FLANNEL, run_dir) as it:
        status = Path(f"/proc/{it.dnsmasq.pid}/status").read_text()
        told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert told["Name"] == "dnsmasq"
        assert told["Uid"].split() == ["108"] * 4
        for capabilities in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(told[capabilities], 16) == 1 << 12 | 1 << 10  # NET_ADMIN, NET_BIND_SERVICE
        assert told["NoNewPrivs"] == "1"
        limits = Path(f"/proc/{it.dnsmasq.pid}/limits").read_text()
        assert next(line.split()[3:5] for line in limits.splitlines() if "open files" in line) == ["1024", "1024"]
        with Client(it.guest, "eth0", MAC) as client:
            client.request(client.discover())
        leases = run_dir / "dnsmasq" / "leases" / "br-eth0.leases"
        assert leases.read_text().split()[1:3] == [MAC, FLANNEL.address]
    with lab(FLANNEL, run_dir) as it, Client(it.guest, "eth0", MAC) as client:
        assert client.discover().your_address == FLANNEL.address


# Applies what the client was told as a distribution's does, and keeps a record of it.
SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
env >"$RECORD"
ip addr add "$ip/$mask" dev "$interface"
ip link set "$interface" mtu "$mtu"
set -- $staticroutes
while [ $# -ge 2 ]; do
    if [ "$2" = 0.0.0.0 ]; then ip route add "$1" dev "$interface"; else ip route add "$1" via "$2"; fi
    shift 2
done
"""


@pytest.mark.parametrize("shape", [FLANNEL, CALICO, CILIUM], ids=lambda shape: shape.name)
def test_a_real_client_gets_the_pods_network(shape: Shape, run_dir: Path, tmp_path: Path) -> None:
    script, record = tmp_path / "script", tmp_path / "record"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    with lab(shape, run_dir) as it:
        client = ["udhcpc", "-f", "-q", "-n", "-i", "eth0", "-s", str(script)]
        asks_for = [word for option in ("mtu", "staticroutes", "search", "hostname", "dns") for word in ("-O", option)]
        subprocess.run(
            ["ip", "netns", "exec", it.guest, *client, *asks_for],
            env={**os.environ, "RECORD": str(record)},
            check=True,
            capture_output=True,
            timeout=30,
        )
        told = dict(line.split("=", 1) for line in record.read_text().splitlines() if "=" in line)
        assert told["ip"] == shape.address
        assert told["hostname"] == "my-vm.example"
        assert told["dns"] == "10.96.0.10 10.96.0.11"
        assert told["search"].split() == list(SEARCH_LIST)
        assert int(told["mtu"]) == min(shape.mtu, 1450)
        in_guest = ["ip", "netns", "exec", it.guest]
        # The first answer proves ARP, bridge and routes both ways; then the node calls the guest by the pod's address.
        subprocess.run([*in_guest, "ping", "-c1", "-w10", shape.gateway], check=True, capture_output=True)
        it.pod.node("ping", "-c1", "-w10", shape.address)
        mac_seen = it.pod.node("ip", "neigh", "show", shape.address)
        assert MAC in mac_seen
