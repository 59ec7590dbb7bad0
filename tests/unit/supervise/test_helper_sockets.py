from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from launcher.supervise.helper_sockets import HelperSockets

if TYPE_CHECKING:
    from pathlib import Path


def test_a_socket_is_bound_once_and_can_be_connected_to_at_once(tmp_path: Path) -> None:
    sockets, path = HelperSockets(), tmp_path / "s"
    path.write_text("left by a launcher that was killed")
    first = sockets.descriptor(path, os.getuid(), os.getgid())
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert sockets.descriptor(path, os.getuid(), os.getgid()) == first
    assert not os.get_inheritable(first)
    sockets.close()
    assert not path.exists()


def test_a_socket_that_cannot_be_bound_leaves_nothing_open(tmp_path: Path) -> None:
    sockets = HelperSockets()
    with pytest.raises(FileNotFoundError):
        sockets.descriptor(tmp_path / "none/s", os.getuid(), os.getgid())
    sockets.close()
