"""The launcher's network work alone, in a netns of the lab: hand over, restore, and be killed in between.

``handed_over`` and ``KillServer`` do what ``launcher run`` does: observe, plan, apply. Run as a program it is the
single-threaded server that forks a child for each piece of work, so that a child can be killed after any number of
changes without paying for the imports again.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import pytest

from launcher.facts import HostFacts, NetworkFacts
from launcher.host.netlink import Netlink
from launcher.host.network import apply_network, restore_network
from launcher.host.observe_network import observe_network
from launcher.paths import Paths
from launcher.plan.network import NetworkPlan, plan_bridge
from launcher.plan.types import NetworkAction
from launcher.spec.types import (
    BridgeBinding,
    Cpu,
    Instance,
    Interface,
    Memory,
    PodNetwork,
    RunPolicy,
    VmSpec,
)
from tests.lab.netns import entered

if TYPE_CHECKING:
    from types import TracebackType

KILLED = 9
HOLDER_KINDS = ("bridge", "dummy")


def need_kind(kind: str) -> None:
    """Skip the test where the kernel has no such links."""
    with Netlink() as netlink:
        if not netlink.has_kind(kind):
            pytest.skip(f"this kernel has no {kind} links; the KVM machine has (tests/lab/kvm_machine.py)")


def vm_spec(*, vcpus: int = 1, name: str = "vm1") -> VmSpec:
    return VmSpec(
        name=name,
        namespace="default",
        uid="",
        run_policy=RunPolicy.ONCE,
        instance=Instance(
            memory=Memory(1 << 30),
            cpu=Cpu(1, vcpus),
            interfaces=(Interface("pod", "52:54:00:00:00:01", BridgeBinding()),),
        ),
        networks=(PodNetwork("pod"),),
    )


def network_plan(
    facts: NetworkFacts, *, kind: str = "bridge", vcpus: int = 1, name: str = "vm1", run_dir: Path = Path("/run/x")
) -> NetworkPlan:
    facts = replace(facts, has_dummy=kind == "dummy")
    host = HostFacts("x86_64", 4096, (0,), paths=Paths(run_dir=run_dir), network=facts)
    return plan_bridge(vm_spec(vcpus=vcpus, name=name), host)


def hand_over(*, kind: str = "bridge", vcpus: int = 1) -> NetworkPlan:
    """What ``launcher prepare`` does to the netns of the calling thread."""
    plan = network_plan(observe_network(), kind=kind, vcpus=vcpus)
    for action in plan.actions:
        if isinstance(action, get_args(NetworkAction)):
            apply_network(action)
    return plan


def observed() -> NetworkFacts:
    """The netns of the calling thread without IPv6 link-local: that comes and settles in the kernel's own time."""
    facts = observe_network()
    return replace(
        facts,
        links=tuple(
            replace(
                link,
                addresses=tuple(one for one in link.addresses if not one.local.startswith("fe80:")),
                routes=tuple(one for one in link.routes if one.destination != "fe80::/64"),
            )
            for link in facts.links
        ),
    )


class KillServer:
    """Does network work in children that can be killed after a given number of changes. A context manager."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._server as server:
            assert server.stdin
            server.stdin.close()

    def run(self, netns: str, work: str, *, kind: str = "bridge", kill_after: int | None = None) -> int:
        """The exit status of one piece of work, "hand over" or "restore"; KILLED when it did not get to its end."""
        assert self._server.stdin
        assert self._server.stdout
        request = {"netns": netns, "work": work, "kind": kind, "kill_after": kill_after}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


def _die_after(changes: int) -> None:
    """Let this process end at once, as if killed, when it is about to make one change more than these."""
    counter = itertools.count()

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(counter) >= changes:
                os._exit(KILLED)
            return real(*args, **kwargs)

        return call

    # Reading changes nothing: to die before a read is to die after the change before it.
    Netlink._change = counted(Netlink._change)  # type: ignore[method-assign]
    fcntl.ioctl = counted(fcntl.ioctl)  # the tap's


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if request["kill_after"] is not None:
                    _die_after(request["kill_after"])
                with entered(request["netns"]):
                    if request["work"] == "restore":
                        restore_network()
                    else:
                        hand_over(kind=request["kind"])
                status = 0
            except Exception as error:  # noqa: BLE001  # told on stderr, and by the status
                print(repr(error), file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
