from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from launcher.emulator.events import Events
from launcher.emulator.main import api_listener, open_events, parse_arguments
from launcher.emulator.refusal import EmulatorFailed

if TYPE_CHECKING:
    from pathlib import Path


def test_the_version_stands_after_the_first_space(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.split()[:2] == ["vmm-emulator", "v53.0"]


@pytest.mark.parametrize("argv", [[], ["--api-socket", "a", "--kernel", "k"]])
def test_a_bad_command_line_ends_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(argv)
    assert caught.value.code == 2


def test_the_launchers_command_line_is_taken() -> None:
    options = parse_arguments(
        ["--api-socket", "fd=3", "--event-monitor", "fd=4", "--no-shutdown", "--seccomp", "true", "-v"]
    )
    assert (options.api_socket, options.event_monitor, options.no_shutdown) == ("fd=3", "fd=4", True)


def test_where_events_go(tmp_path: Path) -> None:
    assert open_events(None) is None
    assert open_events("fd=7") == 7
    fd = open_events(f"path={tmp_path / 'e'}")
    assert fd is not None
    os.close(fd)
    with pytest.raises(EmulatorFailed):
        open_events("bare")


def test_a_full_pipe_loses_events_and_never_blocks() -> None:
    read, write = os.pipe()
    events = Events(write)
    for _ in range(1000):
        events.emit("vm", "booting")
    os.close(read)
    events.emit("vm", "booted")
    os.close(write)


@pytest.mark.parametrize("form", ["{}", "path={}"])
def test_a_stale_socket_is_replaced_and_a_live_one_is_left_alone(tmp_path: Path, form: str) -> None:
    path = tmp_path / "api"
    path.touch()
    option = form.format(path)
    with api_listener(option) as listener, listener:
        with pytest.raises(EmulatorFailed, match="already in use"), api_listener(option):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()
    assert (tmp_path / "api.lock").exists()
