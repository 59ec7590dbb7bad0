from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.codec import DoesNotFit, from_json, to_json


@dataclass(frozen=True, slots=True)
class Inner:
    name: str
    pair: tuple[int, str] = (0, "")


@dataclass(frozen=True, slots=True)
class Outer:
    number: int
    inner: Inner
    many: tuple[Inner, ...] = ()
    path: Path | None = None
    free: dict[str, Any] | None = None
    share: float = 0.0


FULL = Outer(
    1, Inner("a", (2, "b")), (Inner("c"), Inner("d", (3, "e"))), Path("/x"), {"any": [1, None, {"deep": True}]}, 0.5
)


@pytest.mark.parametrize("value", [FULL, Outer(0, Inner(""))])
def test_a_value_comes_back_through_json_text(value: Outer) -> None:
    assert from_json(Outer, json.loads(json.dumps(to_json(value)))) == value


def test_defaults_stay_out() -> None:
    assert to_json(Outer(0, Inner("a"))) == {"number": 0, "inner": {"name": "a"}}


def test_bytes_show_as_length_and_digest_only() -> None:
    assert to_json((b"hunter2",)) == [{"bytes": 7, "sha256": hashlib.sha256(b"hunter2").hexdigest()}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "$: expected an object, got list"),
        ({"number": 1}, "inner"),
        ({"number": 1, "inner": {"name": "a"}, "extra": 1}, "$.extra: unknown field"),
        ({"number": "1", "inner": {"name": "a"}}, "$.number: expected int, got str"),
        ({"number": True, "inner": {"name": "a"}}, "$.number: expected int, got bool"),
        ({"number": None, "inner": {"name": "a"}}, "$.number: expected int, got NoneType"),
        ({"number": 1, "inner": {"name": "a", "pair": [1]}}, "$.inner.pair: expected a list"),
        ({"number": 1, "inner": {"name": "a"}, "many": [{"name": "b"}, {"name": 2}]}, "$.many[1].name: expected str"),
        ({"number": 1, "inner": {"name": "a"}, "path": 3}, "$.path: expected Path, got int"),
        ({"number": 1, "inner": {"name": "a"}, "free": []}, "$.free: expected"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(value: object, message: str) -> None:
    with pytest.raises(DoesNotFit) as raised:
        from_json(Outer, value)
    assert message in str(raised.value)
