"""A VM pod without a cluster: a container's view of the machine around one launcher, on a netns a CNI would have made.

The launcher is PID 1 of its own PID namespace, in a mount namespace with device nodes, resolv.conf and a
termination-log of its own, /proc/sys read-only, and with exactly the capabilities of docs/reference/pod.md. The host's
own nodes and files are never touched. ``with vm_pod() as pod: pod.start(); ...``; everything ends with the block.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.netns import FLANNEL, PodNetns, pod_netns
from tests.lab.opened import open_checkout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LAUNCHER = Path(sys.executable).with_name("launcher")

CAPABILITIES = (
    "net_admin",
    "net_bind_service",
    "net_raw",
    "setuid",
    "setgid",
    "setpcap",
    "kill",
    "chown",
    "dac_override",
    "fowner",
)

_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


class NeverCame(AssertionError):
    """Something that was waited for did not happen in time; the message has the launcher's own output."""


@dataclass
class VmPod:
    """One pod. ``root`` has run/ images/ disks/ dev/ and the launcher's stdout and stderr."""

    root: Path
    net: PodNetns
    capabilities: Sequence[str] = CAPABILITIES
    devices: Sequence[str] = ("kvm", "net/tun")
    mounts: Sequence[
        str
    ] = ()  # shell commands run as full root in the container's mount namespace, before the launcher
    launcher: Path = LAUNCHER
    _outer: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    @property
    def spec(self) -> Path:
        return self.root / "vm.json"

    @property
    def console(self) -> str:
        """The container's stdout: what the guest said on its serial console."""
        return (self.root / "stdout").read_text(errors="replace")

    @property
    def log(self) -> str:
        """The container's stderr: the launcher's own log."""
        return (self.root / "stderr").read_text(errors="replace")

    @property
    def result(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.run_dir / "result.json").read_text())
        return value

    @property
    def termination_message(self) -> str:
        return (self.root / "termination-log").read_text()

    def write_spec(self, spec: dict[str, Any]) -> None:
        self.spec.write_text(json.dumps(spec))

    def argv(self, *verb: str) -> list[str]:
        """The command line of a verb, with this pod's folders."""
        return [str(self.launcher), *verb]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "LAUNCHER_RUN_DIR": str(self.run_dir),
            "LAUNCHER_IMAGES": str(self.root / "images"),
            "LAUNCHER_DISKS": str(self.root / "disks"),
            "LAUNCHER_SPEC": str(self.spec),
        }

    def start(self, *options: str, verb: str = "run", env: dict[str, str] | None = None) -> None:
        """Start the container: ``launcher run`` with these options as its PID 1."""
        script = self._container_script(self.argv(verb, *options))
        outside = ["ip", "netns", "exec", self.net.pod_name]
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc", script]
        with (self.root / "stdout").open("ab") as out, (self.root / "stderr").open("ab") as err:
            self._outer.append(
                subprocess.Popen(
                    [*outside, *inside],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self.environment | (env or {}),
                )
            )

    def _container_script(self, argv: Sequence[str]) -> str:
        dev, quote = self.root / "dev", shlex.quote
        nodes = [f"mknod -m 666 {dev}/{name} c {major} {minor}" for name, (major, minor) in _NODES.items()]
        if "kvm" in self.devices and Path("/dev/kvm").exists():
            nodes.append(f"mknod -m 600 {dev}/kvm c 10 232")
        if "net/tun" in self.devices:
            nodes += [f"mkdir {dev}/net", f"mknod -m 666 {dev}/net/tun c 10 200"]
        capabilities = ",".join(["-all", *(f"+{name}" for name in self.capabilities)])
        return "\n".join(
            [
                f"mount -t tmpfs -o mode=755 none {dev}",
                *nodes,
                f"ln -s /proc/self/fd {dev}/fd",
                f"mkdir {dev}/pts {dev}/shm",
                f"mount -t devpts -o newinstance,ptmxmode=0666 none {dev}/pts",
                f"ln -s pts/ptmx {dev}/ptmx",
                f"touch {dev}/termination-log",
                f"mount --bind {self.root}/termination-log {dev}/termination-log",
                f"mount --rbind {dev} /dev",
                f"mount --bind {self.root}/resolv.conf /etc/resolv.conf",
                "mount --bind /proc/sys /proc/sys",
                "mount -o remount,bind,ro /proc/sys",
                *self.mounts,
                f"exec setpriv --inh-caps=-all --bounding-set={capabilities} {' '.join(map(quote, argv))}",
            ]
        )

    @property
    def pid(self) -> int:
        """The launcher's pid as the host sees it."""
        outer = self._outer[-1].pid
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        if not children:
            raise ProcessLookupError("the launcher is gone")
        return int(children[0])

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Signal the launcher, as the kubelet would."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 60) -> int:
        """The launcher's exit code, as the kubelet sees it."""
        try:
            status = self._outer[-1].wait(timeout)
        except subprocess.TimeoutExpired:
            raise NeverCame(f"the launcher did not end within {timeout} s\n{self._story()}") from None
        return status if status >= 0 else 128 - status

    def ended(self) -> bool:
        return self._outer[-1].poll() is not None

    def exec(self, *verb: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """A verb in the running container, as ``kubectl exec`` does it."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", *self.argv(*verb)]
        return subprocess.run(
            inside, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def exec_raw(self, *argv: str) -> None:
        """Any command in the running container."""
        subprocess.run(["nsenter", "-t", str(self.pid), "-m", "-p", "-n", *argv], check=True, timeout=30)

    def until(self, what: str, happened: Callable[[], bool], timeout: float = 60) -> None:
        """Wait for something to be true; fails at once when the launcher ends before."""
        deadline = time.monotonic() + timeout
        while not happened():
            if self.ended() or time.monotonic() > deadline:
                if happened():
                    return
                raise NeverCame(f"{what}: not seen within {timeout} s\n{self._story()}")
            time.sleep(0.02)

    def until_console(self, text: str, timeout: float = 60, *, times: int = 1) -> None:
        self.until(f"{text!r} on the console", lambda: self.console.count(text) >= times, timeout)

    def until_event(self, text: str, timeout: float = 60) -> None:
        self.until(f"event {text!r}", lambda: text in self.events_text(), timeout)

    def events_text(self) -> str:
        path = self.run_dir / "events.jsonl"
        return path.read_text() if path.exists() else ""

    def processes(self) -> dict[int, str]:
        """Every process of the container by its host pid, with its command line."""
        namespace = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if (entry / "ns/pid").readlink() == namespace:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def _story(self) -> str:
        return f"--- console\n{self.console[-3000:]}\n--- log\n{self.log[-6000:]}"

    def stop(self) -> None:
        """Kill whatever runs; for the end of a test."""
        for outer in self._outer:
            if outer.poll() is None:
                with contextlib.suppress(ProcessLookupError, OSError):
                    os.kill(self.pid, signal.SIGKILL)
                outer.kill()
                outer.wait()


@contextlib.contextmanager
def vm_pod(net: PodNetns | None = None, **options: Any) -> Iterator[VmPod]:
    """A pod with an empty run directory; ``net`` reuses the netns of an earlier container of the same pod."""
    open_checkout()
    with contextlib.ExitStack() as stack:
        if net is None:
            net = stack.enter_context(pod_netns(FLANNEL))
        # Not pytest's tmp_path: the VMM's uid has to pass through, and a unix socket's path is short.
        root = Path(tempfile.mkdtemp(prefix="pod-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        root.chmod(0o711)
        for folder in ("run", "images", "disks", "dev"):
            (root / folder).mkdir(mode=0o755)
        (root / "resolv.conf").write_text("nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local\n")
        for name in ("termination-log", "stdout", "stderr"):
            (root / name).touch()
        pod = VmPod(root, net, **options)
        stack.callback(pod.stop)
        yield pod


def golden_spec(name: str = "demo", *, cmdline: str = "", memory: str = "256Mi", size: str = "256Mi") -> dict[str, Any]:
    """The golden path's spec: a kernel image, a container rootfs, the pod's network."""
    return {
        "apiVersion": "virt.virtink.smartx.com/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default", "uid": "0b6c2c4e-6f6c-4f0e-9d3c-3b1f0c9a7d11"},
        "spec": {
            "instance": {
                "memory": {"size": memory},
                "kernel": {"image": "lab/kernel", "cmdline": f"console=ttyS0 root=/dev/vda rw quiet {cmdline}".strip()},
                "disks": [{"name": "root"}],
                "interfaces": [{"name": "pod"}],
            },
            "volumes": [{"name": "root", "containerRootfs": {"image": "lab/rootfs", "size": size}}],
            "networks": [{"name": "pod", "pod": {}}],
        },
    }
