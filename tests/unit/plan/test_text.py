from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from launcher.plan.build import plan
from launcher.plan.text import digest, render_json, render_text
from launcher.plan.vmconfig import wire
from launcher.spec.types import CloudInitVolume
from tests.unit.plan.made import FACTS, SPEC

if TYPE_CHECKING:
    from launcher.plan.types import BootPlan

PLAN = plan(SPEC, replace(FACTS, vmm=replace(FACTS.vmm, emulated=True)))


def test_the_text_numbers_every_action_with_its_reason() -> None:
    text = render_text(PLAN)
    lines = text.splitlines()
    for number, action in enumerate(PLAN.actions, 1):
        at = lines.index(f"{number:3}. {action.describe()}")
        assert lines[at + 1] == f"     why: {action.reason}"
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    for warning in PLAN.warnings:
        assert f"  {warning}" in lines
    assert any(helper.name in line for helper in PLAN.helpers for line in lines)


def test_the_text_has_the_config_as_it_is_sent() -> None:
    text = render_text(PLAN)
    start = text.index("{\n")
    config, _ = json.JSONDecoder().raw_decode(text[start:])
    assert config == wire(PLAN.vm_config)


def test_sections_that_would_be_empty_are_left_out() -> None:
    text = render_text(replace(PLAN, helpers=(), nics=(), warnings=()))
    assert not [word for word in ("Helpers", "Interfaces", "Warnings") if word in text]


def test_the_json_names_every_action_and_its_fields() -> None:
    value = json.loads(json.dumps(render_json(PLAN)))
    assert value["vmConfig"] == wire(PLAN.vm_config)
    assert [action["action"] for action in value["actions"]] == [type(action).__name__ for action in PLAN.actions]
    assert all({"describe", "reason"} <= action.keys() for action in value["actions"])
    seed = next(action for action in value["actions"] if action["action"] == "BuildSeed")
    assert all(file["content"].keys() == {"bytes", "sha256"} for file in seed["files"])
    assert value["warnings"] == list(PLAN.warnings)
    assert value["nics"][0]["mac"] == PLAN.nics[0].mac


def test_no_password_is_shown() -> None:
    assert "hunter2" not in render_text(PLAN) + json.dumps(render_json(PLAN)) + repr(PLAN)


def test_the_digest_changes_with_anything() -> None:
    def changed(**fields: object) -> BootPlan:
        return replace(PLAN, **fields)  # type: ignore[arg-type]  # whatever field it is

    variants = [
        PLAN,
        changed(name="other"),
        changed(actions=PLAN.actions[1:]),
        changed(warnings=()),
        changed(vm_config=replace(PLAN.vm_config, pvpanic=False)),
        plan(replace(SPEC, volumes=(SPEC.volumes[0], CloudInitVolume("seed", user_data=b"other"))), FACTS),
    ]
    assert len({digest(variant) for variant in variants}) == len(variants)
    assert digest(PLAN) == digest(replace(PLAN))
