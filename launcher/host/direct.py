"""Whether files take direct I/O, and in which blocks: asked of the kernel, since file systems differ and lie.

A VMM that opens a disk past the page cache shows the guest sectors of the size that direct I/O needs. A disk written for
sectors of 512 bytes does not boot with others (cloud-hypervisor issue 8477), so the size matters as much as the yes or no.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# linux/stat.h, linux/fcntl.h
_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_SIZE = 256  # of struct statx
_DIO_OFFSET_ALIGN = 0x9C  # where it has the field

_BLOCKS = (512, 4096)  # what is tried where the kernel does not say
_LIBC = ctypes.CDLL(None, use_errno=True)


def block_of(fd: int) -> int:
    """The size of the blocks that direct I/O on an open file or block device goes by, in bytes; 0 when it takes none.

    ``fd`` is open for reading. Linux says it since 6.1 for files, since 6.11 for block devices; else a read is tried.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _LIBC.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) == 0:
        (mask,) = struct.unpack_from("=I", buffer)
        if mask & _STATX_DIOALIGN:
            (align,) = struct.unpack_from("=I", buffer, _DIO_OFFSET_ALIGN)
            return int(align)
    return _try_to_read(fd)


def _try_to_read(fd: int) -> int:
    """The smallest block that can be read. The file has to have data: of a hole nothing is read."""
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:  # aligned for anybody
            for block in _BLOCKS:
                try:
                    with memoryview(page)[:block] as part:
                        os.preadv(direct, [part], block)
                except OSError:
                    continue
                return block
    finally:
        os.close(direct)
    return 0


def block_below(folder: Path) -> int:
    """The same for a file that will be made in ``folder``: an unnamed file is made there, which nobody sees, and is gone.

    0 as well where none can be made.
    """
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return 0
    try:
        os.write(fd, bytes(2 * _BLOCKS[-1]))
        return block_of(fd)
    except OSError:
        return 0
    finally:
        os.close(fd)
