"""The capabilities that docs/reference/pod.md asks for: these are enough, and without any one of them the start is refused.

With the root file system read-only, as the page's manifest has it.
"""

from __future__ import annotations

import base64
import json
import re
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from launcher.plan.fitness import CAPABILITIES
from tests.e2e.scenarios import LEASE, Stage
from tests.e2e.test_refusals import network_of
from tests.lab.opened import ROOT
from tests.lab.pod import VmPod, golden_spec, vm_pod

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def read_only_root(root: Path) -> list[str]:
    """Nothing can be written but the run directory, the disks, the termination message and the devices' tmpfs."""
    binds = [f"mount --bind {root}/{name} {root}/{name}" for name in ("run", "disks", "termination-log")]
    return [*binds, "mount -o remount,bind,ro /"]


def test_the_page_asks_for_what_is_checked() -> None:
    page = (ROOT / "docs/reference/pod.md").read_text()
    listed = re.search(r"add: \[([A-Z_, ]+)\]", page)
    assert listed
    assert listed[1].lower().split(", ") == sorted(CAPABILITIES)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_without_one_the_start_is_refused(name: str) -> None:
    with vm_pod(capabilities=tuple(CAPABILITIES.keys() - {name})) as pod:
        pod.write_spec(golden_spec())
        before = network_of(pod.net)
        pod.start("--emulate")
        assert pod.wait() == 11
        assert pod.result["reason"] == "HostUnfit"
        assert pod.result["message"] == (
            f"the container lacks the capability {name.upper()}: {CAPABILITIES[name]} "
            "(run it as root and add them under securityContext.capabilities.add)"
        )
        assert json.loads(pod.termination_message) == pod.result
        assert "Traceback" not in pod.log
        assert network_of(pod.net) == before


@pytest.mark.parametrize("drop_in", [False, True], ids=["launcher's own form", "drop-in"])
def test_these_are_enough_and_the_root_may_be_read_only(*, drop_in: bool) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, pace=2)
        pod = stage.pod(capabilities=tuple(CAPABILITIES))
        pod.mounts = [*read_only_root(pod.root), "! touch /usr/written 2>/dev/null"]
        data = base64.b64encode(json.dumps(golden_spec()).encode()).decode()
        pod.start("--emulate", env={"LAUNCHER_SPEC": "", "VM_DATA": data} if drop_in else {})
        pod.until_console(LEASE, 120)

        vmm = json.loads(pod.exec("status", "-o", "json").stdout)["vmm"]["pid"]
        fields = status_of(pod, vmm)
        assert fields["Uid"].split()[0] == ("0" if drop_in else "107")
        assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert fields["NoNewPrivs"] == "1"

        pod.kill(signal.SIGTERM)
        stage.end(pod, 143, "Terminated")


def status_of(pod: VmPod, pid: int) -> dict[str, Any]:
    """/proc/PID/status of a process by its pid in the container."""
    for path in (f"/proc/{host}/status" for host in pod.processes()):
        with open(path) as file:  # noqa: PTH123  # a path under /proc
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        if fields["NSpid"].split()[-1] == str(pid):
            return fields
    raise AssertionError(f"the container has no process {pid}")
