"""The page of the command line says what ``launcher --help`` says: verbs, arguments, options, defaults, variables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import pytest

from launcher.cli import launcher
from tests.unit.docs.pages import REFERENCE, rows, sections

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = REFERENCE / "cli.md"


def verbs(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name; and the group at the top."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


VERBS = {"launcher": launcher, **dict(verbs(launcher, "launcher"))}


def options(command: click.Command) -> dict[str, click.Option]:
    """A command's options but ``--help``, by their names as the page writes them."""
    with click.Context(command) as context:
        return {
            ", ".join(f"`{name}`" for name in option.opts): option
            for option in command.get_params(context)
            if isinstance(option, click.Option) and "--help" not in option.opts
        }


def test_every_verb_has_its_section() -> None:
    assert sections(PAGE).keys() == VERBS.keys()


@pytest.mark.parametrize("name", VERBS)
def test_usage(name: str) -> None:
    command = VERBS[name]
    with click.Context(command, info_name=name) as context:
        usage = context.get_usage().removeprefix("Usage: ")

    assert f"```\n{usage}\n```" in sections(PAGE)[name]


@pytest.mark.parametrize("name", VERBS)
def test_options(name: str) -> None:
    text = sections(PAGE)[name]
    described = {row[0]: row for row in rows(text) if row[0].startswith("`-")}
    there = options(VERBS[name])

    assert described.keys() == there.keys()
    if not there:
        assert "No options." in text
    for names, option in there.items():
        _, default, variable, _ = described[names]
        assert variable == (f"`{option.envvar}`" if option.envvar else ""), names
        if option.required:
            assert default == "required"
        elif option.show_default:
            assert default == f"`{option.default}`", names


def test_the_overview_names_every_verb() -> None:
    overview = PAGE.read_text().partition("\n## ")[0]
    named = {f"launcher {verb}" for verb in re.findall(r"\[`([\w ]+)`\]\(#", overview)}

    assert named == VERBS.keys() - {"launcher"}
