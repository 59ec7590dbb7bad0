"""What a real guest must live through, whichever VMM runs it: the emulator here, the real cloud-hypervisor elsewhere.

Each scenario is a function of a ``Stage``. ``test_emulated`` runs them one by one under pytest; as a program
(``python -m tests.e2e.scenarios RESULTS NAME …``) this module runs them one after the other inside the KVM machine and
writes what became of each, for ``test_real_vmm`` to judge.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.facts import ProgramFacts
from launcher.host.observe_firmware import observe_firmware
from launcher.host.observe_virtiofsd import observe_virtiofsd
from tests.lab.efi_disk import make_efi_disk
from tests.lab.guest import lab_guest
from tests.lab.netns import FLANNEL
from tests.lab.pod import LAUNCHER, VmPod, golden_spec, vm_pod

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.netns import PodNetns

LEASE = f"GUEST-LEASE {FLANNEL.address}/24 gw {FLANNEL.gateway} mtu {FLANNEL.mtu} host demo"


@dataclass
class Stage:
    """``options`` select the VMM; ``pace`` stretches every deadline of a slow machine."""

    stack: ExitStack
    options: tuple[str, ...] = ("--emulate",)
    pace: float = 1.0

    def pod(self, net: PodNetns | None = None, *, cmdline: str = "", **options: Any) -> VmPod:
        pod = self.stack.enter_context(vm_pod(net, **options))
        guest = lab_guest()
        (pod.root / "images/kernel").symlink_to(guest.kernel_image)
        (pod.root / "images/root").symlink_to(guest.rootfs_image)
        pod.write_spec(golden_spec(cmdline=cmdline))
        return pod

    def boot(self, *more: str, cmdline: str = "", **options: Any) -> VmPod:
        """A pod whose guest has its lease."""
        pod = self.pod(cmdline=cmdline, **options)
        self.start(pod, *more)
        pod.until_console("GUEST-LEASE", 60 * self.pace)
        return pod

    def start(self, pod: VmPod, *more: str) -> None:
        pod.start(*self.options, *more)

    def end(self, pod: VmPod, code: int, reason: str, within: float = 30) -> dict[str, Any]:
        """The launcher's end: exit code, and the reason in result.json and the termination message alike."""
        got = pod.wait(within * self.pace)
        result = pod.result

        assert (got, result["reason"]) == (code, reason), f"{result}\n{pod.log[-4000:]}"
        assert result["exitCode"] == code
        assert json.loads(pod.termination_message) == result
        assert len(pod.termination_message) <= 4096
        assert not (pod.run_dir / "ch.sock").exists()
        return result


def golden_path(stage: Stage) -> None:
    """Boots, gets the pod's address, serves HTTP, shows its status, shuts down gracefully on SIGTERM."""
    pod = stage.boot()
    pod.until_console(LEASE, 5 * stage.pace)  # the line may still be on its way
    pod.until("ch.sock", (pod.run_dir / "ch.sock").exists, 10 * stage.pace)
    pod.until_event('"event": "lease"', 10 * stage.pace)

    page = pod.net.node("curl", "-sS", "--max-time", "20", f"http://{FLANNEL.address}/")
    assert "launcher lab guest demo" in page

    status = json.loads(pod.exec("status", "-o", "json", timeout=60 * stage.pace).stdout)
    assert status["phase"] == "running"
    assert status["vmState"] == "Running"
    assert status["nics"][0]["addresses"] == [f"{FLANNEL.address}/24"]
    assert [helper["alive"] for helper in status["helpers"]] == [True]
    _check_confinement(pod, status["vmm"]["pid"])

    pod.kill(signal.SIGTERM)
    result = stage.end(pod, 143, "Terminated")
    assert any("GUEST-POWEROFF" in line or "Power down" in line for line in result["console"])
    events = [json.loads(line)["event"] for line in pod.events_text().splitlines()]
    assert "power-button" in events
    names = [point["name"] for point in json.loads((pod.run_dir / "timeline.json").read_text())["points"]]
    assert names.index("prepared") < names.index("vmm started") < names.index("running") < names.index("ended")


def _check_confinement(pod: VmPod, vmm_pid: int) -> None:
    """The VMM is its own uid and has no capability at all, nor can it get one."""
    # The pid is the container's; its /proc shows the process.
    inside = subprocess.run(
        ["nsenter", "-t", str(pod.pid), "-m", "-p", "cat", f"/proc/{vmm_pid}/status"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    fields = dict(line.split(":\t", 1) for line in inside.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["107"] * 4
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert fields["NoNewPrivs"] == "1"
    command = [text for text in pod.processes().values() if "--api-socket" in text]
    assert command, "the VMM is not among the container's processes"
    assert all("GUEST" not in text and "cmdline" not in text for text in command)


def guest_poweroff(stage: Stage) -> None:
    """The guest powers itself off: exit 0, at once."""
    pod = stage.pod(cmdline="launcher.test=poweroff")
    stage.start(pod)
    stage.end(pod, 0, "GuestPoweredOff", within=60)


def guest_reboot(stage: Stage) -> None:
    """The guest reboots itself: the same VM goes on; then `power shutdown` ends it with 0."""
    pod = stage.pod(cmdline="launcher.test=reboot-once")
    stage.start(pod)
    pod.until_console("GUEST-UP boot=2", 90 * stage.pace)
    pod.until_console("GUEST-LEASE", 60 * stage.pace)
    assert pod.console.count("GUEST-UP boot=1") == 1

    done = pod.exec("power", "shutdown", timeout=90 * stage.pace)
    assert done.returncode == 0, done.stderr
    stage.end(pod, 0, "GuestPoweredOff")


def sigterm_while_preparing(stage: Stage) -> None:
    """SIGTERM in the middle of the preparation ends it at once, and the next start works."""
    pod = stage.pod()
    stage.start(pod)
    pod.until_event('"event": "started"', 20 * stage.pace)
    pod.kill(signal.SIGTERM)
    stage.end(pod, 143, "Terminated", within=10)
    assert "GUEST" not in pod.console


def sigterm_while_booting(stage: Stage) -> None:
    """SIGTERM after the VMM has started, before the guest listens: still ends within the grace period."""
    pod = stage.pod()
    stage.start(pod, "--grace", "20")
    pod.until_event('"vm booting"', 60 * stage.pace)
    pod.kill(signal.SIGTERM)
    began = time.monotonic()
    code = pod.wait(25)
    assert code == 143
    assert pod.result["reason"] in {"Terminated", "TerminatedForced"}
    assert time.monotonic() - began < 20


def deaf_guest(stage: Stage) -> None:
    """A guest that ignores the power button is cut within the grace period, and the message says why."""
    pod = stage.boot("--grace", "5", cmdline="launcher.test=ignore-button")
    pod.kill(signal.SIGTERM)
    began = time.monotonic()
    result = stage.end(pod, 143, "TerminatedForced", within=6)
    assert time.monotonic() - began < 5 * stage.pace
    assert "acpid" in result["message"]


def vmm_killed(stage: Stage) -> None:
    """A VMM that dies by a signal is told by that signal."""
    pod = stage.boot()
    status = json.loads(pod.exec("status", "-o", "json", timeout=60 * stage.pace).stdout)
    pod.exec_raw("kill", "-KILL", str(status["vmm"]["pid"]))
    result = stage.end(pod, 137, "VmmKilled")
    assert "SIGKILL" in result["message"]
    assert result["vmm"]["signal"] == "SIGKILL"


def dnsmasq_killed(stage: Stage) -> None:
    """A dead dnsmasq is started again and the guest does not notice; `power off` then cuts the power."""
    pod = stage.boot()
    status = json.loads(pod.exec("status", "-o", "json", timeout=60 * stage.pace).stdout)
    pod.exec_raw("kill", "-KILL", str(status["helpers"][0]["pid"]))
    pod.until("dnsmasq again", lambda: pod.events_text().count('"helper-started"') == 2, 20 * stage.pace)
    assert "launcher lab guest demo" in pod.net.node("curl", "-sS", "--max-time", "20", f"http://{FLANNEL.address}/")

    done = pod.exec("power", "off", timeout=60 * stage.pace)
    assert done.returncode == 0, done.stderr
    stage.end(pod, 0, "GuestPoweredOff")


def killed_and_started_again(stage: Stage) -> None:
    """kill -9 of everything, the run directory lost: the second container of the pod boots the same disk, same address."""
    first = stage.boot()
    disk = first.root / "disks/root/rootfs.raw"
    inode = disk.stat().st_ino
    first.kill(signal.SIGKILL)
    first.wait(10)
    shutil.rmtree(first.run_dir)
    first.run_dir.mkdir(mode=0o755)

    again = stage.pod(first.net)
    shutil.rmtree(again.root / "disks")
    (first.root / "disks").rename(again.root / "disks")
    stage.start(again)
    again.until_console(LEASE, 60 * stage.pace)
    assert "GUEST-UP boot=2" in again.console
    assert (again.root / "disks/root/rootfs.raw").stat().st_ino == inode
    assert "launcher lab guest demo" in again.net.node("curl", "-sS", "--max-time", "20", f"http://{FLANNEL.address}/")
    again.kill(signal.SIGTERM)
    stage.end(again, 143, "Terminated")


def second_start_from_the_cache(stage: Stage) -> None:
    """The second VM of an image gets its disk without a byte copied, and sees nothing of what the first one wrote."""
    first, again = stage.pod(), stage.pod()
    cache = first.root / "cache"
    env = {"LAUNCHER_CACHE": str(cache)}
    first.start(*stage.options, env=env)
    first.until_console("GUEST-UP boot=1", 90 * stage.pace)
    first.until_console("GUEST-LEASE", 60 * stage.pace)
    [cached] = cache.glob("*/disk")
    content = cached.read_bytes()
    first.kill(signal.SIGTERM)
    stage.end(first, 143, "Terminated")  # its count of boots is on its disk now

    again.start(*stage.options, env=env)
    again.until_console("GUEST-UP boot=1", 90 * stage.pace)
    again.until_console("GUEST-LEASE", 60 * stage.pace)
    lines = [json.loads(line) for pod in (first, again) for line in pod.log.splitlines() if "out of the cache" in line]
    assert [(line["way"], line["built"], line["copied"]) for line in lines] == [
        ("overlay", True, 0),
        ("overlay", False, 0),
    ]
    again.kill(signal.SIGTERM)
    stage.end(again, 143, "Terminated")

    assert [path.stat().st_ino for path in cache.glob("*/disk")] == [cached.stat().st_ino]
    assert cached.read_bytes() == content
    for pod in (first, again):
        base = pod.root / "disks/root/rootfs.base.raw"
        assert base.samefile(cached)
        assert (pod.root / "disks/root/rootfs.qcow2").stat().st_blocks < base.stat().st_blocks

    # The first VM again: its own disk with what it wrote, though the cache is gone.
    shutil.rmtree(cache)
    shutil.rmtree(first.run_dir)
    first.run_dir.mkdir(mode=0o755)
    first.start(*stage.options)
    first.until_console("GUEST-UP boot=2", 90 * stage.pace)
    first.until_console("GUEST-LEASE", 60 * stage.pace, times=2)
    first.kill(signal.SIGTERM)
    stage.end(first, 143, "Terminated")


def virtiofs(stage: Stage) -> None:
    """A shared folder: the guest mounts it by its tag, owners are the same on both sides, and a reboot finds it again."""
    pod = stage.pod()
    spec = golden_spec(cmdline="launcher.virtiofs=share launcher.test=reboot-once")
    spec["spec"]["instance"]["fileSystems"] = [{"name": "share"}]
    spec["spec"]["volumes"].append({"name": "share", "persistentVolumeClaim": {"claimName": "share"}})
    pod.write_spec(spec)
    share = pod.root / "disks/share"
    share.mkdir()
    (share / "from-host").write_text("from the host\n")
    os.chown(share / "from-host", 1234, 1235)
    stage.start(pod)
    pod.until_console("GUEST-SHARE share 1234:1235 from the host", 60 * stage.pace)
    pod.until_console("GUEST-SHARE share 1234:1235 from the host", 90 * stage.pace, times=2)
    written = share / "from-guest"
    seen = written.stat()
    assert written.read_text() == "from the guest\n"
    assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (1000, 1001, 0o640)
    assert "GUEST-UP boot=2" in pod.console

    status = json.loads(pod.exec("status", "-o", "json", timeout=60 * stage.pace).stdout)
    [helper] = [helper for helper in status["helpers"] if helper["name"] == "virtiofsd-share"]
    assert (helper["alive"], helper["recentDeaths"]) == (True, 0)
    done = pod.exec("power", "off", timeout=60 * stage.pace)
    assert done.returncode == 0, done.stderr
    stage.end(pod, 0, "GuestPoweredOff")
    assert not list((pod.run_dir / "virtiofsd").iterdir())


def _from_disk(stage: Stage, source: dict[str, Any]) -> VmPod:
    """A pod whose guest has its root on a volume of this source; what the volume holds is up to the scenario."""
    pod = stage.pod()
    (pod.root / "images/root").unlink()
    spec = golden_spec()
    spec["spec"]["volumes"] = [{"name": "root", **source}]
    pod.write_spec(spec)
    return pod


def _make_root_disk(path: Path) -> None:
    """The lab guest's root disk, as a raw image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [LAUNCHER, "image", "rootfs", lab_guest().rootfs_image, path, "--size", "256Mi"],
        check=True,
        capture_output=True,
    )


def _boots_from_disk(stage: Stage, pod: VmPod) -> None:
    """Nothing is changed by the preparation; then the guest comes up on it, knows it by its serial, and shuts down."""
    stage.start(pod)
    pod.until_console("GUEST-UP boot=1", 90 * stage.pace)
    pod.until_console("GUEST-LEASE", 60 * stage.pace)
    pod.kill(signal.SIGTERM)
    stage.end(pod, 143, "Terminated")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claim_as_file(stage: Stage) -> None:
    """A claim's disk.img: not a byte of it changes before the guest runs, and then it is the guest's root disk."""
    pod = _from_disk(stage, {"persistentVolumeClaim": {"claimName": "root"}})
    disk = pod.root / "disks/root/disk.img"
    _make_root_disk(disk)
    before = _sha256(disk)
    pod.start("--emulate", verb="prepare")
    assert pod.wait(60 * stage.pace) == 0, pod.log
    assert _sha256(disk) == before
    _boots_from_disk(stage, pod)
    assert _sha256(disk) != before


def claim_as_device(stage: Stage) -> None:
    """A claim's block device, root's and its group's as on a node: opened by its group, and the guest's root disk."""
    pod = _from_disk(stage, {"dataVolume": {"volumeName": "root"}})
    backing = pod.root / "device.img"
    _make_root_disk(backing)
    loop = subprocess.run(
        ["losetup", "-f", "--show", backing], capture_output=True, text=True, check=True
    ).stdout.strip()
    stage.stack.callback(subprocess.run, ["losetup", "-d", loop], check=True)
    device = pod.root / "disks/root"
    os.mknod(device, 0o600 | stat.S_IFBLK, Path(loop).stat().st_rdev)
    os.chown(device, 0, 6)
    device.chmod(0o660)
    _boots_from_disk(stage, pod)
    after = device.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (0, 6, 0o660)


def container_disk_raw(stage: Stage) -> None:
    """A raw disk in an image volume: nothing is copied, and the image's own file stays as it is."""
    pod = _from_disk(stage, {"containerDisk": {"image": "lab/disk"}})
    disk = pod.root / "images/root/disk/lab.img"
    _make_root_disk(disk)
    disk.chmod(0o444)
    before = _sha256(disk)
    _boots_from_disk(stage, pod)
    assert _sha256(disk) == before
    overlay = pod.root / "disks/root/disk.qcow2"
    assert sorted(path.name for path in overlay.parent.iterdir()) == ["disk.mark", "disk.qcow2"]
    assert 0 < overlay.stat().st_blocks * 512 < 64 << 20


def container_disk_qcow2(stage: Stage) -> None:
    """A compressed qcow2 disk in a layer: extracted once; another start finds what the guest has written."""
    pod = _from_disk(stage, {"containerDisk": {"image": "lab/disk"}})
    raw, disk, layout = pod.root / "disk.raw", pod.root / "disk.qcow2", pod.root / "images/root"
    _make_root_disk(raw)
    subprocess.run(["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", raw, disk], check=True)
    image = f"{layout}:latest"
    subprocess.run(["umoci", "init", "--layout", layout], check=True, capture_output=True)
    subprocess.run(["umoci", "new", "--image", image], check=True, capture_output=True)
    subprocess.run(["umoci", "insert", "--image", image, disk, "/disk"], check=True, capture_output=True)
    _boots_from_disk(stage, pod)
    base = pod.root / "disks/root/disk.base"
    assert _sha256(base) == _sha256(disk)

    stage.start(pod)
    pod.until_console("GUEST-UP boot=2", 90 * stage.pace)
    pod.kill(signal.SIGTERM)
    stage.end(pod, 143, "Terminated")


def firmware(stage: Stage) -> None:
    """No kernel in the spec: firmware finds the boot loader on a container disk, and the guest is up."""
    pod = _from_disk(stage, {"containerDisk": {"image": "lab/disk"}})
    spec = json.loads(pod.spec.read_text())
    del spec["spec"]["instance"]["kernel"]
    pod.write_spec(spec)
    guest = lab_guest()
    disk = pod.root / "images/root/disk/lab.img"
    disk.parent.mkdir(parents=True)
    make_efi_disk(
        disk,
        vmlinuz=guest.vmlinuz,
        initramfs=guest.initramfs,
        root=guest.rootfs_tree,
        size_mib=64,
        cmdline="console=ttyS0 rw quiet",
    )
    stage.start(pod)
    pod.until_console("GUEST-UP boot=1", 120 * stage.pace)
    pod.until_console("GUEST-LEASE", 60 * stage.pace)
    pod.kill(signal.SIGTERM)
    stage.end(pod, 143, "Terminated")


def claim_in_use(stage: Stage) -> None:
    """A disk that another VMM holds is refused before anything is changed."""
    pod = _from_disk(stage, {"persistentVolumeClaim": {"claimName": "root"}})
    disk = pod.root / "disks/root/disk.img"
    _make_root_disk(disk)
    with disk.open("r+b") as held:
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        stage.start(pod)
        result = stage.end(pod, 13, "StorageFailed")
    assert "holds a write lock" in result["message"]
    assert not (pod.run_dir / "network.json").exists()


def lacks(name: str, *, emulated: bool) -> str | None:
    """Why a scenario cannot be tried on this machine."""
    if name == "firmware":
        return observe_firmware(None, os.uname().machine, emulated=emulated).problem
    if name == "claim_as_device":
        loop = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
        return f"this machine has no loop devices: {loop.stderr.strip()}" if loop.returncode else None
    found = observe_virtiofsd() if name == "virtiofs" else ProgramFacts()
    if found is None:
        return "no virtiofsd is installed; Debian has it as a package from 13 on"
    return found.problem


SCENARIOS: dict[str, Callable[[Stage], None]] = {
    function.__name__: function
    for function in (
        golden_path,
        guest_poweroff,
        guest_reboot,
        sigterm_while_preparing,
        sigterm_while_booting,
        deaf_guest,
        vmm_killed,
        dnsmasq_killed,
        killed_and_started_again,
        second_start_from_the_cache,
        virtiofs,
        claim_as_file,
        claim_as_device,
        claim_in_use,
        container_disk_raw,
        container_disk_qcow2,
        firmware,
    )
}


def main() -> None:
    """Run scenarios against the real VMM on PATH and write ``{name: {"seconds": s, "error": text or null}}``."""
    results, *names = sys.argv[1:]
    outcomes: dict[str, dict[str, Any]] = {}
    for name in names or SCENARIOS:
        began = time.monotonic()
        error = None
        try:
            with ExitStack() as stack:
                SCENARIOS[name](Stage(stack, options=(), pace=float(os.environ.get("PACE", "1"))))
        except Exception:  # noqa: BLE001  # the other scenarios still run
            error = traceback.format_exc()
        seconds = round(time.monotonic() - began, 1)
        outcomes[name] = {"seconds": seconds, "error": error}
        print(f"{name}: {'FAILED' if error else 'ok'} in {seconds} s", error or "", flush=True)
        Path(results).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
