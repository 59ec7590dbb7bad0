"""Every spec on every machine: the plan, or why there is none, is compared with what was reviewed and committed.

``UPDATE_GOLDEN=1 pytest tests/golden`` writes them anew; the change is then a diff to review.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.codec import from_json, to_json
from launcher.errors import LauncherError
from launcher.facts import HostFacts
from launcher.plan.build import plan
from launcher.plan.text import digest, render_json, render_text
from launcher.spec.load import load

if TYPE_CHECKING:
    from launcher.spec.types import VmSpec

HERE = Path(__file__).parent
PLANS = HERE / "plans"
REFUSALS = PLANS / "refusals.txt"
SPECS = sorted(path.stem for path in (HERE / "specs").iterdir())
FACTS = sorted(path.stem for path in (HERE / "facts").iterdir())
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
FULL = "ubuntu"  # the spec whose plans are kept as JSON too, with the content of every file


def read_spec(name: str) -> VmSpec:
    return load((HERE / "specs" / f"{name}.json").read_bytes()).spec


def read_facts(name: str) -> HostFacts:
    return from_json(HostFacts, json.loads((HERE / "facts" / f"{name}.json").read_bytes()))


def attempt(spec: str, facts: str) -> dict[str, str]:
    """The golden files of one cell by name; of a refusal only its text."""
    try:
        boot = plan(read_spec(spec), read_facts(facts))
    except LauncherError as error:
        return {"refusal": f"{error.reason}\n{error}\n"}
    files = {f"{facts}/{spec}.txt": render_text(boot)}
    if spec == FULL:
        files[f"{facts}/{spec}.json"] = json.dumps(render_json(boot), indent=1) + "\n"
    return files


def everything() -> dict[str, str]:
    """Every golden file by name. The refusals are one file: each text once, with the cells it is told in."""
    files: dict[str, str] = {}
    refusals: dict[str, list[str]] = {}
    for spec in SPECS:
        for facts in FACTS:
            cell = attempt(spec, facts)
            if text := cell.pop("refusal", None):
                refusals.setdefault(text, []).append(f"    {spec} on {facts}\n")
            files |= cell
    return {**files, REFUSALS.name: "\n".join(text + "".join(cells) for text, cells in sorted(refusals.items()))}


@pytest.fixture(scope="module")
def plans() -> dict[str, str]:
    made = everything()
    if UPDATE:
        for path in [path for path in PLANS.rglob("*") if path.is_file()]:
            path.unlink()
        for name, text in made.items():
            path = PLANS / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return made


def test_no_plan_is_missing_and_none_is_left_over(plans: dict[str, str]) -> None:
    assert {str(path.relative_to(PLANS)) for path in PLANS.rglob("*") if path.is_file()} == set(plans)


@pytest.mark.parametrize("facts", [*FACTS, REFUSALS.name])
def test_the_plans_are_as_reviewed(plans: dict[str, str], facts: str) -> None:
    cells = {name: text for name, text in plans.items() if Path(name).parts[0] == facts}
    assert cells == {name: (PLANS / name).read_text() for name in cells}


def test_the_matrix_has_plans_and_refusals_of_every_kind(plans: dict[str, str]) -> None:
    reasons = {block.splitlines()[0] for block in plans[REFUSALS.name].split("\n\n")}
    assert reasons == {"SpecInvalid", "HostUnfit", "ImageInvalid", "StorageFailed", "NetworkFailed"}
    assert len(plans) > len(SPECS) * len(FACTS) / 3


@pytest.mark.parametrize("facts", FACTS)
def test_the_facts_come_back_through_the_codec(facts: str) -> None:
    text = json.loads((HERE / "facts" / f"{facts}.json").read_bytes())
    assert to_json(read_facts(facts)) == text


def test_the_same_input_gives_the_same_plan() -> None:
    assert everything() == everything()


def test_the_digest_tells_plans_apart() -> None:
    digests = [
        digest(plan(read_spec(FULL), read_facts(facts))) for facts in ("clean-pod", "clean-pod", "prepared", "calico")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_no_plan_shows_a_password(plans: dict[str, str]) -> None:
    assert b"hunter2" in (HERE / "specs" / f"{FULL}.json").read_bytes()
    assert not [name for name, text in plans.items() if "hunter2" in text]
    assert "hunter2" not in repr(plan(read_spec(FULL), read_facts("clean-pod")))


# What the interpreter tells an audit hook of: any of it would be I/O, a process or a look at the machine.
_EFFECTS = ("open", "os.", "socket.", "subprocess.", "fcntl.", "shutil.", "pathlib.", "glob.", "ctypes.", "time.sleep")
_watch: list[str] | None = None


def _hook(event: str, _args: tuple[Any, ...]) -> None:
    if _watch is not None and event.startswith(_EFFECTS):
        _watch.append(event)


def test_planning_does_no_io() -> None:
    global _watch  # noqa: PLW0603  # an audit hook cannot be taken away, only told to be quiet
    cells = [(read_spec(spec), read_facts(facts)) for facts in FACTS for spec in SPECS]
    sys.addaudithook(_hook)
    seen: list[str] = []
    for spec, facts in cells:
        _watch = seen
        try:
            render_json(plan(spec, facts))
        except LauncherError:
            pass
        finally:
            _watch = None
    assert seen == []
    _watch = seen
    Path(__file__).read_bytes()  # the guard itself can see
    _watch = None
    assert "open" in seen
