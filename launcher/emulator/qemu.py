"""One QEMU process that runs a guest without KVM, and the QMP connection to it.

A guest's life is one process: a reboot stops QEMU and starts another, as cloud-hypervisor builds its VM anew. The
machine is q35 with TCG (it never hung where microvm's clock calibration did) and ``-cpu max`` (as fast here as the
default, and x86-64-v2 or v3 guests need it). PCI slots are dealt in cloud-hypervisor's order. QEMU dies with us
(PR_SET_PDEATHSIG) and starts stopped, so that a device it refuses is an error of the boot.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from launcher.emulator.disks import blockdev
from launcher.emulator.refusal import Refused, os_words

OVMF = Path("/usr/share/ovmf/OVMF.fd")  # its variables are in memory, as CLOUDHV.fd's are
PROGRAM = "qemu-system-x86_64"
START_SECONDS = 30.0  # until QMP answers
STOP_SECONDS = 10.0  # for QEMU to flush and go
CHUNK = 65536
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)

Json = dict[str, Any]


class Gone(Exception):
    """QEMU has closed its QMP connection."""


def arguments(config: Json, taps: list[list[int]], serial: bool) -> tuple[list[str], Json]:  # noqa: FBT001
    """The guest's part of QEMU's command line, and vm.info's device tree. ``taps`` are the queue descriptors of each net."""
    cpus, memory, payload = config["cpus"], config["memory"], config["payload"]
    smp = f"cpus={cpus['boot_vcpus']}"
    if cpus["boot_vcpus"] == cpus["max_vcpus"] and (topology := cpus.get("topology")):
        smp += f",sockets={topology['packages']},dies={topology['dies_per_package']}"
        smp += f",cores={topology['cores_per_die']},threads={topology['threads_per_core']}"
    argv = ["-smp", smp, "-m", f"size={memory['size']}B", *_payload(payload)]
    if config.get("fs"):  # memory that another process can map
        backend = {"qom-type": "memory-backend-memfd", "id": "memory", "size": memory["size"], "share": True}
        argv += ["-object", json.dumps(backend), "-machine", "memory-backend=memory"]
    tree: Json = {"__serial": _node("__serial")} if serial else {}

    def device(name: str, options: Json) -> None:
        # Two nodes each: the virtio device and the PCI function that carries its address.
        slot = sum("pci_bdf" in node for node in tree.values()) + 1
        argv.extend(("-device", json.dumps({"bus": "pcie.0", "addr": f"{slot:#x}", **options})))
        carrier = f"_virtio-pci-{name}"
        tree[carrier] = {**_node(carrier), "children": [name], "pci_bdf": f"0000:00:{slot:02x}.0"}
        tree[name] = {**_node(name), "parent": carrier}

    if config["console"]["mode"] == "Null":
        argv += ["-chardev", "null,id=console"]
        device("__console", {"driver": "virtio-serial-pci", "id": "console-bus", "disable-legacy": "on"})
        # As JSON like the others: QEMU makes devices of the older syntax first, before their bus is there.
        argv += ["-device", json.dumps({"driver": "virtconsole", "bus": "console-bus.0", "chardev": "console"})]
    for index, disk in enumerate(config.get("disks", ())):
        node = f"disk{index}"
        argv += ["-blockdev", json.dumps(blockdev(node, disk))]
        options = {"driver": "virtio-blk-pci", "drive": node, "disable-legacy": "on", "num-queues": disk["num_queues"]}
        if "firmware" in payload:  # it would try the network first
            options["bootindex"] = index + 1
        device(disk["id"], options | ({"serial": disk["serial"]} if "serial" in disk else {}))
    for index, (net, fds) in enumerate(zip(config.get("net", ()), taps, strict=True)):
        queues = f"fds={':'.join(map(str, fds))}" if len(fds) > 1 else f"fd={fds[0]}"
        argv += ["-netdev", f"tap,id=net{index},{queues}"]
        options = {"driver": "virtio-net-pci", "netdev": f"net{index}", "mac": net["mac"], "disable-legacy": "on"}
        # One vector per queue, one for control and one for configuration changes.
        device(net["id"], options | ({"mq": True, "vectors": 2 * len(fds) + 2} if len(fds) > 1 else {}))
    argv += ["-object", json.dumps({"qom-type": "rng-random", "id": "rng", "filename": config["rng"]["src"]})]
    device(config["rng"].get("id", "__rng"), {"driver": "virtio-rng-pci", "rng": "rng", "disable-legacy": "on"})
    for index, fs in enumerate(config.get("fs", ())):
        argv += ["-chardev", f"socket,id=fs{index},path={fs['socket'].replace(',', ',,')}"]
        options = {"driver": "vhost-user-fs-pci", "chardev": f"fs{index}", "tag": fs["tag"]}
        device(fs["id"], options | {"queue-size": fs["queue_size"], "num-request-queues": fs["num_queues"]})
    if config["pvpanic"]:
        device("__pvpanic", {"driver": "pvpanic-pci"})
        tree["__pvpanic"] = {**_node("__pvpanic"), "pci_bdf": tree.pop("_virtio-pci-__pvpanic")["pci_bdf"]}
    return argv, tree


def _payload(payload: Json) -> list[str]:
    """A kernel, or OVMF whatever the firmware is: cloud-hypervisor's runs on no other machine. Refused without OVMF."""
    if "firmware" in payload:
        if not OVMF.exists():
            raise Refused("Error manipulating firmware file", f"{OVMF} is not installed (Debian package ovmf)")
        return ["-bios", str(OVMF)]
    initramfs = ["-initrd", payload["initramfs"]] if "initramfs" in payload else []
    return ["-kernel", payload["kernel"], *initramfs, "-append", payload.get("cmdline", "")]


def _node(name: str) -> Json:
    return {"id": name, "resources": [], "children": []}


class Qemu:
    """A running QEMU; ``serial`` is the other end of the guest's UART, ``qmp`` tells when there are events."""

    def __init__(self, argv: list[str], fds: list[int], *, serial: bool) -> None:
        """Start QEMU with the guest stopped. Refused when it does not take its command line."""
        self.qmp, qmp_end = socket.socketpair()
        self.serial, serial_end = socket.socketpair()
        self._errors = os.memfd_create("qemu-stderr")
        self._input = b""
        self._events: list[Json] = []
        own = [
            *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-M", "q35"),
            *("-cpu", "max", "-S", "-action", "reboot=shutdown,shutdown=poweroff,panic=none"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            *("-chardev", f"socket,id=qmp,fd={qmp_end.fileno()}", "-mon", "chardev=qmp,mode=control"),
        ]
        if serial:
            own += ["-chardev", f"socket,id=serial,fd={serial_end.fileno()}", "-serial", "chardev:serial"]
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with qmp_end, serial_end:
            try:
                self._process = subprocess.Popen(
                    [*own, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    pass_fds=(qmp_end.fileno(), serial_end.fileno(), *fds),
                    preexec_fn=die_with_parent,  # noqa: PLW1509  # there is one thread
                    process_group=0,
                )
            except OSError as error:
                self._close()
                self.serial.close()
                raise Refused("QEMU refused to start", os_words(error)) from error
        try:
            self._receive(START_SECONDS)  # the greeting
            self.execute("qmp_capabilities")
        except (Gone, TimeoutError) as error:
            self.serial.close()
            words = self.stop()
            raise Refused("QEMU refused to start", words or "it says nothing") from error

    def execute(self, command: str) -> None:
        """Run a QMP command and wait for its answer. Raises Gone when QEMU has ended, Refused when it says no."""
        try:
            self.qmp.sendall(json.dumps({"execute": command}).encode())
        except OSError as error:
            raise Gone from error
        answer = self._receive(START_SECONDS)
        if "error" in answer:
            raise Refused("QEMU refused a command", f"{command}: {answer['error']['desc']}")

    def events(self) -> list[Json]:
        """The events that have arrived. Raises Gone when QEMU has ended and there are none."""
        gone = False
        while select.select([self.qmp], [], [], 0)[0]:
            try:
                self._read()
            except Gone:
                gone = True
                break
        while (message := self._message()) is not None:
            self._events.append(message)
        if gone and not self._events:
            raise Gone
        events, self._events = self._events, []
        return events

    @property
    def said_goodbye(self) -> bool:
        """Whether an event that was not taken yet tells of an orderly end."""
        return any(event["event"] == "SHUTDOWN" for event in self._events)

    def _receive(self, seconds: float) -> Json:
        """The next message that is no event."""
        deadline = time.monotonic() + seconds
        while True:
            while (message := self._message()) is not None:
                if "event" not in message:
                    return message
                self._events.append(message)
            if not select.select([self.qmp], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            self._read()

    def _read(self) -> None:
        try:
            data = self.qmp.recv(CHUNK)
        except OSError as error:
            raise Gone from error
        if not data:
            raise Gone
        self._input += data

    def _message(self) -> Json | None:
        line, newline, rest = self._input.partition(b"\n")
        if not newline:
            return None
        self._input = rest
        message: Json = json.loads(line)
        return message

    def stop(self) -> str:
        """End QEMU at once, flushing its disks, and return the last line it wrote. Leaves ``serial`` to be drained."""
        try:
            self.qmp.sendall(b'{"execute": "quit"}')
            self._process.wait(STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        return self.reap()

    def reap(self) -> str:
        """Wait for a QEMU that is ending by itself (killed when it does not), and return the last line it wrote."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        said = os.pread(self._errors, CHUNK, max(0, os.fstat(self._errors).st_size - CHUNK))
        self._close()
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _close(self) -> None:
        self.qmp.close()
        os.close(self._errors)
