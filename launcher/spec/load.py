"""The room's door: a document in, a spec out, or every problem with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from launcher.spec.cursor import Cursor, Log, in_document_order
from launcher.spec.document import decode, refusal
from launcher.spec.jsonpath import quote
from launcher.spec.parse import API_VERSION, KIND, parse
from launcher.spec.rules import check

if TYPE_CHECKING:
    from launcher.errors import SpecProblem
    from launcher.spec.types import VmSpec


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid spec, and what is odd about it: unknown fields, when they only warn."""

    spec: VmSpec
    warnings: tuple[SpecProblem, ...]


def load(document: bytes, *, unknown_fields: Literal["fail", "warn"] = "fail") -> Loaded:
    """Read a VirtualMachine from JSON. Raises SpecInvalid, and nothing else, with every problem in document order.

    ``unknown_fields="warn"`` is for what another program's controller wrote (``$VM_DATA``): a newer one may know more
    fields, and Go's clients may drop ``kind`` and ``apiVersion``, which then are not missed.
    """
    value = decode(document)
    log = Log(unknown_fields)
    root = Cursor(value, (), log).required_object()
    if _is_our_kind(root, required=unknown_fields == "fail"):
        draft = parse(root)
        check(draft, log)
    if log.problems:
        raise refusal(in_document_order(log.problems, value))
    return Loaded(draft.spec, in_document_order(log.warnings, value))


def _is_our_kind(root: Cursor, *, required: bool) -> bool:
    """Whether the object may be judged as a VirtualMachine; of another kind of object nothing more is said."""
    ours = True
    for name, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        field = root.get(name)
        text = field.required_text() if required else field.text()
        if text and text != expected:
            field.problem(f"expected {quote(expected)}, got {quote(text)}")
            ours = False
    return ours
