"""A vmm-emulator under test: started as the launcher starts a VMM, driven over its socket, its events read from a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.guest import lab_guest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PATIENCE = 60.0  # seconds; a guest is up in 2 to 4, the rest is for a busy machine
START = "from launcher.emulator.main import main; main()"


class Emulator:
    """A running emulator. The API's listening socket and the event pipe are made here and inherited."""

    def __init__(
        self, folder: Path, *options: str, wrapper: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> None:
        listener = socket.socket(socket.AF_UNIX)
        self.api = folder / "api.sock"
        self.api.unlink(missing_ok=True)
        listener.bind(str(self.api))
        listener.listen()
        self._events_end, events = os.pipe()
        self._events = b""
        with listener:
            self.process = subprocess.Popen(
                [
                    *(*wrapper, sys.executable, "-c", START, f"--api-socket=fd={listener.fileno()}"),
                    *(f"--event-monitor=fd={events}", *options),
                ],
                pass_fds=(listener.fileno(), events),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})},
            )
        os.close(events)

    def call(self, method: str, route: str, body: Any = None, fds: Sequence[int] = ()) -> tuple[int, Any]:
        """Status and decoded body of one request on a connection of its own."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /api/v1/{route} HTTP/1.1\r\n" + (f"Content-Length: {len(data)}\r\n" if data else "") + "\r\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.api))
            socket.send_fds(client, [head.encode() + data], list(fds))
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += _some(client)
            top, _, content = answer.partition(b"\r\n\r\n")
            lengths = [line.split(b":")[1] for line in top.split(b"\r\n") if line.startswith(b"Content-Length")]
            while lengths and len(content) < int(lengths[0]):
                content += _some(client)
        return int(top.split()[1]), json.loads(content) if content else None

    def put(self, route: str, body: Any = None, fds: Sequence[int] = ()) -> None:
        status, answer = self.call("PUT", route, body, fds)
        assert status in {200, 204}, answer

    def event(self) -> tuple[str, str]:
        """The next event's source and name."""
        while b"\n\n" not in self._events:
            assert select.select([self._events_end], [], [], PATIENCE)[0], "no event"
            data = os.read(self._events_end, 65536)
            assert data, "the emulator has ended"
            self._events += data
        text, _, self._events = self._events.partition(b"\n\n")
        event = json.loads(text)
        return event["source"], event["event"]

    def events(self, count: int) -> list[str]:
        return [" ".join(self.event()) for _ in range(count)]

    def ended(self) -> tuple[int, str]:
        """Exit status and stderr once it has ended."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors.decode()

    def qemu_pid(self) -> int:
        (pid,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pid)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._events_end)


def _some(client: socket.socket) -> bytes:
    data = client.recv(65536)
    assert data, "the server has closed the connection"
    return data


class Console:
    """The client of a serial socket."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:  # the path goes and comes again at a reboot
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(PATIENCE)
            try:
                self._socket.connect(str(path))
            except OSError:
                self._socket.close()
                assert time.monotonic() < deadline, f"{path} does not come back"
            else:
                break
        self._said = b""

    def until(self, text: str) -> str:
        """The line that holds ``text``; what came before it is dropped."""
        while True:
            before, found, after = self._said.partition(text.encode())
            if found and b"\n" in after:
                rest, _, self._said = after.partition(b"\n")
                return (before.rpartition(b"\n")[2] + found + rest).decode(errors="replace").strip()
            data = self._socket.recv(65536)
            assert data, f"no {text} before the end of {self._said!r}"
            self._said += data

    def until_closed(self) -> str:
        while data := self._socket.recv(65536):
            self._said += data
        return self._said.decode(errors="replace")

    def type(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\r")

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def console(path: Path) -> Iterator[Console]:
    opened = Console(path)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def guest_folder(uid: int = 0) -> Iterator[Path]:
    """A folder of ``uid`` with the lab guest's kernel, initramfs and root disk, its path short enough for sockets."""
    guest = lab_guest()
    folder = Path(tempfile.mkdtemp(prefix="emulator-"))
    try:
        for source, name in ((guest.vmlinux, "vmlinux"), (guest.initramfs, "initramfs")):
            shutil.copyfile(source, folder / name)
        root_disk(folder / "root.ext4")
        for path in (folder, *folder.iterdir()):
            os.chown(path, uid, uid)
        yield folder
    finally:
        shutil.rmtree(folder)


def root_disk(path: Path) -> Path:
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", lab_guest().rootfs_tree, path, "48M"], check=True)
    return path


def vm_config(folder: Path, *words: str, **more: Any) -> dict[str, Any]:
    """A VM that boots the lab guest of ``folder``; ``words`` go to the kernel's command line."""
    return {
        "memory": {"size": 192 << 20},
        "payload": {
            "kernel": str(folder / "vmlinux"),
            "initramfs": str(folder / "initramfs"),
            "cmdline": " ".join(("console=ttyS0 quiet root=/dev/vda rw", *words)),
        },
        "disks": [{"id": "root", "path": str(folder / "root.ext4"), "image_type": "Raw"}],
        "serial": {"mode": "Socket", "socket": str(folder / "serial.sock")},
        "console": {"mode": "Off"},
        **more,
    }
