from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from launcher.host.workspace import publish

if TYPE_CHECKING:
    from pathlib import Path


def test_a_finished_disk_gets_its_name(tmp_path: Path) -> None:
    made, disk = tmp_path / "making", tmp_path / "rootfs.raw"
    made.write_text("new")
    publish(made, disk)
    assert disk.read_text() == "new"


def test_a_disk_that_another_launcher_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    made, disk = tmp_path / "making", tmp_path / "rootfs.raw"
    made.write_text("new")
    disk.write_text("in use")
    with pytest.raises(FileExistsError):
        publish(made, disk)
    assert disk.read_text() == "in use"


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_hard_links_will_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    taken: bool,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    made, disk = tmp_path / "making", tmp_path / "rootfs.raw"
    made.write_text("new")
    if taken:
        disk.write_text("in use")
        with pytest.raises(FileExistsError):
            publish(made, disk)
    else:
        publish(made, disk)
    assert disk.read_text() == ("in use" if taken else "new")
