from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.netns import FLANNEL, pod_netns
from tests.lab.supervised import supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.netns import PodNetns
    from tests.lab.supervised import Supervised


@pytest.fixture(scope="module")
def quiet_net() -> Iterator[PodNetns]:
    """A pod's netns that nobody changes."""
    with pod_netns(FLANNEL) as net:
        yield net


@pytest.fixture
def vm(quiet_net: PodNetns) -> Iterator[Supervised]:
    """A VM around the fake VMM, not started yet."""
    with supervised(quiet_net) as vm:
        yield vm
