"""The cloud-init seed as an ISO 9660 image with Rock Ridge and Joliet names. The only module that imports pycdlib."""

from __future__ import annotations

import io
import os
import secrets
from typing import TYPE_CHECKING

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from launcher.host.files import telling

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from launcher.plan.types import BuildSeed

LABEL = "cidata"  # by which cloud-init finds the data source
_MODE = 0o100444


def write_seed(action: BuildSeed) -> bool:
    """The seed is there, readable by its owner alone; whether it was written now.

    One with the same files is left alone; another is replaced whole. Raises StorageFailed.
    """
    files = {file.name: file.content for file in action.files}
    disk = action.disk
    with telling("write seed", disk):
        for stale in disk.parent.glob(f".{disk.name}.*.new"):
            stale.unlink(missing_ok=True)
        if read_seed(disk) == files:
            return False
        aside = disk.with_name(f".{disk.name}.{secrets.token_hex(4)}.new")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_iso(files))
                file.flush()
                os.fsync(fd)
            aside.replace(disk)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return True


def read_seed(disk: Path) -> dict[str, bytes] | None:
    """The files of a seed by name; None when there is none or it is no such image. Raises OSError."""
    if not disk.is_file():
        return None
    iso = pycdlib.PyCdlib()
    with disk.open("rb") as file:
        try:
            iso.open_fp(file)
            if iso.pvd.volume_identifier.rstrip() != LABEL.encode():
                return None
            found = {}
            for child in iso.list_children(joliet_path="/"):
                if child.is_file():
                    name = child.file_identifier().decode("utf-16-be")
                    content = io.BytesIO()
                    iso.get_file_from_iso_fp(content, joliet_path=f"/{name}")
                    found[name] = content.getvalue()
            iso.close()
        except (PyCdlibException, UnicodeDecodeError):
            return None
    return found


def _iso(files: Mapping[str, bytes]) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=1, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    for name, content in sorted(files.items()):
        # The bare ISO name has eight letters of the basic set; every system we know reads one of the other two.
        plain = name.replace("-", "").upper()[:8]
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            iso_path=f"/{plain}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=_MODE,
        )
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
