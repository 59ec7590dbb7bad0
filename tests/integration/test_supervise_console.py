"""The guest's console on our stdout and in console.log: whoever reads it, or does not, the guest never waits."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

import pytest

from launcher.supervise.console import BACKLOG, LOG_LIMIT

if TYPE_CHECKING:
    from tests.lab.supervised import Supervised

pytestmark = pytest.mark.root

FLOOD = 100 << 20


def test_nobody_reads_our_stdout_and_the_guest_prints_100_mb(vm: Supervised) -> None:
    """The VMM's serial port is drained to the last byte, memory stays bounded, and what stdout lost is counted."""
    unread, stdout = os.pipe()
    try:
        vm.start_by_hand("--grace", "5", stdout=stdout)
        vm.until_event("running")
        before = vm.status()["memory"]["supervisorPssBytes"]
        guest = threading.Thread(target=vm.guest, args=("flood 100",))
        guest.start()
        answers = 0
        while guest.is_alive():
            assert vm.status()["phase"] == "running"  # answered in the middle of it
            answers += 1
        guest.join()
        vm.until("all of it", lambda: vm.status()["consoleBytes"] >= FLOOD)

        status = vm.status()
        assert answers > 1
        assert FLOOD - BACKLOG - (1 << 20) < status["consoleDroppedBytes"] < FLOOD
        assert status["memory"]["supervisorPssBytes"] - before < 3 * BACKLOG
        sizes = [(vm.pod.run_dir / name).stat().st_size for name in ("console.log", "console.log.1")]
        assert 0 < sizes[0] <= LOG_LIMIT
        assert LOG_LIMIT - (64 << 10) <= sizes[1] <= LOG_LIMIT
        vm.kill()
        assert vm.end(143, "Terminated")["console"][-1] == "." * 1022
    finally:
        os.close(unread)
        os.close(stdout)


def test_a_reader_gets_every_byte(vm: Supervised) -> None:
    ours, stdout = os.pipe()
    received = bytearray()

    def read() -> None:
        while data := os.read(ours, 1 << 20):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        vm.start_by_hand(stdout=stdout)
    finally:
        os.close(stdout)
    vm.until_event("running")
    for number in range(300):
        vm.guest(f"console {number} {'x' * 1000}")
    vm.guest("poweroff")
    vm.end(0, "GuestPoweredOff")
    reader.join()
    os.close(ours)

    assert received == (vm.pod.run_dir / "console.log").read_bytes()
    assert received.count(b"\r\n") == 301


@pytest.mark.parametrize("redirection", [">&-", ">/dev/null", "<&- >&- 2>&-", ">/dev/full", ">/dev/a-file"])
def test_whatever_stdout_is_the_vm_lives(vm: Supervised, redirection: str) -> None:
    vm.pod.mounts = [f"exec {redirection}"]
    vm.boot()
    vm.guest("console hello")
    vm.guest("poweroff")

    assert vm.wait() == 0
    assert vm.pod.result["console"] == ["guest up", "hello"]


@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_went_away_does_no_harm(vm: Supervised, *, both: bool) -> None:
    """Of stdout, or of stdout and stderr alike."""
    ours, theirs = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, theirs)
        vm.start_by_hand(stdout=theirs, stderr=theirs if both else None)
        vm.until_event("vmm-started")
        os.close(ours)
    vm.until_event("running")
    vm.guest("console hello")
    vm.guest("reboot")
    vm.until("the second boot", lambda: (vm.pod.run_dir / "console.log").read_bytes().count(b"guest up") == 2)
    vm.guest("poweroff")

    assert vm.wait() == 0
    assert vm.pod.result["console"] == ["guest up", "hello", "guest up"]


def test_nobody_reads_our_log_and_sigterm_is_still_heeded(vm: Supervised) -> None:
    """A container runtime that hangs must not make the VM unstoppable."""
    unread, stuck = os.pipe()
    try:
        os.set_blocking(stuck, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(stuck, b"x" * 4096)
        os.set_blocking(stuck, True)
        vm.start_by_hand("--grace", "5", stdout=stuck, stderr=stuck)
        vm.until_event("running")
        assert vm.status()["phase"] == "running"
        vm.kill()
        assert vm.wait(10) == 143
        assert vm.pod.result["reason"] == "Terminated"
    finally:
        os.close(unread)
        os.close(stuck)
