"""``make demo``: from nothing to a real guest in a pod-like network, and gracefully back to nothing.

With cloud-hypervisor on PATH and a KVM that really runs guests the guest runs on those, else under the emulator.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from tests.lab.guest import lab_guest, make_kernel_image, make_rootfs_image
from tests.lab.kvm_machine import kvm_runs_guests
from tests.lab.netns import FLANNEL
from tests.lab.pod import golden_spec, vm_pod

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE = 120.0  # seconds for the guest to come up


def main() -> int:
    """Show it; the exit status is 0 when everything was as it should be."""
    _say("build the kernel and rootfs images")
    guest = lab_guest()
    print(
        f"    kernel {guest.kernel_version}: /vmlinux and /initramfs; rootfs: busybox under /rootfs; both as OCI layouts"
    )
    real = shutil.which("cloud-hypervisor") is not None and kvm_runs_guests()
    options = [] if real else ["--emulate"]
    print(
        f"    VMM: {'cloud-hypervisor with KVM' if real else 'the emulator (no cloud-hypervisor with a KVM that runs guests here)'}"
    )
    with vm_pod() as pod:
        make_kernel_image(pod.root / "images/kernel")
        make_rootfs_image(pod.root / "images/root")
        pod.write_spec(golden_spec())
        _say(f"the pod: netns {pod.net.pod_name}, eth0 {FLANNEL.address}/24, default via {FLANNEL.gateway}")
        print(pod.net.pod("ip", "-brief", "address"), end="")
        _say("launcher validate; launcher run " + " ".join(options))
        subprocess.run([*pod.argv("validate")], env=pod.environment, check=True)
        pod.start(*options)
        with _Tail(pod.root / "stdout"):
            pod.until_console("GUEST-LEASE", DEADLINE)
            pod.until("ch.sock", (pod.run_dir / "ch.sock").exists, 10)
        lease = next(line for line in pod.console.splitlines() if "GUEST-LEASE" in line)
        _check(FLANNEL.address in lease, f"the guest's lease is the pod's address: {lease.strip()}")
        page = pod.net.node("curl", "-sS", "--max-time", "20", f"http://{FLANNEL.address}/").strip()
        _check("lab guest demo" in page, f"the node asks the guest by HTTP: {page}")
        _say("launcher status")
        print(pod.exec("status").stdout, end="")
        _say("SIGTERM, as the kubelet sends it")
        asked = time.monotonic()
        pod.kill(signal.SIGTERM)
        code = pod.wait(40)
        _check(code == 143, f"exit code {code} after {time.monotonic() - asked:.2f} s")
        result = json.loads(pod.termination_message)
        _check(result["reason"] == "Terminated", "termination message:")
        print(json.dumps(result, indent=2))
        _say("launcher timeline")
        print(
            subprocess.run(pod.argv("timeline"), env=pod.environment, check=True, capture_output=True, text=True).stdout
        )
    _say("done: nothing is left of it")
    return 0


class _Tail:
    """Shows a growing file on our stdout, indented, while the block runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _show(self) -> None:
        with self._path.open(errors="replace") as file:
            while True:
                done = self._done.is_set()
                for line in file:
                    print(f"    | {line.rstrip()}", flush=True)
                if done:
                    return
                self._done.wait(0.1)


def _say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def _check(fine: bool, what: str) -> None:  # noqa: FBT001  # an assertion that shows itself
    print(f"    {'ok' if fine else 'NOT OK'}: {what}", flush=True)
    if not fine:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
