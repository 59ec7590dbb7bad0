"""The VMM's state: the stored config, the VM made of it, and what happens to them. Runs in one thread only."""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.contract.fake.devices import Disk, Refused, Taps, Tree, check_kernel, device_error, os_error
from tests.contract.fake.serial import SerialFile, SerialSocket

if TYPE_CHECKING:
    from tests.contract.fake.events import Events

FS_PATIENCE = 60.0  # seconds the real one waits for a vhost-user socket, the API blocked meanwhile
DEVICE_LISTS = ("disks", "net", "generic_vhost_user", "fs", "pmem", "devices", "user_devices", "vdpa")
NOT_IMITATED = ("generic_vhost_user", "pmem", "devices", "user_devices", "vdpa", "tpm", "rtc", "numa")
UNSET = (1 << 64) - 1


class Panic(Exception):
    """The VMM thread is gone; the process ends with status 1."""


class Vm:
    """A VM that is owned: booted, or left behind by a boot that failed late."""

    def __init__(self) -> None:
        self.state = "Created"
        self.tree = Tree()
        self.disks: dict[str, Disk] = {}
        self.taps: dict[str, Taps] = {}
        self.sockets: list[tuple[socket.socket, str]] = []
        self.resizing = False
        self.generated = 0  # ids made up so far, counted over all kinds of device

    def release(self) -> None:
        for disk in self.disks.values():
            disk.close()
        for taps in self.taps.values():
            taps.close()
        for listener, path in self.sockets:
            listener.close()
            Path(path).unlink(missing_ok=True)


class Machine:
    def __init__(self, version: int, events: Events, *, no_shutdown: bool) -> None:
        self.version = version
        self.events = events
        self.no_shutdown = no_shutdown
        self.config: dict[str, Any] | None = None
        self.vm: Vm | None = None
        self.serial: SerialSocket | SerialFile | None = None
        self.migrating = False
        self.exit_code: int | None = None
        self.ignore_power_button = False
        self.slow_boot = 0.0

    # --- what every call checks ---

    def created(self) -> dict[str, Any]:
        if self.config is None:
            raise Refused("VM is not created", kind="missing")
        return self.config

    def running(self) -> Vm:
        if self.migrating:
            raise Refused("VM is currently migrating and can't be modified")
        if self.vm is None:
            raise Refused("VM is not running")
        return self.vm

    def invalid(self, *chain: str, kind: str = "invalid") -> Refused:
        return Refused("Failed to validate config", *chain, kind=kind)

    def validate(self, config: dict[str, Any]) -> None:
        payload = config.get("payload") or {}
        if not payload.get("kernel") and not payload.get("firmware"):
            raise self.invalid(
                "Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel"
            )
        if payload.get("kernel") and payload.get("firmware"):
            raise self.invalid(
                "Payload configuration is not bootable",
                "Specifying a kernel is not supported when a firmware is provided",
            )
        cpus = config["cpus"]
        if cpus["max_vcpus"] < cpus["boot_vcpus"]:
            raise self.invalid(f"Max CPUs ({cpus['max_vcpus']}) lower than boot CPUs ({cpus['boot_vcpus']})")
        devices = [device for key in DEVICE_LISTS for device in config.get(key) or []]
        devices += [config[key] for key in ("vsock", "balloon") if config.get(key)]
        seen: set[str] = set()
        for name in (device["id"] for device in devices if device.get("id")):
            if name.startswith("__"):
                raise self.invalid(f"Identifier {name} is not {'valid' if self.version >= 54 else 'invalid'}")
            if name in seen:
                raise self.invalid(f"Identifier {name} is not unique", kind="duplicate")
            seen.add(name)
        for net in config.get("net") or []:
            fds = net.get("fds")
            if fds and 2 * len(fds) != net["num_queues"]:
                raise self.invalid(
                    f"Number of queues ({net['num_queues']}) to virtio_net does not match the number of FDs ({2 * len(fds)})"
                )

    # --- consoles ---

    def open_consoles(self) -> None:
        config = self.created()
        console, serial = config["console"], config["serial"]
        if console["mode"] == "Socket":
            raise Refused("Error creating console devices", "No socket option support for console device")
        mode = serial["mode"]
        if (mode == "Socket" and not serial.get("socket")) or (mode == "File" and not serial.get("file")):
            raise Panic
        try:
            if mode == "Socket":
                self.serial = SerialSocket(serial["socket"], self.guest_input, replay=self.version >= 53)
            else:
                self.serial = SerialFile(mode, serial.get("file"))
                if mode == "Pty":
                    serial["file"] = self.serial.path
        except OSError as error:
            raise Refused("Error creating console devices", "Error creating console device", os_error(error)) from error

    def close_consoles(self, *, unlink: bool) -> None:
        if self.serial is not None:
            self.serial.close(unlink=unlink)
            self.serial = None

    # --- life cycle ---

    def create(self, config: dict[str, Any]) -> None:
        if self.config is not None:
            raise Refused("VM is already created")
        self.config = config
        self.open_consoles()

    def boot(self) -> None:
        self.events.tell("vm", "booting")
        if self.config is None:
            raise Refused("VM config is missing", kind="missing")
        if self.vm is not None:
            if self.version >= 53 or self.vm.state == "Created":
                raise Refused("VM is already created")
            if self.vm.state == "Running":
                raise Refused("Invalid VM state transition: InvalidStateTransition(Running, Running)")
            self.vm.state = "Running"
        else:
            self.start()
        self.events.tell("vm", "booted")
        self.guest_boots()

    def start(self) -> None:
        if self.serial is None:
            self.open_consoles()
        self.validate(self.created())
        time.sleep(self.slow_boot)
        vm = Vm()
        try:
            self.build(vm)
        except Refused:
            vm.release()
            raise
        self.vm = vm  # from here on a failure leaves the VM owned, with its device tree
        try:
            for disk in vm.disks.values():
                disk.lock()
        except Refused as refused:
            raise Refused(
                "Error locking disk images: Another instance likely holds a lock", *refused.chain
            ) from refused
        payload = self.created()["payload"]
        if payload.get("kernel"):
            check_kernel(payload["kernel"])
        elif not Path(payload["firmware"]).exists():
            raise Refused("Error manipulating firmware file", "No such file or directory (os error 2)")
        if payload.get("initramfs") and not Path(payload["initramfs"]).exists():
            raise Refused("Cannot open initramfs file", "No such file or directory (os error 2)")
        vm.state = "Running"

    def build(self, vm: Vm) -> None:
        """Make the devices. A list is taken out of the config first, and lost when one of its devices fails."""
        config = self.created()
        for key in NOT_IMITATED:
            if config.get(key):
                raise device_error(f"the fake VMM does not imitate {key}")
        if config["console"]["mode"] != "Off":
            vm.tree.add("__console")
        for key, plug in (("disks", self.plug_disk), ("net", self.plug_net)):
            items = config.pop(key, None)
            for item in items or []:
                plug(vm, item)
            if items is not None:
                config[key] = items
        vm.tree.add("__rng")
        for item in config.get("fs") or []:
            self.plug_fs(vm, item)
        if vsock := config.get("vsock"):
            self.plug_vsock(vm, vsock)
        for key in ("balloon", "watchdog", "pvpanic"):
            if config.get(key):
                vm.tree.add(f"__{key}")

    def named(self, vm: Vm, config: dict[str, Any], kind: str) -> str:
        if not config.get("id"):
            config["id"] = f"_{kind}{vm.generated}"
            vm.generated += 1
        return str(config["id"])

    def plug_disk(self, vm: Vm, config: dict[str, Any]) -> str:
        disk = Disk(config)
        name = self.named(vm, config, "disk")
        vm.disks[name] = disk
        return vm.tree.add(name)

    def plug_net(self, vm: Vm, config: dict[str, Any]) -> str:
        taps = Taps(config, config.get("fds") or [])
        name = self.named(vm, config, "net")
        vm.taps[name] = taps
        return vm.tree.add(name)

    def plug_fs(self, vm: Vm, config: dict[str, Any]) -> str:
        deadline = time.monotonic() + FS_PATIENCE
        while True:
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(config["socket"])
                    return vm.tree.add(self.named(vm, config, "fs"))
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise device_error(
                            "Cannot create virtio-fs device", "Connection to socket failed", os_error(error)
                        ) from error
            time.sleep(0.1)

    def plug_vsock(self, vm: Vm, config: dict[str, Any]) -> str:
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(config["socket"])
        except OSError as error:
            listener.close()
            raise device_error(
                "Cannot create virtio-vsock backend", "Error binding to the host-side Unix socket", os_error(error)
            ) from error
        listener.listen()
        vm.sockets.append((listener, config["socket"]))
        return vm.tree.add(self.named(vm, config, "vsock"))

    def stop(self) -> None:
        """Take the VM apart; its config stays, and with it the descriptors of its nets."""
        vm = self.running()
        self.close_consoles(unlink=True)
        vm.release()
        self.vm = None

    def shutdown(self) -> None:
        self.stop()
        self.events.tell("vm", "shutdown")

    def delete(self) -> None:
        if self.config is None:
            return
        if self.vm is not None:
            self.shutdown()
        self.close_consoles(unlink=False)
        for net in self.config.get("net") or []:
            for fd in net.get("fds") or []:
                os.close(fd)
        self.config = None
        self.events.tell("vm", "deleted")

    def reboot(self) -> None:
        self.events.tell("vm", "rebooting")
        if self.vm is None:
            raise Refused("VM is not created", kind="missing")
        self.stop()
        try:
            self.start()
        except Refused:
            if self.vm is not None:
                self.stop()
            raise
        self.events.tell("vm", "rebooted")
        self.guest_boots()

    def pause(self) -> None:
        self.turn("Running", "Paused", "paus", "Cannot pause VM", "Failed to pause migratable component")

    def resume(self) -> None:
        self.turn("Paused", "Running", "resum", "Cannot resume VM", "Failed to resume migratable component")

    def turn(self, old: str, new: str, stem: str, *chain: str) -> None:
        vm = self.running()
        self.events.tell("vm", f"{stem}ing")
        if vm.state != old:
            raise Refused(*chain, f"Invalid transition: InvalidStateTransition({vm.state}, {new})")
        vm.state = new
        self.events.tell("vm", f"{stem}ed")

    def end(self, code: int = 0) -> None:
        """What vmm.shutdown, a signal, a guest's power-off and a fatal vCPU error have in common."""
        self.delete()
        self.events.tell("vmm", "shutdown")
        self.exit_code = code

    # --- what a call tells ---

    def info(self) -> dict[str, Any]:
        config = self.created()
        told = {"config": copy.deepcopy(config), "state": self.vm.state if self.vm else "Created"}
        told["memory_actual_size"] = config["memory"]["size"]
        if self.vm is not None:
            told["device_tree"] = self.vm.tree.nodes
        return told

    def counters(self) -> dict[str, dict[str, int]]:
        vm = self.running()
        disk = {f"{way}_{what}": 0 for way in ("read", "write") for what in ("bytes", "ops")}
        disk |= {f"{way}_latency_{what}": UNSET for way in ("read", "write") for what in ("min", "max")}
        disk |= {f"{way}_latency_avg": 1844674407370955 for way in ("read", "write")}
        net = dict.fromkeys(("rx_bytes", "rx_frames", "tx_bytes", "tx_frames"), 0)
        return {name: dict(disk) for name in vm.disks} | {name: dict(net) for name in vm.taps}

    # --- changes ---

    def add(self, key: str, config: dict[str, Any], plug: str) -> dict[str, str] | None:
        """None when the VM does not run yet: the config was only appended to."""
        stored = self.created()
        candidate = copy.deepcopy(stored)
        candidate[key] = [*(candidate.get(key) or []), config]
        self.validate(candidate)
        if self.vm is not None:
            bdf = getattr(self, plug)(self.running(), config)
            if key == "disks":
                try:
                    self.vm.disks[config["id"]].lock()
                except Refused as refused:
                    self.unplug(self.vm, config["id"])
                    raise device_error(*refused.chain) from refused
        stored[key] = [*(stored.get(key) or []), config]
        return None if self.vm is None else {"id": config["id"], "bdf": bdf}

    def unplug(self, vm: Vm, name: str) -> str:
        if disk := vm.disks.pop(name, None):
            disk.close()
        if taps := vm.taps.pop(name, None):
            taps.close()
        return vm.tree.remove(name)

    def forget(self, name: str) -> bool:
        config = self.created()
        for key in DEVICE_LISTS:
            items = config.get(key) or []
            if left := [item for item in items if item.get("id") != name]:
                config[key] = left
            elif items:
                del config[key]
            if len(left) < len(items):
                return True
        return False

    def remove_device(self, name: str) -> None:
        if self.vm is None:
            if not self.forget(name):
                raise Refused(f'No device with id "{name}" to remove', kind="unknown")
            return
        if name.startswith("__") and name in self.vm.tree.nodes:
            raise device_error(f"Not allowed to remove this type of device from the VM: {name[2:]}")
        if name not in self.vm.disks and name not in self.vm.taps:
            raise Refused(
                "Error from device manager",
                f"Failed to find device corresponding to the given identifier: {name}",
                kind="unknown",
            )
        self.forget(name)
        self.events.tell("vm", "device-removed", id=name, bdf=self.unplug(self.vm, name))

    def resize(self, data: dict[str, Any]) -> None:
        config = self.created()
        vcpus, ram, balloon = (data.get(f"desired_{name}") for name in ("vcpus", "ram", "balloon"))
        if self.vm is not None:
            self.events.tell("vm", "resizing")
            if self.vm.resizing and vcpus is not None:
                raise Refused(kind="busy")
            if vcpus is not None and vcpus > config["cpus"]["max_vcpus"]:
                raise Refused("Error from CPU manager", "Requested vCPUs exceed maximum")
            if vcpus == 0:
                raise Refused("Error from CPU manager", "Requested zero vCPUs")
            if balloon is not None and not config.get("balloon"):
                raise device_error("Missing virtio-balloon, can't proceed as expected")
            # The fake guest never ejects a CPU: a removal stays pending until the VM is started again.
            self.vm.resizing = vcpus is not None and vcpus < config["cpus"]["boot_vcpus"]
        if vcpus is not None:
            config["cpus"]["boot_vcpus"] = vcpus
        if ram is not None:
            config["memory"]["size"] = ram
        if balloon is not None and config.get("balloon"):
            config["balloon"]["size"] = balloon
        if self.vm is not None:
            self.events.tell("vm", "resized")

    def resize_disk(self, name: str, size: int) -> None:
        self.created()
        if self.vm is None:
            raise Refused("Failed resizing a disk image")
        if name not in self.vm.disks:
            raise Refused(
                "Error from device manager",
                f"Failed to find device corresponding to the given identifier: {name}",
                kind="unknown",
            )
        self.vm.disks[name].resize(size)

    # --- the guest ---

    def print(self, text: bytes) -> None:
        if self.serial is not None:
            self.serial.write(text)

    def guest_input(self, data: bytes) -> None:
        self.print(data)  # a guest that echoes

    def guest_boots(self) -> None:
        if self.serial is not None:
            self.serial.start()
        self.print(b"guest up\r\n")
        for name in self.vm.tree.virtio() if self.vm else []:
            self.events.tell("virtio-device", "activated", id=name)

    def power_button(self) -> None:
        self.running()
        if not self.ignore_power_button:
            self.guest("poweroff")

    def guest(self, action: str, argument: str = "") -> None:
        """What a guest, or a broken one, does by itself; nothing without a running VM."""
        match action:
            case "ignore-power-button":
                self.ignore_power_button = True
            case "slow-boot":
                self.slow_boot = float(argument)
            case "crash":
                os.abort()
            case _ if self.vm is None or self.vm.state != "Running":
                return
            case "console":
                self.print(argument.encode() + b"\r\n")
            case "flood" if isinstance(self.serial, SerialSocket):
                self.serial.flood(int(argument) << 20)
            case "panic":
                self.events.tell("guest", "panic", event=argument or "panic")
            case "poweroff" if self.no_shutdown:
                self.shutdown()
            case "poweroff":
                self.end()
            case "vcpu-error":
                print("cloud-hypervisor: <vcpu0> ERROR: VCPU generated error: VcpuRun", file=sys.stderr, end="\r\n")
                self.end()
            case _:  # reboot
                try:
                    self.reboot()
                except Refused as refused:
                    chain = "\n".join(f"  {i}: {link}" for i, link in enumerate(("Error rebooting VM", *refused.chain)))
                    print(
                        f"Error: Cloud Hypervisor exited with the following chain of errors:\n{chain}", file=sys.stderr
                    )
                    self.exit_code = 1

    def interrupt(self) -> None:
        """SIGTERM or SIGINT."""
        with contextlib.suppress(Refused):
            self.end()
