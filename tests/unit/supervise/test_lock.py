from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from launcher.errors import HostUnfit
from launcher.paths import Paths
from launcher.supervise.lock import hold_lock

if TYPE_CHECKING:
    from pathlib import Path


def test_the_vmms_uid_can_pass_through_the_folders_that_are_made(tmp_path: Path) -> None:
    paths = Paths(run_dir=tmp_path / "a/b/run")
    before = os.umask(0o077)
    try:
        with hold_lock(paths):
            pass
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "a", tmp_path / "a/b")] == [0o755, 0o755]


def test_only_one_launcher_is_alive_in_a_run_directory(tmp_path: Path) -> None:
    paths = Paths(run_dir=tmp_path)
    with hold_lock(paths), pytest.raises(HostUnfit, match="another launcher is alive"), hold_lock(paths):
        pass
    with hold_lock(paths):
        pass


def test_a_run_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(HostUnfit, match="cannot be used: File exists"), hold_lock(Paths(run_dir=tmp_path / "run")):
        pass
