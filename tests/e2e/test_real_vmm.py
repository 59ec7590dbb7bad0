"""The same scenarios under the real cloud-hypervisor: natively where KVM runs guests, else in one KVM machine."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.scenarios import SCENARIOS, Stage, lacks
from tests.lab.debian import LabError
from tests.lab.kvm_machine import KvmMachine, kvm_runs_guests
from tests.lab.vmm import require_vmm

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.root,
    pytest.mark.vmm,
    pytest.mark.timeout(1800),
]

ROOT = Path(__file__).parents[2]
PACE = 10  # the KVM machine emulates its CPU


@pytest.fixture(scope="module")
def run_scenario(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    binary = require_vmm()
    if kvm_runs_guests():
        return _run_here
    base = tmp_path_factory.getbasetemp()
    results = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "real-vmm"
    results.mkdir(exist_ok=True)
    with (results / "lock").open("w") as lock:  # one machine a run, whichever workers ask
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (results / "log").exists():
            (results / "log").write_text(_run_all(binary.path.parent, results))
    report = results / "outcomes.json"
    outcomes: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}

    def judge(name: str) -> None:
        assert name in outcomes, f"the KVM machine did not get to it:\n{(results / 'log').read_text()[-4000:]}"
        if outcomes[name]["error"]:
            pytest.fail(f"{outcomes[name]['error']}", pytrace=False)

    return judge


def _run_all(binaries: Path, results: Path) -> str:
    """Every scenario in a KVM machine; what it said, and how long it took."""
    try:
        job = KvmMachine().run(
            [sys.executable, "-m", "tests.e2e.scenarios", str(results / "outcomes.json")],
            env={
                "PATH": f"{binaries}:{os.environ['PATH']}",
                "HOME": os.environ.get("HOME", "/root"),
                "PACE": str(PACE),
            },
            cwd=ROOT,
            timeout=1500,
            results=results,
        )
    except LabError as error:
        return str(error)
    return f"{job.log}\n{job.seconds:.0f} s in all\n"


def _run_here(name: str) -> None:
    with ExitStack() as stack:
        SCENARIOS[name](Stage(stack, options=()))


@pytest.mark.parametrize("name", SCENARIOS)
def test_real_vmm(name: str, run_scenario: Callable[[str], None]) -> None:
    if why := lacks(name, emulated=False):
        pytest.skip(why)
    run_scenario(name)
