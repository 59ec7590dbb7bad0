"""The files of a cloud-init seed (NoCloud data source: meta-data, user-data, network-config)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from launcher.errors import StorageFailed
from launcher.plan.types import SecretSeedFile, SeedFile
from launcher.spec.types import SecretRef

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.facts import HostFacts, SecretFacts
    from launcher.spec.types import CloudInitVolume, VmSpec

# What YAML 1.1 reads as text without quotes: a word that is no boolean or null, or the canonical form of a UUID.
_PLAIN = re.compile(
    r"(?!(?:true|false|yes|no|on|off|null|y|n)\Z)[a-z][a-z0-9.-]*|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)


def seed_files(spec: VmSpec, volume: CloudInitVolume, facts: HostFacts) -> tuple[SeedFile | SecretSeedFile, ...]:
    """What the guest's cloud-init finds on the volume. Raises StorageFailed for a Secret that is not there.

    The instance id and host name are those Virtink sets (virtink, vm_controller.go): the VM's uid and name. A VM without a
    uid is known by its namespace and name; no slash, since cloud-init makes a folder of it. user-data is always there,
    since NoCloud asks for it; network-config only when it is given, since its presence replaces the guest's own DHCP.
    """
    identity = spec.uid or f"{spec.namespace}.{spec.name}"
    meta_data = f"instance-id: {_scalar(identity)}\nlocal-hostname: {_scalar(spec.name)}"
    paths = facts.paths
    user = _file("user-data", volume, volume.user_data or b"", paths.user_data_secret, facts.user_data_secret)
    files = [SeedFile("meta-data", meta_data.encode()), user]
    if (given := volume.network_data) is not None:
        files.append(_file("network-config", volume, given, paths.network_data_secret, facts.network_data_secret))
    return tuple(files)


def _scalar(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _file(
    name: str, volume: CloudInitVolume, given: bytes | SecretRef, path: Path, found: SecretFacts | None
) -> SeedFile | SecretSeedFile:
    if not isinstance(given, SecretRef):
        return SeedFile(name, given)
    what = f"the {name} of volume {volume.name} comes from the Secret {given.name}"
    mount = f"mount the Secret at {path.parent}, its content under the key {path.name}"
    if found is None:
        raise StorageFailed(f"{what}, but there is no {path}", hint=mount)
    if found.problem:
        raise StorageFailed(f"{what}, but {found.problem}", hint=found.hint or mount)
    return SecretSeedFile(name, path, found.size, found.sha256)
