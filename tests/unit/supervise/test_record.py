"""What is left behind, on disks and in sizes that nobody hopes for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher.supervise.bounded_log import BoundedLog
from launcher.supervise.outcome import Outcome
from launcher.supervise.record import RESULT_LIMIT, result_json


def test_a_log_is_renamed_once_at_its_limit(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", 100)
    for number in range(9):
        log.write(b"%039d\n" % number)
    log.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert (tmp_path / "log.1").read_bytes().split() == [b"%039d" % number for number in (6, 7)]
    assert (tmp_path / "log").read_bytes().split() == [b"%039d" % 8]


def test_a_log_goes_on_where_the_last_run_stopped(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        log = BoundedLog(tmp_path / "log", 100)
        log.write(text)
        log.close()

    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


def test_a_link_in_a_logs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        BoundedLog(tmp_path / "log", 100)
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_costs_what_was_to_be_written_and_nothing_else() -> None:
    log = BoundedLog(Path("/dev/full"), 100)
    log.write(b"lost\n")
    log.close()


def test_a_log_whose_folder_is_gone_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    log = BoundedLog(tmp_path / "run/log", 10)
    (tmp_path / "run/log").unlink()
    (tmp_path / "run").rmdir()
    for _ in range(3):
        log.write(b"123456789\n")
    log.close()


OUTCOME = Outcome("VmmFailed", 15, "it failed", "a remedy")


@pytest.mark.parametrize(
    ("message", "line"),
    [("short", "x" * 100), ("\x01" * 5000, "y"), ("\U0001f600" * 3000, "\x00" * 900), ("m" * 100_000, "z" * 20_000)],
)
def test_a_result_fits_and_keeps_what_users_branch_on(message: str, line: str) -> None:
    outcome = Outcome("VmmFailed", 15, message)
    vmm = {"version": "53.0.0", "lastErrors": [line] * 5}
    data = result_json(outcome, phase="ended", started=0.0, vmm=vmm, console=[line] * 40)

    value = json.loads(data)
    assert len(data) <= RESULT_LIMIT
    assert (value["reason"], value["exitCode"]) == ("VmmFailed", 15)
    assert value["startedAt"] == "1970-01-01T00:00:00.000Z"
    kept = value["message"].removesuffix(" …")
    assert kept == message[: len(kept)] != ""
    assert (kept == message) == (value["message"] == message)  # what was cut says so


def test_a_long_message_keeps_its_remedy() -> None:
    value = json.loads(result_json(Outcome("SpecInvalid", 10, "m" * 9000, "a remedy"), phase="preparing", started=0.0))
    assert value["message"].endswith("m … (a remedy)")


def test_the_newest_console_lines_stay() -> None:
    data = result_json(OUTCOME, phase="ended", started=0.0, console=[f"{number} {'x' * 300}" for number in range(40)])

    kept = [int(line.split()[0]) for line in json.loads(data)["console"]]
    assert kept == list(range(40 - len(kept), 40))
    assert len(kept) > 5
    assert json.loads(data)["message"] == "it failed (a remedy)"


def test_a_name_with_a_broken_byte_is_still_utf8() -> None:
    broken = os.fsdecode(b"/run/\xff")
    assert json.loads(result_json(Outcome("Internal", 70, broken), phase="ended", started=0.0))["reason"] == "Internal"
