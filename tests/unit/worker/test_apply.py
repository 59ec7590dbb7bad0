from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from launcher.errors import HostUnfit
from launcher.host.apply import apply
from launcher.plan.types import MakeFolder, WriteFile

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.plan.types import Action

ME = (os.getuid(), os.getgid())


def test_actions_are_carried_out_in_order_and_timed(tmp_path: Path) -> None:
    actions: tuple[Action, ...] = (
        MakeFolder(tmp_path / "run", 0o711, *ME, "why"),
        MakeFolder(tmp_path / "run/dnsmasq", 0o755, *ME, "why"),
        WriteFile(tmp_path / "run/dnsmasq/conf", "port=0\n", 0o644, "why"),
    )
    heard: list[tuple[Action, bool]] = []

    def on_action(action: Action, seconds: float | None) -> None:
        assert seconds is None or seconds >= 0
        heard.append((action, seconds is not None))

    for _ in range(2):
        heard.clear()
        apply(actions, arch="x86_64", on_action=on_action)
        assert heard == [(action, ended) for action in actions for ended in (False, True)]
        assert (tmp_path / "run/dnsmasq/conf").read_text() == "port=0\n"


def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    actions: tuple[Action, ...] = (
        WriteFile(tmp_path / "none/file", "", 0o644, "why"),
        MakeFolder(tmp_path / "later", 0o755, *ME, "why"),
    )
    heard: list[float | None] = []
    with pytest.raises(HostUnfit, match="none/file"):
        apply(actions, arch="x86_64", on_action=lambda _, seconds: heard.append(seconds))
    assert heard == [None]
    assert not (tmp_path / "later").exists()
