"""How a VM ends when nobody told the launcher to end it: exit code, reason, message, and nothing left behind."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.lab.netns import FLANNEL, pod_netns
from tests.lab.pod import golden_spec
from tests.lab.supervised import supervised

if TYPE_CHECKING:
    from tests.lab.supervised import Supervised

pytestmark = pytest.mark.root


def test_the_guest_powers_off(vm: Supervised) -> None:
    vm.boot()
    assert (vm.pod.run_dir / "ch.sock").exists()
    vm.guest("poweroff")

    result = vm.end(0, "GuestPoweredOff")
    assert result["vmm"] == {"version": "53.0.0", "exitCode": 0, "lastErrors": []}
    assert result["console"] == ["guest up"]
    assert result["startedAt"] < result["finishedAt"]


@pytest.mark.parametrize("version", [46, 47, 51, 52])
def test_the_guest_of_an_older_vmm_powers_off(vm: Supervised, version: int) -> None:
    """Up to v51 there is no --no-shutdown, and the process ends with the guest."""
    vm.fake(version=version)
    vm.boot()
    vm.guest("poweroff")

    assert vm.end(0, "GuestPoweredOff")["vmm"]["version"] == f"{version}.0.0"


def test_the_guest_reboots_and_no_byte_of_its_console_is_lost(vm: Supervised) -> None:
    vm.boot()
    vm.until_console("guest up")
    for boot in range(3):
        for line in range(50):
            vm.guest(f"console boot {boot} line {line}")
        vm.guest("reboot")
    vm.until_console("guest up", 4)
    vm.guest("poweroff")

    assert vm.end(0, "GuestPoweredOff")["console"][-1] == "guest up"
    boots = ["".join(f"boot {boot} line {line}\r\n" for line in range(50)) for boot in range(3)]
    told = "guest up\r\n" + "".join(boot + "guest up\r\n" for boot in boots)
    assert (vm.pod.root / "stdout").read_bytes().decode() == told
    assert (vm.pod.run_dir / "console.log").read_bytes().decode() == told
    assert vm.names().count("vm rebooted") == 3


def test_the_vmm_crashes(vm: Supervised) -> None:
    vm.boot()
    vm.guest("crash")

    result = vm.end(128 + signal.SIGABRT, "VmmKilled")
    assert "SIGABRT" in result["message"]
    assert result["vmm"]["signal"] == "SIGABRT"


def test_the_vmm_ends_with_an_error(vm: Supervised) -> None:
    """A reboot that fails ends the VMM with status 1; its own words are in the message."""
    vm.boot()
    vm.kernel.unlink()
    vm.guest("reboot")

    result = vm.end(21, "VmmDied")
    assert "Error rebooting VM" in result["message"]
    assert "No such file" in result["message"]


@pytest.mark.parametrize("version", [51, 53])
def test_a_vcpu_error_is_no_power_off_although_the_status_is_0(vm: Supervised, version: int) -> None:
    vm.fake(version=version)
    vm.boot()
    vm.guest("vcpu-error")

    result = vm.end(21, "VmmDied")
    assert "VCPU generated error" in result["message"]
    assert result["vmm"]["exitCode"] == 0


@pytest.mark.parametrize(
    ("route", "version", "reason"),
    [
        ("vm.shutdown", 53, "GuestPoweredOff"),  # the VMM tells it exactly as it tells the guest's own power-off
        ("vm.delete", 53, "StoppedByApi"),
        ("vmm.shutdown", 53, "StoppedByApi"),
        ("vmm.shutdown", 51, "GuestPoweredOff"),  # likewise, up to v51
    ],
)
def test_another_client_of_the_api_ends_the_vm(vm: Supervised, route: str, version: int, reason: str) -> None:
    vm.fake(version=version)
    vm.boot()
    assert vm.api(route).status in {200, 204}

    vm.end(0, reason)


def test_create_is_refused(vm: Supervised) -> None:
    vm.wrap(f"mkdir {vm.pod.run_dir}/vmm/serial.sock")
    vm.start()

    result = vm.end(15, "VmmFailed")
    assert "vm.create" in result["message"]
    assert "Address already in use" in result["message"]
    assert "vm booting" not in vm.names()


def test_boot_is_refused_and_never_asked_again(vm: Supervised) -> None:
    vm.kernel.write_text("not a kernel")
    vm.start()

    result = vm.end(15, "VmmFailed")
    assert "Invalid bzImage" in result["message"]
    assert vm.names().count("vm booting") == 1  # the VMM notes every attempt


def test_the_vmm_ends_at_once(vm: Supervised) -> None:
    vm.script(
        'echo "Error: Cloud Hypervisor exited with the following error:" >&2; '
        'echo "  Failed to open hypervisor interface" >&2; exit 1'
    )
    vm.start()

    result = vm.end(15, "VmmFailed")
    assert result["message"].startswith("Failed to open hypervisor interface")
    assert result["vmm"]["exitCode"] == 1


def test_the_vmm_is_killed_while_it_boots(vm: Supervised) -> None:
    """Its end explains the broken connection, and not the other way round."""
    vm.fake("--at-start", "slow-boot 60")
    vm.start()
    vm.until_event("vm booting")
    started = next(event for event in vm.events() if event["event"] == "vmm-started")
    vm.pod.exec_raw("kill", "-SYS", str(started["pid"]))

    assert "seccomp" in vm.end(128 + signal.SIGSYS, "VmmKilled")["message"]


def test_a_guest_that_panics_and_stays_down(vm: Supervised) -> None:
    vm.boot("--panic-grace", "0.2")
    vm.guest("console Kernel panic - not syncing: Attempted to kill init!")
    vm.guest("panic")

    result = vm.end(20, "GuestPanicked")
    assert result["console"][-1].startswith("Kernel panic")
    assert "guest-panic" in vm.names()


def test_a_guest_that_panics_and_reboots_lives_on(vm: Supervised) -> None:
    vm.boot("--panic-grace", "0.5")
    vm.guest("panic")
    vm.guest("reboot")
    vm.until_event("vm rebooted")
    vm.guest("panic crash_loaded")  # kdump is at work: that takes its time

    with pytest.raises(AssertionError, match="did not end"):
        vm.pod.wait(0.8)
    assert vm.status()["phase"] == "running"
    vm.guest("poweroff")
    vm.end(0, "GuestPoweredOff")


def test_a_helper_that_keeps_dying_shuts_the_guest_down() -> None:
    with pod_netns(FLANNEL) as net, supervised(net) as vm:
        spec = golden_spec()
        spec["spec"]["instance"]["disks"] = []
        spec["spec"]["volumes"] = []
        vm.pod.write_spec(spec)
        vm.boot()
        for death in range(1, 6):
            vm.until_event("helper-started", death)
            vm.pod.exec_raw("kill", "-KILL", str(vm.status()["helpers"][0]["pid"]))
            vm.until(
                "its end", lambda death=death: vm.names().count("helper-died") == death or "power-button" in vm.names()
            )

        result = vm.end(16, "HelperFailed")
        assert "dnsmasq" in result["message"]
        assert "power-button" in vm.names()  # the guest could shut down properly


def test_the_message_stays_small_and_is_json_whatever_the_vmm_and_the_guest_say(vm: Supervised) -> None:
    vm.boot()
    for _ in range(30):
        vm.guest("console \x1b[31m" + "é€😀" * 60 + "\x01")
    vm.kernel.unlink()
    vm.guest("reboot")

    result = vm.end(21, "VmmDied")
    assert json.loads(vm.pod.termination_message) == result
    assert (vm.pod.run_dir / "result.json").stat().st_mode & 0o777 == 0o600
    assert all("\x1b" not in line and "\x01" not in line for line in result["console"])
