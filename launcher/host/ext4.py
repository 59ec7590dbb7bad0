"""e2fsprogs: making an ext4 file system in a file, without any privilege. The only module that knows these programs.

Nothing depends on the machine's mke2fs.conf, and the features are those a guest of Linux 5.4 or later mounts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit, StorageFailed
from launcher.host import process
from launcher.host.ext4_tree import BLOCK, INODE
from launcher.image.tar import raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from launcher.host.ext4_tree import Extra
    from launcher.host.process import Finished

_OLDEST = (1, 47, 1)  # reads a tar by -d
_REMEDY = "install e2fsprogs 1.47.1 or later and libarchive13 in the launcher's image; Debian 12 has them in backports"
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_SMALLEST = 8 << 20  # bytes; below it there is no room for a journal
_FREE = re.compile(rb"^Free blocks:\s+(\d+)$", re.MULTILINE)
_BYTES_PER_INODE = 16384  # mke2fs's default for ext4
_NO_SPACE = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Ext4:
    """A file system to make: its size in bytes, how many inodes the tree takes, its identity and its time of birth.

    The same values and the same tree give the same bytes.
    """

    size: int
    inodes: int
    uuid: str
    created: int

    def argv(self, disk: Path) -> list[str]:
        # As many inodes as usual, more when the tree is made of small files; the guest needs some of its own.
        inodes = max(self.size // _BYTES_PER_INODE, self.inodes * 5 // 4 + 64)
        options = f"hash_seed={self.uuid},assume_storage_prezeroed=1,nodiscard"
        return [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-I", str(INODE), "-O", _FEATURES),
            *("-N", str(inodes), "-U", self.uuid, "-E", options),
            str(disk),
        ]

    @property
    def env(self) -> dict[str, str]:
        when = str(self.created)
        return {"MKE2FS_CONFIG": "/dev/null", "SOURCE_DATE_EPOCH": when, "E2FSPROGS_FAKE_TIME": when}


def check_programs() -> None:
    """Raise HostUnfit unless mke2fs is new enough to read a tar."""
    told = process.run(["mke2fs", "-V"])
    found = re.match(r"mke2fs (\d+)\.(\d+)(?:\.(\d+))?", told.stderr)
    if not found:
        raise HostUnfit(f"cannot tell the version of mke2fs: {told.failure}", hint=_REMEDY)
    if tuple(int(part or 0) for part in found.groups()) < _OLDEST:
        raise HostUnfit(f"{found[0]} cannot read a tar", hint=_REMEDY)


def _empty(disk: Path, size: int) -> None:
    with disk.open("wb") as file:
        os.ftruncate(file.fileno(), size)


def free_blocks(disk: Path, ext4: Ext4) -> int:
    """Blocks a new file system has for data; ``disk`` is overwritten. Takes milliseconds, whatever the size."""
    if ext4.size < max(_SMALLEST, ext4.inodes * INODE * 2):
        return 0
    _empty(disk, ext4.size)
    made = process.run(ext4.argv(disk), env=ext4.env)
    if made.returncode != 0:
        raise _failed(made)
    told = process.run(["dumpe2fs", "-h", str(disk)])
    found = _FREE.search(told.stdout)
    if not found:
        raise _failed(told)
    return int(found[1])


def make(disk: Path, ext4: Ext4, tar: Iterable[bytes | memoryview]) -> None:
    """Make the file system in ``disk`` with the tree of a tar stream in it.

    An error of the stream passes through. Raises StorageFailed, or HostUnfit when libarchive is missing.
    """
    _empty(disk, ext4.size)
    argv = ext4.argv(disk)
    made = process.feed([*argv[:-1], "-d", "-", argv[-1]], tar, env=ext4.env)
    if "you need libarchive" in made.stderr:
        raise HostUnfit("mke2fs cannot read a tar without libarchive", hint=_REMEDY)
    if made.returncode != 0:
        raise _failed(made)


def restore(disk: Path, ext4: Ext4, extras: Iterable[Extra], workspace: Path) -> None:
    """Put back attributes and times that mke2fs drops. ``workspace`` is a folder for the values. Raises StorageFailed."""
    done = process.feed(["debugfs", "-w", "-f", "-", str(disk)], _requests(extras, workspace), env=ext4.env)
    # Its status tells nothing; after the banner, every line on stderr is a failure.
    complaints = [line for line in done.stderr.splitlines() if line and not line.startswith("debugfs ")]
    if done.returncode != 0 or complaints:
        raise StorageFailed(
            f"debugfs could not restore file attributes: {complaints[-1] if complaints else done.failure}"
        )


def _requests(extras: Iterable[Extra], workspace: Path) -> Iterator[bytes]:
    """The script for debugfs, a line at a time."""
    values: dict[bytes, Path] = {}
    for extra in extras:
        path = _quoted(b"/" if extra.path == "." else b"/" + raw(extra.path))
        for name, value in extra.xattrs.items():
            if value not in values:
                values[value] = workspace / f"value-{len(values)}"
                values[value].write_bytes(value)
            yield b"ea_set -f %s %s %s\n" % (_quoted(os.fsencode(values[value])), path, name.encode())
        for field, number in extra.fields:
            yield b"sif %s %s 0x%x\n" % (path, field.encode(), number)


def _quoted(word: bytes) -> bytes:
    return b'"' + word.replace(b'"', b'""') + b'"'


def _failed(program: Finished) -> StorageFailed:
    if any(words in program.stderr for words in _NO_SPACE):
        return StorageFailed("no space is left for the disk", hint="make room, or mount a larger volume there")
    # The last line only says what was being done; the cause stands before it.
    cause = re.search(r"^handle_entry: (.*)$", program.stderr, re.MULTILINE)
    if cause and "Could not allocate" in cause[1]:
        return StorageFailed(f"the disk is too small for its tree: {cause[1]}", hint="give the volume a larger size")
    return StorageFailed(f"{program.argv[0]} failed: {cause[1]}" if cause else program.failure)
