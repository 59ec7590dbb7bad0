from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.host import direct
from launcher.host.direct import block_below, block_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk"
    path.write_bytes(b"data" * 4096)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


class Kernel:
    """A statx that says this of direct I/O; None says nothing of it."""

    def __init__(self, align: int | None) -> None:
        self.align = align

    def statx(self, _fd: int, _path: bytes, _flags: int, _mask: int, buffer: Any) -> int:
        if self.align is None:
            return -1
        struct.pack_into("=I", buffer, 0, 0x2000)
        struct.pack_into("=I", buffer, 0x9C, self.align)
        return 0


@pytest.mark.parametrize("align", [0, 512, 4096])
def test_the_kernels_word_is_taken(disk: int, monkeypatch: pytest.MonkeyPatch, align: int) -> None:
    monkeypatch.setattr(direct, "_LIBC", Kernel(align))
    assert block_of(disk) == align


def test_an_older_kernel_is_asked_by_reading(disk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = block_of(disk)
    monkeypatch.setattr(direct, "_LIBC", Kernel(None))
    assert block_of(disk) == said


def test_a_file_system_that_reads_whole_blocks_only_is_seen(disk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset % 4096 or len(buffers[0]) % 4096:
            raise OSError(22, "Invalid argument")
        return real(fd, buffers, offset)

    monkeypatch.setattr(direct, "_LIBC", Kernel(None))
    monkeypatch.setattr(os, "preadv", preadv)
    assert block_of(disk) == 4096


def test_what_does_not_open_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_LIBC", Kernel(None))
    with Path("/proc/version").open("rb") as file:
        assert block_of(file.fileno()) == 0


def test_a_folder_is_asked_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"data" * 4096)
    with (tmp_path / "there").open("rb") as file:
        assert block_below(tmp_path) == block_of(file.fileno())
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_takes_no_file_takes_no_direct_io() -> None:
    assert block_below(Path("/proc")) == 0
