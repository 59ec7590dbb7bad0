from __future__ import annotations

import contextlib
import os
import selectors
import socket
from typing import TYPE_CHECKING, Any

import pytest

from launcher.emulator.refusal import Refused
from launcher.emulator.serial import REPLAY, Serial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PATIENCE = 20.0  # seconds


class Lab:
    """An open port in this thread, and the guest's side of the UART."""

    def __init__(self, config: dict[str, Any], loop: selectors.BaseSelector) -> None:
        self.loop = loop
        self.port = Serial(config, loop)
        self.guest, host = socket.socketpair()
        self.guest.settimeout(PATIENCE)
        self.port.attach(host)

    def turn(self) -> None:
        # Bounded: a pty's master, always writable, would keep an unbounded loop alive while something is pending.
        for _ in range(100):
            ready = self.loop.select(0)
            if not ready:
                break
            for key, _ in ready:
                key.data()

    def say(self, data: bytes) -> None:
        while data:
            data = data[self.guest.send(data[:65536]) :]
            self.turn()

    def client(self, path: Path) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.settimeout(0)
        self.turn()
        return client


@contextlib.contextmanager
def lab(config: dict[str, Any]) -> Iterator[Lab]:
    with selectors.DefaultSelector() as loop:
        made = Lab(config, loop)
        try:
            yield made
        finally:
            made.guest.close()
            made.port.close(unlink=True)
        assert not loop.get_map()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "serial"


def test_a_socket_replays_what_nobody_heard_and_carries_both_ways(path: Path) -> None:
    with lab({"mode": "Socket", "socket": str(path)}) as made:
        assert path.stat().st_mode & 0o777 == 0o700
        made.say(b"before ")
        with made.client(path) as client:
            made.say(b"now")
            assert client.recv(100) == b"before now"
            client.sendall(b"\n")
            made.turn()
            assert made.guest.recv(10) == b"\r"
            client.sendall(b"ls\n")
            made.turn()
            assert made.guest.recv(10) == b"ls\n"
        made.turn()
        made.say(b"after")
        with made.client(path) as client:
            assert client.recv(100) == b"after"


def test_the_last_mebibyte_is_kept(path: Path) -> None:
    with lab({"mode": "Socket", "socket": str(path)}) as made:
        made.say(b"a" * 1000 + b"b" * REPLAY)
        with made.client(path) as client:
            heard = b""
            while len(heard) < REPLAY:
                heard += client.recv(1 << 16)
                made.turn()
            assert heard == b"b" * REPLAY


def test_the_newest_client_wins(path: Path) -> None:
    with lab({"mode": "Socket", "socket": str(path)}) as made, made.client(path) as old, made.client(path) as new:
        assert old.recv(10) == b""
        made.say(b"hello")
        assert new.recv(10) == b"hello"


def test_a_client_that_leaves_with_unread_bytes_harms_nobody(path: Path) -> None:
    with lab({"mode": "Socket", "socket": str(path)}) as made:
        with made.client(path):
            made.say(b"unread")
        made.turn()
        made.say(b"next")
        with made.client(path) as client:
            assert client.recv(10) == b"next"


def test_closing_delivers_the_last_words_then_ends_the_client(path: Path) -> None:
    with lab({"mode": "Socket", "socket": str(path)}) as made, made.client(path) as client:
        made.guest.sendall(b"bye")
        made.guest.close()
        made.port.close(unlink=True)
        assert (client.recv(10), client.recv(10)) == (b"bye", b"")
        assert not path.exists()


def test_a_socket_stays_behind_when_told_so(path: Path) -> None:
    with lab({"mode": "Socket", "socket": str(path)}) as made:
        made.port.close(unlink=False)
        assert path.exists()
        with pytest.raises(Refused, match="Address already in use"):
            Serial({"mode": "Socket", "socket": str(path)}, made.loop)


def test_a_path_too_long_for_a_socket_is_told_so(path: Path) -> None:
    with selectors.DefaultSelector() as loop, pytest.raises(Refused, match="path too long"):
        Serial({"mode": "Socket", "socket": f"{path}{'x' * 108}"}, loop)


def test_a_file_is_emptied_and_written(path: Path) -> None:
    path.write_text("from the last boot, and longer")
    with lab({"mode": "File", "file": str(path)}) as made:
        made.say(b"this boot")
        assert path.read_text() == "this boot"


def test_a_pty_keeps_its_output_for_whoever_opens_it() -> None:
    config: dict[str, Any] = {"mode": "Pty"}
    with lab(config) as made:
        made.say(b"hello\n")
        terminal = os.open(config["file"], os.O_RDWR | os.O_NOCTTY)
        try:
            assert os.read(terminal, 100) == b"hello\n"  # raw: no carriage return is put in
            os.write(terminal, b"x")
            assert made.loop.select(PATIENCE)  # a pty hands its bytes over in the kernel's own time
            made.turn()
            assert made.guest.recv(10) == b"x"
        finally:
            os.close(terminal)


@pytest.mark.parametrize("mode", ["Null", "Off"])
def test_nothing_is_kept_of_what_goes_nowhere(mode: str) -> None:
    with lab({"mode": mode}) as made:
        made.say(b"x" * (1 << 20))
        assert made.port.wanted == (mode == "Null")
