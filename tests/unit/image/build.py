"""Images made by hand: the ones no tool would make, and small ones quickly."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
PACK = {"": bytes, "+gzip": lambda data: gzip.compress(data, mtime=0), "+zstd": zstd.compress}


def item(
    name: str, data: bytes | str = b"", type_: bytes = tarfile.REGTYPE, **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = type_
    raw = data.encode() if isinstance(data, str) else data
    if type_ in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        info.linkname, raw = raw.decode(), b""
    info.size = len(raw)
    info.mode = 0o755 if type_ == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, raw


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return item(name, type_=tarfile.DIRTYPE, **fields)


def symlink(name: str, to: str) -> tuple[tarfile.TarInfo, bytes]:
    return item(name, to, tarfile.SYMTYPE)


def hardlink(name: str, to: str) -> tuple[tarfile.TarInfo, bytes]:
    return item(name, to, tarfile.LNKTYPE)


def tar(*items: tuple[tarfile.TarInfo, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for info, data in items:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layout:
    """An OCI layout under construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        digest = sha256(data)
        self.file(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def file(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    def json(self, document: object, media_type: str, **more: Any) -> dict[str, Any]:
        return self.blob(json.dumps(document).encode(), media_type, **more)

    def image(self, *layers: bytes, arch: str = "amd64", pack: str = "", **more: Any) -> dict[str, Any]:
        """A manifest's descriptor."""
        config = {
            "architecture": arch,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
        document = {
            "schemaVersion": 2,
            "config": self.json(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [self.blob(PACK[pack](layer), OCI_LAYER + pack) for layer in layers],
        }
        return self.json(document, MANIFEST, **more)

    def index(self, *descriptors: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.json({"schemaVersion": 2, "manifests": list(descriptors)}, INDEX, **more)

    def finish(self, *descriptors: dict[str, Any]) -> Path:
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(descriptors)}))
        return self.path


def layout(path: Path, *layers: bytes, pack: str = "") -> Path:
    made = Layout(path)
    return made.finish(made.image(*layers, pack=pack))
