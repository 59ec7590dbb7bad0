from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from launcher.facts import ProgramFacts
from launcher.host.observe_virtiofsd import observe_virtiofsd

if TYPE_CHECKING:
    from pathlib import Path


def installed(folder: Path, text: str) -> Path:
    program = folder / "virtiofsd"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def test_none_is_no_problem_yet(tmp_path: Path) -> None:
    assert observe_virtiofsd(str(tmp_path)) is None


@pytest.mark.parametrize("version", ["1.10.0", "1.13.2", "2.0.0-dev"])
def test_the_one_written_in_rust_is_known_by_its_version(tmp_path: Path, version: str) -> None:
    program = installed(tmp_path, f"echo virtiofsd {version}")
    number = tuple(map(int, version.removesuffix("-dev").split(".")))
    assert observe_virtiofsd(str(tmp_path)) == ProgramFacts(str(program), number)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("echo 'virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)'", "is another virtiofsd, 'virtiofsd version 7.2.22"),
        ("echo virtiofsd 1.9.0", "is version 1.9.0"),
        ("echo no such option >&2; exit 3", "ended with status 3: no such option"),
        ("printf ''", "is another virtiofsd, ''"),
    ],
)
def test_another_one_is_a_problem_with_a_remedy(tmp_path: Path, text: str, problem: str) -> None:
    program = installed(tmp_path, text)
    found = observe_virtiofsd(str(tmp_path))
    assert found is not None
    assert found.path == str(program)
    assert problem in (found.problem or "")
    assert "1.10.0 or later" in (found.hint or "")


def test_the_first_on_the_path_counts(tmp_path: Path) -> None:
    for name, version in (("a", "1.13.2"), ("b", "1.10.0")):
        (tmp_path / name).mkdir()
        installed(tmp_path / name, f"echo virtiofsd {version}")
    found = observe_virtiofsd(f"{tmp_path}/none:{tmp_path}/a:{tmp_path}/b")
    assert found is not None
    assert found.version == (1, 13, 2)
