"""An empty qcow2 overlay: reads what the base has, keeps what the guest writes. Nothing of the base is copied.

Format: QEMU docs/interop/qcow2.txt, version 3. Written here and not by qemu-img: no program has to be there, none has to be waited for.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Literal

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # up to header_length
_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_L2_COVERS = _CLUSTER * (_CLUSTER // 8)  # bytes of the disk that one entry of the L1 table stands for
_REFCOUNT_ORDER = 4  # refcounts of 16 bits
_BACKING_FORMAT = 0xE2792ACA
_NAME_LIMIT = 1023  # bytes of a backing file's name
_EXTERNAL_DATA = 1 << 2  # among the incompatible features


def write_overlay(path: Path, base: Path, size: int, base_format: Literal["raw", "qcow2"] = "raw") -> None:
    """Make ``path`` an overlay of ``size`` bytes on the file ``base``, which it names as given. Raises OSError."""
    name = os.fsencode(base)
    if len(name) > _NAME_LIMIT:
        raise OSError(None, f"a base's path has at most {_NAME_LIMIT} bytes")
    entries = -(-size // _L2_COVERS)
    table = -(
        -entries * 8 // _CLUSTER
    )  # clusters of the L1 table; before it: header, refcount table, one refcount block
    clusters = 3 + table
    extensions = struct.pack(">II8sII", _BACKING_FORMAT, len(base_format), base_format.encode(), 0, 0)
    name_at = _HEADER.size + len(extensions)
    header = _HEADER.pack(
        *(_MAGIC, 3, name_at, len(name), _CLUSTER_BITS, size),
        *(0, entries, 3 * _CLUSTER),  # no encryption; the L1 table
        *(_CLUSTER, 1, 0, 0),  # the refcount table, of one cluster; no snapshots
        *(0, 0, 0, _REFCOUNT_ORDER, _HEADER.size),  # no features
    )
    with path.open("xb") as file:
        file.write(header + extensions + name)
        file.seek(_CLUSTER)
        file.write(struct.pack(">Q", 2 * _CLUSTER))
        file.seek(2 * _CLUSTER)
        file.write(struct.pack(">H", 1) * clusters)
        file.truncate(clusters * _CLUSTER)  # the L1 table is zeros: everything is still in the base


def overlay_flaw(path: Path, base: Path) -> str | None:
    """Why ``path`` is not an overlay on exactly ``base``; None when it is. A guest cannot change what is looked at here."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or head[:4] != _MAGIC:
                return "is not a qcow2 file"
            fields = _HEADER.unpack(head)
            file.seek(fields[2])
            name = file.read(min(fields[3], _NAME_LIMIT))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if fields[1] != 3 or fields[13] & _EXTERNAL_DATA:
        return "is not an overlay of ours"
    if not name or not fields[2]:
        return "has no base"
    if name != os.fsencode(base):
        return f"has another base, {os.fsdecode(name)!r}"
    return None if base.is_file() else f"has lost its base {base}"


def overlay_base(head: bytes) -> Path | None:
    """The base that a qcow2 file names, given its first 4096 bytes or more; None when it names none there."""
    fields = _HEADER.unpack_from(head) if len(head) >= _HEADER.size else None
    if fields is None or not fields[3] or fields[3] > _NAME_LIMIT:
        return None
    return Path(os.fsdecode(head[fields[2] : fields[2] + fields[3]]))
