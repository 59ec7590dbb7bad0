from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from launcher.host.overlay import overlay_flaw, write_overlay

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    (tmp_path / "base").write_bytes(bytes(4096))
    write_overlay(tmp_path / "overlay", tmp_path / "base", 4096)
    return tmp_path / "overlay"


def test_an_overlay_is_on_its_base_and_on_no_other(overlay: Path) -> None:
    base = overlay.with_name("base")
    assert overlay_flaw(overlay, base) is None
    assert overlay_flaw(overlay, overlay.with_name("other")) == f"has another base, {str(base)!r}"
    base.unlink()
    assert overlay_flaw(overlay, base) == f"has lost its base {base}"


def patch(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("offset", "data", "flaw"),
    [
        (0, b"XXXX", "is not a qcow2 file"),
        (4, b"\0\0\0\2", "is not an overlay of ours"),
        (79, b"\x04", "is not an overlay of ours"),  # an external data file
        (8, bytes(8), "has no base"),
        (16, bytes(4), "has no base"),
        (128, b"/etc/shadow", "has another base"),
    ],
)
def test_what_is_no_overlay_of_ours(overlay: Path, offset: int, data: bytes, flaw: str) -> None:
    patch(overlay, offset, data)
    assert flaw in str(overlay_flaw(overlay, overlay.with_name("base")))


def test_a_short_file_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"QFI\xfb")
    assert overlay_flaw(tmp_path / "short", tmp_path) == "is not a qcow2 file"
    assert overlay_flaw(tmp_path / "none", tmp_path) == "cannot be read: No such file or directory"


def test_a_path_that_the_format_has_no_room_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="at most 1023 bytes"):
        write_overlay(tmp_path / "overlay", tmp_path.joinpath(*["n" * 200] * 6), 4096)
    assert not (tmp_path / "overlay").exists()
