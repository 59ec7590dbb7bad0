from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from launcher.codec import DoesNotFit
from launcher.errors import BY_REASON, LauncherError, SpecInvalid, SpecProblem
from launcher.plan.types import Confinement, HelperSpec, Nic, VmmLaunch
from launcher.supervise.handoff import (
    Handoff,
    Message,
    Progress,
    Settings,
    Step,
    WorkerFailure,
    decode,
    decode_settings,
    encode,
    encode_settings,
)

HANDOFF = Handoff(
    name="vm",
    namespace="default",
    uid="u",
    vmm=VmmLaunch("/usr/bin/cloud-hypervisor", (53, 0, 0), Confinement(107, 107, groups=(44,))),
    vm_config={"cpus": {"boot_vcpus": 1}, "disks": [{"readonly": False}], "note": "line\nbreak é"},
    digest="0" * 64,
    helpers=(HelperSpec("dnsmasq", ("/usr/sbin/dnsmasq", "-k"), Confinement(107, 107, (), ("net_raw",), 64)),),
    nics=(Nic("pod", "bridge", "52:54:00:00:00:01", "tap0", ("10.0.0.2/24",)),),
    warnings=("one",),
    steps=(Step("plan", 1.5), Step("apply", 2.0)),
)


@pytest.mark.parametrize(
    "message",
    [
        Progress("plan"),
        Progress("plan", 0.25),
        HANDOFF,
        WorkerFailure("HostUnfit", "there is no /dev/kvm", "pass --emulate"),
        WorkerFailure("SpecInvalid", "the spec has 1 problem", None, (SpecProblem("$.a", "b"),)),
    ],
)
def test_a_message_is_one_line_and_comes_back(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == message


@pytest.mark.parametrize("reason", BY_REASON)
def test_every_error_comes_back_as_it_was_raised(reason: str) -> None:
    error = BY_REASON[reason]("what happened", hint="what to do")
    again = WorkerFailure.of(error).error()
    assert type(again) is type(error)
    assert (again.message, again.hint, again.exit_code) == (error.message, error.hint, error.exit_code)


def test_the_problems_of_a_spec_come_back() -> None:
    problems = (SpecProblem("$.spec.a", "unknown field"), SpecProblem("$.spec.b", "required"))
    again = WorkerFailure.of(SpecInvalid("two", problems=problems)).error()
    assert isinstance(again, SpecInvalid)
    assert again.problems == problems


def test_a_reason_of_another_version_is_internal() -> None:
    assert type(WorkerFailure("Unheard", "x").error()) is LauncherError


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"other": {}}',
        b'{"progress": {}, "failure": {}}',
        b'{"progress": []}',
        b"\xff",
    ],
)
def test_a_line_that_is_no_message_does_not_fit(line: bytes) -> None:
    with pytest.raises(DoesNotFit):
        decode(line)


def test_settings_come_back_whatever_bytes_the_spec_has() -> None:
    document = bytes(range(256))
    settings = Settings(
        base64.b64encode(document).decode(),
        from_vm_data=True,
        run_dir=Path("/r"),
        vmm=Path("/v"),
        emulate=True,
        vmm_uid=0,
    )
    again = decode_settings(encode_settings(settings))
    assert again == settings
    assert again.spec_bytes == document
    assert again.paths.control_socket == Path("/r/launcher.sock")


def test_the_spec_does_not_show_in_settings() -> None:
    assert "c2VjcmV0" not in repr(Settings("c2VjcmV0"))


@pytest.mark.parametrize("text", [b"", b"[]", json.dumps({"document": 1}).encode(), b'{"document": "", "extra": 1}'])
def test_settings_of_another_shape_do_not_fit(text: bytes) -> None:
    with pytest.raises(DoesNotFit):
        decode_settings(text)
