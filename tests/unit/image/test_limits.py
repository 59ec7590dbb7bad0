"""The limits' way from the environment to the worker."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from launcher.cli.options import image_limits
from launcher.errors import UsageError
from launcher.image.limits import DEFAULT, Limits
from launcher.supervise.handoff import Settings, decode_settings, encode_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_each_limit_is_raised_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_limits() == DEFAULT
    for number, field in enumerate(dataclasses.fields(Limits), 1):
        monkeypatch.setenv(f"LAUNCHER_IMAGE_MAX_{field.name.upper()}", str(number))
    assert image_limits() == Limits(1, 2, 3, 4)
    monkeypatch.setenv("LAUNCHER_IMAGE_MAX_ENTRIES", "many")
    with pytest.raises(UsageError, match=r"\$LAUNCHER_IMAGE_MAX_ENTRIES is not a number: 'many'"):
        image_limits()


def test_the_worker_is_told_the_limits() -> None:
    settings = Settings("e30=", limits=Limits(entries=7))
    assert decode_settings(encode_settings(settings)) == settings


def test_the_variables_are_documented(pytestconfig: pytest.Config) -> None:
    root: Path = pytestconfig.rootpath
    text = (root / "docs/explanation/images-and-disks.md").read_text()
    for field in dataclasses.fields(Limits):
        assert f"`{Limits.variable(field.name)}`" in text
