"""Frozen dataclasses to JSON and back: one codec for facts, plans and the handoff between our two processes."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class DoesNotFit(ValueError):
    """A JSON value is not of the wanted shape; the message names the place as a JSON path."""


def to_json(value: Any) -> Any:
    """A frozen value as JSON: dataclasses become objects, tuples lists, paths text; fields at their default stay out.

    Bytes may hold secrets, so they show as length and digest; a value that must come back carries none.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        import hashlib  # noqa: PLC0415  # it maps libcrypto, which the resident process never needs

        return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    return value


def from_json(kind: type[T], value: Any, where: str = "$") -> T:
    """The inverse of ``to_json`` for a frozen dataclass. Raises DoesNotFit."""
    if not isinstance(value, dict):
        raise DoesNotFit(f"{where}: expected an object, got {type(value).__name__}")
    hints = get_type_hints(kind)
    if unknown := value.keys() - hints.keys():
        raise DoesNotFit(f"{where}.{min(unknown)}: unknown field")
    fields = {name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**fields)
    except TypeError as error:  # a required field is missing
        raise DoesNotFit(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in {types.UnionType, typing.Union}:
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return None if value is None else _convert(inner, value, where)
    if origin is tuple:
        args = get_args(hint)
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(args) != len(value)):
            raise DoesNotFit(f"{where}: expected a list")
        each = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(
            _convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(each, value, strict=True))
        )
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if origin is dict and isinstance(value, dict):  # free-form JSON, such as the VMM's config
        return value
    if type(value) is not hint:
        raise DoesNotFit(f"{where}: expected {getattr(hint, '__name__', hint)}, got {type(value).__name__}")
    return value
