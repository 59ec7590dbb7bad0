"""What a start may meet: a run directory in use, unusable or full of remains, early signals, a failure that is held."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contract.harness import eventually
from tests.lab.supervised import small_spec, supervised

if TYPE_CHECKING:
    from tests.lab.netns import PodNetns
    from tests.lab.supervised import Supervised

pytestmark = pytest.mark.root

SECRET = "correct-horse-battery-staple"


def test_a_second_launcher_is_refused_and_the_first_is_unharmed(vm: Supervised) -> None:
    vm.boot()
    before = vm.pod.events_text()
    second = vm.pod.exec("run", *vm.options)

    assert second.returncode == 11
    assert "another launcher is alive" in json.loads(second.stderr)["message"]
    assert not (vm.pod.run_dir / "result.json").exists()
    assert vm.pod.events_text() == before
    assert vm.status()["phase"] == "running"
    vm.guest("poweroff")
    vm.end(0, "GuestPoweredOff")


@pytest.mark.parametrize("mount", ["mount -t tmpfs -o ro none {run}", "rmdir {run}; touch {run}"])
def test_a_run_directory_that_cannot_be_used(quiet_net: PodNetns, mount: str) -> None:
    with supervised(quiet_net) as vm:
        vm.pod.mounts = [mount.format(run=vm.pod.run_dir)]
        vm.start()

        assert vm.wait() == 11
        assert "cannot be used" in vm.pod.log
        message = json.loads(vm.pod.termination_message)
        assert (message["reason"], message["exitCode"]) == ("HostUnfit", 11)
        assert "emptyDir" in message["message"]


def test_a_run_directory_is_made_and_the_vmm_may_pass_through(vm: Supervised) -> None:
    vm.pod.run_dir.rmdir()
    vm.boot()

    assert vm.pod.run_dir.stat().st_mode & 0o777 == 0o711
    vm.guest("poweroff")
    vm.end(0, "GuestPoweredOff")


def test_the_remains_of_a_launcher_that_was_killed(vm: Supervised) -> None:
    vm.boot()
    vm.until_console("guest up")
    vm.cut_down()
    left = {name for name in ("ch.sock", "launcher.sock", "vmm/serial.sock") if (vm.pod.run_dir / name).exists()}
    assert left == {"ch.sock", "launcher.sock", "vmm/serial.sock"}

    vm.start()
    vm.until_event("running", 2)
    vm.until_console("guest up", 2)
    vm.guest("poweroff")
    vm.end(0, "GuestPoweredOff")


def test_a_failed_start_leaves_no_socket_of_the_one_before(vm: Supervised) -> None:
    vm.boot()
    vm.cut_down()
    vm.pod.spec.write_text("{}")
    vm.start()

    vm.end(10, "SpecInvalid")


def test_a_failed_start_is_held_and_sigterm_ends_it_at_once(vm: Supervised) -> None:
    vm.kernel.write_text("not a kernel")
    vm.start("--hold-failure", "forever")
    vm.until_event("held")

    status = vm.status()
    assert status["phase"] == "failed"
    assert status["outcome"]["reason"] == "VmmFailed"
    assert status["vmm"]["alive"] is False
    assert json.loads(vm.pod.termination_message)["reason"] == "VmmFailed"
    shown = vm.pod.exec("status")
    assert shown.returncode == 0
    assert "VmmFailed" in shown.stdout
    refused = vm.control("POST", "/power/off")
    assert (refused.status, json.loads(refused.body)["error"]) == (409, "the VM is failed, not running")
    vm.kill()
    vm.end(15, "VmmFailed", within=5)


def test_a_hold_ends_by_itself(vm: Supervised) -> None:
    vm.pod.spec.unlink()  # even when there was nothing to prepare
    vm.start("--hold-failure", "0.5")
    vm.until_event("held")
    began = time.monotonic()

    assert "cannot read the VM spec" in vm.end(10, "SpecInvalid")["message"]
    assert time.monotonic() - began < 5


def test_without_a_hold_it_ends_at_once(vm: Supervised) -> None:
    vm.pod.spec.write_text("nonsense")
    vm.start("--hold-failure", "0")

    assert "not JSON" in vm.end(10, "SpecInvalid")["message"]
    assert "held" not in vm.names()


def test_vm_data_that_cannot_be_read_is_held_by_default(vm: Supervised) -> None:
    """Virtink's controller starts a pod again without a pause."""
    vm.start_with({"LAUNCHER_SPEC": "", "VM_DATA": "%%%"})
    vm.until_event("held")
    vm.kill()

    assert "not base64" in vm.end(10, "SpecInvalid")["message"]


def test_a_signal_is_never_lost_from_the_first_moment_on(vm: Supervised) -> None:
    """The kernel drops what PID 1 does not handle: signals are blocked before the exec and read after it."""
    for attempt in range(20):
        vm.start()
        eventually(lambda: _heeds(vm, signal.SIGTERM), "it heeds signals")
        time.sleep(attempt * 0.015)  # not a wait: another instant of the start each time
        vm.kill()
        assert vm.wait(15) == 143, f"attempt {attempt}"
        assert vm.pod.result["reason"] == "Terminated"


def _heeds(vm: Supervised, number: int) -> bool:
    """The launcher blocks or catches the signal."""
    try:
        if not Path(f"/proc/{vm.pid}/exe").readlink().name.startswith("python"):
            return False  # still on the way there
        fields = dict(line.split(":\t") for line in Path(f"/proc/{vm.pid}/status").read_text().splitlines())
    except OSError:
        return False
    return bool((int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)) >> (number - 1) & 1)


@pytest.mark.parametrize("as_pid_1", [True, False])
def test_orphans_are_reaped(vm: Supervised, *, as_pid_1: bool) -> None:
    vm.wrap(f"( sh -c 'sleep 0.1; : >{vm.side}/gone' & ) ; ( sleep 0.05 & )")
    (vm.start if as_pid_1 else vm.start_by_hand)()
    vm.until_event("running")
    eventually((vm.side / "gone").exists, "the orphan's end")

    eventually(lambda: len(_children(vm)) == 1, "only the VMM is left")
    vm.kill()
    vm.end(143, "Terminated")


def test_no_secret_is_in_a_command_line_an_environment_or_a_log(vm: Supervised) -> None:
    spec = small_spec()
    spec["spec"]["instance"]["disks"] = [{"name": "seed"}]
    spec["spec"]["volumes"] = [{"name": "seed", "cloudInit": {"userData": f"#cloud-config\npassword: {SECRET}\n"}}]
    document = json.dumps(spec).encode()
    data = base64.b64encode(document).decode()
    seen: dict[int, bytes] = {}
    vm.start_with({"LAUNCHER_SPEC": "", "VM_DATA": data})

    def running() -> bool:
        for pid in _children(vm):
            for name in ("cmdline", "environ"):
                try:
                    seen[pid] = seen.get(pid, b"") + Path(f"/proc/{pid}/{name}").read_bytes()
                except OSError:
                    continue
        return "running" in vm.names()

    vm.until("running", running)
    assert len(seen) >= 2, "neither the worker nor the VMM was seen"
    pid_1 = Path(f"/proc/{vm.pid}")
    told = [*seen.values(), (pid_1 / "cmdline").read_bytes(), (pid_1 / "environ").read_bytes()]
    vm.kill()
    vm.end(143, "Terminated")
    told += [vm.pod.log.encode(), *(path.read_bytes() for path in vm.pod.run_dir.iterdir() if path.is_file())]

    assert SECRET.encode() in (vm.pod.root / "disks/seed/cloud-init.iso").read_bytes()
    assert not [text for text in told if SECRET.encode() in text or data[64:96].encode() in text]


def _children(vm: Supervised) -> list[int]:
    """The launcher's children, by their pids on the host; none before it is there."""
    try:
        if not Path(f"/proc/{vm.pid}/exe").readlink().name.startswith("python"):
            return []
        return [int(child) for child in Path(f"/proc/{vm.pid}/task/{vm.pid}/children").read_text().split()]
    except OSError:
        return []


def test_it_runs_by_hand_as_well(vm: Supervised) -> None:
    """Not as PID 1, and a Ctrl-C at the terminal reaches only the launcher."""
    vm.start_by_hand()
    vm.until_event("running")
    os.killpg(vm.pid, signal.SIGINT)

    vm.end(143, "Terminated")


def test_a_bug_in_the_launcher_is_told_without_a_secret_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from launcher import logs\n"
        "from launcher.supervise import main, supervisor\n"
        "from launcher.supervise.handoff import Settings; from launcher.supervise.model import Limits\n"
        f"supervisor.WorkerProcess = lambda *_, **__: {{}}['{SECRET}']\n"
        "sys.exit(main.supervise(Settings('', run_dir=Path(sys.argv[1])), Limits()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)

    assert ended.returncode == 70
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["reason"], result["exitCode"]) == ("Internal", 70)
    assert "KeyError" in result["message"]
    assert SECRET not in result["message"]
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert next(line["message"] for line in lines if line["level"] == "error") == "the supervisor failed unexpectedly"
    assert not list(tmp_path.glob("*.sock"))
