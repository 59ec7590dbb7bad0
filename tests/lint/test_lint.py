"""The lint gates: each is a test, so that one command tells everything."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CEILING = 500  # lines of a module
SOURCES = sorted(ROOT.glob("launcher/**/*.py"))


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "-q"],
        ["ruff", "check", "-q"],
        ["mypy"],
        ["mypy", "cmd/launcher/main.py"],  # two modules named main cannot be checked at once
        ["mypy", "cmd/vmm-emulator/main.py"],
        ["lint-imports", "--no-cache"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_gate(command: list[str]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_cmd_does_not_shadow_the_standard_library() -> None:
    """pdb subclasses cmd.Cmd, and pytest imports pdb: a package ``cmd`` at the root would break both."""
    assert not list(ROOT.glob("cmd/**/__init__.py"))
    subprocess.run([sys.executable, "-c", "import cmd, pdb; cmd.Cmd"], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_size(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= CEILING


@pytest.mark.parametrize(
    ("library", "owner"),
    [
        ("subprocess", {"launcher/host/process.py", "launcher/emulator/"}),
        ("pyroute2", {"launcher/host/netlink.py"}),
        ("pycdlib", {"launcher/host/seed.py"}),
        ("requests_unixsocket", {"launcher/vmm/requests_transport.py"}),
        ("backports", {"launcher/image/inflate.py"}),
        ("isal", {"launcher/image/inflate.py"}),
        ("click", {"launcher/cli/"}),
    ],
)
def test_one_place_per_dependency(library: str, owner: set[str]) -> None:
    importers = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            if any(name.split(".")[0] == library for name in names):
                importers.add(str(path.relative_to(ROOT)))

    strangers = {path for path in importers if not any(path == own or path.startswith(own) for own in owner)}
    assert not strangers


def test_only_the_command_line_prints() -> None:
    offenders = []
    for path in SOURCES:
        place = str(path.relative_to(ROOT))
        if place.startswith(("launcher/cli/", "launcher/emulator/")):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        offenders += [f"{place}:{c.lineno}" for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]

    assert not offenders


def test_setup_tells_in_one_sentence_that_it_needs_root(tmp_path: Path) -> None:
    for name, line in (("dpkg-query", "exit 1"), ("id", "echo 1000")):  # nothing is installed, and this is not root
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    path = f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run([ROOT / ".ci/setup"], env={"PATH": path}, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"setup: run it as root, it installs: e2fsprogs [^\n]+\n", done.stderr)


def test_no_notes_to_self() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X:")
    found = [str(path) for path in SOURCES if any(mark in path.read_text() for mark in marks)]

    assert not found
