"""What a guest's cloud-init is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launcher.errors import StorageFailed
from launcher.facts import SecretFacts
from launcher.plan.seed import seed_files
from launcher.plan.types import SecretSeedFile, SeedFile
from launcher.spec.types import CloudInitVolume, Instance, Memory, RunPolicy, SecretRef, VmSpec
from tests.unit.plan.made import FACTS

UID = "6f6f2a9c-1111-4222-8333-000000000001"
VM = VmSpec("web", "prod", UID, RunPolicy.ALWAYS, Instance(Memory(1 << 30)))


def files(spec: VmSpec, volume: CloudInitVolume) -> dict[str, bytes]:
    seed = seed_files(spec, volume, FACTS)
    return {file.name: file.content for file in seed if isinstance(file, SeedFile)}


def test_identity_is_virtinks() -> None:
    assert files(VM, CloudInitVolume("seed", b"#cloud-config\n")) == {
        "meta-data": f"instance-id: {UID}\nlocal-hostname: web".encode(),
        "user-data": b"#cloud-config\n",
    }


def test_network_config_only_when_given() -> None:
    assert files(VM, CloudInitVolume("seed", None, b"version: 2\n"))["network-config"] == b"version: 2\n"
    assert files(VM, CloudInitVolume("seed"))["user-data"] == b""
    assert set(files(VM, CloudInitVolume("seed", b"x"))) == {"meta-data", "user-data"}


def test_without_a_uid_the_name_identifies() -> None:
    meta = files(replace(VM, uid=""), CloudInitVolume("seed"))["meta-data"]
    assert yaml.safe_load(meta) == {"instance-id": "prod.web", "local-hostname": "web"}


@pytest.mark.parametrize("name", ["123", "true", "null", "no", "1e3", "0x1f", "web.example", "a-b", "12:30", "1.5"])
def test_names_stay_text_in_yaml(name: str) -> None:
    meta = yaml.safe_load(files(replace(VM, name=name, uid=name), CloudInitVolume("seed"))["meta-data"])
    assert meta == {"instance-id": name, "local-hostname": name}


def test_a_secret_stays_where_it_is() -> None:
    facts = replace(FACTS, user_data_secret=SecretFacts(7, "a" * 64), network_data_secret=SecretFacts(9, "b" * 64))
    _, user, network = seed_files(VM, CloudInitVolume("seed", SecretRef("u"), SecretRef("n")), facts)
    assert user == SecretSeedFile("user-data", Path("/mnt/virtink-cloud-init-user-data/value"), 7, "a" * 64)
    assert network == SecretSeedFile("network-config", Path("/mnt/virtink-cloud-init-network-data/value"), 9, "b" * 64)


def test_a_secret_that_is_not_mounted_is_told_with_its_place() -> None:
    with pytest.raises(StorageFailed) as raised:
        seed_files(VM, CloudInitVolume("seed", None, SecretRef("net")), FACTS)
    assert raised.value.message == (
        "the network-config of volume seed comes from the Secret net, "
        "but there is no /mnt/virtink-cloud-init-network-data/value"
    )
    assert raised.value.hint == (
        "mount the Secret at /mnt/virtink-cloud-init-network-data, its content under the key value"
    )


def test_a_secret_that_cannot_be_used_is_told_as_it_was_found() -> None:
    facts = replace(FACTS, user_data_secret=SecretFacts(problem="it is a folder", hint="a file"))
    with pytest.raises(StorageFailed, match=r"Secret s, but it is a folder") as raised:
        seed_files(VM, CloudInitVolume("seed", SecretRef("s")), facts)
    assert raised.value.hint == "a file"
