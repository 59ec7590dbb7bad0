"""The event monitor."""

from __future__ import annotations

import json
import os
import time


class Events:
    """Written to ``fd``, a file or a pipe; what a full pipe does not take is lost, as with the real one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.start = time.monotonic_ns()
        if fd >= 0:
            os.set_blocking(fd, False)

    def tell(self, source: str, event: str, /, **properties: str) -> None:
        if self.fd < 0:
            return
        secs, nanos = divmod(time.monotonic_ns() - self.start, 1_000_000_000)
        value = {
            "timestamp": {"secs": secs, "nanos": nanos},
            "source": source,
            "event": event,
            "properties": properties or None,
        }
        try:
            os.write(self.fd, json.dumps(value, indent=2).encode() + b"\n\n")
        except BlockingIOError:
            return
