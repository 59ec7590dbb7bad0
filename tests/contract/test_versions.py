"""What differs between the versions that the launcher runs with; on the fake, whose knob turns from v46 to v54."""

from __future__ import annotations

import json
import select
import subprocess
from typing import TYPE_CHECKING

import pytest

from launcher.vmm import api
from launcher.vmm.argv import check_version, parse_version
from launcher.vmm.nonblocking import PendingCall
from tests.contract.harness import PATIENCE, RawClient, eventually, fake_binary, fake_command, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

from tests.contract.harness import Vmm

VERSIONS = [46, 47, 52, 53, 54]


def refusal(vmm: Vmm, call: api.Call) -> api.VmmRefused:
    with pytest.raises(api.VmmRefused) as caught:
        api.accept(call, vmm.call(call))
    return caught.value


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_vm_is_known_as_such(fake: Callable[..., Vmm], version: int) -> None:
    vmm = fake(version)
    for call in (api.info(), api.boot()):
        error = refusal(vmm, call)
        assert error.not_created
        assert error.status == (404 if version >= 53 else 500)
        assert len(error.chain) == (1 if version == 46 else 3)
        assert str(error).endswith(("VM is not created", "VM config is missing"))


@pytest.mark.parametrize("version", VERSIONS)
def test_ping_and_the_command_line_tell_the_version(fake: Callable[..., Vmm], version: int) -> None:
    vmm = fake(version)
    assert api.decode_ping(api.ping(), vmm.call(api.ping())).version == f"{version}.0.0"
    text = subprocess.run(
        fake_command("--version-knob", str(version), "--version"), capture_output=True, text=True, check=True
    ).stdout
    assert parse_version(text) == (version, 0, 0)
    check_version("cloud-hypervisor", parse_version(text))


@pytest.mark.parametrize(("version", "status"), [(52, 500), (53, 500), (54, 400)])
def test_an_invalid_config(fake: Callable[..., Vmm], version: int, status: int) -> None:
    vmm = fake(version)
    vmm.ok(api.create(vmm.config(payload={})))
    assert refusal(vmm, api.boot()).status == status


@pytest.mark.parametrize(("version", "status"), [(53, 500), (54, 409)])
def test_a_duplicate_id(fake: Callable[..., Vmm], version: int, status: int) -> None:
    vmm = fake(version)
    vmm.ok(api.create(vmm.config(disks=[{"path": "a", "id": "a"}, {"path": "b", "id": "a"}])))
    assert refusal(vmm, api.boot()).status == status


@pytest.mark.parametrize(("version", "status"), [(53, 500), (54, 404)])
def test_an_unknown_device(fake: Callable[..., Vmm], version: int, status: int) -> None:
    vmm = fake(version)
    vmm.boot(vmm.config())
    assert refusal(vmm, put("vm.remove-device", {"id": "nope"})).status == status


@pytest.mark.parametrize("version", [52, 53])
def test_unset_options_are_null_up_to_v52(fake: Callable[..., Vmm], version: int) -> None:
    vmm = fake(version)
    vmm.ok(api.create(vmm.config()))
    assert ("disks" in vmm.info().config) is (version == 52)
    vmm.ok(api.boot())
    assert vmm.info().state == "Running"


@pytest.mark.parametrize("version", [46, 52])
def test_boot_resumes_a_paused_vm_up_to_v52(fake: Callable[..., Vmm], version: int) -> None:
    vmm = fake(version)
    vmm.boot(vmm.config())
    vmm.ok(api.pause())
    vmm.ok(api.boot())
    assert vmm.info().state == "Running"
    assert "state transition" in str(refusal(vmm, api.boot()))


@pytest.mark.parametrize("version", [46, 52])
def test_an_api_socket_in_the_way_up_to_v52(version: int, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "ch.sock").touch()
    argv = fake_command("--version-knob", str(version), "--api-socket", "ch.sock")
    done = subprocess.run(argv, cwd=tmp_path / "0", capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert (tmp_path / "0" / "ch.sock").exists() is (version < 52)


def test_no_shutdown_is_unknown_before_v52(tmp_path: Path) -> None:
    argv = fake_command("--version-knob", "47", "--api-socket", "ch.sock", "--no-shutdown")
    assert subprocess.run(argv, cwd=tmp_path, capture_output=True, check=False, timeout=PATIENCE).returncode == 2


def test_a_larger_body_from_v54_on(fake: Callable[..., Vmm]) -> None:
    vmm = fake(54)
    with RawClient(vmm.socket) as client:
        body = b" " * 60000 + b"{}"
        assert (
            client.ask(b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body).status == 204
        )


def test_a_serial_port_replays_from_v53_on(fake: Callable[..., Vmm]) -> None:
    vmm = fake(52)
    vmm.boot(vmm.listening())
    with vmm.serial() as serial:
        serial.sendall(b"x")
        assert serial.recv(100) == b"x"


# --- what tests of the supervisor lean on ---


def test_the_power_button_can_be_ignored(fake: Callable[..., Vmm]) -> None:
    vmm = fake(53, "--no-shutdown")
    vmm.boot(vmm.config())
    vmm.guest("ignore-power-button")
    vmm.ok(api.power_button())
    assert vmm.info().state == "Running"
    vmm.guest("poweroff")
    assert vmm.events()[-1] == "vm shutdown"


def test_a_panic_is_an_event(fake: Callable[..., Vmm]) -> None:
    vmm = fake(53)
    vmm.boot(vmm.config(pvpanic=True))
    vmm.guest("panic crash_loaded")
    last = json.loads(vmm.event_file.read_text(encoding="utf-8").strip().split("\n\n")[-1])
    assert (last["source"], last["event"], last["properties"]) == ("guest", "panic", {"event": "crash_loaded"})
    assert vmm.info().state == "Running"


def test_a_slow_boot_holds_up_signals_and_calls(fake: Callable[..., Vmm]) -> None:
    vmm = fake(53)
    vmm.call(api.ping())  # so that it is up
    vmm.guest("slow-boot 0.5")
    vmm.ok(api.create(vmm.config()))
    with PendingCall(vmm.socket, api.boot(), now=0) as boot:
        assert boot.advance(0) is None
        eventually(lambda: vmm.events()[-1] == "vm booting", "the boot begins")
        vmm.process.terminate()
        select.select([boot], [], [], PATIENCE)
        response = boot.advance(0)
    assert response is not None
    assert response.status == 204
    assert vmm.wait() == 0
    assert vmm.events() == [
        f"vm{event}" for event in ("m starting", " booting", " booted", " shutdown", " deleted", "m shutdown")
    ]


def test_a_crash_is_a_signal(fake: Callable[..., Vmm]) -> None:
    vmm = fake(53, "--no-shutdown")
    vmm.boot(vmm.config())
    vmm.guest("crash")
    assert vmm.wait() == -6


def test_the_console_prints(fake: Callable[..., Vmm]) -> None:
    vmm = fake(53)
    vmm.boot(vmm.listening())
    vmm.guest("console login:")
    with vmm.serial() as serial:
        assert serial.recv(100) == b"guest up\r\nlogin:\r\n"


def test_the_fake_is_an_executable_too(tmp_path: Path) -> None:
    binary = fake_binary(tmp_path / "cloud-hypervisor", "--version-knob", "52")
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, cwd="/").stdout
    assert parse_version(text) == (52, 0, 0)


def test_the_guests_drivers_tell_when_they_are_up(fake: Callable[..., Vmm]) -> None:
    vmm = fake(53)
    vmm.boot(vmm.config())
    eventually(lambda: '"activated"' in vmm.event_file.read_text(encoding="utf-8"), "an activated event")
