from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.emulator.config import fill_ids, parse_net, parse_vm, validate
from launcher.emulator.refusal import Refused

OFF = {"console": {"mode": "Off"}}
BOOTABLE = {**OFF, "payload": {"kernel": "/k"}}


def parse(config: dict[str, Any]) -> dict[str, Any]:
    return parse_vm(json.dumps(config).encode())


def refusal(config: dict[str, Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        validate(parse(config))
    return caught.value


def test_defaults_are_the_servers() -> None:
    config = parse(OFF)
    assert config["cpus"]["boot_vcpus"] == config["cpus"]["max_vcpus"] == 1
    assert config["memory"]["size"] == 512 << 20
    assert config["serial"] == {"mode": "Null"}
    assert config["rng"] == {"pci_segment": 0, "src": "/dev/urandom"}
    assert "disks" not in config


def test_unset_is_left_out_and_unknown_is_ignored() -> None:
    config = parse({**OFF, "future": 1, "payload": {"kernel": "/k", "more": 2}, "disks": None})
    assert config["payload"] == {"kernel": "/k"}
    assert "future" not in config
    assert "disks" not in config


def test_a_net_gets_a_mac() -> None:
    assert parse_net(b"{}")["mac"].startswith("2e:")
    assert parse_net(b'{"mac": "52:54:00:00:00:01"}')["mac"] == "52:54:00:00:00:01"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"cpus": {}}',
        b'{"cpus": {"boot_vcpus": "1", "max_vcpus": 1}}',
        b'{"cpus": {"boot_vcpus": true, "max_vcpus": 1}}',
        b'{"cpus": {"boot_vcpus": -1, "max_vcpus": 1}}',
        b'{"memory": {"size": 18446744073709551616}}',
        b'{"cpus": null}',
        b'{"serial": {"mode": "tty"}}',
        b'{"disks": {}}',
        b'{"disks": ["x"]}',
        b'{"payload": {"cmdline": "\\ud800"}}',
        b"[" * 50000,
    ],
)
def test_json_that_does_not_fit_is_400(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse_vm(body)
    assert caught.value.status == 400
    assert caught.value.chain[0] == "Failed to deserialize JSON"


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({}, "console mode Tty"),
        ({**OFF, "fs": [{"tag": "a", "socket": "/s", "pci_segment": 1}]}, "fs.pci_segment"),
        ({**OFF, "pmem": [{"file": "/p"}]}, "pmem"),
        ({**OFF, "watchdog": True}, "watchdog"),
        ({**OFF, "serial": {"mode": "Socket", "socket": "/a\0b"}}, "a NUL in socket"),
        ({**OFF, "debug_console": {"mode": "Tty"}}, "debug_console"),
        ({**OFF, "payload": {"igvm": "/f"}}, "payload.igvm"),
        ({**OFF, "disks": [{"path": "/d", "vhost_user": True}]}, "disks.vhost_user"),
        ({**OFF, "net": [{"ip": "10.0.0.1"}]}, "net.ip"),
        ({**OFF, "memory": {"size": 1, "zones": [{"id": "a", "size": 1}]}}, "memory.zones"),
        ({**OFF, "serial": {"mode": "Socket"}}, "serial mode Socket without a path"),
    ],
)
def test_what_is_not_emulated_is_501_and_named(config: dict[str, Any], what: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(config)
    assert (caught.value.status, caught.value.chain) == (501, ("Not Implemented", f"{what} is not emulated"))


def test_a_known_field_that_asks_for_nothing_is_taken() -> None:
    assert parse({**OFF, "fs": [], "vsock": None, "iommu": False, "debug_console": {"mode": "Off"}})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OFF, "No bootitem provided: neither firmware nor kernel"),
        (
            {**OFF, "payload": {"kernel": "/k", "firmware": "/f"}},
            "Specifying a kernel is not supported when a firmware is provided",
        ),
        ({**BOOTABLE, "cpus": {"boot_vcpus": 2, "max_vcpus": 1}}, "Max CPUs (1) lower than boot CPUs (2)"),
        ({**BOOTABLE, "disks": [{"path": "/d", "id": "__a"}]}, "Identifier __a is not invalid"),
        ({**BOOTABLE, "disks": [{"path": "/d", "id": "a"}], "net": [{"id": "a"}]}, "Identifier a is not unique"),
        (
            {**BOOTABLE, "fs": [{"tag": "a", "socket": "/s"}]},
            "Using vhost-user requires using shared memory or huge pages",
        ),
        (
            {**BOOTABLE, "memory": {"size": 1, "shared": True}, "fs": [{"tag": "a", "socket": "/s", "num_queues": 2}]},
            "Queue count (2) must not exceed boot vCPUs (1)",
        ),
        ({**BOOTABLE, "net": [{"num_queues": 4}]}, "Queue count (2) must not exceed boot vCPUs (1)"),
        ({**BOOTABLE, "net": [{"num_queues": 1}]}, "Number of queues (1) to virtio_net should be higher than 2"),
    ],
)
def test_rules_are_told_in_the_servers_words(config: dict[str, Any], words: str) -> None:
    refused = refusal(config)
    assert (refused.status, refused.chain[0], refused.chain[-1]) == (500, "Failed to validate config", words)


def test_topology_must_multiply_to_the_maximum() -> None:
    topology = {"threads_per_core": 1, "cores_per_die": 2, "dies_per_package": 1, "packages": 1}
    validate(parse({**BOOTABLE, "cpus": {"boot_vcpus": 2, "max_vcpus": 2, "topology": topology}}))
    refused = refusal({**BOOTABLE, "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "topology": topology}})
    assert refused.chain[-1] == "Product of CPU topology parts does not match maximum vCPU"


def test_missing_ids_are_counted_over_all_devices() -> None:
    config = parse({**OFF, "disks": [{"path": "/a"}, {"path": "/b", "id": "b"}], "net": [{}]})
    fill_ids(config)
    assert [disk["id"] for disk in config["disks"]] == ["_disk0", "b"]
    assert config["net"][0]["id"] == "_net1"


def test_a_firmware_alone_can_boot() -> None:
    validate(parse({**OFF, "payload": {"firmware": "/f"}}))
