"""Where the host's KVM cannot save the state of a vCPU, the tests that need it run inside the KVM machine.

A test finds out by itself: its snapshot fails with ``KvmCannotSave``. Then the outcome counts that the same test had in the
machine, which runs all those marked ``saves_vcpu`` at once, for the first that asks (about 30 s); the others, in other
workers of the same pytest run too, wait for it and read.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from tests.lab.debian import LabError
from tests.lab.kvm_machine import KvmMachine

if TYPE_CHECKING:
    import pytest

MARKER = "saves_vcpu: the real VMM needs a KVM that can save a vCPU's state; runs in the KVM machine where this host's cannot"
INSIDE = "CONTRACT_IN_KVM_MACHINE"
TIMEOUT = 240.0  # seconds
ROOT = Path(__file__).parents[2]


class KvmCannotSave(AssertionError):
    """This machine's KVM cannot save the state of a vCPU."""


def problem_in_machine(item: pytest.Function) -> str | None:
    """What went wrong with this test in the KVM machine; None when it passed there."""
    own = item.funcargs["tmp_path"]
    assert isinstance(own, Path)
    shared = own.parents[1] if "PYTEST_XDIST_WORKER" in os.environ else own.parent  # by all workers of a run
    results = shared / "kvm-machine"
    with (shared / "kvm-machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not results.exists():
            results.mkdir()
            (results / "log").write_text(_run(results))
    report = results / "junit.xml"
    log = (results / "log").read_text()[-4000:]
    if not report.exists():
        return f"the KVM machine did not get to its tests:\n{log}"
    for case in ET.parse(report).iter("testcase"):  # written by our own pytest
        if (case.get("classname"), case.get("name")) == (item.module.__name__, item.name):
            said = [f"{child.tag}: {child.get('message')}\n{child.text}" for child in case]
            return "\n".join(said) or None
    return f"the KVM machine did not run {item.name}:\n{log}"


def _run(results: Path) -> str:
    """Run the marked tests against the real VMM; what they said."""
    pytest_argv = ["-q", "tests/contract", "-m", "saves_vcpu", "-k", "real", "-p", "no:xdist", "--junitxml"]
    try:
        job = KvmMachine().run(
            [sys.executable, "-m", "pytest", *pytest_argv, results / "junit.xml"],
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), "REQUIRE_VMM": "1", INSIDE: "1"},
            cwd=ROOT,
            timeout=TIMEOUT,
            results=results,
        )
    except LabError as error:
        return str(error)
    return f"{job.log}\n{job.seconds:.0f} s in all\n"
