"""What a guest's cloud-init is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from launcher.plan.seed import seed_files
from launcher.spec.types import CloudInitVolume, Instance, Memory, RunPolicy, SecretRef, VmSpec

UID = "6f6f2a9c-1111-4222-8333-000000000001"
VM = VmSpec("web", "prod", UID, RunPolicy.ALWAYS, Instance(Memory(1 << 30)))


def files(spec: VmSpec, volume: CloudInitVolume) -> dict[str, bytes]:
    return {file.name: file.content for file in seed_files(spec, volume)}


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


def test_a_secret_is_a_bug_here() -> None:
    with pytest.raises(AssertionError):
        seed_files(VM, CloudInitVolume("seed", SecretRef("s")))
