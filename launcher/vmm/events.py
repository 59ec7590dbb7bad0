"""The VMM's event monitor: pretty-printed JSON objects, each followed by a blank line, written to a file or a pipe.

    {"timestamp": {"secs": 0, "nanos": 238394}, "source": "vm", "event": "booted", "properties": null}

A raw line break cannot occur inside a JSON string, so a blank line always ends an object, even after one that was cut
off. Events are told at the start of a step (``booting``) whether it then succeeds or not. Source: event_monitor/src/lib.rs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIMIT = 1 << 20  # bytes without a blank line that are kept; an event has a few hundred


@dataclass(frozen=True, slots=True)
class VmmEvent:
    """``timestamp`` is seconds since the VMM's start. The source is vmm, vm, guest, virtio-device or vdpa."""

    source: str
    event: str
    properties: Mapping[str, str] = field(default_factory=dict)
    timestamp: float = 0.0


class EventStream:
    """Feed it what was read. ``skipped`` counts pieces that were no event; an unfinished tail just waits for more."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.skipped = 0

    def feed(self, data: bytes) -> tuple[VmmEvent, ...]:
        """The events that became complete, in order."""
        self._buffer += data
        *pieces, tail = bytes(self._buffer).split(b"\n\n")
        if len(tail) > _LIMIT:
            self.skipped += 1
            tail = b""
        self._buffer[:] = tail
        return tuple(event for piece in pieces if piece.strip() and (event := self._decode(piece)))

    def _decode(self, piece: bytes) -> VmmEvent | None:
        event = _event(piece)
        if event is not None:
            return event
        self.skipped += 1
        # A writer that died in the middle of an object is followed by a new object, whose brace begins a line.
        restart = piece.rfind(b"\n{\n")
        return _event(piece[restart:]) if restart >= 0 else None


def _event(piece: bytes) -> VmmEvent | None:
    try:
        value: Any = json.loads(piece)
        stamp = value["timestamp"]
        return VmmEvent(
            str(value["source"]),
            str(value["event"]),
            {str(name): str(text) for name, text in (value["properties"] or {}).items()},
            stamp["secs"] + stamp["nanos"] / 1e9,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
