"""``make bench``: what the launcher costs, each number beside the peer or the floor it has to be compared with.

One JSON object on stdout, progress on stderr. Times are in milliseconds and medians; ``runs`` has the number of samples
of each and their extremes. What each key means, and against what it is measured: docs/reference/bench.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab import bench_rootdisk
from tests.lab.debian import run
from tests.lab.emulated import root_disk
from tests.lab.guest import lab_guest
from tests.lab.netns import FLANNEL, MAC, pod_netns
from tests.lab.pod import LAUNCHER, VmPod, golden_spec, vm_pod
from tests.lab.witness import witness

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = 3  # boots and root disks, each beside its peer
CALLS = 15  # of what takes milliseconds
PATIENCE = 60.0  # seconds
BOOT_WORDS = "console=ttyS0 root=/dev/vda rw quiet"


class Samples(dict[str, list[float]]):
    """Measurements by key."""

    def add(self, key: str, value: float) -> None:
        self.setdefault(key, []).append(value)

    def time(self, key: str, work: Callable[[], object]) -> None:
        """Add the milliseconds that ``work`` takes."""
        began = time.monotonic()
        work()
        self.add(key, (time.monotonic() - began) * 1000)

    def report(self) -> dict[str, Any]:
        medians: dict[str, Any] = {key: _short(statistics.median(values)) for key, values in self.items()}
        runs = {
            key: {"n": len(values), "min": _short(min(values)), "max": _short(max(values))}
            for key, values in self.items()
        }
        return {**medians, "runs": runs}


def _short(value: float) -> float:
    return round(value, 2 if value < 100 else 0)


def main() -> int:
    """Measure everything; the exit status is 0 unless something did not work at all."""
    began = time.monotonic()
    samples = Samples()
    _say("the lab guest")
    lab_guest()
    for number in range(PAIRS):
        _say(f"boot {number + 1} of {PAIRS}: programs alone, then the launcher")
        preparation_by_programs(samples)
        guest_by_qemu(samples)
        boot_and_power_off(samples)
    _say("the running supervisor")
    running_supervisor(samples)
    modules = count_modules()
    with bench_rootdisk.workplace() as folder:
        _say("root disk: the image")
        layout, layer, entries, size = bench_rootdisk.make_image(folder)
        for number in range(PAIRS):
            _say(f"root disk {number + 1} of {PAIRS}")
            samples.time("rootdisk_floor_ms", lambda: bench_rootdisk.theirs(layer, folder))
            samples.time("rootdisk_ms", lambda: bench_rootdisk.ours(layout, folder))
            samples.add("rootdisk_ratio", samples["rootdisk_ms"][-1] / samples["rootdisk_floor_ms"][-1])
        image = {"entries": entries, "tar_mb": size >> 20, "gzip_mb": layer.stat().st_size >> 20}
    report = {
        **samples.report(),
        **modules,
        "rootdisk_image": image,
        "machine": machine(),
        "bench_seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report, indent=2))
    return 0


# --- a boot -----------------------------------------------------------------------------------------------------------


def preparation_by_programs(samples: Samples) -> None:
    """What a preparation comes to at least: the same files and links made by tar, mke2fs and ip, one process each."""
    guest = lab_guest()
    with pod_netns(FLANNEL) as net, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        links = (
            "link add br-eth0 type bridge",
            "addr flush dev eth0",
            "link set eth0 down",
            "link set eth0 name eth0-nic address 02:00:00:00:00:01",
            "link add eth0 address " + MAC + " type bridge",
            *(f"link set {link} mtu {FLANNEL.mtu} up" for link in ("eth0", "br-eth0")),
            *FLANNEL.pod,
            "tuntap add tap-eth0 mode tap user 107 vnet_hdr",
            *(f"link set {link} master br-eth0 up" for link in ("eth0-nic", "tap-eth0")),
        )

        def prepare() -> None:
            for image in (guest.kernel_image, guest.rootfs_image):
                tree = folder / image.name
                tree.mkdir()
                for blob in (image / "blobs/sha256").iterdir():
                    if blob.read_bytes()[:2] == b"\x1f\x8b":
                        # umoci's insert leaves out the end of the archive, and tar complains when it has it all.
                        subprocess.run(["tar", "-C", tree, "-xzf", blob], check=False, stderr=subprocess.DEVNULL)
            run("mke2fs", "-q", "-t", "ext4", "-d", folder / "rootfs/rootfs", folder / "disk", "256M")
            subprocess.run(
                ["ip", "-n", net.pod_name, "-batch", "-"], input="\n".join(links).encode(), check=True, timeout=30
            )

        samples.time("prepare_floor_ms", prepare)


def guest_by_qemu(samples: Samples) -> None:
    """How long QEMU alone takes from its start to the guest's first words, with the kernel and disk the launcher boots."""
    guest = lab_guest()
    with tempfile.TemporaryDirectory() as name:
        disk = root_disk(Path(name, "root.ext4"))
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "256M", "-serial", "stdio"]
        argv += ["-kernel", str(guest.vmlinux), "-initrd", str(guest.initramfs), "-append", BOOT_WORDS]
        argv += ["-drive", f"if=virtio,format=raw,file={disk}", "-nic", "none"]
        began = time.monotonic()
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
            try:
                assert qemu.stdout is not None
                assert select.select([qemu.stdout], [], [], PATIENCE)[0], "the guest does not come up"
                assert os.read(qemu.stdout.fileno(), 65536)
                samples.add("boot_floor_ms", (time.monotonic() - began) * 1000)
            finally:
                qemu.kill()


def boot_and_power_off(samples: Samples) -> None:
    """One whole life: the guest powers itself off as soon as it is up."""
    with vm_pod() as pod:
        code, ended = _live(pod)
        assert code == 0, pod.log[-4000:]
        points = {point["name"]: point for point in json.loads((pod.run_dir / "timeline.json").read_text())["points"]}
        events = [json.loads(line) for line in pod.events_text().splitlines()]
    at = {name: point["ms"] for name, point in points.items()}
    took = {name: point["tookMs"] for name, point in points.items() if "tookMs" in point}
    samples.add("prepare_ms", at["prepared"])
    samples.add("prepare_worker_start_ms", at["read the spec"] - took["read the spec"])
    samples.add("prepare_observe_ms", took["observe the machine"])
    samples.add("prepare_kernel_ms", sum(ms for name, ms in took.items() if name.startswith("extract ")))
    samples.add("prepare_disk_ms", sum(ms for name, ms in took.items() if name.startswith("build ")))
    samples.add(
        "prepare_network_ms",
        sum(ms for name, ms in took.items() if re.match(r"bridge |rename |delete |eth0|tap ", name)),
    )
    samples.add("running_ms", at["running"] - at["prepared"])
    samples.add("boot_ms", at["first console byte"] - at["prepared"])
    moments = {event["event"]: datetime.fromisoformat(event["time"]).timestamp() for event in events}
    samples.add("poweroff_exit_ms", (ended - moments["vm shutdown"]) * 1000)
    samples.add("poweroff_exit_floor_ms", (moments["vmm-ended"] - moments["vm shutdown"]) * 1000)


def _live(pod: VmPod) -> tuple[int, float]:
    """Start the pod with a guest that powers off; the launcher's exit code and the moment it ended (Unix time)."""
    furnish(pod, "launcher.test=poweroff")
    pod.start("--emulate")
    pod.until_event('"started"', PATIENCE)
    pidfd = os.pidfd_open(pod.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), "the launcher does not end"
        ended = time.time()
    finally:
        os.close(pidfd)
    return pod.wait(), ended


def furnish(pod: VmPod, cmdline: str = "") -> None:
    """Give a pod the lab guest's images and a spec that boots them; ``cmdline`` goes to the guest."""
    guest = lab_guest()
    (pod.root / "images/kernel").symlink_to(guest.kernel_image)
    (pod.root / "images/root").symlink_to(guest.rootfs_image)
    pod.write_spec(golden_spec(cmdline=cmdline))


# --- the resident process ---------------------------------------------------------------------------------------------


def running_supervisor(samples: Samples) -> None:
    """Memory of the resident process, and what asking it costs."""
    idle = [sys.executable, "-I", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with vm_pod() as pod:
        furnish(pod)
        pod.start("--emulate")
        pod.until_console("GUEST-LEASE", PATIENCE)
        with subprocess.Popen(idle, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as python:
            assert python.stdout is not None
            python.stdout.readline()
            for kind, key in (("Pss", "pss"), ("Rss", "rss"), ("Private_Dirty", "private_dirty")):
                samples.add(f"supervisor_{key}_mb", memory(pod.pid)[kind])
                samples.add(f"supervisor_{key}_floor_mb", memory(python.pid)[kind])
            python.communicate()
        curl = ["curl", "-sS", "-o", "/dev/null", "--unix-socket", pod.run_dir / "launcher.sock", "http://x/status"]
        status = pod.argv("status", "-o", "json")
        for _ in range(CALLS):
            samples.time("status_ms", lambda: _quietly(status, pod.environment))
            samples.time("status_curl_ms", lambda: _quietly(curl))
            samples.time("status_floor_ms", lambda: _quietly([sys.executable, "-I", "-c", "pass"]))
        pod.kill(signal.SIGTERM)
        pod.wait()


def memory(pid: int) -> dict[str, float]:
    """MB (10^6 bytes) of a process by the kernel's names (Documentation/filesystems/proc.rst, smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def _quietly(argv: list[Any], env: dict[str, str] | None = None) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=env)


def count_modules() -> dict[str, int]:
    """Modules the resident process has imported by the end of its life, and those of a bare Python."""
    with witness() as told:
        with vm_pod(launcher=told.launcher) as pod:
            _live(pod)
        modules = told.modules()
    bare = run(sys.executable, "-I", "-c", "import sys; print(len(sys.modules))")
    return {"supervisor_modules": len(modules), "supervisor_modules_floor": int(bare)}


# --- the machine ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    mke2fs = subprocess.run(["mke2fs", "-V"], check=True, capture_output=True, text=True).stderr
    real = shutil.which("cloud-hypervisor")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "guest_kernel": lab_guest().kernel_version,
        "python": platform.python_version(),
        "launcher": run(LAUNCHER, "--version").split()[-1],
        "vmm": "emulator",
        "cloud_hypervisor": run(real, "--version").split()[1] if real else None,
        "qemu": run("qemu-system-x86_64", "--version").split()[3],
        "mke2fs": mke2fs.split()[1],
        "tar": run("tar", "--version").splitlines()[0].split()[-1],
        "curl": run("curl", "--version").split()[1],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
