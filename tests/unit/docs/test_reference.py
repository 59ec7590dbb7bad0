"""The other reference pages against the code they describe."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import yaml

from launcher import errors
from launcher.emulator.api import NOT_EMULATED, Api
from launcher.emulator.main import parse_arguments
from launcher.host import ext4
from launcher.paths import Paths
from launcher.plan.fitness import CAPABILITIES
from launcher.supervise import control, outcome
from launcher.supervise.model import Phase
from launcher.supervise.record import Record
from launcher.supervise.supervisor import Supervisor
from launcher.vmm.argv import MINIMUM
from tests.unit.docs.pages import REFERENCE, ROOT, blocks, code, rows, sections

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN_DIRECTORY = REFERENCE / "run-directory.md"


def first_cells(text: str) -> list[str]:
    return [row[0] for row in rows(text)]


def keys_in(function: Callable[..., Any]) -> set[str]:
    """Every key of every dict that a function writes down."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    stores = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    return {
        key.value
        for key in (*(key for item in dicts for key in item.keys), *stores)
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


# --- exit codes ---


def test_every_error_has_its_row() -> None:
    described = {(row[0], row[1].strip("`")) for row in rows((REFERENCE / "exit-codes.md").read_text())}
    leaves = {(str(leaf.exit_code), reason) for reason, leaf in errors.BY_REASON.items()}

    assert leaves <= described


def test_every_outcome_has_its_row() -> None:
    described = {(row[0], row[1].strip("`")) for row in rows((REFERENCE / "exit-codes.md").read_text())}
    source = ast.parse(inspect.getsource(outcome))
    made = [
        node.args
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Outcome"
    ]
    constant = {
        (str(args[1].value), args[0].value)
        for args in made
        if isinstance(args[0], ast.Constant) and isinstance(args[1], ast.Constant)
    }

    assert len(constant) >= 7
    assert constant | {("128+n", "VmmKilled")} <= described
    assert described == constant | {("128+n", "VmmKilled")} | {
        (str(leaf.exit_code), reason) for reason, leaf in errors.BY_REASON.items()
    }


# --- the run directory ---


def test_every_path_is_described() -> None:
    paths = Paths()
    named = {word for cell in code(RUN_DIRECTORY.read_text()) for word in cell.split()}
    properties = [name for name, value in vars(Paths).items() if isinstance(value, property)]
    for name in properties:
        path: Path = getattr(paths, name)
        if path.is_relative_to(paths.run_dir):
            relative = str(path.relative_to(paths.run_dir))
            assert {relative, f"{relative}/"} & named, f"Paths.{name}: {relative}"
    for path in (
        *(paths.rootfs_disk("<volume>"), paths.rootfs_overlay("<volume>"), paths.rootfs_base("<volume>")),
        *(paths.seed_disk("<volume>"), paths.prepared_kernel),
    ):
        assert f"<disks>/{path.relative_to(paths.disks)}" in named
    for path in (paths.kernel_image, paths.volume_image("<volume>")):
        assert f"<images>/{path.relative_to(paths.images)}" in named
    assert len(properties) > 10


def test_every_phase_is_described() -> None:
    assert {f"`{phase}`" for phase in Phase} <= set(first_cells(sections(RUN_DIRECTORY)["state.json"]))


def test_every_event_is_described() -> None:
    described = {cell.strip("`") for cell in first_cells(sections(RUN_DIRECTORY)["events.jsonl"])}
    told = set()
    for module in (ROOT / "launcher/supervise").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = ast.unparse(node.func)
                if function in {"Note", "self._record.event"}:
                    told.add(node.args[0].value)

    assert told == described


def test_every_point_of_the_timeline_is_described() -> None:
    text = code(sections(RUN_DIRECTORY)["timeline.json"])
    source = (ROOT / "launcher/supervise/supervisor.py").read_text()
    points = set(re.findall(r'_record\.mark\("([^"]+)"\)', source))

    assert points
    assert points <= text


def test_every_field_of_the_result_is_described() -> None:
    text = code(sections(RUN_DIRECTORY)["result.json"])

    assert keys_in(Record.result) <= text
    assert keys_in(Supervisor._write_result) - {"fields", "hint"} <= text


# --- the control socket ---


def test_every_field_of_the_status_is_described() -> None:
    example = next(block.text for block in blocks("json") if block.page.name == "control-socket.md")
    keys = (keys_in(Supervisor.status) | keys_in(Supervisor._child_status)) - {"cpus", "memory", "boot_vcpus", "size"}

    assert {"phase", "nics", "recentDeaths", "planDigest"} <= keys
    page = sections(REFERENCE / "control-socket.md")["GET /status"]
    for key in keys - {"outcome", "message", "reason"}:
        assert f'"{key}"' in example, key
    assert {"outcome", "message", "reason"} <= code(page)


def test_every_route_is_described() -> None:
    page = sections(REFERENCE / "control-socket.md")
    told = re.findall(r"^    (GET|POST)\s+(/[\w/]+)", inspect.getdoc(control) or "", re.MULTILINE)

    assert told
    assert {f"{method} {path}" for method, path in told} == page.keys()


# --- the pod ---


def test_capabilities() -> None:
    page = sections(REFERENCE / "pod.md")
    wanted = {name.upper() for name in CAPABILITIES}
    described = [cell.strip("`") for cell in first_cells(page["Capabilities"]) if cell.startswith("`")]

    assert set(described) == wanted
    [pod] = [yaml.safe_load(block.text) for block in blocks("yaml") if block.page.name == "pod.md"]
    [container] = pod["spec"]["containers"]
    assert set(container["securityContext"]["capabilities"]["add"]) == wanted
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}


# --- the programs ---


def test_versions_of_programs() -> None:
    page = (REFERENCE / "host-needs.md").read_text()

    assert f"v{MINIMUM[0]}.{MINIMUM[1]} or later" in page
    assert ".".join(map(str, ext4._OLDEST)) + " or later" in page


# --- the emulator ---


def test_routes_of_the_emulator() -> None:
    page = sections(REFERENCE / "emulator.md")["Routes"]
    emulated = {cell.strip("`") for cell in first_cells(page)}
    asked = {"vmm.ping", "vmm.shutdown", "vm.info", "vm.create", "vm.add-net"}

    assert emulated == asked | Api(Mock())._actions.keys()
    assert code(page.partition("501")[2]) == NOT_EMULATED


def test_options_of_the_emulator() -> None:
    page = sections(REFERENCE / "emulator.md")["Options"]
    source = inspect.getsource(parse_arguments)

    options = set(re.findall(r'"(--[\w-]+)"', source))
    assert options
    assert all(option in page for option in options)
