"""Volumes: what a disk or a file system is made of."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from launcher.spec.fields import image, label, single, size_in_bytes
from launcher.spec.types import (
    CloudInitVolume,
    ContainerDiskVolume,
    ContainerRootfsVolume,
    DataVolumeVolume,
    PvcVolume,
    SecretRef,
    Volume,
)

if TYPE_CHECKING:
    from launcher.spec.cursor import Cursor

SEED_BYTES = 1 << 20  # of user data, and of network data: as much as a Secret holds (k8s.io/api, MaxSecretSize)

_SOURCES = ("containerDisk", "cloudInit", "containerRootfs", "persistentVolumeClaim", "dataVolume")


def parse_volume(cursor: Cursor) -> Volume:
    """A volume with its one source."""
    volume = cursor.object(("name", *_SOURCES))
    name = label(volume.get("name"))
    sources: dict[str, Volume] = {}
    if (disk := volume.get("containerDisk")).present:
        sources["containerDisk"] = ContainerDiskVolume(name, image(disk.object(("image", "imagePullPolicy"))))
    if (seed := volume.get("cloudInit")).present:
        sources["cloudInit"] = _cloud_init(name, seed)
    if (rootfs := volume.get("containerRootfs")).present:
        sources["containerRootfs"] = _container_rootfs(name, rootfs)
    if (claim := volume.get("persistentVolumeClaim")).present:
        fields = claim.object(("claimName", "hotpluggable"))
        sources["persistentVolumeClaim"] = PvcVolume(
            name, fields.get("claimName").required_text(), fields.get("hotpluggable").boolean()
        )
    if (data := volume.get("dataVolume")).present:
        fields = data.object(("volumeName", "hotpluggable"))
        sources["dataVolume"] = DataVolumeVolume(
            name, fields.get("volumeName").required_text(), fields.get("hotpluggable").boolean()
        )
    source = single(volume, sources, "volume source")
    if source is None:
        volume.problem(f"at least 1 volume source is required: {', '.join(_SOURCES)}")
        return PvcVolume(name, "")  # a stand-in, valid wherever a volume may be
    return source


def _container_rootfs(name: str, cursor: Cursor) -> ContainerRootfsVolume:
    rootfs = cursor.object(("image", "imagePullPolicy", "size"))
    size = rootfs.get("size")
    quantity = size.quantity()
    if quantity is None and not size.log.failed(size.path):
        size.problem("required")
    return ContainerRootfsVolume(name, image(rootfs), size_in_bytes(size, quantity) if quantity is not None else 0)


def _cloud_init(name: str, cursor: Cursor) -> CloudInitVolume:
    kinds = ("userData", "networkData")
    seed = cursor.object([kind + form for kind in kinds for form in ("", "Base64", "SecretName")])
    user, network = (_seed_data(seed, kind) for kind in kinds)
    return CloudInitVolume(name, user_data=user, network_data=network)


def _seed_data(seed: Cursor, kind: str) -> bytes | SecretRef | None:
    given: dict[str, bytes | SecretRef] = {}
    if text := seed.get(kind).text():
        given[kind] = text.encode()
    if encoded := seed.get(f"{kind}Base64").text():
        given[f"{kind}Base64"] = _decode_base64(seed.get(f"{kind}Base64"), encoded)
    if secret := seed.get(f"{kind}SecretName").text():
        given[f"{kind}SecretName"] = SecretRef(secret)
    for form, data in given.items():
        if isinstance(data, bytes) and len(data) > SEED_BYTES:
            seed.get(form).problem(f"{len(data)} bytes are more than {SEED_BYTES}")
    return single(seed, given, "user data" if kind == "userData" else "network data")


def _decode_base64(cursor: Cursor, text: str) -> bytes:
    try:
        # base64(1) wraps its lines, and both Go and Virtink's init container skip them.
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        cursor.problem("not base64")  # the data may be secret: nothing of it is shown
        return b""
