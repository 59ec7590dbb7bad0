"""Assertions 24-26, 38-47 and 53: disks, nets, resizes, snapshots and migrations."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from launcher.vmm import api
from launcher.vmm.nonblocking import PendingCall
from launcher.vmm.transport import SocketTransport
from tests.contract.harness import PATIENCE, eventually, get, put
from tests.contract.machine import KvmCannotSave

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Start
    from tests.contract.harness import Vmm

TUNSETIFF = 0x400454CA
NO_DEVICE = "Failed to find device corresponding to the given identifier: nope"
COUNTERS = {
    f"{way}_{what}"
    for way in ("read", "write")
    for what in ("bytes", "ops", "latency_min", "latency_max", "latency_avg")
}


def disk(vmm: Vmm, name: str, **more: Any) -> dict[str, Any]:
    with (vmm.folder / name).open("wb") as file:
        file.truncate(1 << 20)
    return {"path": name, "image_type": "Raw", **more}


@contextmanager
def tap(name: str) -> Iterator[int]:
    """A tap that lives as long as its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000 | 0x4000))
        yield fd
    finally:
        os.close(fd)


def tap_name() -> str:
    return f"ct{os.getpid()}"


def test_24_ids_are_unique_and_not_reserved(vmm: Vmm) -> None:
    vmm.ok(api.create(vmm.config(disks=[disk(vmm, "a", id="a"), disk(vmm, "b", id="a")])))
    vmm.refused(api.boot(), 500, "Failed to validate config", "Identifier a is not unique")
    vmm.ok(api.delete())
    vmm.ok(api.create(vmm.config(disks=[disk(vmm, "a", id="__a")])))
    vmm.refused(api.boot(), 500, "Failed to validate config", "Identifier __a is not invalid")


def test_25_an_image_belongs_to_one_writer(start: Start) -> None:
    first, second = start(name="a"), start(name="b")
    first.boot(first.config(disks=[disk(first, "img")]))
    image = str(first.folder / "img")
    second.ok(api.create(second.config(disks=[{"path": image, "image_type": "Raw"}])))
    second.refused(
        api.boot(),
        500,
        "Error locking disk images: Another instance likely holds a lock",
        "Cannot lock images of all block devices",
        f"Failed to get Write lock for disk image: {image}",
        "The file is already locked",
    )
    first.ok(api.shutdown())
    second.ok(api.delete())
    second.boot(second.config(disks=[{"path": image, "image_type": "Raw"}]))


@pytest.mark.root
def test_26_a_tap_that_another_holds(vmm: Vmm) -> None:
    with tap(tap_name()):
        net = {"tap": tap_name(), "mac": "52:54:00:00:00:01"}
        vmm.ok(api.create(vmm.config(net=[net])))
        why = ("Unable to configure tap interface", "Device or resource busy (os error 16)")
        vmm.refused(api.boot(), 500, "Failed to open taps", "Open tap device failed", *why)


def test_38_add_disk_cold_and_hot(vmm: Vmm) -> None:
    vmm.ok(api.create(vmm.config()))
    vmm.ok(put("vm.add-disk", disk(vmm, "a")))
    vmm.ok(api.boot())
    assert [each["id"] for each in vmm.info().config["disks"]] == ["_disk0"]
    response = vmm.put("vm.add-disk", disk(vmm, "b", id="b"))
    device = api.decode_device(put("vm.add-disk"), response)
    assert (response.status, device) == (200, api.DeviceInfo("b", "0000:00:03.0"))
    missing = put("vm.add-disk", {"path": "nope", "image_type": "Raw"})
    vmm.refused(
        missing, 500, "Cannot open disk path", "I/O error (path=nope op=open)", "No such file or directory (os error 2)"
    )
    again = put("vm.add-disk", {"path": "a", "image_type": "Raw"})
    vmm.refused(again, 500, "Failed to get Write lock for disk image: a", "The file is already locked")


def test_39_remove_device(vmm: Vmm) -> None:
    vmm.refused(put("vm.remove-device", {"id": "nope"}), 404, "VM is not created")
    vmm.ok(api.create(vmm.config(disks=[disk(vmm, "a", id="a")])))
    vmm.refused(put("vm.remove-device", {"id": "nope"}), 500, 'No device with id "nope" to remove')
    vmm.ok(api.boot())
    vmm.ok(put("vm.remove-device", {"id": "a"}))
    assert "disks" not in vmm.info().config or vmm.info().config["disks"] == []
    vmm.refused(put("vm.remove-device", {"id": "nope"}), 500, NO_DEVICE)
    vmm.refused(put("vm.remove-device", {"id": "a"}), 500, NO_DEVICE.replace("nope", "a"))
    vmm.refused(
        put("vm.remove-device", {"id": "__rng"}), 500, "Not allowed to remove this type of device from the VM: rng"
    )


def test_40_resize(vmm: Vmm) -> None:
    vmm.refused(put("vm.resize", {"desired_vcpus": 1}), 404, "VM is not created")
    vmm.boot(vmm.config(cpus={"boot_vcpus": 2, "max_vcpus": 2}))
    vmm.ok(put("vm.resize", {}))
    vmm.refused(put("vm.resize", {"desired_vcpus": 9}), 500, "Requested vCPUs exceed maximum")
    vmm.refused(put("vm.resize", {"desired_vcpus": 0}), 500, "Requested zero vCPUs")
    vmm.refused(put("vm.resize", {"desired_balloon": 1}), 500, "Missing virtio-balloon, can't proceed as expected")
    vmm.ok(put("vm.resize", {"desired_vcpus": 1}))
    response = vmm.put("vm.resize", {"desired_vcpus": 1})
    assert (response.status, json.loads(response.body)) == (429, ["Too Many Requests"])


def test_41_resize_disk(vmm: Vmm) -> None:
    vmm.ok(api.create(vmm.config(disks=[disk(vmm, "a", id="a")])))
    vmm.refused(put("vm.resize-disk", {"id": "a", "desired_size": 2 << 20}), 500, "Failed resizing a disk image")
    vmm.ok(api.boot())
    vmm.ok(put("vm.resize-disk", {"id": "a", "desired_size": 2 << 20}))
    assert (vmm.folder / "a").stat().st_size == 2 << 20
    vmm.refused(put("vm.resize-disk", {"id": "nope", "desired_size": 2 << 20}), 500, NO_DEVICE)


def snapshot(vmm: Vmm) -> str:
    """Snapshot the paused VM; KvmCannotSave tells that this is no place for the test."""
    folder = vmm.folder / "snapshot"
    folder.mkdir()
    response = vmm.put("vm.snapshot", {"destination_url": f"file://{folder}"})
    if b"Could not get vCPU state" in response.body:
        raise KvmCannotSave
    assert response.status == 204, response.body
    return f"file://{folder}"


def test_42_a_running_vm_is_not_snapshotted(vmm: Vmm) -> None:
    vmm.boot(vmm.config())
    call = put("vm.snapshot", {"destination_url": f"file://{vmm.folder}"})
    vmm.refused(
        call,
        500,
        "Cannot snapshot VM",
        "Failed to snapshot migratable component",
        "Trying to snapshot while VM is running",
    )


@pytest.mark.saves_vcpu
def test_42_a_snapshot_is_three_files(vmm: Vmm) -> None:
    vmm.boot(vmm.config())
    vmm.ok(api.pause())
    url = snapshot(vmm)
    assert {path.name for path in (vmm.folder / "snapshot").iterdir()} == {"config.json", "state.json", "memory-ranges"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (vmm.folder / "snapshot").iterdir())
    vmm.tells("vm snapshotting", "vm snapshotted")
    vmm.refused(put("vm.snapshot", {"destination_url": url}), 500, "File exists (os error 17)")
    vmm.refused(put("vm.snapshot", {"destination_url": "/x"}), 500, "Could not extract path from URL: /x")


def test_43_restore_needs_room_and_a_folder(vmm: Vmm) -> None:
    missing = vmm.folder / "nope"
    vmm.refused(
        put("vm.restore", {"source_url": f"file://{missing}"}), 500, f'Destination is not a directory: "{missing}"'
    )
    vmm.ok(api.create(vmm.config()))
    vmm.refused(put("vm.restore", {"source_url": f"file://{missing}"}), 500, "VM is already created")


@pytest.mark.saves_vcpu
@pytest.mark.parametrize(("more", "state"), [({}, "Paused"), ({"resume": True}, "Running")])
def test_43_restore(vmm: Vmm, more: dict[str, bool], state: str) -> None:
    vmm.boot(vmm.config())
    vmm.ok(api.pause())
    url = snapshot(vmm)
    vmm.ok(api.delete())
    vmm.ok(put("vm.restore", {"source_url": url, **more}))
    assert vmm.info().state == state


def test_44_nothing_else_while_sending(vmm: Vmm) -> None:
    vmm.boot(vmm.config())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(vmm.folder / "peer"))
        listener.listen()
        vmm.ok(put("vm.send-migration", {"destination_url": f"unix:{vmm.folder}/peer"}))
        vmm.refused(api.pause(), 500, "VM is currently migrating and can't be modified")
    vmm.tells("vm migration-failed")
    assert vmm.info().state == "Running"


@pytest.mark.saves_vcpu
def test_44_the_source_ends_when_the_vm_has_gone(start: Start) -> None:
    source, target = start(name="a"), start(name="b")
    if source.real:
        source.boot(source.config())
        source.ok(api.pause())
        snapshot(source)  # a migration would only fail
        source.ok(api.resume())
    else:
        source.boot(source.config())
    url = f"unix:{target.folder}/peer"
    with PendingCall(target.socket, put("vm.receive-migration", {"receiver_url": url}), now=0) as receiving:
        assert receiving.advance(0) is None
        eventually((target.folder / "peer").exists, "the target listens")
        source.ok(put("vm.send-migration", {"destination_url": url}))
        assert source.wait() == 0
        select.select([receiving], [], [], PATIENCE)
        response = receiving.advance(0)
    assert response is not None
    assert response.status == 204
    assert target.info().state == "Running"
    assert "vm migration-started" in source.events()
    assert "vm shutdown" not in source.events()


def test_45_no_coredump_in_a_default_build(vmm: Vmm) -> None:
    response = vmm.put("vm.coredump", {"destination_url": "file:///x"})
    assert (response.status, json.loads(response.body)) == (404, ["Not Found"])


@pytest.mark.root
def test_46_taps_are_passed_with_add_net(start: Start) -> None:
    vmm = start(transport=SocketTransport)
    with tap(tap_name()) as fd:
        net = {"id": "pod", "mac": "52:54:00:00:00:01", "num_queues": 2}
        vmm.ok(api.create(vmm.config(net=[{**net, "id": "lost", "fds": [fd]}])))
        assert "fds" not in vmm.info().config["net"][0]
        (vmm.folder / "strict").unlink(missing_ok=True)
        vmm.ok(api.delete())
        vmm.ok(api.create(vmm.config()))
        vmm.ok(api.add_net(net, (fd,)))
        vmm.ok(api.boot())
        (configured,) = vmm.info().config["net"]
        assert configured["id"] == "pod"
        assert [type(each) for each in configured["fds"]] == [int]
        vmm.ok(api.reboot())
        assert vmm.info().state == "Running"


@pytest.mark.root
def test_47_one_descriptor_per_queue_pair(start: Start) -> None:
    vmm = start()
    vmm.ok(api.create(vmm.config()))
    with tap(tap_name()) as fd:
        call = api.add_net({"mac": "52:54:00:00:00:01", "num_queues": 2}, (fd, fd))
        vmm.refused(call, 500, "Number of queues (2) to virtio_net does not match the number of FDs (4)")


def test_53_counters(vmm: Vmm) -> None:
    vmm.boot(vmm.config())
    assert json.loads(vmm.call(get("vm.counters")).body) == {}
    vmm.ok(api.delete())
    vmm.boot(vmm.config(disks=[disk(vmm, "a", id="a")]))
    counters = api.decode_counters(api.counters(), vmm.call(api.counters()))
    assert counters["a"].keys() == COUNTERS
    assert (counters["a"]["read_ops"], counters["a"]["read_latency_min"]) == (0, (1 << 64) - 1)
