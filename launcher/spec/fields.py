"""How kinds of fields that several objects have are read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from launcher.spec.jsonpath import quote

if TYPE_CHECKING:
    from launcher.spec.cursor import Cursor
    from launcher.spec.quantity import Quantity

_MAX_INT64 = (1 << 63) - 1
_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_T = TypeVar("_T")


def label(cursor: Cursor) -> str:
    """A name that becomes a path."""
    name = cursor.required_text()
    if name and not _DNS_LABEL.fullmatch(name):
        cursor.problem(
            f"{quote(name)} is not a DNS label: at most 63 lower-case letters, digits and -, a letter or digit at both ends"
        )
    return name


def link_name(cursor: Cursor) -> str:
    """A name that becomes part of a file's or a device's name, but that the API leaves free."""
    name = cursor.required_text()
    if len(name) > 63:
        cursor.problem("must be at most 63 characters")
    elif "/" in name or "\0" in name:
        cursor.problem(f"{quote(name)} holds a / or a NUL")
    elif name.startswith("__"):
        cursor.problem(f"{quote(name)} starts with __, which cloud-hypervisor keeps for itself")
    return name


def image(source: Cursor) -> str:
    """The image of an object that names one, with its pull policy beside it."""
    source.get("imagePullPolicy").text()  # the kubelet's business; the API only wants a string
    return source.get("image").required_text()


def size_in_bytes(cursor: Cursor, size: Quantity) -> int:
    """A size in whole bytes, which must be positive and fit a signed 64-bit integer."""
    value = size.ceil()
    if value <= 0:
        cursor.problem("must be greater than 0")
    elif value > _MAX_INT64:
        cursor.problem("must be less than 8Ei")
    return value


def single(parent: Cursor, given: dict[str, _T], what: str) -> _T | None:
    """The first of several alternatives in the API's order, the others being problems."""
    for extra in list(given)[1:]:
        parent.get(extra).problem(f"may not specify more than 1 {what}: {next(iter(given))} is given too")
    return next(iter(given.values()), None)
