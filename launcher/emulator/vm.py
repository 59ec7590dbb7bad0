"""The VM: cloud-hypervisor's states, checks, events and error chains around one QEMU (vmm/src/lib.rs, vm.rs of v53.0).

One difference on purpose: after a boot that failed for a disk or a net the real one forgets these devices and boots
without them the next time; here every failed boot past validation leaves a VM that is "already created".
"""

from __future__ import annotations

import os
import selectors
from typing import TYPE_CHECKING, Any

from launcher.emulator import config as configs
from launcher.emulator.disks import open_disk
from launcher.emulator.qemu import Gone, Qemu, arguments
from launcher.emulator.refusal import EmulatorFailed, Refused, not_emulated, os_words
from launcher.emulator.serial import Serial
from launcher.emulator.taps import open_taps

if TYPE_CHECKING:
    from launcher.emulator.events import Events

Json = dict[str, Any]
ELF_MAGIC = b"\x7fELF"
NOT_RUNNING = "VM is not running"


class Vm:
    """At most one VM. Every public method either does its work or raises Refused with the chain below ``Error from API``."""

    def __init__(self, events: Events, loop: selectors.BaseSelector) -> None:
        self._events = events
        self._loop = loop
        self._config: Json | None = None
        self._state = "Created"
        self._owned = False  # vm.boot has made devices, whether it then failed or not
        self._serial: Serial | None = None
        self._qemu: Qemu | None = None
        self._tree: Json = {}
        self._disk_fds: list[int] = []
        self._tap_fds: list[list[int]] = []  # opened by name: closed whenever the guest stops

    # -- requests

    def create(self, config: Json) -> None:
        if self._config is not None:
            raise Refused("The VM could not be created", "VM is already created")
        self._config = config
        try:
            self._serial = Serial(config["serial"], self._loop)
        except Refused as refused:  # the config stays, as with the real one
            raise refused.within("The VM could not be created") from refused

    def add_net(self, net: Json, fds: tuple[int, ...]) -> None:
        """Add a NetConfig to a VM that is not booted. The descriptors stay the caller's; the VM keeps its own."""
        outer = "The network device could not be added to the VM"
        if self._config is None:
            raise Refused(outer, "VM is not created", status=404)
        if self._owned:
            raise not_emulated("adding a net to a booted VM")
        nets = self._config.setdefault("net", [])
        try:
            configs.validate({**self._config, "net": [*nets, {**net, **({"fds": list(fds)} if fds else {})}]})
        except Refused as refused:
            raise refused.within(outer) from refused
        if fds:
            net["fds"] = [os.dup(fd) for fd in fds]
        nets.append(net)

    def boot(self) -> None:
        outer = "The VM could not boot"
        if self._owned:
            raise Refused(outer, "VM is already created")
        self._events.emit("vm", "booting")
        if self._config is None:
            raise Refused(outer, "VM config is missing", status=404)
        try:
            if self._serial is None:
                self._serial = Serial(self._config["serial"], self._loop)
            configs.validate(self._config)
            self._owned = True
            self._start(self._config)
        except Refused as refused:
            raise refused if refused.status == 501 else refused.within(outer) from refused
        self._events.emit("vm", "booted")

    def info(self) -> Json:
        if self._config is None:
            raise Refused("The VM info is not available", "VM is not created", status=404)
        info: Json = {
            "config": self._config,
            "state": self._state,
            "memory_actual_size": self._config["memory"]["size"],
        }
        return info | ({"device_tree": self._tree} if self._owned else {})

    def shutdown(self) -> None:
        if not self._owned:
            raise Refused("The VM could not shutdown", NOT_RUNNING)
        self._stop()
        self._owned = False
        self._events.emit("vm", "shutdown")

    def delete(self) -> None:
        if self._config is None:
            return
        if self._owned:
            self.shutdown()
        elif self._serial is not None:
            self._serial.close(unlink=False)
            self._serial = None
        for net in self._config.get("net", ()):
            for fd in net.get("fds", ()):
                os.close(fd)
        self._config = None
        self._events.emit("vm", "deleted")

    def reboot(self) -> None:
        outer = "The VM could not reboot"
        self._events.emit("vm", "rebooting")
        if not self._owned or self._config is None:
            raise Refused(outer, "VM is not created", status=404)
        self._stop()
        try:
            self._serial = Serial(self._config["serial"], self._loop)
            self._start(self._config)
        except Refused as refused:
            self._owned = False
            raise refused.within(outer) from refused
        self._events.emit("vm", "rebooted")

    def pause(self) -> None:
        self._change("paused", "The VM could not be paused", "pause", "Running", "Paused")

    def resume(self) -> None:
        self._change("resumed", "The VM could not resume", "resume", "Paused", "Running")

    def _change(self, done: str, outer: str, verb: str, before: str, after: str) -> None:
        if not self._owned:
            raise Refused(outer, NOT_RUNNING)
        self._events.emit("vm", "pausing" if verb == "pause" else "resuming")
        if self._state != before or self._qemu is None:
            raise Refused(
                *(outer, f"Cannot {verb} VM", f"Failed to {verb} migratable component"),
                f"Invalid transition: InvalidStateTransition({self._state}, {after})",
            )
        self._command("stop" if verb == "pause" else "cont")
        self._state = after
        self._events.emit("vm", done)

    def power_button(self) -> None:
        if not self._owned:
            raise Refused("Error triggering power button", NOT_RUNNING)
        if self._qemu is not None:
            self._command("system_powerdown")

    # -- the guest

    def take_guest_events(self) -> bool:
        """Act on what QEMU has reported; True when the guest has powered itself off (the VM is shut down then).

        Raises EmulatorFailed when QEMU died, or when a guest's reboot fails.
        """
        if self._qemu is None:
            return False
        try:
            reports = self._qemu.events()
        except Gone:
            raise self._died() from None
        for report in reports:
            match report["event"], report.get("data", {}).get("reason"):
                case "SHUTDOWN", "guest-reset":
                    try:
                        self.reboot()
                    except Refused as refused:
                        raise EmulatorFailed(f"Error rebooting VM: {refused}") from refused
                    return False
                case "SHUTDOWN", _:
                    self.shutdown()
                    return True
                case "GUEST_PANICKED", _:
                    self._events.emit("guest", "panic", {"event": "panic"})
                case "GUEST_CRASHLOADED", _:
                    self._events.emit("guest", "panic", {"event": "crash_loaded"})
                case _:
                    pass
        return False

    def _command(self, command: str) -> None:
        assert self._qemu is not None  # noqa: S101  # the callers have looked
        try:
            self._qemu.execute(command)
        except Gone:
            if not self._qemu.said_goodbye:  # else the guest was quicker; its events are still to be taken
                raise self._died() from None

    def _died(self) -> EmulatorFailed:
        qemu, self._qemu = self._qemu, None
        words = ""
        if qemu is not None:
            self._loop.unregister(qemu.qmp)
            words = qemu.reap()
        return EmulatorFailed(f"QEMU died: {words or 'it says nothing'}")

    def _start(self, config: Json) -> None:
        """Run a guest as ``config`` says. Whatever fails, nothing stays open."""
        configs.fill_ids(config)
        try:
            _check_payload(config["payload"])
            for disk in config.get("disks", ()):
                self._disk_fds.append(open_disk(disk))
            nets: list[list[int]] = []
            for net in config.get("net", ()):
                if "fds" not in net:
                    try:
                        self._tap_fds.append(open_taps(net))
                    except Refused as refused:
                        raise refused.within("Error from device manager") from refused
                nets.append(net["fds"] if "fds" in net else self._tap_fds[-1])
            serial = self._serial is not None and self._serial.wanted
            argv, self._tree = arguments(config, nets, serial)
            self._qemu = Qemu(argv, [fd for fds in nets for fd in fds], serial=serial)
            self._loop.register(self._qemu.qmp, selectors.EVENT_READ, lambda: None)  # looked at after every wake-up
            if self._serial is not None:
                self._serial.attach(self._qemu.serial)
            self._command("cont")
        except BaseException:
            self._release()
            raise
        self._state = "Running"

    def _stop(self) -> None:
        """End the guest at once, if there is one, and let go of everything but the config and passed descriptors."""
        self._release()
        if self._serial is not None:
            self._serial.close(unlink=True)
            self._serial = None
        self._state, self._tree = "Created", {}

    def _release(self) -> None:
        if self._qemu is not None:
            self._loop.unregister(self._qemu.qmp)
            self._qemu.stop()
            self._qemu = None
        for fd in (*self._disk_fds, *(fd for fds in self._tap_fds for fd in fds)):
            os.close(fd)
        self._disk_fds, self._tap_fds = [], []


def _check_payload(payload: Json) -> None:
    for name, failure in (
        ("firmware", "Error manipulating firmware file"),
        ("kernel", "Cannot open kernel file"),
        ("initramfs", "Cannot open initramfs file"),
    ):
        if name not in payload:
            continue
        try:
            with open(payload[name], "rb") as file:  # noqa: PTH123  # a path from outside, used once
                head = file.read(0x206)
        except OSError as error:
            raise Refused(failure, os_words(error)) from error
        if name == "kernel" and not head.startswith(ELF_MAGIC) and head[0x202:] != b"HdrS":
            invalid = "Kernel Loader: Invalid bzImage"
            raise Refused(
                *("Cannot load the kernel into memory",),
                *(f"Kernel Loader: failed to load bzImage kernel image: {invalid}", invalid),
            )
