"""The emulator with a real guest: a VM's whole life over the API, as an unprivileged user with a tap of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.emulator.taps import open_taps
from tests.lab.emulated import PATIENCE, Emulator, console, guest_folder, vm_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

UID = 47811
MAC = "52:54:00:0a:0b:0c"
# As a container runtime prepares it: a device node that everybody may open, then another user without capabilities.
UNPRIVILEGED = (
    "mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 200 && chmod 666 /dev/net/tun && "
    f'exec setpriv --reuid={UID} --regid={UID} --clear-groups --inh-caps=-all --bounding-set=-all "$@"'
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with guest_folder() as path:
        yield path


@contextlib.contextmanager
def emulator(
    folder: Path, *options: str, wrapper: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Iterator[Emulator]:
    running = Emulator(folder, *options, wrapper=wrapper, env=env)
    try:
        yield running
    finally:
        running.close()


@contextlib.contextmanager
def tap_netns() -> Iterator[str]:
    """A netns with tap0, which belongs to UID, and a DHCP server behind it."""
    name = f"emulator-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    dnsmasq = None
    try:
        for command in (
            f"tuntap add tap0 mode tap user {UID} vnet_hdr",
            "addr add 10.5.0.1/24 dev tap0",
            "link set tap0 up",
            "link set lo up",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        dnsmasq = subprocess.Popen(
            [
                *("ip", "netns", "exec", name, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"),
                *("--interface=tap0", "--bind-interfaces", "--leasefile-ro", "--no-ping", "--dhcp-authoritative"),
                *("--dhcp-range=10.5.0.9,10.5.0.9,infinite", f"--dhcp-host={MAC},10.5.0.9,emulated"),
                *("--dhcp-option=26,1400", "--log-facility=/dev/null", "--pid-file="),
            ],
            stderr=subprocess.DEVNULL,
        )
        yield name
    finally:
        if dnsmasq is not None:
            dnsmasq.kill()
            dnsmasq.wait()
        subprocess.run(["ip", "netns", "del", name], check=True)


def gone(pid: int) -> bool:
    """Wait for a process that is not our child to end."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], PATIENCE)[0])
    finally:
        os.close(fd)


def test_a_vm_lives_over_the_api_without_privilege() -> None:
    with guest_folder(UID) as folder, tap_netns() as netns:
        wrapper = ("ip", "netns", "exec", netns, "sh", "-c", UNPRIVILEGED, "sh")
        with emulator(folder, "--no-shutdown", wrapper=wrapper) as vmm:
            os.chown(vmm.api, UID, UID)
            _live(vmm, folder, netns)
            assert vmm.ended() == (0, "")


def _live(vmm: Emulator, folder: Path, netns: str) -> None:
    serial = folder / "serial.sock"
    net = {"id": "pod", "tap": "tap0", "mac": MAC}
    vmm.put("vm.create", vm_config(folder, net=[net]))
    assert vmm.call("GET", "vm.info")[1]["state"] == "Created"
    vmm.put("vm.boot")
    with console(serial) as tty:
        assert "boot=1" in tty.until("GUEST-UP")
        assert tty.until("GUEST-LEASE") == "GUEST-LEASE 10.5.0.9/24 gw 10.5.0.1 mtu 1400 host emulated"
        fetch = ["ip", "netns", "exec", netns, "busybox", "wget", "-q", "-O", "-", "http://10.5.0.9/"]
        assert b"emulated" in subprocess.run(fetch, capture_output=True, check=True, timeout=PATIENCE).stdout
        info = vmm.call("GET", "vm.info")[1]
        assert (info["state"], info["device_tree"]["_virtio-pci-pod"]["pci_bdf"]) == ("Running", "0000:00:02.0")

        vmm.put("vm.pause")
        assert vmm.call("GET", "vm.info")[1]["state"] == "Paused"
        assert vmm.call("PUT", "vm.pause")[1][-1] == "Invalid transition: InvalidStateTransition(Paused, Paused)"
        vmm.put("vm.resume")

        tty.type("reboot")
        assert "GUEST-REBOOT" in tty.until_closed()
    with console(serial) as tty:
        assert "boot=2" in tty.until("GUEST-UP")
        vmm.put("vm.reboot")
        tty.until_closed()
    with console(serial) as tty:
        assert "boot=3" in tty.until("GUEST-UP")
        tty.until("BusyBox")  # acpid was started before the shell
        vmm.put("vm.power-button")
        assert "GUEST-POWEROFF" in tty.until_closed()
    assert vmm.events(3) == ["vmm starting", "vm booting", "vm booted"]
    assert vmm.events(5) == ["vm pausing", "vm paused", "vm pausing", "vm resuming", "vm resumed"]
    assert vmm.events(5) == [*("vm rebooting", "vm rebooted") * 2, "vm shutdown"]
    info = vmm.call("GET", "vm.info")[1]
    assert info["state"] == "Created"
    assert "device_tree" not in info
    assert not serial.exists()
    vmm.put("vm.boot")
    with console(serial) as tty:
        assert "boot=4" in tty.until("GUEST-UP")
    vmm.put("vmm.shutdown")
    assert vmm.events(5) == ["vm booting", "vm booted", "vm shutdown", "vm deleted", "vmm shutdown"]


def more_devices(folder: Path) -> dict[str, object]:
    """What the other guests do without: two vCPUs, a qcow2 root, a read-only seed, a null console."""
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", folder / "root.ext4", folder / "root.qcow2"], check=True)
    (folder / "seed").mkdir()
    (folder / "seed/meta-data").write_text("instance-id: iid-7\n")
    seed = ["xorrisofs", "-quiet", "-r", "-V", "cidata", "-o", str(folder / "seed.iso"), str(folder / "seed")]
    subprocess.run(seed, check=True, stderr=subprocess.DEVNULL)
    return {
        "cpus": {
            "boot_vcpus": 2,
            "max_vcpus": 2,
            "topology": {"threads_per_core": 1, "cores_per_die": 2, "dies_per_package": 1, "packages": 1},
        },
        "disks": [
            {"id": "root", "path": str(folder / "root.qcow2"), "image_type": "Qcow2"},
            {"id": "seed", "path": str(folder / "seed.iso"), "image_type": "Raw", "readonly": True},
        ],
        "console": {"mode": "Null"},
    }


def test_a_guest_that_powers_off_ends_the_process_and_gets_tap_descriptors_passed(folder: Path) -> None:
    """Without --no-shutdown; the guest sees its NIC although nobody named a tap."""
    (tap,) = open_taps({"num_queues": 2, "tap": f"em{secrets.token_hex(4)}"})
    try:
        with emulator(folder) as vmm:
            log = folder / "console.log"
            serial = {"mode": "File", "file": str(log)}
            vmm.put("vm.create", vm_config(folder, "launcher.test=poweroff", serial=serial, **more_devices(folder)))
            refused = vmm.call("PUT", "vm.add-net", {"id": "pod", "num_queues": 4}, [tap])
            assert refused[1][-1] == "Number of queues (4) to virtio_net does not match the number of FDs (2)"
            vmm.put("vm.add-net", {"id": "pod", "mac": MAC}, [tap])
            vmm.put("vm.boot")
            assert vmm.ended() == (0, "")
            expected = ["vmm starting", "vm booting", "vm booted", "vm shutdown", "vm deleted", "vmm shutdown"]
            assert vmm.events(6) == expected
            assert "nics=1" in log.read_text()
            assert "GUEST-SEED /dev/vdb iid-7" in log.read_text()
            assert "GUEST-POWEROFF" in log.read_text()
    finally:
        os.close(tap)


def test_a_guests_panic_is_an_event_and_goes_to_stdout(folder: Path) -> None:
    with emulator(folder) as vmm:
        vmm.put("vm.create", vm_config(folder, "launcher.test=panic", serial={"mode": "Tty"}, pvpanic=True))
        vmm.put("vm.boot")
        assert vmm.events(4)[3] == "guest panic"
        assert vmm.call("GET", "vm.info")[1]["state"] == "Running"
        vmm.process.send_signal(signal.SIGTERM)
        out, _ = vmm.process.communicate(timeout=PATIENCE)
        assert b"Kernel panic" in out
        assert vmm.process.returncode == 0
        assert vmm.events(3) == ["vm shutdown", "vm deleted", "vmm shutdown"]


def test_a_killed_emulator_leaves_no_qemu(folder: Path) -> None:
    with emulator(folder) as vmm:
        vmm.put("vm.create", vm_config(folder))
        vmm.put("vm.boot")
        qemu = vmm.qemu_pid()
        vmm.process.kill()
        assert gone(qemu)


def test_a_killed_qemu_is_a_failed_vmm(folder: Path) -> None:
    with emulator(folder, "--no-shutdown") as vmm:
        vmm.put("vm.create", vm_config(folder))
        vmm.put("vm.boot")
        os.kill(vmm.qemu_pid(), signal.SIGKILL)
        status, said = vmm.ended()
        assert status == 1
        assert said.startswith("vmm-emulator: QEMU died")


def test_without_qemu_it_says_which_package_has_it(tmp_path: Path) -> None:
    with emulator(tmp_path, env={"PATH": str(tmp_path)}) as vmm:
        sentence = "vmm-emulator: qemu-system-x86_64 is not installed (Debian package qemu-system-x86)\n"
        assert vmm.ended() == (1, sentence)
