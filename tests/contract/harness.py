"""Starting a VMM, the fake or the real one, and talking to it: by the launcher's clients or byte by byte."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from launcher.vmm import api
from launcher.vmm.argv import parse_version
from tests.contract.guest_elf import guest_elf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from launcher.vmm.http import Response
    from launcher.vmm.transport import Transport

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0  # seconds after which something that must happen has not
LETTERS = {"poweroff": b"p", "reboot": b"r", "vcpu-error": b"c"}


def fake_command(*extra: str) -> list[str]:
    """The fake VMM as a command; append cloud-hypervisor's own options."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.contract.fake_vmm import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", program, *extra]


def fake_binary(path: Path, *extra: str) -> Path:
    """Write an executable at ``path`` that is the fake VMM, for code that wants a cloud-hypervisor binary."""
    command, program, *rest = fake_command(*extra)[0], *fake_command(*extra)[2:]
    path.write_text(f"#!{command}\nimport sys\nsys.argv[1:1] = {rest!r}\n{program}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def real_binary() -> str:
    """The real cloud-hypervisor; skips without it, or fails if REQUIRE_VMM=1 says that it must be there."""
    binary = shutil.which("cloud-hypervisor")
    version = None
    if binary is not None:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        version = parse_version(text)
    if version is None or version[0] != 53:
        reason = f"the assertions are v53's; on PATH is {version and '.'.join(map(str, version))}"
        pytest.fail(reason) if os.environ.get("REQUIRE_VMM") == "1" else pytest.skip(reason)
    return str(binary)


def eventually(what: Callable[[], object], why: str) -> None:
    """Wait until ``what()`` is true; it must become so."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not happen in {PATIENCE:g} s: {why}")
        time.sleep(0.005)


@dataclass
class RawAnswer:
    line: bytes
    headers: list[bytes]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])


class RawClient:
    """A connection on which a test says each byte. Its reader is its own, not the launcher's."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes) -> RawAnswer:
        self.send(data)
        return self.read()

    def read(self) -> RawAnswer:
        while b"\r\n\r\n" not in self.pending:
            self._more()
        head, _, self.pending = self.pending.partition(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        length = next((int(each.split(b":")[1]) for each in headers if each.lower().startswith(b"content-length")), 0)
        while len(self.pending) < length:
            self._more()
        body, self.pending = self.pending[:length], self.pending[length:]
        return RawAnswer(line, headers, body)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self.pending += data

    def closed_without_a_word(self) -> bool:
        with contextlib.suppress(ConnectionResetError):
            return self.socket.recv(1) == b""
        return True


class Vmm:
    """A running VMM in ``folder``, its working directory."""

    def __init__(
        self, folder: Path, command: Sequence[str], transport: Callable[[Path], Transport], *, real: bool, bound: bool
    ) -> None:
        self.folder = folder
        self.real = real
        self.socket = folder / "ch.sock"
        self.event_file = folder / "events"
        self.log = folder / "log"
        for name, listens in (("guest.elf", False), ("listener.elf", True)):
            (folder / name).write_bytes(guest_elf(listens=listens))
        argv = [*command, "--event-monitor", "path=events"]
        with contextlib.ExitStack() as stack:
            fds: tuple[int, ...] = ()
            if bound:
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(self.socket))
                listener.listen(128)
                fds = (listener.fileno(),)
            stderr = stack.enter_context(self.log.open("wb"))
            self.process = subprocess.Popen(
                [*argv, "--api-socket", f"fd={fds[0]}" if bound else "ch.sock"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=fds,
                env={"PATH": os.environ["PATH"]},
            )
        self.transport = transport(self.socket)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    # --- calls ---

    def call(self, call: api.Call) -> Response:
        return self.transport.call(call)

    def ok(self, call: api.Call) -> None:
        response = self.call(call)
        assert (response.status, response.body) == (204, b""), response.body

    def put(self, route: str, body: Any = None) -> Response:
        return self.call(put(route, body))

    def refused(self, call: api.Call, status: int, *links: str) -> None:
        """The call fails with this status, and its chain ends with these links."""
        response = self.call(call)
        chain = json.loads(response.body)
        assert (response.status, chain[0], tuple(chain[len(chain) - len(links) :])) == (status, "Error from API", links)

    def info(self) -> api.VmInfo:
        return api.decode_info(api.info(), self.call(api.info()))

    def config(self, **more: Any) -> dict[str, Any]:
        """A VM that halts after its first line, with ``more`` on top."""
        return {
            "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
            "memory": {"size": 128 << 20},
            "payload": {"kernel": "guest.elf"},
            "console": {"mode": "Off"},
            "serial": {"mode": "Null"},
            **more,
        }

    def listening(self, **more: Any) -> dict[str, Any]:
        """A VM whose guest can be told to do something."""
        return self.config(payload={"kernel": "listener.elf"}, serial={"mode": "Socket", "socket": "serial"}, **more)

    def boot(self, config: dict[str, Any]) -> None:
        self.ok(api.create(config))
        self.ok(api.boot())
        eventually(lambda: "vm booted" in self.events(), "vm booted")

    # --- what it does ---

    def events(self) -> list[str]:
        """``source event`` in order; those of the guest's drivers are left out, since a guest of 4 KB has none."""
        text = self.event_file.read_text(encoding="utf-8")
        values = [json.loads(piece) for piece in text.split("\n\n") if piece.strip()]
        return [f"{value['source']} {value['event']}" for value in values if value["source"] != "virtio-device"]

    def tells(self, *events: str) -> None:
        """Wait until these are the last events: the real one writes them from a thread of its own, somewhat later."""
        eventually(lambda: self.events()[-len(events) :] == list(events), f"{events}")

    def stopped(self) -> None:
        """Stop all its threads, until SIGCONT."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self.process.wait(PATIENCE)

    @property
    def words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def serial(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(str(self.folder / "serial"))
        return client

    def guest(self, action: str) -> None:
        """Let the guest of ``listening`` do poweroff, reboot or vcpu-error."""
        if not self.real:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(PATIENCE)
                control.connect(str(self.folder / "control"))
                control.sendall(f"{action}\n".encode())
                assert control.recv(3) in {b"ok\n", b""}
            return
        with self.serial() as serial:
            received(serial, b"guest up\r\n")
            serial.sendall(LETTERS[action])
            drained(serial)


def put(route: str, body: Any = None) -> api.Call:
    return api.Call("PUT", f"/api/v1/{route}", None if body is None else json.dumps(body).encode(), PATIENCE)


def get(route: str) -> api.Call:
    return api.Call("GET", f"/api/v1/{route}", None, PATIENCE)


def received(stream: socket.socket, text: bytes) -> bytes:
    """Read until ``text`` has come; all that came."""
    got = b""
    while text not in got:
        data = stream.recv(65536)
        if not data:
            raise EOFError(got)
        got += data
    return got


def drained(stream: socket.socket) -> None:
    """Read until the other end closes."""
    with contextlib.suppress(ConnectionResetError):
        while stream.recv(65536):
            pass
