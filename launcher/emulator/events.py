"""The event monitor: one JSON object per event on a file or pipe, as cloud-hypervisor's ``--event-monitor`` writes them."""

from __future__ import annotations

import json
import os
import time


class Events:
    """Writes events to ``fd``, or nowhere when it is None. Timestamps count from the object's making.

    The descriptor is non-blocking: a pipe that nobody drains loses events, as with the real one.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._began = time.monotonic_ns()
        if fd is not None:
            os.set_blocking(fd, False)

    def emit(self, source: str, event: str, properties: dict[str, str] | None = None) -> None:
        if self._fd is None:
            return
        secs, nanos = divmod(time.monotonic_ns() - self._began, 1_000_000_000)
        record = {
            "timestamp": {"secs": secs, "nanos": nanos},
            "source": source,
            "event": event,
            "properties": properties,
        }
        try:
            os.write(self._fd, (json.dumps(record, indent=2) + "\n\n").encode())
        except (BlockingIOError, BrokenPipeError):
            return
