"""The real cloud-hypervisor, for the tests that need it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = "cloud-hypervisor"


@dataclass(frozen=True, slots=True)
class RealVmm:
    path: Path
    version: str  # "v53.0"


def require_vmm() -> RealVmm:
    """The real cloud-hypervisor on PATH; without it the test is skipped, or fails when REQUIRE_VMM=1 is set."""
    path = shutil.which(PROGRAM)
    if path is None:
        reason = f"the real {PROGRAM} is not on PATH"
        if os.environ.get("REQUIRE_VMM") == "1":
            pytest.fail(f"{reason}, and REQUIRE_VMM=1 is set", pytrace=False)
        pytest.skip(reason)
    said = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
    return RealVmm(Path(path), said.split()[1])
