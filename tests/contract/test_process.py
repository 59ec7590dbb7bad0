"""Assertions 33 and 48-52: the process, its sockets, its event file and its one thread."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.errors import VmmFailed
from launcher.vmm import api
from launcher.vmm.argv import parse_version, vmm_argv
from launcher.vmm.events import EventStream
from launcher.vmm.nonblocking import PendingCall
from launcher.vmm.transport import SocketTransport
from tests.contract.harness import PATIENCE, Vmm, drained, eventually, received

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.conftest import Start


def answers(vmm: Vmm) -> bool:
    try:
        return vmm.call(api.ping()).status == 200
    except VmmFailed:
        return False


def up(vmm: Vmm) -> Vmm:
    eventually(lambda: answers(vmm), "the API answers")
    return vmm


def test_33_shutdown_of_the_vmm(start: Start) -> None:
    vmm = up(start(bound=False))
    vmm.boot(vmm.config())
    response = vmm.call(api.vmm_shutdown())
    assert (response.status, response.body) == (200, b"")
    assert vmm.wait() == 0
    assert not vmm.socket.exists()
    assert (vmm.folder / "ch.sock.lock").exists()


def test_48_the_event_file_is_a_stream_of_objects(start: Start) -> None:
    vmm = start()
    vmm.boot(vmm.config())
    raw = vmm.event_file.read_bytes()
    assert raw.startswith(b'{\n  "timestamp": {\n    "secs": 0,\n    "nanos": ')
    assert raw.endswith(b"\n}\n\n")
    stream = EventStream()
    events = [event for i in range(0, len(raw), 7) for event in stream.feed(raw[i : i + 7])]
    assert (events[0].source, events[0].event, events[0].properties) == ("vmm", "starting", {})
    assert stream.skipped == 0
    times = [event.timestamp for event in events]
    assert times == sorted(times)
    assert vmm.event_file.stat().st_mode & 0o777 == 0o600


def test_49_a_second_instance_leaves_the_first_alone(start: Start) -> None:
    first = up(start(bound=False))
    second = start(bound=False)  # the same folder, so the same socket
    assert second.wait() == 1
    assert "already in use by another running instance" in second.words
    assert first.call(api.ping()).status == 200


@pytest.mark.parametrize("kind", ["stale socket", "plain file"])
def test_49_what_is_left_of_another_is_replaced(start: Start, kind: str) -> None:
    vmm = up(start(bound=False))
    vmm.close()
    assert vmm.socket.exists()
    if kind == "plain file":
        vmm.socket.unlink()
        vmm.socket.touch()
    up(start(bound=False))


@pytest.mark.parametrize("options", [("--serial", "tty"), ("--landlock",), ("--bogus",), ()])
def test_50_options_that_need_a_payload(command: list[str], tmp_path: Path, options: tuple[str, ...]) -> None:
    argv = [*command, *(("--api-socket", "ch.sock", *options) if options else ())]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2


def test_50_the_version_is_told(command: list[str]) -> None:
    text = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert parse_version(text) == (53, 0, 0)
    assert text.splitlines()[1].startswith("Migration Protocol Versions: ")


def test_51_what_was_printed_is_replayed(start: Start) -> None:
    vmm = start()
    vmm.boot(vmm.listening())
    with vmm.serial() as first:
        assert received(first, b"guest up\r\n") == b"guest up\r\n"
        first.sendall(b"x")
        assert received(first, b"x") == b"x"


def test_51_a_second_client_kicks_out_the_first(start: Start) -> None:
    vmm = start()
    vmm.boot(vmm.listening())
    with vmm.serial() as first:
        received(first, b"guest up\r\n")
        with vmm.serial() as second:
            drained(first)
            second.sendall(b"y")
            assert received(second, b"y") == b"y"


def test_51_a_client_that_leaves_with_bytes_unread_stops_the_port(start: Start) -> None:
    vmm = start()
    vmm.boot(vmm.listening())

    def dead() -> bool:
        with vmm.serial() as rude:
            rude.sendall(b"y")
            assert rude.recv(1, socket.MSG_PEEK)
        with vmm.serial() as next_one:
            next_one.settimeout(0.3)
            next_one.sendall(b"z")
            try:
                received(next_one, b"z")
            except TimeoutError:
                return True
            return False  # it came while the port was about to see the other leave, and saved it

    eventually(dead, "the serial port hangs")
    assert vmm.info().state == "Running"


def test_51_the_socket_ends_and_comes_back_with_a_reboot(start: Start) -> None:
    vmm = start()
    vmm.boot(vmm.listening())
    path = vmm.folder / "serial"
    assert path.stat().st_mode & 0o777 == 0o700
    with vmm.serial() as serial:
        received(serial, b"guest up\r\n")
        vmm.ok(api.reboot())
        drained(serial)
    with vmm.serial() as serial:
        received(serial, b"guest up\r\n")
        vmm.ok(api.shutdown())
        drained(serial)
    assert not path.exists()


def test_51_a_vm_that_never_ran_leaves_the_socket_behind(start: Start) -> None:
    vmm = start()
    vmm.ok(api.create(vmm.listening()))
    vmm.ok(api.delete())
    assert (vmm.folder / "serial").exists()


def test_52_one_request_at_a_time(start: Start) -> None:
    """A boot that waits for a file system's socket holds up everything, until that socket is there."""
    vmm = start()
    fs = {"tag": "t", "socket": "fs.sock", "id": "fs"}
    vmm.ok(api.create(vmm.config(memory={"size": 128 << 20, "shared": True}, fs=[fs])))
    with PendingCall(vmm.socket, api.boot(), now=0) as boot:
        assert boot.advance(0) is None
        eventually(lambda: vmm.events()[-1] == "vm booting", "the boot begins")
        with pytest.raises(VmmFailed, match=r"did not answer vmm\.ping within 0\.2 s"):
            SocketTransport(vmm.socket).call(api.Call("GET", "/api/v1/vmm.ping", deadline_s=0.2))
        assert boot.advance(0) is None


def test_the_launchers_command_line_starts_it(command: list[str], tmp_path: Path) -> None:
    """The API on an inherited socket, the events through a pipe, and a power-off by signal."""
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener, os.fdopen(reader, "rb") as pipe:
        listener.bind(str(tmp_path / "ch.sock"))
        listener.listen()
        argv = vmm_argv("vmm", api_fd=listener.fileno(), event_fd=writer, version=(53, 0, 0))
        process = subprocess.Popen(
            [*command, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(listener.fileno(), writer),
        )
        os.close(writer)
        try:
            transport = SocketTransport(tmp_path / "ch.sock")
            assert transport.call(api.create({})).status == 204
            assert transport.call(api.delete()).status == 204
            assert transport.call(api.vmm_shutdown()).status == 200
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
        events = EventStream().feed(pipe.read())
    names = [f"{event.source} {event.event}" for event in events]
    expected = ["vmm starting", "vm deleted", "vmm shutdown"]
    assert names == expected[: len(names)]  # the last may be lost
    assert names


def test_a_vmm_that_is_gone_refuses_connections(start: Start) -> None:
    vmm = start()
    vmm.call(api.ping())
    vmm.close()
    with pytest.raises(VmmFailed, match=r"nobody listens at .*container restarted"):
        vmm.call(api.ping())
