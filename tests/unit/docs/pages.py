"""The documentation as values: its pages, headings, links, code blocks and table rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = tuple(sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]))
REFERENCE = ROOT / "docs/reference"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text[:40]!r}"


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def blocks(language: str) -> list[Block]:
    """Every code block of a language, of all pages."""
    return [
        Block(page, found[1], found[2])
        for page in PAGES
        for found in _FENCE.finditer(page.read_text())
        if found[1] == language
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    names: set[str] = set()
    for _, heading in _HEADING.findall(prose(page)):
        plain = _LINK.sub(lambda link: link[0][1:].split("]")[0], heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = sum(1 for name in names if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", name))
        names.add(f"{slug}-{count}" if count else slug)
    return names


def links(page: Path) -> list[str]:
    """The targets of a page's links, without those that lead to other sites."""
    return [target for target in _LINK.findall(prose(page)) if "://" not in target]


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, heads and rules left out."""
    lines = text.splitlines()
    found = []
    for at, line in enumerate(lines):
        is_rule = re.fullmatch(r"\|[-:| ]+\|", line)
        is_head = at + 1 < len(lines) and re.fullmatch(r"\|[-:| ]+\|", lines[at + 1])
        if line.startswith("|") and not is_rule and not is_head:
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return found


def code(text: str) -> set[str]:
    """Everything in backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))
