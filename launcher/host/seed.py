"""The cloud-init seed as an ISO 9660 image with Rock Ridge and Joliet names. The only module that imports pycdlib."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import stat
from typing import TYPE_CHECKING, assert_never

import pycdlib

from launcher.errors import StorageFailed
from launcher.host.files import telling
from launcher.plan.types import SecretSeedFile, SeedFile
from launcher.spec.volumes import SEED_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from launcher.plan.types import BuildSeed

LABEL = "cidata"  # by which cloud-init finds the data source
_MODE = 0o100444

# ECMA-119, 8.4: the primary volume descriptor is sector 16, with 128 bytes for the application that wrote it at 574.
_DESCRIPTOR = 16 * 2048
_STANDARD = slice(1, 6)
_APPLICATION = slice(574, 702)
_MARK = b"LAUNCHER SEED "  # followed by the digest of the files in it


def write_seed(action: BuildSeed) -> bool:
    """The seed is there, readable by its owner alone; whether it was written now.

    One of ours with the same files is left alone; another is replaced whole. Raises StorageFailed.
    """
    files = {file.name: _content(file) for file in action.files}
    disk, mark = action.disk, _mark(files)
    with telling("write seed", disk):
        for stale in disk.parent.glob(f".{disk.name}.*.new"):
            stale.unlink(missing_ok=True)
        if _application(disk) == mark:
            return False
        aside = disk.with_name(f".{disk.name}.{secrets.token_hex(4)}.new")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_iso(files, mark))
                file.flush()
                os.fsync(fd)
            aside.replace(disk)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return True


def is_ours(disk: Path) -> bool:
    """Whether a launcher wrote this seed. False for one that somebody else prepared, and where nothing can be read."""
    try:
        return _application(disk).startswith(_MARK)
    except OSError:
        return False


def read_secret(path: Path) -> bytes:
    """The value of a Secret that is mounted as a file. Raises StorageFailed, also for one that is too large for a seed."""
    with telling("read", path):
        # Without waiting: what is no file may have nobody who writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StorageFailed(f"{path} is not a file")
            content = file.read(SEED_BYTES + 1)
    if len(content) > SEED_BYTES:
        raise StorageFailed(
            f"{path} has more than {SEED_BYTES} bytes", hint="let cloud-init fetch what is large, with #include"
        )
    return content


def _content(file: SeedFile | SecretSeedFile) -> bytes:
    match file:
        case SeedFile():
            return file.content
        case SecretSeedFile():
            return read_secret(file.path)
        case _:
            assert_never(file)


def _mark(files: Mapping[str, bytes]) -> bytes:
    total = hashlib.blake2b(digest_size=24)  # in UTF-16, for Joliet, the field has 64 letters
    for name, content in sorted(files.items()):
        total.update(f"{name} {len(content)}\n".encode() + content)
    return _MARK + total.hexdigest().upper().encode()


def _application(disk: Path) -> bytes:
    """Which application wrote the image; empty when it is none. Raises OSError."""
    try:
        fd = os.open(disk, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        descriptor = os.pread(fd, 2048, _DESCRIPTOR) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    return descriptor[_APPLICATION].rstrip() if descriptor[_STANDARD] == b"CD001" else b""


def _iso(files: Mapping[str, bytes], application: bytes) -> bytes:
    iso = pycdlib.PyCdlib()
    iso.new(
        interchange_level=1,
        vol_ident=LABEL,
        app_ident_str=application.decode(),
        joliet=3,
        rock_ridge="1.09",
    )
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
