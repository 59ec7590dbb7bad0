"""The same scenarios under the real cloud-hypervisor: natively where KVM runs guests, else in one KVM machine."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.scenarios import SCENARIOS, Stage, lacks
from tests.lab.kvm_machine import KvmMachine, kvm_runs_guests
from tests.lab.vmm import require_vmm

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.root,
    pytest.mark.vmm,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("kvm-machine"),  # one machine a run
]

ROOT = Path(__file__).parents[2]
PACE = 10  # the KVM machine emulates its CPU


@pytest.fixture(scope="module")
def run_scenario(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    binary = require_vmm()
    if kvm_runs_guests():
        return _run_here
    results = tmp_path_factory.mktemp("kvm-machine")
    job = KvmMachine().run(
        [sys.executable, "-m", "tests.e2e.scenarios", str(results / "outcomes.json")],
        env={
            "PATH": f"{binary.path.parent}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/root"),
            "PACE": str(PACE),
        },
        cwd=ROOT,
        timeout=1500,
        results=results,
    )
    outcomes: dict[str, Any] = json.loads((results / "outcomes.json").read_text())
    print(f"cloud-hypervisor {binary.version}: {len(outcomes)} scenarios in {job.seconds:.0f} s")

    def judge(name: str) -> None:
        assert name in outcomes, f"the KVM machine did not get to it:\n{job.log[-4000:]}"
        if outcomes[name]["error"]:
            pytest.fail(f"{outcomes[name]['error']}", pytrace=False)

    return judge


def _run_here(name: str) -> None:
    with ExitStack() as stack:
        SCENARIOS[name](Stage(stack, options=()))


@pytest.mark.parametrize("name", SCENARIOS)
def test_real_vmm(name: str, run_scenario: Callable[[str], None]) -> None:
    if why := lacks(name, emulated=False):
        pytest.skip(why)
    run_scenario(name)
