from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from launcher.errors import UsageError
from launcher.host.credentials import read_credentials

if TYPE_CHECKING:
    from pathlib import Path

AUTH = "dXNlcjpodW50ZXIy"  # user:hunter2


def test_only_names_and_passwords_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "auths": {
                    "a.example": {"auth": AUTH, "email": "x@y"},
                    "b.example": {"username": "user", "password": "hunter2"},
                    "c.example": {"auth": AUTH, "identitytoken": "token"},
                },
                "credsStore": "desktop",
                "credHelpers": {"d.example": "gcr"},
            }
        )
    )
    assert json.loads(read_credentials(path)) == {
        "auths": {
            "a.example": {"auth": AUTH},
            "b.example": {"auth": AUTH},
            "c.example": {"auth": AUTH, "identitytoken": "token"},
        }
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is not JSON, line 1"),
        ("[]", "it has no object auths"),
        ('{"a.example": {"auth": "dXNlcjpodW50ZXIy"}}', "it has no object auths"),  # a .dockercfg
        ('{"auths": []}', "it has no object auths"),
        ('{"auths": {"a.example": "hunter2"}}', "the entry of a.example is not an object of texts"),
        ('{"auths": {"a.example": {"auth": 1}}}', "the entry of a.example is not an object of texts"),
        ('{"auths": {"a.example": {"auth": "hunter2!"}}}', "the auth of a.example is not base64"),
        (
            '{"auths": {"a.example": {"auth": "aHVudGVyMg=="}}}',
            "the entry of a.example holds no user name and password",
        ),
        ('{"auths": {"a.example": {}}}', "the entry of a.example holds no user name and password"),
        ("[" * 100_000, "it is nested too deeply"),
        (" " * ((1 << 20) + 1), "it has more than 1 MiB"),
    ],
)
def test_what_is_no_dockerconfigjson(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError) as told:
        read_credentials(path)
    assert told.value.message == f"the credentials {path} are no dockerconfigjson: {why}"
    assert "hunter2" not in str(told.value)
    assert told.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the credentials"):
        read_credentials(tmp_path / "none")
