"""Links lead somewhere, examples are what they say they are."""

from __future__ import annotations

import ast
import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml

from launcher.spec.load import load
from tests.unit.docs.pages import PAGES, ROOT, Block, anchors, blocks, links

if TYPE_CHECKING:
    from pathlib import Path

SPECS = [block for block in blocks("json") if '"VirtualMachine"' in block.text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page

        assert target.exists(), f"{link}: there is no {target}"
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in links(page) if not link.startswith("#"))
        todo += [target for target in targets if target.suffix == ".md"]

    assert not set(PAGES) - seen


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize("block", SPECS, ids=str)
def test_examples_of_specs_are_valid(block: Block) -> None:
    assert not load(block.text.encode(), unknown_fields="fail").warnings


def test_there_are_examples_of_specs() -> None:
    assert len(SPECS) >= 2


def test_pages_that_the_code_names_exist() -> None:
    sources = [*(ROOT / "launcher").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    named = {name for path in sources for name in re.findall(r"docs/[\w/-]+\.md", path.read_text())}

    assert named
    assert not {name for name in named if not (ROOT / name).exists()}


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [int(page.name[:4]) for page in sorted((ROOT / "docs/adr").glob("*.md"))]

    assert numbers == list(range(1, len(numbers) + 1))


def test_modules_that_the_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:launcher|tests)/[\w/.]+\.py)`", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.relative_to(ROOT)} names {name}"
            ast.parse((ROOT / name).read_text())
