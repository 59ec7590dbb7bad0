"""As whom a confined child really runs, read from /proc."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.host.confine import confined_argv
from launcher.plan.fitness import CAPABILITIES
from launcher.plan.types import Confinement

pytestmark = pytest.mark.root

CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NET_ADMIN, NET_BIND_SERVICE = 1 << 12, 1 << 10
SHOW = ["sh", "-c", "cat /proc/self/status; echo Files:$(ulimit -Sn):$(ulimit -Hn)"]


def as_contract(argv: list[str]) -> list[str]:
    """The command as in a container that has the contract's capabilities and no more."""
    kept = ",".join(["-all", *(f"+{name}" for name in CAPABILITIES)])
    return ["setpriv", f"--inh-caps={kept}", f"--bounding-set={kept}", "--", *argv]


def status_of(confinement: Confinement) -> dict[str, str]:
    argv = as_contract(confined_argv(SHOW, confinement))
    text = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: value.strip() for name, value in (line.split(":", 1) for line in text.splitlines())}


@pytest.mark.parametrize("uid", [107, 0])
def test_the_vmm_has_its_identity_and_no_capability_in_any_set(uid: int) -> None:
    status = status_of(Confinement(uid, uid, groups=(36, 78)))
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(uid)] * 4
    assert status["Groups"].split() == ["36", "78"]
    assert {int(status[name], 16) for name in CAPABILITY_SETS} == {0}
    assert status["NoNewPrivs"] == "1"


def test_a_helper_keeps_the_named_capabilities_alone_and_its_limit() -> None:
    status = status_of(Confinement(108, 108, capabilities=("net_admin", "net_bind_service"), nofile=512))
    assert {int(status[name], 16) for name in CAPABILITY_SETS} == {NET_ADMIN | NET_BIND_SERVICE}
    assert status["Groups"] == ""
    assert status["Files"] == "512:512"


PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("pdeathsig", ["KILL", None])
def test_a_child_ends_with_its_parent_unless_told_otherwise(pdeathsig: str | None) -> None:
    confinement = Confinement(107, 107)
    # The child is another program already, so the tie outlived both the change of uid and the exec.
    argv = confined_argv(["sh", "-c", "echo up; exec sleep 60"], confinement, pdeathsig=pdeathsig)
    command = [sys.executable, "-c", PARENT, *argv]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        assert "up" in lines
        (pid,) = map(int, lines - {"up"})
        child = os.pidfd_open(pid)
        try:
            parent.kill()
            parent.wait()
            ended, _, _ = select.select([child], [], [], 5 if pdeathsig else 0.2)
            assert bool(ended) == (pdeathsig is not None)
        finally:
            if Path(f"/proc/{pid}").exists():
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
