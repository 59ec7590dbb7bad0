"""What is refused before any field is looked at: each with one clear sentence at ``$``."""

from __future__ import annotations

import pytest

from launcher.errors import SpecInvalid
from launcher.spec.load import load
from tests.unit.spec.samples import GOLDEN, encode, problems_of

GOOD = encode(GOLDEN)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "the document is empty"),
        (b" \n\t", "the document is empty"),
        (b"\xff\xfe{\x00", "not UTF-8 text: byte 0xff at offset 0"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 text: byte 0xed at offset 7"),
        (b"\xef\xbb\xbf{}", "not JSON: it starts with a byte order mark"),
        (b"apiVersion: v1\n", "not JSON at line 1, column 1: Expecting value"),
        (b'{\n  "kind": "Vir', "not JSON at line 2, column 11: Unterminated string"),
        (b'{"a": 1,\n}', "not JSON at line 2, column 1: Expecting property name enclosed in double quotes"),
        (b'{"a": 1} {}', "not JSON at line 1, column 10: Extra data"),
        (b'{"a": NaN}', "not JSON: NaN is not a number in JSON"),
        (b'{"a": -Infinity}', "not JSON: -Infinity is not a number in JSON"),
        (b'{"a": 1e400}', "not JSON: the number 1e400 is out of range"),
        (b'{"a": -' + b"9" * 5000 + b"}", "not JSON: the number -9999999999999999999… is out of range"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
        (b"[]", "expected object, got array"),
        (b"7", "expected object, got number"),
        (b"1.5", "expected object, got number"),
        (b'"text"', "expected object, got string"),
        (b"true", "expected object, got boolean"),
        (b"null", "required"),
    ],
)
def test_what_is_no_json_object_is_one_problem_at_the_root(document: bytes, message: str) -> None:
    assert [(problem.path, problem.message) for problem in problems_of(document)] == [("$", message)]


def test_keys_given_twice_are_named_with_their_places() -> None:
    twice = GOOD.replace(b'"size": "2Gi"', b'"size": "2Gi", "size": "3Gi"').replace(
        b'"name": "web"', b'"name": "a", "name": "web"'
    )
    assert [str(problem) for problem in problems_of(twice)] == [
        "$.metadata.name: given more than once in the same object",
        "$.spec.instance.memory.size: given more than once in the same object",
    ]


def test_half_a_surrogate_pair_is_not_text_wherever_it_is() -> None:
    torn = GOOD.replace(b'"shop"', rb'"shop\ud800"').replace(b'"runPolicy"', rb'"\udfff": 1, "runPolicy"')
    assert [str(problem) for problem in problems_of(torn)] == [
        "$.metadata.namespace: not Unicode text: it holds half of a surrogate pair",
        r'$.spec: the key "\udfff" is not Unicode text',
    ]
    assert problems_of(GOOD.replace(b'"shop"', rb'"\ud83d\ude00"')) == ()


def test_deep_nesting_where_anything_may_be_is_harmless() -> None:
    deep = b"[" * 500 + b"]" * 500
    assert problems_of(GOOD.replace(b'{"apiVersion"', b'{"status": ' + deep + b', "apiVersion"')) == ()


def test_the_error_counts_its_problems_and_prints_one_per_line() -> None:
    with pytest.raises(SpecInvalid) as one:
        load(b"")
    assert one.value.message == "the spec has 1 problem"
    assert str(one.value) == "$: the document is empty"
    with pytest.raises(SpecInvalid) as three:
        load(b'{"kind": "VirtualMachine"}')
    assert three.value.message == "the spec has 3 problems"
    assert len(str(three.value).splitlines()) == 3
