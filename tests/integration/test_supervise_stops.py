"""SIGTERM in every phase, and the power verbs: the end comes within the grace period, and tells how it came."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.supervised import Supervised

pytestmark = pytest.mark.root


def took(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_shuts_the_guest_down(vm: Supervised, number: signal.Signals) -> None:
    vm.boot()
    vm.kill(number)

    assert vm.end(143, "Terminated")["message"] == f"{number.name}: the guest shut down"
    assert vm.names().count("power-button") == 1


def test_a_vmm_that_never_answers_does_not_outlive_sigterm(vm: Supervised) -> None:
    vm.script(f'trap "" TERM; : >{vm.side}/up; while :; do sleep 1; done')
    vm.start("--grace", "5")
    vm.until("the VMM", (vm.side / "up").exists)
    vm.kill()

    assert took(lambda: vm.end(143, "Terminated")) < 5
    assert vm.pod.result["vmm"]["signal"] == "SIGKILL"


def test_sigterm_while_the_vmm_is_busy_with_the_boot(vm: Supervised) -> None:
    """Its API and its signal handler wait for vm.boot; only SIGKILL has a deadline."""
    vm.fake("--at-start", "slow-boot 60")
    vm.start("--grace", "5")
    vm.until_event("vm booting")
    vm.kill()

    assert took(lambda: vm.end(143, "Terminated")) < 5
    assert "booting" in vm.pod.result["message"]
    assert vm.names().count("vm booting") == 1


def test_a_deaf_guest_is_cut_within_the_grace_period(vm: Supervised) -> None:
    vm.fake("--at-start", "ignore-power-button")
    vm.boot("--grace", "4")
    vm.kill()

    assert took(lambda: vm.end(143, "TerminatedForced")) < 4
    assert "acpid" in vm.pod.result["message"]
    assert vm.names().index("power-button") < vm.names().index("cut")


def test_a_vmm_that_is_stopped_altogether_is_killed_within_the_grace_period(vm: Supervised) -> None:
    vm.boot("--grace", "2")
    vm.pod.exec_raw("kill", "-STOP", str(vm.status()["vmm"]["pid"]))
    vm.kill()

    assert took(lambda: vm.end(143, "TerminatedForced")) < 2.5
    assert vm.pod.result["vmm"]["signal"] == "SIGKILL"


def test_a_paused_guest_is_resumed_and_shuts_down(vm: Supervised) -> None:
    vm.boot()
    assert vm.api("vm.pause").status == 204
    vm.until_event("vm paused")
    vm.until("the state", lambda: vm.status()["vmState"] == "Paused")
    vm.kill()

    vm.end(143, "Terminated")
    assert "vm resumed" in vm.names()


def test_a_second_ctrl_c_cuts_at_once(vm: Supervised) -> None:
    vm.fake("--at-start", "ignore-power-button")
    vm.boot("--grace", "60")
    vm.kill(signal.SIGINT)
    vm.until_event("power-button")
    vm.kill(signal.SIGINT)

    vm.end(143, "TerminatedForced", within=10)


def test_sigterm_while_preparing(vm: Supervised) -> None:
    (vm.pod.root / "slow").write_text("#!/bin/sh\nsleep 1000\n")  # its --version never comes
    (vm.pod.root / "slow").chmod(0o755)
    vm.options = ["--vmm", str(vm.pod.root / "slow")]
    vm.start()
    vm.until_event("prepared")
    vm.kill()

    assert "preparing" in vm.end(143, "Terminated", within=10)["message"]


def test_power_shutdown(vm: Supervised) -> None:
    vm.boot()
    done = vm.pod.exec("power", "shutdown")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    vm.end(0, "GuestPoweredOff")


def test_power_off_does_not_ask_the_guest(vm: Supervised) -> None:
    vm.fake("--at-start", "ignore-power-button")
    vm.boot()
    done = vm.pod.exec("power", "off")

    assert (done.returncode, done.stderr) == (0, "")
    vm.end(0, "GuestPoweredOff")
    assert "power-button" not in vm.names()


def test_power_shutdown_gives_up_says_so_and_the_vm_runs_on(vm: Supervised) -> None:
    vm.fake("--at-start", "ignore-power-button")
    vm.boot()
    done = vm.pod.exec("power", "shutdown", "--timeout", "1")

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "launcher: the guest did not react to the power button; it needs systemd-logind or acpid"
    ]
    assert vm.status()["phase"] == "running"

    done = vm.pod.exec("power", "shutdown", "--timeout", "1", "--force")
    assert (done.returncode, done.stderr) == (0, "")
    vm.end(0, "GuestPoweredOff")


def test_sigterm_takes_a_power_action_over_and_both_hear_of_the_end(vm: Supervised) -> None:
    vm.fake("--at-start", "ignore-power-button")
    vm.boot("--grace", "2")
    with vm.connected() as client:
        client.send(b'POST /power/shutdown HTTP/1.1\r\nContent-Length: 16\r\n\r\n{"timeout": 600}')
        vm.until_event("power-button")
        vm.kill()
        assert json.loads(client.read().body) == {"done": True}
    vm.end(143, "TerminatedForced")


def test_a_late_answer_reaches_nobody_else(vm: Supervised) -> None:
    """Who asked has gone, and its descriptor belongs to another client now."""
    vm.fake("--at-start", "ignore-power-button")
    vm.boot()
    with vm.connected() as first:
        first.send(b'POST /power/shutdown HTTP/1.1\r\nContent-Length: 14\r\n\r\n{"timeout": 1}')
        vm.until_event("power-button")
    assert vm.status()["phase"] == "stopping"
    with vm.connected() as second:
        second.send(b"GET /status")  # takes its time
        vm.until("the give-up", lambda: vm.status()["phase"] == "running")
        assert second.ask(b" HTTP/1.1\r\n\r\n").status == 200


def test_a_power_action_is_refused_while_another_is_under_way(vm: Supervised) -> None:
    vm.fake("--at-start", "ignore-power-button")
    vm.boot()
    with vm.connected() as client:
        client.send(b"POST /power/shutdown HTTP/1.1\r\n\r\n")
        vm.until_event("power-button")
        refused = vm.control("POST", "/power/off")
        assert (refused.status, json.loads(refused.body)) == (409, {"error": "the VM is stopping, not running"})
