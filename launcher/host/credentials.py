"""A registry's credentials as a Secret of type kubernetes.io/dockerconfigjson holds them.

Only names and passwords are taken: a credential helper is a program, and there is none in a container.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from launcher.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 1 << 20  # bytes; a Secret has at most as many
_REMEDY = "it is what the Secret of kubectl create secret docker-registry has under .dockerconfigjson"


def read_credentials(path: Path) -> bytes:
    """The file's credentials as a dockerconfigjson of nothing else. Raises UsageError, which quotes none of them."""
    try:
        with path.open("rb") as file:
            text = file.read(_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read the credentials {path}: {error.strerror}", hint=_REMEDY) from None
    if len(text) > _LIMIT:
        raise _refused(path, "it has more than 1 MiB")
    try:
        return json.dumps({"auths": _auths(json.loads(text))}).encode()
    except json.JSONDecodeError as error:  # its text would quote the file
        raise _refused(path, f"it is not JSON, line {error.lineno}") from None
    except RecursionError:
        raise _refused(path, "it is nested too deeply") from None
    except ValueError as error:
        raise _refused(path, str(error)) from None


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(f"the credentials {path} are no dockerconfigjson: {why}", hint=_REMEDY)


def _auths(document: Any) -> dict[str, Any]:
    auths = document.get("auths") if isinstance(document, dict) else None
    if not isinstance(auths, dict):
        raise ValueError("it has no object auths")  # noqa: TRY004  # a flaw of the document, told with the others
    return {registry: _entry(registry, entry) for registry, entry in auths.items()}


def _entry(registry: str, entry: Any) -> dict[str, str]:
    """One registry's entry; ``auth`` is made of ``username`` and ``password`` where only these are given."""
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise ValueError(f"the entry of {registry} is not an object of texts")
    auth = entry.get("auth") or base64.b64encode(f"{entry.get('username', '')}:{entry.get('password', '')}".encode())
    try:
        user, colon, _ = base64.b64decode(auth, validate=True).partition(b":")
    except ValueError:
        raise ValueError(f"the auth of {registry} is not base64") from None
    if not (user and colon):
        raise ValueError(f"the entry of {registry} holds no user name and password")
    kept = {"auth": auth.decode() if isinstance(auth, bytes) else auth}
    return kept | ({"identitytoken": token} if (token := entry.get("identitytoken")) else {})
