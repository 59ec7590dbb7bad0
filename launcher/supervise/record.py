"""What the launcher leaves behind in the run directory: events, state, timeline, result, and the termination message.

Nothing here may stop a VM: a full disk costs a line of a log, not the guest. Format: docs/reference/run-directory.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from launcher.supervise.bounded_log import BoundedLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from launcher.paths import Paths
    from launcher.supervise.outcome import Outcome

_log = logging.getLogger(__name__)

TERMINATION_LOG = Path("/dev/termination-log")
HINT_LIMIT = 500  # characters of a remedy, where the message had to be cut
RESULT_LIMIT = 4096  # bytes; the kubelet cuts a termination message there
EVENTS_KEPT = 256  # in memory, for clients that ask what happened
_NONE: Mapping[str, object] = MappingProxyType({})
EVENTS_LIMIT = 8 << 20  # bytes of events.jsonl before it becomes events.jsonl.1


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, with milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


class Record:
    """The launcher's memory of one run. ``ms`` in everything it writes counts from the launcher's start."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._started = time.time()
        self._zero = time.monotonic()
        self._timeline: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.followers: list[Callable[[dict[str, Any]], None]] = []
        for old in (paths.result, paths.timeline, paths.state):
            old.unlink(missing_ok=True)
        self._log = BoundedLog(paths.events, EVENTS_LIMIT)

    def ms(self) -> int:
        """Milliseconds since the launcher's start."""
        return round((time.monotonic() - self._zero) * 1000)

    def event(self, name: str, fields: Mapping[str, object] = _NONE, *, warning: bool = False) -> None:
        """Put one event into the stream, and into our log."""
        entry = {"time": timestamp(time.time()), "ms": self.ms(), "event": name, **fields}
        self.events.append(entry)
        del self.events[:-EVENTS_KEPT]
        self._log.write(json.dumps(entry).encode() + b"\n")
        _log.log(logging.WARNING if warning else logging.INFO, name, extra={"fields": dict(fields)})
        for follower in tuple(self.followers):
            follower(entry)

    def mark(self, name: str, *, took_ms: int | None = None) -> None:
        """Put a point on the boot timeline, the first time it is reached."""
        if any(point["name"] == name for point in self._timeline):
            return
        point: dict[str, Any] = {"name": name, "ms": self.ms()}
        if took_ms is not None:
            point["tookMs"] = took_ms
        self._timeline.append(point)
        self._write(self._paths.timeline, {"startedAt": timestamp(self._started), "points": self._timeline})

    def state(self, **fields: object) -> None:
        """Replace state.json."""
        self._write(self._paths.state, {"pid": os.getpid(), "startedAt": timestamp(self._started), **fields})

    def result(self, outcome: Outcome, *, phase: str, vmm: dict[str, Any], console: list[str]) -> None:
        """Write result.json and the termination message."""
        message = result_json(outcome, phase=phase, started=self._started, vmm=vmm, console=console)
        with contextlib.suppress(OSError):
            _replace(self._paths.result, message)
        tell_kubelet(message)

    def close(self) -> None:
        self._log.close()

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            _replace(path, json.dumps(value).encode() + b"\n")


def tell_kubelet(message: bytes) -> None:
    """Leave the termination message, where the kubelet mounted a file for it: that can be written, not replaced."""
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_bytes(message)


def result_json(
    outcome: Outcome,
    *,
    phase: str,
    started: float,
    vmm: Mapping[str, object] = _NONE,
    console: Sequence[str] = (),
) -> bytes:
    """The result as one JSON object of at most 4096 bytes: the oldest console lines go first, then long texts.

    ``started`` is seconds since the epoch.
    """
    text, hint = outcome.message, f" ({outcome.hint})" if outcome.hint else ""
    value: dict[str, Any] = {
        "reason": outcome.reason,
        "message": text + hint,
        "exitCode": outcome.exit_code,
        "phase": phase,
        "startedAt": timestamp(started),
        "finishedAt": timestamp(time.time()),
        "vmm": dict(vmm),
        "console": list(console),
    }
    while len(data := _encode(value)) > RESULT_LIMIT:
        if value["console"]:
            del value["console"][0]
        elif value["vmm"]:
            value["vmm"] = {}
        else:
            text = text[: len(text) * 3 // 4]
            value["message"] = f"{text} …{hint[:HINT_LIMIT]}"
    return data


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n"


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.touch(mode=0o600)
    aside.write_bytes(data)
    aside.replace(path)
