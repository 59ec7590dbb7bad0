"""Every scenario with a real guest under the emulator."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.e2e.scenarios import SCENARIOS, Stage, lacks

pytestmark = pytest.mark.root


@pytest.mark.parametrize("name", SCENARIOS)
def test_emulated(name: str) -> None:
    if why := lacks(name, emulated=True):
        pytest.skip(why)
    with ExitStack() as stack:
        # Two guests at a time on two cores, beside other tests: patience is stretched, promises in seconds are not.
        SCENARIOS[name](Stage(stack, pace=2))
