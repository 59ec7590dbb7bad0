"""Kubernetes quantities, exact: integers only, no floating point anywhere.

Source: k8s.io/apimachinery ``pkg/api/resource`` (quantity.go, suffix.go) and the pattern that Kubernetes puts on a quantity
in a CRD. A quantity is kept to one billionth, its finest step, and rounds away from zero below that. Unlike Kubernetes,
nothing is capped at 2^63-1: whoever reads a quantity decides what is too large.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NANO = 10**9
_PATTERN = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]+))?"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_LONGEST = 128  # characters; no honest quantity comes near, and the work stays bounded
_EXPONENT_LIMIT = 400  # beyond what a JSON number can say


@dataclass(frozen=True, slots=True, order=True)
class Quantity:
    """An exact amount in billionths."""

    nanos: int

    @classmethod
    def of(cls, value: int) -> Quantity:
        """A whole amount."""
        return cls(value * NANO)

    @property
    def is_zero(self) -> bool:
        return self.nanos == 0

    def ceil(self) -> int:
        """The amount as a whole number, rounded up, as Go's ``Quantity.Value()`` does: half a byte needs one byte."""
        return -(-self.nanos // NANO)

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.nanos + other.nanos)


def parse_quantity(text: str) -> Quantity:
    """Read a quantity such as ``1.5Gi``, ``500m`` or ``1e9``. Raises ``ValueError`` with a sentence when it is none."""
    match = _PATTERN.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None or not (match["whole"] or match["fraction"]):
        raise ValueError("not a quantity: a number with at most one suffix is, such as 512Mi, 1.5Gi or 2G")
    fraction = match["fraction"] or ""
    digits = int((match["whole"] or "") + fraction)
    exponent = int(match["exponent"] or 0)
    if exponent > _EXPONENT_LIMIT:
        raise ValueError("not a quantity: the exponent is too large")
    suffix = match["suffix"] or ""
    if suffix in _BINARY:
        scaled, tens = digits << _BINARY[suffix], 9 - len(fraction)
    else:
        # The floor keeps the division small; anything below a billionth rounds to one billionth all the same.
        scaled, tens = digits, max(_DECIMAL[suffix] + exponent, -_EXPONENT_LIMIT) + 9 - len(fraction)
    nanos = scaled * 10**tens if tens >= 0 else -(-scaled // 10**-tens)
    return Quantity(-nanos if match["sign"] == "-" else nanos)


def format_bytes(size: int) -> str:
    """A whole number of bytes in the largest binary suffix that divides it, as Kubernetes prints it."""
    for suffix, bits in reversed(_BINARY.items()):
        if size and size % (1 << bits) == 0:
            return f"{size >> bits}{suffix}"
    return str(size)
