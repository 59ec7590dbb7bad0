"""What passes between the two processes: settings go to the worker, progress, the handoff or a failure come back.

Settings are one JSON object on the worker's stdin: they hold the spec, which may hold passwords, and so are neither in its
argv nor in its environment. What comes back is one JSON object a line, each with one key that names its kind.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # the codec resolves the annotations
from typing import Any, TypeAlias

from launcher.codec import DoesNotFit, from_json, to_json
from launcher.errors import BY_REASON, LauncherError, SpecInvalid, SpecProblem
from launcher.image.limits import DEFAULT, Limits
from launcher.paths import Paths
from launcher.plan.types import HelperSpec, Nic, VmmLaunch  # noqa: TC001  # likewise


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line and the environment say. ``document`` is the spec as it was read, base64."""

    document: str = field(repr=False)
    from_vm_data: bool = False  # it came from $VM_DATA: unknown fields warn
    run_dir: Path = Paths().run_dir
    images: Path = Paths().images
    disks: Path = Paths().disks
    cache: Path | None = None  # of root disks; None caches nothing
    cache_size: int = 0  # bytes it may take
    cache_verify: bool = False
    vmm: Path | None = None  # None looks for cloud-hypervisor on PATH
    emulate: bool = False
    firmware: Path | None = None  # None looks in the known places
    vmm_uid: int = 107
    vmm_gid: int = 107
    container_disk: str = "overlay"  # or "raw"
    block_volumes: tuple[str, ...] = ()  # $BLOCK_VOLUMES
    receive_migration: bool = False
    limits: Limits = DEFAULT  # of images

    @property
    def spec_bytes(self) -> bytes:
        return base64.b64decode(self.document)

    @property
    def paths(self) -> Paths:
        return Paths(self.run_dir, self.images, self.disks)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the preparation and how long it took."""

    name: str
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Handoff:
    """All that the supervisor needs of a finished preparation. ``vm_config`` is the body of ``vm.create``."""

    name: str
    namespace: str
    uid: str
    vmm: VmmLaunch
    vm_config: dict[str, Any]
    digest: str  # of the plan
    helpers: tuple[HelperSpec, ...] = ()
    nics: tuple[Nic, ...] = ()
    warnings: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """A LauncherError on its way to the supervisor."""

    reason: str
    message: str
    hint: str | None = None
    problems: tuple[SpecProblem, ...] = ()

    @classmethod
    def of(cls, error: LauncherError) -> WorkerFailure:
        return cls(error.reason, error.message, error.hint, error.problems if isinstance(error, SpecInvalid) else ())

    def error(self) -> LauncherError:
        """The error as it was raised."""
        if self.reason == SpecInvalid.reason:
            return SpecInvalid(self.message, problems=self.problems, hint=self.hint)
        return BY_REASON.get(self.reason, LauncherError)(self.message, hint=self.hint)


@dataclass(frozen=True, slots=True)
class Progress:
    """A step began, or, with ``milliseconds``, ended."""

    step: str
    milliseconds: float | None = None


Message: TypeAlias = Progress | Handoff | WorkerFailure

_KINDS: dict[str, type[Message]] = {
    "progress": Progress,
    "handoff": Handoff,
    "failure": WorkerFailure,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """One line."""
    return json.dumps({_NAMES[type(message)]: to_json(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The inverse of ``encode``. Raises DoesNotFit."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DoesNotFit(f"not JSON: {error}") from None
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= _KINDS.keys():
        raise DoesNotFit(f"expected an object with one key of {', '.join(_KINDS)}")
    [(name, body)] = value.items()
    return from_json(_KINDS[name], body, f"$.{name}")


def encode_settings(settings: Settings) -> bytes:
    """One JSON object, for the worker's stdin."""
    return json.dumps(to_json(settings)).encode()


def decode_settings(text: bytes) -> Settings:
    """The inverse of ``encode_settings``. Raises DoesNotFit."""
    try:
        return from_json(Settings, json.loads(text))
    except ValueError as error:
        raise DoesNotFit(str(error)) from None
