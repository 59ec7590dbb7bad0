"""A place in a JSON document that can be read as this or that, and that writes down what is wrong instead of raising.

So that a reader gets every problem at once, each reading function returns something usable (the default, or an empty
stand-in) after it has logged a problem; what was built from stand-ins is never handed out, because the log is not empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from launcher.errors import SpecProblem
from launcher.spec.document import Real
from launcher.spec.jsonpath import Path, did_you_mean, quote, render
from launcher.spec.quantity import Quantity, parse_quantity

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(slots=True)
class Log:
    """The problems and warnings of one document."""

    unknown_fields: Literal["fail", "warn"] = "fail"
    problems: list[tuple[Path, str]] = field(default_factory=list)
    warnings: list[tuple[Path, str]] = field(default_factory=list)
    _failed: set[Path] = field(default_factory=set)

    def problem(self, path: Path, message: str) -> None:
        self.problems.append((path, message))
        self._failed.add(path)

    def unknown(self, path: Path, message: str) -> None:
        if self.unknown_fields == "warn":
            self.warnings.append((path, message))
        else:
            self.problem(path, message)

    def failed(self, path: Path) -> bool:
        """Whether a problem was found at exactly this place; rules about it then say nothing more."""
        return path in self._failed


def in_document_order(found: list[tuple[Path, str]], document: object) -> tuple[SpecProblem, ...]:
    """Sort by place; what is missing comes after what its parent holds, a parent before its members."""
    ranks: dict[int, dict[object, int]] = {}

    def position(entry: tuple[Path, str]) -> list[int]:
        place: list[int] = []
        value = document
        for step in entry[0]:
            if isinstance(value, dict) and step in value:
                if id(value) not in ranks:
                    ranks[id(value)] = {key: rank for rank, key in enumerate(value)}
                place.append(ranks[id(value)][step])
                value = value[step]
            elif isinstance(value, list) and isinstance(step, int):
                place.append(step)
                value = value[step]
            else:
                place.append(len(value) if isinstance(value, dict | list) else 0)
                break
        return place

    return tuple(SpecProblem(render(path), message) for path, message in sorted(found, key=position))


@dataclass(frozen=True, slots=True)
class Cursor:
    """A value and its place. ``None`` is JSON's null or nothing at all: both mean unset."""

    value: object
    path: Path
    log: Log

    @property
    def present(self) -> bool:
        return self.value is not None

    def problem(self, message: str) -> None:
        self.log.problem(self.path, message)

    def get(self, name: str) -> Cursor:
        """The member of this object; call it on what ``object`` returned."""
        member = self.value.get(name) if isinstance(self.value, dict) else None
        return Cursor(member, (*self.path, name), self.log)

    def object(self, known: Collection[str] | None = None) -> Cursor:
        """This place as an object, its unknown fields reported when ``known`` names the others.

        When it is something else that is said once, and the cursor returned logs nowhere, so that no member is reported as
        missing from what was never an object.
        """
        if self.value is None:
            return self
        if not isinstance(self.value, dict):
            self._mismatch("object")
            return Cursor(None, self.path, Log())
        if known is not None:
            for name in self.value:
                if name not in known:
                    self.log.unknown((*self.path, name), f"unknown field{did_you_mean(name, known)}")
        return self

    def required_object(self, known: Collection[str] | None = None) -> Cursor:
        """Like ``object``; unset is a problem."""
        if self.value is None:
            self.problem("required")
            return Cursor(None, self.path, Log())
        return self.object(known)

    def items(self) -> tuple[Cursor, ...]:
        """This place as an array; unset is an empty one, but a null among the items is a problem."""
        if self.value is None:
            return ()
        if not isinstance(self.value, list):
            self._mismatch("array")
            return ()
        found = tuple(Cursor(item, (*self.path, at), self.log) for at, item in enumerate(self.value))
        return tuple(item if item.present else item.required_object() for item in found)

    def text(self) -> str:
        """This place as a string; unset is empty, as in Go."""
        if self.value is None or isinstance(self.value, str):
            return self.value or ""
        self._mismatch("string")
        return ""

    def required_text(self) -> str:
        """Like ``text``; unset or empty is a problem."""
        text = self.text()
        if not text and not self.log.failed(self.path):
            self.problem("required")
        return text

    def boolean(self) -> bool:
        """This place as a boolean; unset is false."""
        if self.value is None or isinstance(self.value, bool):
            return bool(self.value)
        self._mismatch("boolean")
        return False

    def integer(self, *, most: int) -> int:
        """This place as an integer between 0 and ``most``; unset is 0. 2.0 is an integer to Kubernetes too."""
        value = int(self.value) if isinstance(self.value, Real) and self.value.is_integer() else self.value
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            self._mismatch("integer")
            return 0
        if not 0 <= value <= most:
            self.problem("must not be negative" if value < 0 else f"must be at most {most}")
            return 0
        return value

    def quantity(self) -> Quantity | None:
        """This place as a Kubernetes quantity, a string or a number; None when it is unset or wrong."""
        match self.value:
            case None:
                return None
            case str():
                text = self.value
            case bool():
                self._mismatch("quantity")
                return None
            case Real():
                text = self.value.text
            case int():
                text = str(self.value)
            case _:
                self._mismatch("quantity")
                return None
        try:
            return parse_quantity(text)
        except ValueError as error:
            self.problem(f"{quote(text)} is {error}")
            return None

    def _mismatch(self, expected: str) -> None:
        self.problem(f"expected {expected}, got {_kind(self.value)}")


def _kind(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "null"
