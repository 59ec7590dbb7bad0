"""The whole launcher around the fake VMM: no guest, no image, no interface, so a VM "runs" half a second after the start.

    with supervised(net) as vm:
        vm.boot()
        vm.guest("poweroff")
        vm.end(0, "GuestPoweredOff")

``start`` runs it as PID 1 of a container (``VmPod``), ``start_by_hand`` as a plain process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.vmm.api import Call
from launcher.vmm.transport import SocketTransport
from tests.contract.guest_elf import guest_elf
from tests.contract.harness import RawClient, eventually, fake_binary
from tests.lab.pod import VmPod, golden_spec, vm_pod

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.vmm.http import Response
    from tests.lab.netns import PodNetns

PATIENCE = 30.0  # seconds; a loaded machine is slow


@dataclass
class Supervised:
    """One VM. ``options`` are what every start of it has."""

    pod: VmPod
    options: list[str] = field(default_factory=list)
    by_hand: subprocess.Popen[bytes] | None = None

    # --- before the start ---

    def fake(self, *own_options: str, version: int = 53) -> None:
        """The VMM is the fake one, with options of its own."""
        control = str(self.side / "control")
        binary = fake_binary(
            self.pod.root / "vmm", "--version-knob", str(version), "--guest-control", control, *own_options
        )
        self.options = ["--vmm", str(binary)]

    def script(self, text: str) -> None:
        """The VMM is a shell script that says it is v53 and then does this; "$@" is its command line."""
        binary = self.pod.root / "vmm"
        binary.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo cloud-hypervisor v53.0\n{text}\n')
        binary.chmod(0o755)
        self.options = ["--vmm", str(binary)]

    def wrap(self, text: str) -> None:
        """The VMM does this, as a shell script, before it is the fake one."""
        self.fake()
        fake = (self.pod.root / "vmm").rename(self.pod.root / "fake")
        self.script(f'{text}\nexec {fake} "$@"')

    @property
    def side(self) -> Path:
        """A folder where the VMM may write."""
        return self.pod.root / "side"

    @property
    def kernel(self) -> Path:
        return self.pod.root / "disks/virtink-kernel/vmlinux"

    # --- its life ---

    def start(self, *options: str) -> None:
        (self.side / "control").unlink(missing_ok=True)
        self.pod.start(*self.options, *options)

    def start_with(self, env: dict[str, str]) -> None:
        self.pod.start(*self.options, env=env)

    def start_by_hand(self, *options: str, stdout: int | None = None, stderr: int | None = None) -> None:
        """As a plain process, the leader of a session of its own; stdout and stderr are the pod's files by default."""
        (self.side / "control").unlink(missing_ok=True)
        with (self.pod.root / "stdout").open("ab") as out, (self.pod.root / "stderr").open("ab") as err:
            self.by_hand = subprocess.Popen(
                self.pod.argv("run", *self.options, *options),
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                env=self.pod.environment,
                start_new_session=True,
            )

    def boot(self, *options: str) -> None:
        """Start, until the VM runs."""
        self.start(*options)
        self.until_event("running")

    @property
    def pid(self) -> int:
        return self.by_hand.pid if self.by_hand else self.pod.pid

    def ended(self) -> bool:
        return self.by_hand.poll() is not None if self.by_hand else self.pod.ended()

    def kill(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def wait(self, within: float = PATIENCE) -> int:
        """The exit code as a shell sees it."""
        if self.by_hand is None:
            return self.pod.wait(within)
        status = self.by_hand.wait(within)
        return status if status >= 0 else 128 - status

    def cut_down(self) -> None:
        """kill -9 of the container: the launcher and all its children, without a word."""
        self.kill(signal.SIGKILL)
        self.wait()
        (self.pod.root / "stderr").write_text("")  # unshare complained there

    def end(self, code: int, reason: str, within: float = PATIENCE) -> dict[str, Any]:
        """It ends so, tells so at every place, leaves nothing behind, and its log is JSON without a traceback."""
        got = self.wait(within)
        result = self.pod.result
        assert (got, result["reason"], result["exitCode"]) == (code, reason, code), f"{result}\n{self.pod.log[-4000:]}"
        assert result["message"]
        text = (self.pod.run_dir / "result.json").read_bytes()
        assert len(text) <= 4096
        if self.by_hand is None:
            assert self.pod.termination_message.encode() == text
        for name in ("ch.sock", ".ch.sock.early", "launcher.sock"):
            assert not (self.pod.run_dir / name).exists(), name
        assert not self.processes()
        lines = [json.loads(line) for line in self.pod.log.splitlines()]
        assert not [line for line in lines if "traceback" in line], self.pod.log[-4000:]
        assert lines[-1]["message"] == "ended"
        return result

    def processes(self) -> list[str]:
        """Command lines of this machine's living processes that have to do with this VM."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and str(self.pod.root).encode() in (text := (entry / "cmdline").read_bytes()):
                    found.append(text.replace(b"\0", b" ").decode())
        return found

    # --- the guest, and who talks to it ---

    def guest(self, action: str) -> None:
        """Have the guest do something; see tests/contract/fake_vmm.py."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(PATIENCE)
            eventually((self.side / "control").exists, "the fake VMM runs")
            control.connect(str(self.side / "control"))
            control.sendall(f"{action}\n".encode())
            with contextlib.suppress(ConnectionResetError):  # its end may overtake its answer
                assert control.recv(3) in {b"ok\n", b""}

    def api(self, route: str) -> Response:
        """What another client of the VMM's API does: PUT without a body."""
        return SocketTransport(self.pod.run_dir / "ch.sock").call(Call("PUT", f"/api/v1/{route}", deadline_s=PATIENCE))

    def control(self, method: str, path: str, body: bytes | None = None) -> Response:
        """One request to the control socket."""
        return SocketTransport(self.pod.run_dir / "launcher.sock").call(Call(method, path, body, PATIENCE))

    def connected(self) -> RawClient:
        """A connection to the control socket on which each byte is the test's."""
        return RawClient(self.pod.run_dir / "launcher.sock")

    def status(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.control("GET", "/status").body)
        return value

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.pod.events_text().splitlines()]

    def names(self) -> list[str]:
        return [event["event"] for event in self.events()]

    def until(self, what: str, happened: Any) -> None:
        eventually(lambda: happened() or self.ended(), what)
        assert happened(), f"it ended before {what}\n{self.pod.log[-4000:]}"

    def until_event(self, name: str, times: int = 1) -> None:
        self.until(f"event {name}", lambda: self.names().count(name) >= times)

    def until_console(self, text: str, times: int = 1) -> None:
        self.until(f"{text!r} on the console", lambda: self.pod.console.count(text) >= times)

    def close(self) -> None:
        if self.by_hand is not None and self.by_hand.poll() is None:
            self.by_hand.kill()
            self.by_hand.wait()


def small_spec() -> dict[str, Any]:
    """A VM without disk and interface; its kernel is prepared."""
    spec = golden_spec()
    spec["spec"] |= {"volumes": [], "networks": []}
    spec["spec"]["instance"] |= {"disks": [], "interfaces": []}
    return spec


@contextlib.contextmanager
def supervised(net: PodNetns, **options: Any) -> Iterator[Supervised]:
    """A VM that was not started yet, with the fake VMM. ``net`` may be shared: there is no interface in the spec."""
    with vm_pod(net, **options) as pod:
        pod.write_spec(small_spec())
        vm = Supervised(pod)
        vm.kernel.parent.mkdir()
        vm.kernel.write_bytes(guest_elf(listens=False))
        vm.side.mkdir()
        vm.side.chmod(0o777)  # the VMM's uid is another one
        vm.fake()
        try:
            yield vm
        finally:
            vm.close()
