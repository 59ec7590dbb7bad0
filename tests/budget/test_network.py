"""How much a preparation of the network asks of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from launcher.host.netlink import Netlink
from tests.lab.netns import FLANNEL, RICH, Shape, pod_netns
from tests.lab.pod_network import hand_over

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root


class Counted:
    """Calls of one method of Netlink, which go through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls = 0
        real: Callable[..., Any] = getattr(Netlink, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(Netlink, name, call)


# Requests of a first preparation and of one that finds everything done; about a tenth more than they are, since a list
# that changed meanwhile is asked for again. Each costs 20 to 50 us, so these are 4 ms of a start.
BUDGET = [(FLANNEL, 77, 40), (RICH, 111, 40)]


@pytest.mark.parametrize(("shape", "first", "again"), BUDGET, ids=[shape.name for shape, *_ in BUDGET])
def test_netlink_requests_of_one_bridge(shape: Shape, first: int, again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pod_netns(shape) as net, net.entered():
        requests = Counted(monkeypatch, "_exchange")
        hand_over()
        assert requests.calls <= first
        done = requests.calls
        hand_over()
        assert requests.calls - done <= again
