"""The files of a cloud-init seed (NoCloud data source: meta-data, user-data, network-config)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from launcher.plan.types import SeedFile
from launcher.spec.types import SecretRef

if TYPE_CHECKING:
    from launcher.spec.types import CloudInitVolume, VmSpec

# What YAML 1.1 reads as text without quotes: a word that is no boolean or null, or the canonical form of a UUID.
_PLAIN = re.compile(
    r"(?!(?:true|false|yes|no|on|off|null|y|n)\Z)[a-z][a-z0-9.-]*|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)


def seed_files(spec: VmSpec, volume: CloudInitVolume) -> tuple[SeedFile, ...]:
    """What the guest's cloud-init finds on the volume.

    The instance id and host name are those Virtink sets (virtink, vm_controller.go): the VM's uid and name. A VM without a
    uid is known by its namespace and name; no slash, since cloud-init makes a folder of it. user-data is always there,
    since NoCloud asks for it; network-config only when it is given, since its presence replaces the guest's own DHCP.
    """
    identity = spec.uid or f"{spec.namespace}.{spec.name}"
    meta_data = f"instance-id: {_scalar(identity)}\nlocal-hostname: {_scalar(spec.name)}"
    files = [SeedFile("meta-data", meta_data.encode()), SeedFile("user-data", _data(volume.user_data) or b"")]
    network = _data(volume.network_data)
    if network is not None:
        files.append(SeedFile("network-config", network))
    return tuple(files)


def _scalar(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _data(source: bytes | SecretRef | None) -> bytes | None:
    match source:
        case SecretRef():
            raise AssertionError("build refuses data from a Secret before any disk is planned")
        case _:
            return source
