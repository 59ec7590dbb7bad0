"""How far a long build is: counted as it goes, told now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Advance:
    """Where a stage is: bytes ``done`` of ``total``, ``entries`` of the tree so far, ``seconds`` since the stage began."""

    stage: str
    done: int
    total: int
    entries: int
    seconds: float

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return min(self.done / self.total, 1.0) if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None when nothing is done yet."""
        return self.seconds * (1 / self.share - 1) if self.share else None

    def __str__(self) -> str:
        told = f"{self.stage}: {self.share:.0%}, {self.done // _MB} of {self.total // _MB} MB"
        if self.entries:
            told += f", {self.entries} entries"
        left = self.seconds_left
        return told if left is None else f"{told}, {left:.0f} s left"


class Meter:
    """Counts a stage's bytes and entries; ``tell`` hears of them every so many seconds, first after that time."""

    def __init__(
        self, tell: Callable[[Advance], None], every: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._every = every
        self._clock = clock
        self.begin("", 0)

    def begin(self, stage: str, total: int) -> None:
        """The next stage, of ``total`` bytes."""
        self._stage, self._total = stage, total
        self._done = self._entries = 0
        self._began = self._told = self._clock()

    def add(self, done: int, entries: int = 0) -> None:
        """So much more is done."""
        self._done += done
        self._entries += entries
        now = self._clock()
        if now - self._told >= self._every:
            self._told = now
            self._tell(
                Advance(self._stage, min(self._done, self._total), self._total, self._entries, now - self._began)
            )
