from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher import worker
from launcher.errors import HostUnfit, SpecInvalid
from launcher.supervise.handoff import Handoff, Progress, Settings, WorkerFailure, decode, encode_settings

if TYPE_CHECKING:
    from launcher.supervise.handoff import Message


def document(**instance: Any) -> dict[str, Any]:
    return {
        "apiVersion": "virt.virtink.smartx.com/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": "vm", "uid": "0b6c2c4e-6f6c-4f0e-9d3c-3b1f0c9a7d11"},
        "spec": {
            "instance": {
                "memory": {"size": "64Mi"},
                "kernel": {"image": "registry.example/kernel", "cmdline": "console=ttyS0"},
                "disks": [{"name": "root"}, {"name": "seed"}],
                **instance,
            },
            "volumes": [
                {"name": "root", "containerRootfs": {"image": "registry.example/root", "size": "64Mi"}},
                {"name": "seed", "cloudInit": {"userData": "#cloud-config\npassword: hunter2\n"}},
            ],
        },
    }


def settings(tmp_path: Path, spec: Any, **more: Any) -> Settings:
    text = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
    return Settings(
        base64.b64encode(text).decode(),
        run_dir=tmp_path / "run",
        images=tmp_path / "images",
        disks=tmp_path / "disks",
        emulate=True,
        **more,
    )


def start() -> tuple[subprocess.Popen[bytes], int]:
    report, theirs = os.pipe()
    argv = [sys.executable, "-I", "-m", "launcher.worker", "--report-fd", str(theirs)]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(theirs,))
    os.close(theirs)
    return child, report


def run(text: bytes) -> tuple[int, list[Message], str]:
    child, report = start()
    with child, os.fdopen(report, "rb") as lines:
        _, log = child.communicate(text, timeout=60)
        return child.returncode, [decode(line) for line in lines], log.decode()


def failure(messages: list[Message]) -> WorkerFailure:
    *progress, last = messages
    assert all(isinstance(message, Progress) for message in progress)
    assert isinstance(last, WorkerFailure)
    return last


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A kernel image with the smallest thing that looks like a kernel, and a root disk that is there already."""
    kernel = bytearray(8192)
    if os.uname().machine == "x86_64":
        kernel[0x1FE:0x200], kernel[0x202:0x206], kernel[0x211] = b"\x55\xaa", b"HdrS", 1
    else:
        kernel[0x38:0x3C] = b"ARM\x64"
    for name, content in (("images/kernel/vmlinux", kernel), ("disks/root/rootfs.raw", b"guest data")):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return tmp_path


def test_an_invalid_spec_is_a_failure_with_every_problem(tmp_path: Path) -> None:
    spec = document(memory={"size": "1Gib"}, disks=[{"name": "nothing"}])
    code, messages, log = run(encode_settings(settings(tmp_path, spec)))
    failed = failure(messages)
    assert (code, failed.reason) == (10, "SpecInvalid")
    assert {"$.spec.instance.memory.size", "$.spec.instance.disks[0].name"} <= {p.path for p in failed.problems}
    assert "Traceback" not in log
    assert not (tmp_path / "run").exists()


def test_a_spec_of_any_bytes_is_judged_not_choked_on(tmp_path: Path) -> None:
    code, messages, log = run(encode_settings(settings(tmp_path, b"\xff\xfe\x00")))
    assert (code, failure(messages).reason) == (10, "SpecInvalid")
    assert "Traceback" not in log


def test_what_is_not_supported_is_refused_before_anything_is_done(prepared: Path) -> None:
    code, messages, _ = run(encode_settings(settings(prepared, document(), receive_migration=True)))
    assert (code, failure(messages).reason) == (10, "SpecInvalid")
    assert failure(messages).message.startswith("not supported yet: $RECEIVE_MIGRATION")
    assert not (prepared / "run").exists()


def test_settings_that_cannot_be_read_are_a_bug_of_ours() -> None:
    code, messages, _ = run(b"{}")
    assert (code, failure(messages).reason) == (70, "Internal")


def test_a_signal_ends_it_at_once() -> None:
    child, report = start()
    with child, os.fdopen(report, "rb") as lines:
        child.send_signal(signal.SIGTERM)  # it waits for its settings
        assert child.wait(30) == -signal.SIGTERM
        assert lines.read() == b""


# A supervisor that starts a worker and does no more; the worker's settings, on the inherited stdin, never come.
SUPERVISOR = """
import os, subprocess, sys
report, theirs = os.pipe()
argv = [sys.executable, "-I", "-m", "launcher.worker", "--report-fd", str(theirs)]
child = subprocess.Popen(argv, pass_fds=(theirs,))
os.close(theirs)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("when", ["before it is tied", "afterwards"])
def test_it_ends_with_a_killed_supervisor(when: str) -> None:
    argv = [sys.executable, "-c", SUPERVISOR]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout
        pid = int(supervisor.stdout.readline())
        child = os.pidfd_open(pid)
        try:
            # It waits for its settings in read(0, ...): number and arguments of a blocked call are shown there.
            while when == "afterwards" and Path(f"/proc/{pid}/syscall").read_text().split()[1:2] != ["0x0"]:
                assert not select.select([child], [], [], 0.05)[0]
            supervisor.kill()
            supervisor.wait()
            assert select.select([child], [], [], 30)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)


def test_an_unexpected_exception_is_told_by_type_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Settings) -> None:
        raise ZeroDivisionError("hunter2")

    report, theirs = os.pipe()
    monkeypatch.setattr(worker, "load_spec", broken)
    monkeypatch.setattr("launcher.logs.set_up", lambda: None)
    monkeypatch.setattr(worker, "_end_with_the_reader", lambda _: None)  # this process has another parent
    monkeypatch.setattr(sys, "argv", ["worker", "--report-fd", str(theirs)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encode_settings(settings(tmp_path, b"")))))
    assert worker.main() == 70
    with os.fdopen(report, "rb") as lines:
        failed = failure([decode(line) for line in lines])
    assert failed.reason == "Internal"
    assert "ZeroDivisionError in " in failed.message
    assert "test_worker.py:" in failed.message
    assert "hunter2" not in failed.message
    assert caplog.records[-1].exc_info


def test_unknown_fields_warn_when_another_controller_wrote_the_spec(tmp_path: Path) -> None:
    spec = document(turbo=True)
    with pytest.raises(SpecInvalid, match=r"\$\.spec\.instance\.turbo"):
        worker.load_spec(settings(tmp_path, spec))
    (warning,) = worker.load_spec(settings(tmp_path, spec, from_vm_data=True)).warnings
    assert warning.path == "$.spec.instance.turbo"


def test_the_machine_is_observed_without_a_spec(prepared: Path) -> None:
    facts = worker.observe_machine(None, settings(prepared, b"", vmm_uid=1, receive_migration=True))
    assert facts.vmm.emulated
    assert facts.vmm.problem is None
    assert len(facts.vmm.version) == 3
    assert (facts.vmm_uid, facts.receive_migration) == (1, True)
    assert [disk.volume for disk in facts.disks] == ["root"]


def test_a_vmm_of_another_kind_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "vmm"
    binary.write_text("#!/bin/sh\necho some other vmm 1.0\n")
    binary.chmod(0o755)
    chosen = Settings(  # as root, who may pass through pytest's folders
        settings(tmp_path, b"").document, vmm=binary, disks=tmp_path, images=tmp_path, vmm_uid=0, vmm_gid=0
    )
    assert "cloud-hypervisor" in (worker.observe_machine(None, chosen).vmm.problem or "")
    binary.write_text("#!/bin/sh\necho cloud-hypervisor v53.0\n")
    assert worker.observe_machine(None, chosen).vmm.version == (53, 0, 0)


@pytest.mark.root
def test_a_preparation_is_told_step_by_step_and_handed_off(prepared: Path) -> None:
    code, messages, log = run(encode_settings(settings(prepared, document())))
    *progress, handoff = messages
    assert isinstance(handoff, Handoff), (messages[-1], log)
    assert code == 0
    begun = [message.step for message in progress if isinstance(message, Progress) and message.milliseconds is None]
    ended = [message.step for message in progress if isinstance(message, Progress) and message.milliseconds is not None]
    assert begun == ended == [step.name for step in handoff.steps]
    assert begun[:3] == ["read the spec", "observe the machine", "plan"]
    assert (handoff.name, handoff.namespace) == ("vm", "default")
    assert handoff.vm_config["payload"]["kernel"] == str(prepared / "run/boot/vmlinux")
    assert [disk["id"] for disk in handoff.vm_config["disks"]] == ["root", "seed"]
    assert [warning for warning in handoff.warnings if "emulated" in warning]
    assert "hunter2" not in log + repr(messages)


@pytest.mark.root
def test_a_preparation_leaves_everything_with_its_owner_and_mode(prepared: Path) -> None:
    worker.prepare(settings(prepared, document()))
    have = {
        name: ((found := (prepared / name).stat()).st_uid, stat.S_IMODE(found.st_mode))
        for name in ("run", "run/boot", "run/boot/vmlinux", "run/vmm", "disks/root/rootfs.raw")
    }
    assert have == {
        "run": (0, 0o711),
        "run/boot": (0, 0o755),
        "run/boot/vmlinux": (0, 0o644),
        "run/vmm": (107, 0o700),
        "disks/root/rootfs.raw": (107, 0o644),
    }
    assert (prepared / "disks/root/rootfs.raw").read_bytes() == b"guest data"
    seed = (prepared / "disks/seed/cloud-init.iso").stat()
    assert seed.st_mode & 0o444
    assert seed.st_uid == 107 or seed.st_mode & 0o004


@pytest.mark.root
def test_a_second_preparation_uses_what_the_first_made(prepared: Path) -> None:
    first = worker.prepare(settings(prepared, document()))
    seed = prepared / "disks/seed/cloud-init.iso"
    before = seed.stat()
    second = worker.prepare(settings(prepared, document()))
    assert second.vm_config == first.vm_config
    assert seed.stat().st_ino == before.st_ino


def test_an_unwritable_run_directory_is_told_with_its_place(prepared: Path) -> None:
    (prepared / "run").write_text("a file is in the way")
    with pytest.raises(HostUnfit, match=f"{prepared / 'run'}"):
        worker.prepare(settings(prepared, document()))
