from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.spec.quantity import NANO, Quantity, format_bytes, parse_quantity
from tests.unit.spec.samples import PROPERTY

# Written out on their own, so that a wrong table in the code cannot agree with itself.
FACTORS = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(1000),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(1024),
    "Mi": Fraction(1024**2),
    "Gi": Fraction(1024**3),
    "Ti": Fraction(1024**4),
    "Pi": Fraction(1024**5),
    "Ei": Fraction(1024**6),
}
NUMBERS = st.from_regex(r"[0-9]{1,18}(\.[0-9]{0,12})?|\.[0-9]{1,12}", fullmatch=True).filter(str.isascii)
SIGNS = st.sampled_from(["", "+", "-"])


def away_from_zero(value: Fraction) -> int:
    return ceil(value) if value > 0 else -ceil(-value)


@PROPERTY
@given(SIGNS, NUMBERS, st.sampled_from(sorted(FACTORS)))
def test_a_suffix_multiplies_exactly(sign: str, number: str, suffix: str) -> None:
    value = Fraction(f"{sign}{number}") * FACTORS[suffix]
    quantity = parse_quantity(f"{sign}{number}{suffix}")
    assert quantity.nanos == away_from_zero(value * NANO)
    if (value * NANO).denominator == 1:
        assert quantity.ceil() == ceil(value)


@PROPERTY
@given(SIGNS, NUMBERS, st.sampled_from("eE"), st.integers(-40, 60))
def test_an_exponent_multiplies_exactly(sign: str, number: str, letter: str, exponent: int) -> None:
    value = Fraction(f"{sign}{number}") * Fraction(10) ** exponent
    assert parse_quantity(f"{sign}{number}{letter}{exponent}").nanos == away_from_zero(value * NANO)


@PROPERTY
@given(st.integers(1, 2**63 - 1))
def test_bytes_are_printed_so_that_they_read_the_same(size: int) -> None:
    assert parse_quantity(format_bytes(size)).ceil() == size


@PROPERTY
@given(st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    try:
        outcome = str(parse_quantity(text))
    except ValueError as error:
        outcome = str(error)
    assert outcome.startswith(("Quantity(", "not a quantity: "))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 1),
        ("1n", 1),
        ("1.5Gi", 3 << 29),
        ("1E", 10**18),
        ("1E3", 1000),
        ("1e-3", 1),
        ("2000m", 2),
        ("2001m", 3),
        ("-0.5", 0),
    ],
)
def test_a_whole_value_is_rounded_up(text: str, value: int) -> None:
    assert parse_quantity(text).ceil() == value


def test_what_is_below_a_billionth_counts_as_one() -> None:
    assert parse_quantity("0.0000000001") == parse_quantity("1e-99999999999999999999") == Quantity(1)


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "+", "Gi", "1Gib", "1gi", "1K", "1 Gi", "1Gi ", "1Gi\n", "1e", "1e+", "1e1.5", "1Gie3", "0x10", "1_000",
     "--1", "1,5", "Infinity", "nan", "٣", "1e401", "1" * 129],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


def test_the_longest_quantity_is_still_read() -> None:
    assert parse_quantity("0" * 127 + "7") == Quantity.of(7)
    assert parse_quantity("1e400") == Quantity.of(10**400)


def test_amounts_are_compared_exactly() -> None:
    assert parse_quantity("2") == parse_quantity("2000m") != parse_quantity("2000000001n")
    assert parse_quantity("1Ki") > parse_quantity("1k")
    assert parse_quantity("256Mi") + parse_quantity("1Gi") == Quantity.of(1280 << 20)
    assert format_bytes(1280 << 20) == "1280Mi"
