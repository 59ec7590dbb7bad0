from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from launcher.host import observe_firmware as module
from launcher.host.observe_firmware import observe_firmware

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "OVMF", tmp_path / "OVMF.fd")
    return tmp_path


def test_the_better_firmware_comes_first(folder: Path) -> None:
    (folder / "hypervisor-fw").write_bytes(b"x")
    assert observe_firmware(None, "x86_64", emulated=False).path == folder / "hypervisor-fw"
    (folder / "CLOUDHV.fd").write_bytes(b"x")
    assert observe_firmware(None, "x86_64", emulated=False).path == folder / "CLOUDHV.fd"


def test_each_machine_has_its_own(folder: Path) -> None:
    (folder / "CLOUDHV.fd").write_bytes(b"x")
    assert observe_firmware(None, "aarch64", emulated=False).problem
    (folder / "CLOUDHV_EFI.fd").write_bytes(b"x")
    assert observe_firmware(None, "aarch64", emulated=False).path == folder / "CLOUDHV_EFI.fd"


def test_the_emulator_has_one_of_its_own(folder: Path) -> None:
    (folder / "OVMF.fd").write_bytes(b"x")
    assert observe_firmware(None, "x86_64", emulated=True).path == folder / "OVMF.fd"
    assert observe_firmware(None, "x86_64", emulated=False).path is None


def test_the_one_asked_for_is_taken_or_nothing(folder: Path) -> None:
    (folder / "CLOUDHV.fd").write_bytes(b"x")
    (folder / "mine.fd").write_bytes(b"x")
    assert observe_firmware(folder / "mine.fd", "x86_64", emulated=False).path == folder / "mine.fd"
    missing = observe_firmware(folder / "none.fd", "x86_64", emulated=False)
    assert (missing.problem, missing.hint) == (f"there is no firmware {folder / 'none.fd'}", "check --firmware")
    assert "is not a file" in (observe_firmware(folder, "x86_64", emulated=False).problem or "")


def test_a_missing_one_names_every_place(folder: Path) -> None:
    found = observe_firmware(None, "x86_64", emulated=False)
    assert f"{folder / 'CLOUDHV.fd'}, {folder / 'hypervisor-fw'}" in (found.problem or "")
    assert "--firmware" in (found.hint or "")
    assert "ovmf" in (observe_firmware(None, "x86_64", emulated=True).hint or "")
