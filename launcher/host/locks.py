"""Who holds a file's lock: VMMs lock the disks they have open (open file description locks, fcntl(2)).

Looked at, never taken. A lock belongs to an inode: of a block device it is seen only by those who open the same node.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path
from typing import Literal

_FLOCK = "hhqqi4x"  # struct flock, 64 bits: type, whence, start, length, pid
_HELD = re.compile(r"^lock:\s+\d+: \S+\s+\S+\s+\S+\s+\S+ (\S+) ", re.MULTILINE)  # proc_pid_fdinfo(5)


def held_lock(fd: int) -> Literal["read", "write"] | None:
    """The lock that another open file holds on any byte of this one. Raises nothing: what cannot be asked is not locked."""
    ask = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, ask)
    except OSError:
        return None
    kind = struct.unpack(_FLOCK, answer)[0]
    return {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write"}.get(kind)  # type: ignore[return-value]  # the keys' literals


def holder(fd: int) -> str | None:
    """Whose lock it is, as ``command (pid N)``; None when that process cannot be seen: it is of another container, say."""
    node = os.fstat(fd)
    wanted = f"{os.major(node.st_dev):02x}:{os.minor(node.st_dev):02x}:{node.st_ino}"
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                held = any(wanted in _HELD.findall(info.read_text()) for info in (entry / "fdinfo").iterdir())
                if held:
                    return f"{(entry / 'comm').read_text().strip()} (pid {entry.name})"
            except OSError:
                continue  # it is gone, or none of our business
    return None
