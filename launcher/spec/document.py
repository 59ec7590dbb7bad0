"""From bytes to a JSON tree, refusing what other readers of the same file would read differently."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, NoReturn, Self

from launcher.errors import SpecInvalid, SpecProblem
from launcher.spec.jsonpath import Path, quote, render

if TYPE_CHECKING:
    from collections.abc import Iterator

_SURROGATE = re.compile("[\ud800-\udfff]")


class Real(float):
    """A number written with a fraction or an exponent, and how it was written: quantities are read exactly."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number


class _Unreadable(Exception):
    """Raised inside the JSON reader's hooks, where the place in the text is not known."""


class _Object(dict[str, object]):
    """An object that remembers the keys it was given more than once."""

    repeated: tuple[str, ...] = ()


def decode(document: bytes) -> object:
    """The document's value: dicts, lists, str, int, ``Real``, bool and None.

    Raises SpecInvalid with one problem at ``$`` when it is not one JSON value in UTF-8, and with one problem per place
    for keys given twice and for text that is not Unicode.
    """
    try:
        text = document.decode()
    except UnicodeDecodeError as error:
        _refuse(f"not UTF-8 text: byte 0x{document[error.start]:02x} at offset {error.start}")
    if not text.strip():
        _refuse("the document is empty")
    if text.startswith("\ufeff"):
        _refuse("not JSON: it starts with a byte order mark")
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" starting at").rstrip(": ")
        _refuse(f"not JSON at line {error.lineno}, column {error.colno}: {what}")
    except _Unreadable as error:
        _refuse(f"not JSON: {error}")
    except RecursionError:
        _refuse("nested too deeply")
    problems = tuple(_flaws(value))
    if problems:
        raise refusal(problems)
    return value


def refusal(problems: tuple[SpecProblem, ...]) -> SpecInvalid:
    """The error for these problems, counted in its message."""
    count = len(problems)
    return SpecInvalid(f"the spec has {count} problem{'' if count == 1 else 's'}", problems=problems)


def _refuse(message: str) -> NoReturn:
    raise refusal((SpecProblem("$", message),)) from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = _Object(pairs)
    if len(members) < len(pairs):
        members.repeated = tuple(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return members


def _finite(text: str) -> str:
    if math.isinf(float(text)):
        raise _Unreadable(f"the number {text[:20]}{'…' if len(text) > 20 else ''} is out of range")
    return text


def _integer(text: str) -> int:
    return int(_finite(text))


def _real(text: str) -> Real:
    return Real(_finite(text))


def _constant(text: str) -> NoReturn:
    raise _Unreadable(f"{text} is not a number in JSON")


def _flaws(root: object) -> Iterator[SpecProblem]:
    """What the JSON reader lets pass; in document order, without recursion, for the tree may be deep."""
    pending: list[tuple[Path, object]] = [((), root)]
    while pending:
        path, value = pending.pop()
        match value:
            case str() if _SURROGATE.search(value):
                yield SpecProblem(render(path), "not Unicode text: it holds half of a surrogate pair")
            case _Object():
                for key in value:
                    if _SURROGATE.search(key):
                        yield SpecProblem(render(path), f"the key {quote(key)} is not Unicode text")
                for key in value.repeated:
                    yield SpecProblem(render((*path, key)), "given more than once in the same object")
                pending.extend(((*path, key), member) for key, member in reversed(value.items()))
            case list():
                pending.extend(((*path, at), value[at]) for at in reversed(range(len(value))))
            case _:
                pass
