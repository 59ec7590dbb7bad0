"""Places in a JSON document as users know them, and how names are shown and guessed in messages."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

Path: TypeAlias = tuple[str | int, ...]
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_LONGEST_QUOTE = 63
_MOST_CANDIDATES = 200  # guessing among more takes long for every wrong name, and helps nobody


def quote(text: str) -> str:
    """A user's text for a message: quoted, shortened, safe to print."""
    return json.dumps(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "...")


def render(path: Path) -> str:
    """A path as users know it: ``$.spec.instance.disks[1].readOnly``."""
    steps = (
        f".{step}"
        if isinstance(step, str) and _PLAIN_KEY.fullmatch(step)
        else f"[{step if isinstance(step, int) else quote(step)}]"
        for step in path
    )
    return "$" + "".join(steps)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """``, did you mean X?`` for the nearest known name, or nothing when none is near."""
    if len(known) > _MOST_CANDIDATES:
        return ""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name[:_LONGEST_QUOTE].lower(), by_lower, n=1)
    return f", did you mean {by_lower[near[0]]}?" if near else ""
