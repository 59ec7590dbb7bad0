"""A pod's network as a CNI leaves it: a netns with a veth named eth0, and a netns for the node at its other end.

    with pod_netns(FLANNEL) as pod:
        with pod.entered():      # this thread is in the pod
            ...
        pod.node("ping", "-c1", "10.244.1.5")

Names are unique, so any number can live side by side; what runs in them ends with them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
MAC = "0a:58:0a:f4:01:05"
NODE_MAC = "ee:ee:ee:ee:ee:ee"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a CNI configures: ``ip`` commands for the pod (its veth is there and up) and for the node (veth ``pod``)."""

    name: str
    address: str  # of the pod, without its prefix
    gateway: str
    mtu: int
    pod: tuple[str, ...]
    node: tuple[str, ...]


FLANNEL = Shape(
    "flannel",
    "10.244.1.5",
    "10.244.1.1",
    1450,
    (
        "addr add 10.244.1.5/24 brd 10.244.1.255 dev eth0",
        "route add default via 10.244.1.1",
        "route add 10.244.0.0/16 via 10.244.1.1",
    ),
    ("addr add 10.244.1.1/24 dev pod",),
)
CALICO = Shape(
    "calico",
    "192.168.77.5",
    "169.254.1.1",
    1440,
    (
        "addr add 192.168.77.5/32 dev eth0",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
    ),
    ("addr add 169.254.1.1/32 dev pod", "route add 192.168.77.5 dev pod"),
)
CILIUM = Shape(
    "cilium",
    "10.0.0.5",
    "10.0.0.1",
    1500,
    (
        "addr add 10.0.0.5/32 dev eth0",
        "route add 10.0.0.1 dev eth0 scope link",
        "route add default via 10.0.0.1 mtu 1450",
    ),
    ("addr add 10.0.0.1/32 dev pod", "route add 10.0.0.5 dev pod"),
)
AWS = Shape(
    "aws",
    "172.31.9.5",
    "169.254.1.1",
    9001,
    (
        "addr add 172.31.9.5/32 dev eth0",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
        f"neigh add 169.254.1.1 lladdr {NODE_MAC} dev eth0 nud permanent",
    ),
    ("addr add 169.254.1.1/32 dev pod", "route add 172.31.9.5 dev pod"),
)
PLAIN = Shape(
    "plain", "10.9.8.5", "10.9.8.1", 1500, ("addr add 10.9.8.5/24 dev eth0",), ("addr add 10.9.8.1/24 dev pod",)
)
DUAL = Shape(
    "dual",
    "10.244.1.5",
    "10.244.1.1",
    1450,
    (
        "addr add 10.244.1.5/24 dev eth0",
        "addr add fd00:10::5/64 dev eth0 nodad",
        "route add default via 10.244.1.1 mtu 1400",
        "-6 route add default via fd00:10::1",
        "neigh add 10.244.1.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
    ),
    ("addr add 10.244.1.1/24 dev pod",),
)
# Everything that can be copied at once: both families, a secondary and a labelled address, policy routing whose gateway
# is reachable through the main table only, metrics, sources, types of service, on-link gateways.
RICH = Shape(
    "rich",
    "10.16.0.5",
    "10.16.0.1",
    1400,
    (
        "addr add 10.16.0.5/16 brd 10.16.255.255 dev eth0",
        "addr add 10.16.0.6/16 dev eth0 label eth0:more",
        "addr add 10.17.0.1/24 dev eth0 noprefixroute",
        "addr add 10.18.0.1 peer 10.18.0.2/32 dev eth0",
        "addr add fd00:10::5/64 dev eth0 nodad",
        "addr add fd00:11::5/128 dev eth0 nodad noprefixroute",
        "route add default via 10.16.0.1 metric 100 src 10.16.0.6 mtu 1380 advmss 1300 proto static",
        "route add default via 203.0.113.1 dev eth0 onlink metric 200",
        "route add 10.99.0.0/16 via 10.16.0.9 tos 0x10",
        "route add 10.98.0.0/16 dev eth0 scope link src 10.17.0.1 mtu lock 1300",
        "route add default via 10.16.0.1 dev eth0 table 1000",
        "route add 10.97.0.0/16 via 10.16.0.1 dev eth0 table 7 initcwnd 20",
        "-6 route add default via fe80::1 dev eth0 metric 50",
        "-6 route add fd99::/32 via fd00:10::1 mtu 1300",
        "neigh add 10.16.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
    ),
    ("addr add 10.16.0.1/16 dev pod",),
)

SHAPES = (FLANNEL, CALICO, CILIUM, AWS, PLAIN, DUAL, RICH)


@dataclass(frozen=True, slots=True)
class PodNetns:
    """``pod`` and ``node`` run a command in the one or the other and return its output; a failure raises."""

    pod_name: str
    node_name: str
    shape: Shape

    def pod(self, *argv: str, timeout: float = 30) -> str:
        return _in(self.pod_name, argv, timeout)

    def node(self, *argv: str, timeout: float = 30) -> str:
        return _in(self.node_name, argv, timeout)

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """The calling thread, and only it, is in the pod's netns meanwhile; what it starts is, too."""
        return entered(self.pod_name)


@contextlib.contextmanager
def pod_netns(shape: Shape = FLANNEL) -> Iterator[PodNetns]:
    with netns("pod") as pod, netns("node") as node:
        ip_batch(
            node,
            f"link add pod address {NODE_MAC} mtu {shape.mtu} type veth "
            f"peer name eth0 netns {pod} address {MAC} mtu {shape.mtu}",
            "link set pod up",
        )
        ip_batch(pod, "link set lo up", "link set eth0 up")
        ip_batch(node, "link set lo up", *shape.node)
        ip_batch(pod, *shape.pod)
        yield PodNetns(pod, node, shape)


@contextlib.contextmanager
def netns(purpose: str) -> Iterator[str]:
    """An empty netns of a unique name; processes still in it are killed at the end."""
    name = f"lab-{purpose}-{os.getpid()}-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        pids = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True).stdout
        for pid in map(int, pids.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    with Path("/proc/thread-self/ns/net").open("rb") as home, Path("/run/netns", name).open("rb") as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(fd: int) -> None:  # os.setns needs Python 3.12
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def ip_batch(name: str, *commands: str) -> None:
    """Run ``ip`` commands in a netns; "-6 " in front chooses the family."""
    for family in ("", "-6 "):  # `ip -batch` takes the family for the whole batch
        chosen = [command.removeprefix("-6 ") for command in commands if command.startswith("-6 ") == bool(family)]
        if chosen:
            argv = ["ip", *family.split(), "-n", name, "-batch", "-"]
            subprocess.run(argv, input="\n".join(chosen), text=True, check=True)


def _in(name: str, argv: tuple[str, ...], timeout: float) -> str:
    command = ["ip", "netns", "exec", name, *argv]
    return subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=timeout
    ).stdout
