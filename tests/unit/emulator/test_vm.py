"""The VM's states and refusals, as far as they come before a QEMU is started."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import struct
from typing import TYPE_CHECKING, Any

import pytest

from launcher.emulator.api import Api
from launcher.emulator.events import Events
from launcher.emulator.http import Request
from launcher.emulator.qemu import arguments
from launcher.emulator.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

E = "Error from API"


class Lab:
    def __init__(self, folder: Path, loop: selectors.BaseSelector) -> None:
        self.folder = folder
        self._log = (folder / "events").open("w+b")
        self.api = Api(Vm(Events(self._log.fileno()), loop))
        (folder / "vmlinux").write_bytes(b"\x7fELF")

    def call(self, method: str, route: str, body: Any = None, fds: tuple[int, ...] = ()) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        response = self.api.handle(Request(method, f"/api/v1/{route}", data, fds))
        return response.status, json.loads(response.body) if response.body else None

    def config(self, **more: Any) -> dict[str, Any]:
        return {"console": {"mode": "Off"}, "payload": {"kernel": str(self.folder / "vmlinux")}, **more}

    def failed_boot(self, **more: Any) -> list[str]:
        assert self.call("PUT", "vm.create", self.config(**more))[0] == 204
        status, chain = self.call("PUT", "vm.boot")
        assert (status, chain[:2]) == (500, [E, "The VM could not boot"])
        result: list[str] = chain[2:]
        return result

    def events(self) -> list[str]:
        texts = (self.folder / "events").read_text().split("\n\n")[:-1]
        return [f"{event['source']} {event['event']}" for event in map(json.loads, texts)]

    def close(self) -> None:
        self.call("PUT", "vm.delete")
        self._log.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with selectors.DefaultSelector() as loop:
        made = Lab(tmp_path, loop)
        yield made
        made.close()


def test_ping_names_the_version_and_the_process(lab: Lab) -> None:
    ping = lab.call("GET", "vmm.ping")
    assert ping == (200, {"build_version": "v53.0", "version": "53.0.0", "pid": os.getpid(), "features": []})


@pytest.mark.parametrize(
    ("request_line", "body", "status", "answer"),
    [
        ("GET nope", None, 404, ["Not Found"]),
        ("GET vmm.ping/", None, 404, ["Not Found"]),
        ("PUT vmm.ping", None, 400, ["Bad Request"]),
        ("PATCH vm.info", None, 400, ["Bad Request"]),
        ("GET vm.boot", None, 400, ["Bad Request"]),
        ("PATCH vm.boot", None, 400, None),
        ("PUT vm.boot", {}, 400, ["Bad Request"]),
        ("PUT vm.create", None, 400, None),
        ("PUT vm.add-net", None, 400, ["Bad Request"]),
        ("PUT vm.add-disk", {"path": "/x"}, 501, ["Not Implemented", "vm.add-disk is not emulated"]),
        ("PUT vm.coredump", None, 404, ["Not Found"]),
        ("GET vm.info", None, 404, [E, "The VM info is not available", "VM is not created"]),
        ("PUT vm.reboot", None, 404, [E, "The VM could not reboot", "VM is not created"]),
        ("PUT vm.add-net", {}, 404, [E, "The network device could not be added to the VM", "VM is not created"]),
        ("PUT vm.pause", None, 500, [E, "The VM could not be paused", "VM is not running"]),
        ("PUT vm.resume", None, 500, [E, "The VM could not resume", "VM is not running"]),
        ("PUT vm.shutdown", None, 500, [E, "The VM could not shutdown", "VM is not running"]),
        ("PUT vm.power-button", None, 500, [E, "Error triggering power button", "VM is not running"]),
        ("PUT vm.delete", None, 204, None),
    ],
)
def test_without_a_vm(lab: Lab, request_line: str, body: Any, status: int, answer: Any) -> None:
    method, route = request_line.split()
    assert lab.call(method, route, body) == (status, answer)


def test_boot_before_create(lab: Lab) -> None:
    assert lab.call("PUT", "vm.boot") == (404, [E, "The VM could not boot", "VM config is missing"])
    assert lab.events() == ["vm booting"]


def test_create_twice_and_delete(lab: Lab) -> None:
    assert lab.call("PUT", "vm.create", lab.config()) == (204, None)
    twice = [E, "The VM could not be created", "VM is already created"]
    assert lab.call("PUT", "vm.create", lab.config()) == (500, twice)
    status, info = lab.call("GET", "vm.info")
    assert (status, info["state"], info["memory_actual_size"]) == (200, "Created", 512 << 20)
    assert "device_tree" not in info
    lab.call("PUT", "vm.delete")
    lab.call("PUT", "vm.delete")
    assert lab.events() == ["vm deleted"]


def test_a_console_that_cannot_be_opened_leaves_the_config(lab: Lab) -> None:
    serial = {"mode": "Socket", "socket": str(lab.folder / "s")}
    (lab.folder / "s").touch()
    status, chain = lab.call("PUT", "vm.create", lab.config(serial=serial))
    outer = [E, "The VM could not be created", "Error creating console devices", "Error creating console device"]
    assert (status, chain) == (500, [*outer, "Address already in use (os error 98)"])
    assert lab.call("PUT", "vm.create", lab.config())[0] == 500
    assert lab.call("PUT", "vm.delete")[0] == 204
    assert lab.call("PUT", "vm.create", lab.config())[0] == 204


def test_an_invalid_config_fails_the_same_way_twice(lab: Lab) -> None:
    words = [
        *("Failed to validate config", "Payload configuration is not bootable"),
        "No bootitem provided: neither firmware nor kernel",
    ]
    assert lab.failed_boot(payload={}) == words
    assert lab.call("PUT", "vm.boot")[1][2:] == words


def test_after_a_failed_boot_the_vm_is_already_created(lab: Lab) -> None:
    missing = {"kernel": str(lab.folder / "missing")}
    assert lab.failed_boot(payload=missing) == ["Cannot open kernel file", "No such file or directory (os error 2)"]
    assert lab.call("PUT", "vm.boot") == (500, [E, "The VM could not boot", "VM is already created"])
    info = lab.call("GET", "vm.info")[1]
    assert (info["state"], info["device_tree"]) == ("Created", {})
    assert lab.call("PUT", "vm.pause")[1][-1] == "Invalid transition: InvalidStateTransition(Created, Paused)"
    assert lab.call("PUT", "vm.shutdown") == (204, None)
    assert lab.events() == ["vm booting", "vm pausing", "vm shutdown"]


def test_a_text_file_is_no_kernel(lab: Lab) -> None:
    (lab.folder / "vmlinux").write_text("hello")
    assert lab.failed_boot()[::2] == ["Cannot load the kernel into memory", "Kernel Loader: Invalid bzImage"]


def test_a_missing_disk(lab: Lab) -> None:
    disk = lab.folder / "d"
    assert lab.failed_boot(disks=[{"path": str(disk)}]) == [
        *("Error from device manager", "Cannot open disk path", f"I/O error (path={disk} op=open)"),
        "No such file or directory (os error 2)",
    ]


def test_a_wrong_image_type(lab: Lab) -> None:
    (lab.folder / "d").write_bytes(b"x" * 512)
    disk = {"path": str(lab.folder / "d"), "image_type": "Qcow2"}
    mismatch = "Disk image type does not match expected type: specified = qcow2, detected = raw"
    assert lab.failed_boot(disks=[disk]) == ["Error from device manager", mismatch]


def test_a_locked_disk(lab: Lab) -> None:
    path = lab.folder / "d"
    path.write_bytes(b"x" * 4096)
    with path.open("r+b") as other:
        # Another VMM's lock, on a description of its own; a reader's is enough to keep a writer out.
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 4096, 0))
        assert lab.failed_boot(disks=[{"path": str(path)}]) == [
            "Error locking disk images: Another instance likely holds a lock",
            "Cannot lock images of all block devices",
            f"Failed to get Write lock for disk image: {path}",
            "The file is already locked",
        ]


def test_a_failed_boot_lets_go_of_its_disks(lab: Lab) -> None:
    (lab.folder / "d").write_bytes(b"x" * 512)
    lab.failed_boot(disks=[{"path": str(lab.folder / "d")}, {"path": str(lab.folder / "missing")}])
    with (lab.folder / "d").open("r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 512, 0))


def test_a_tap_name_that_is_too_long(lab: Lab) -> None:
    chain = lab.failed_boot(net=[{"tap": "a" * 16}])
    assert chain[:3] == ["Error from device manager", "Cannot create virtio-net device", "Failed to open taps"]
    assert chain[-1] == "Interface name too long (max length is 15): aaaaaaaaaaaaaaaa"


def test_passed_descriptors_are_kept_until_delete(lab: Lab) -> None:
    lab.call("PUT", "vm.create", lab.config())
    read, write = os.pipe()
    assert lab.call("PUT", "vm.add-net", {"id": "pod"}, (write,)) == (204, None)
    (kept,) = lab.call("GET", "vm.info")[1]["config"]["net"][0]["fds"]
    os.write(kept, b"x")
    assert os.read(read, 2) == b"x"
    lab.call("PUT", "vm.delete")
    assert os.read(read, 1) == b""
    os.close(read)


def test_devices_stand_in_the_real_ones_order(lab: Lab) -> None:
    for name in ("a", "b"):
        (lab.folder / name).write_bytes(b"x" * 512)
    disks = [{"id": name, "path": str(lab.folder / name), "image_type": "Raw", "serial": name} for name in ("a", "b")]
    cpus = {"boot_vcpus": 2, "max_vcpus": 2}
    more = {"fs": [{"id": "f", "tag": "t", "socket": "/a,b"}], "memory": {"size": 1 << 28, "shared": True}}
    net = [{"id": "n", "num_queues": 4}]
    lab.call("PUT", "vm.create", lab.config(cpus=cpus, disks=disks, net=net, pvpanic=True, **more))
    argv, tree = arguments(lab.call("GET", "vm.info")[1]["config"], [[7, 8]], serial=True)
    devices = [json.loads(argv[index + 1]) for index, word in enumerate(argv) if word == "-device"]
    names = ["virtio-blk-pci", "virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci"]
    names += ["vhost-user-fs-pci", "pvpanic-pci"]
    assert [device["driver"] for device in devices] == names
    assert [device["addr"] for device in devices] == ["0x1", "0x2", "0x3", "0x4", "0x5", "0x6"]
    assert [device.get("serial") for device in devices[:2]] == ["a", "b"]
    assert devices[2]["mq"]
    assert "tap,id=net0,fds=7:8" in argv
    assert tree["_virtio-pci-n"]["pci_bdf"] == "0000:00:03.0"
    assert tree["__pvpanic"]["pci_bdf"] == "0000:00:06.0"
    assert (devices[4]["tag"], devices[4]["queue-size"]) == ("t", 1024)
    assert "socket,id=fs0,path=/a,,b" in argv
    memory = json.loads(argv[argv.index("-object") + 1])
    assert (memory["qom-type"], memory["size"], memory["share"]) == ("memory-backend-memfd", 1 << 28, True)
