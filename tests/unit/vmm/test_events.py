from __future__ import annotations

import json

from launcher.vmm.events import EventStream, VmmEvent


def encoded(source: str, event: str, properties: dict[str, str] | None = None) -> bytes:
    value = {"timestamp": {"secs": 2, "nanos": 500_000_000}, "source": source, "event": event, "properties": properties}
    return json.dumps(value, indent=2).encode() + b"\n\n"


REMOVED = VmmEvent("vm", "device-removed", {"id": "disk\n\n1", "bdf": "0000:00:02.0"}, 2.5)
RAW = encoded("vmm", "starting") + encoded("vm", "device-removed", {"id": "disk\n\n1", "bdf": "0000:00:02.0"})


def test_events_are_decoded_in_order() -> None:
    stream = EventStream()
    assert stream.feed(RAW) == (VmmEvent("vmm", "starting", {}, 2.5), REMOVED)
    assert stream.skipped == 0


def test_events_may_arrive_in_any_pieces() -> None:
    stream = EventStream()
    events = [event for i in range(len(RAW)) for event in stream.feed(RAW[i : i + 1])]
    assert [event.event for event in events] == ["starting", "device-removed"]


def test_an_unfinished_tail_waits() -> None:
    stream = EventStream()
    assert stream.feed(RAW[:-1])[-1].event == "starting"
    assert stream.feed(b"\n") == (REMOVED,)


def test_garbage_is_skipped_and_counted() -> None:
    stream = EventStream()
    events = stream.feed(b"noise\n\n[1]\n\n{}\n\n" + encoded("vm", "booted"))
    assert [event.event for event in events] == ["booted"]
    assert stream.skipped == 3


def test_an_object_that_was_cut_does_not_swallow_the_next() -> None:
    stream = EventStream()
    events = stream.feed(encoded("vm", "booting")[:40] + b"\n" + encoded("vm", "booted"))
    assert [event.event for event in events] == ["booted"]
    assert stream.skipped == 1


def test_endless_noise_is_not_kept() -> None:
    stream = EventStream()
    for _ in range(3):
        stream.feed(b"x" * (1 << 20))
    assert stream.skipped >= 1
    assert stream.feed(b"\n\n" + encoded("vm", "booted"))[-1].event == "booted"
