"""Assertions 4-9, 18-23, 27-37: create, boot, pause, reboot, shut down, and who ends what."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from launcher.errors import VmmFailed
from launcher.vmm import api
from tests.contract.harness import eventually, put

if TYPE_CHECKING:
    from tests.contract.conftest import Start
    from tests.contract.harness import Vmm

BOOT = "The VM could not boot"
CREATE = "The VM could not be created"
ENDED = ("vm shutdown", "vm deleted", "vmm shutdown")


def forgive(vmm: Vmm) -> None:
    """The test means its unknown fields."""
    (vmm.folder / "strict").unlink(missing_ok=True)


def assert_ended(vmm: Vmm, *events: str) -> None:
    """These are the events since the first of them, of which the real one may lose the last: another thread writes them."""
    told = vmm.events()
    told = told[told.index(events[0]) :]
    assert tuple(told) == (events[: len(told)] if vmm.real else events)


def test_04_info_before_create(vmm: Vmm) -> None:
    vmm.refused(api.info(), 404, "The VM info is not available", "VM is not created")
    with pytest.raises(api.VmmRefused) as caught:
        vmm.info()
    assert caught.value.not_created


def test_05_boot_before_create(vmm: Vmm) -> None:
    vmm.refused(api.boot(), 404, BOOT, "VM config is missing")
    vmm.tells("vmm starting", "vm booting")


def test_06_an_empty_config_has_defaults(vmm: Vmm) -> None:
    vmm.ok(api.create({}))
    info = vmm.info()
    assert (info.state, info.memory_actual_size, info.device_tree) == ("Created", 536870912, None)
    config = info.config
    assert (config["cpus"]["boot_vcpus"], config["memory"]["size"]) == (1, 536870912)
    assert (config["serial"], config["console"]["mode"]) == ({"mode": "Null"}, "Tty")
    assert json.loads(vmm.call(api.info()).body)["config"] == {
        "cpus": {
            "boot_vcpus": 1,
            "max_vcpus": 1,
            "kvm_hyperv": False,
            "max_phys_bits": 46,
            "features": {"amx": False},
            "nested": True,
            "core_scheduling": "Vm",
            "profile": "Host",
        },
        "memory": {
            "size": 536870912,
            "mergeable": False,
            "hotplug_method": "Acpi",
            "shared": False,
            "hugepages": False,
            "prefault": False,
            "reserve": False,
            "thp": True,
        },
        "rng": {"pci_segment": 0, "src": "/dev/urandom"},
        "serial": {"mode": "Null"},
        "console": {"mode": "Tty", "pci_segment": 0},
        "debug_console": {"mode": "Off", "iobase": 233},
        "pvpanic": False,
        "iommu": False,
        "watchdog": False,
        "landlock_enable": False,
    }


def test_07_create_twice(vmm: Vmm) -> None:
    vmm.ok(api.create({}))
    vmm.refused(api.create({}), 500, CREATE, "VM is already created")


def test_08_unknown_fields_are_taken(vmm: Vmm) -> None:
    vmm.ok(api.create({"bogus": 1, "payload": {"bogus": 2}}))
    assert "bogus" not in vmm.info().config
    if not vmm.real:
        lines = (vmm.folder / "strict").read_text(encoding="utf-8").splitlines()
        assert {line.partition(":")[0] for line in lines} == {"vm.create $.bogus", "vm.create $.payload.bogus"}
    forgive(vmm)


def test_09_unknown_fields_in_a_rate_limiter_are_not(vmm: Vmm) -> None:
    response = vmm.call(api.create({"disks": [{"path": "x", "rate_limiter_config": {"bogus": 1}}]}))
    chain = json.loads(response.body)
    assert (response.status, chain[0]) == (400, "Failed to deserialize JSON")
    assert chain[1].startswith("unknown field `bogus`, expected `bandwidth` or `ops`")
    forgive(vmm)


def test_18_a_failed_create_keeps_the_config(vmm: Vmm) -> None:
    config = vmm.config(console={"mode": "Socket"})
    links = ("Error creating console devices", "No socket option support for console device")
    vmm.refused(api.create(config), 500, CREATE, *links)
    vmm.refused(api.create(vmm.config()), 500, CREATE, "VM is already created")
    vmm.ok(api.delete())
    vmm.ok(api.create(vmm.config()))


def test_19_a_serial_socket_that_is_there_already(vmm: Vmm) -> None:
    (vmm.folder / "serial").touch()
    vmm.refused(
        api.create(vmm.listening()), 500, "Error creating console device", "Address already in use (os error 98)"
    )


@pytest.mark.parametrize("mode", ["File", "Socket"])
def test_20_a_serial_without_its_path_ends_the_vmm(vmm: Vmm, mode: str) -> None:
    call = api.create(vmm.config(serial={"mode": mode}))
    # The real one's answer races with its end: sometimes there is none.
    with contextlib.suppress(VmmFailed) if vmm.real else contextlib.nullcontext():
        vmm.refused(call, 500, "API response receive error", "receiving on a closed channel")
    assert vmm.wait() == 1


def test_21_nothing_to_boot(vmm: Vmm) -> None:
    vmm.ok(api.create(vmm.config(payload={})))
    why = ("Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel")
    vmm.refused(api.boot(), 500, BOOT, "Failed to validate config", *why)


def test_22_a_missing_kernel_leaves_a_vm_behind(vmm: Vmm) -> None:
    vmm.ok(api.create(vmm.config(payload={"kernel": "nope"})))
    vmm.refused(api.boot(), 500, BOOT, "Cannot open kernel file", "No such file or directory (os error 2)")
    vmm.refused(api.boot(), 500, BOOT, "VM is already created")
    info = vmm.info()
    assert info.state == "Created"
    assert info.device_tree is not None
    vmm.ok(api.shutdown())
    assert vmm.info().device_tree is None


def test_22_a_kernel_that_is_none(vmm: Vmm) -> None:
    (vmm.folder / "text").write_text("hello\n" * 1000)
    vmm.ok(api.create(vmm.config(payload={"kernel": "text"})))
    vmm.refused(api.boot(), 500, BOOT, "Cannot load the kernel into memory", *(
        "Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage",
        "Kernel Loader: Invalid bzImage",
    ))  # fmt: skip


def test_23_a_second_boot_runs_without_the_disks(vmm: Vmm) -> None:
    vmm.ok(api.create(vmm.config(disks=[{"path": "nope", "image_type": "Raw"}])))
    why = ("Cannot open disk path", "I/O error (path=nope op=open)", "No such file or directory (os error 2)")
    vmm.refused(api.boot(), 500, BOOT, "Error from device manager", *why)
    vmm.tells("vm booting")
    vmm.ok(api.boot())
    assert "disks" not in vmm.info().config


def test_27_a_boot_that_works(vmm: Vmm) -> None:
    vmm.boot(vmm.config())
    info = vmm.info()
    assert info.state == "Running"
    assert info.device_tree is not None
    assert info.device_tree["_virtio-pci-__rng"]["pci_bdf"] == "0000:00:01.0"
    vmm.tells("vmm starting", "vm booting", "vm booted")
    vmm.refused(api.boot(), 500, BOOT, "VM is already created")


def test_28_pause_and_resume(vmm: Vmm) -> None:
    vmm.boot(vmm.config())
    vmm.ok(api.pause())
    assert vmm.info().state == "Paused"
    vmm.refused(
        api.pause(), 500, "Cannot pause VM", "Failed to pause migratable component", invalid("Paused", "Paused")
    )
    vmm.ok(api.resume())
    assert vmm.info().state == "Running"
    vmm.refused(
        api.resume(), 500, "Cannot resume VM", "Failed to resume migratable component", invalid("Running", "Running")
    )
    steps = ["pausing", "paused", "pausing", "resuming", "resumed", "resuming"]  # a refused step is begun all the same
    vmm.tells(*(f"vm {step}" for step in steps))


def invalid(old: str, new: str) -> str:
    return f"Invalid transition: InvalidStateTransition({old}, {new})"


@pytest.mark.parametrize("created", [False, True])
def test_29_what_needs_a_running_vm(vmm: Vmm, *, created: bool) -> None:
    if created:
        vmm.ok(api.create(vmm.config()))
    calls = [api.pause(), api.resume(), api.shutdown(), api.power_button(), put("vm.nmi"), api.counters()]
    for call in [*calls, put("vm.snapshot", {"destination_url": "file:///tmp"})]:
        vmm.refused(call, 500, "VM is not running")


def test_30_reboot(vmm: Vmm) -> None:
    vmm.refused(api.reboot(), 404, "The VM could not reboot", "VM is not created")
    vmm.boot(vmm.config())
    vmm.ok(api.reboot())
    vmm.tells("vm rebooting", "vm rebooted")
    assert vmm.info().state == "Running"
    assert vmm.process.poll() is None


def test_31_shutdown_and_boot_again(vmm: Vmm) -> None:
    vmm.boot(vmm.config())
    vmm.ok(api.shutdown())
    info = vmm.info()
    assert (info.state, info.device_tree) == ("Created", None)
    vmm.ok(api.boot())
    assert vmm.info().state == "Running"


def test_32_delete(vmm: Vmm) -> None:
    vmm.ok(api.delete())
    vmm.tells("vmm starting")
    vmm.ok(api.create(vmm.config()))
    vmm.ok(api.delete())
    vmm.tells("vmm starting", "vm deleted")
    vmm.boot(vmm.config())
    vmm.ok(api.delete())
    vmm.tells("vm shutdown", "vm deleted")
    vmm.refused(api.info(), 404, "VM is not created")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("booted", [False, True])
def test_34_signals_end_it_orderly(start: Start, number: signal.Signals, *, booted: bool) -> None:
    vmm = start("--no-shutdown")
    if booted:
        vmm.boot(vmm.config())
    else:
        vmm.call(api.ping())  # so that it is up
    vmm.process.send_signal(number)
    assert vmm.wait() == 0
    assert_ended(vmm, *(("vm booted", *ENDED) if booted else ("vmm starting", "vmm shutdown")))


def test_35_a_power_off_ends_the_process(start: Start) -> None:
    vmm = start()
    vmm.boot(vmm.listening())
    vmm.guest("poweroff")
    assert vmm.wait() == 0
    assert_ended(vmm, "vm booted", *ENDED)


def test_35_a_power_off_leaves_the_process_when_told_so(start: Start) -> None:
    vmm = start("--no-shutdown")
    vmm.boot(vmm.listening())
    vmm.guest("poweroff")
    vmm.tells("vm shutdown")
    info = vmm.info()
    assert (info.state, info.device_tree) == ("Created", None)
    vmm.ok(api.boot())
    assert vmm.info().state == "Running"


@pytest.mark.parametrize("options", [(), ("--no-shutdown",)])
def test_36_a_fatal_vcpu_error_looks_like_a_power_off(start: Start, options: tuple[str, ...]) -> None:
    vmm = start(*options)
    vmm.boot(vmm.listening())
    vmm.guest("vcpu-error")
    assert vmm.wait() == 0
    assert_ended(vmm, "vm booted", *ENDED)
    assert "VCPU generated error" in vmm.words


def test_37_a_guest_reboot_happens_inside_the_process(start: Start) -> None:
    vmm = start()
    vmm.boot(vmm.listening())
    vmm.guest("reboot")
    vmm.tells("vm rebooting", "vm rebooted")
    assert vmm.info().state == "Running"


def test_37_a_reboot_that_fails_ends_the_process(start: Start) -> None:
    vmm = start("--no-shutdown")
    vmm.boot(vmm.listening())
    (vmm.folder / "listener.elf").unlink()
    vmm.guest("reboot")
    assert vmm.wait() == 1
    assert "Error rebooting VM" in vmm.words


def test_the_power_button_is_only_a_press(vmm: Vmm) -> None:
    config: dict[str, Any] = vmm.config()
    vmm.boot(config)
    if vmm.real:  # a guest of 4 KB has no ACPI
        vmm.ok(api.power_button())
        assert vmm.info().state == "Running"
    else:
        vmm.ok(api.power_button())
        eventually(lambda: vmm.process.poll() == 0, "the fake guest powers off")
