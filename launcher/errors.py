"""Every error the launcher raises on purpose. One tree, one exit code per leaf (docs/reference/exit-codes.md).

    LauncherError            70  Internal       a bug in the launcher
    ├── UsageError            2  Usage          bad command line, or no launcher to talk to
    ├── SpecInvalid          10  SpecInvalid    the spec could not be read or is not valid
    ├── HostUnfit            11  HostUnfit      no KVM, no tun, missing capability or program …
    ├── ImageInvalid         12  ImageInvalid   an image is missing, corrupt, hostile or lacks the expected file
    ├── StorageFailed        13  StorageFailed  no space, I/O error, refused disk …
    ├── NetworkFailed        14  NetworkFailed  the pod's network could not be handed to the guest
    ├── VmmFailed            15  VmmFailed      the VMM did not start, or refused create or boot
    └── HelperFailed         16  HelperFailed   dnsmasq or virtiofsd kept dying

An error is raised where the fact is known, translated at its layer's edge with ``from``, and printed once, by the CLI.
``OSError`` never leaves ``host``; HTTP never leaves ``vmm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class LauncherError(Exception):
    """A failure told in one sentence, with the remedy as ``hint`` where there is one."""

    exit_code: ClassVar[int] = 70
    reason: ClassVar[str] = "Internal"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(LauncherError):
    """The command line cannot be carried out as given."""

    exit_code = 2
    reason = "Usage"


@dataclass(frozen=True, slots=True)
class SpecProblem:
    """One thing wrong with the spec: ``path`` is a JSON path such as ``$.spec.instance.disks[1].readOnly``."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class SpecInvalid(LauncherError):
    """The spec could not be read or is not valid; ``problems`` holds every one found, in document order."""

    exit_code = 10
    reason = "SpecInvalid"

    def __init__(self, message: str, *, problems: tuple[SpecProblem, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems

    @classmethod
    def at(cls, path: str, message: str) -> SpecInvalid:
        """A spec with this one problem."""
        problem = SpecProblem(path, message)
        return cls(str(problem), problems=(problem,))

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems)) if self.problems else super().__str__()


class HostUnfit(LauncherError):
    """This machine or container lacks something the VM needs."""

    exit_code = 11
    reason = "HostUnfit"


class ImageInvalid(LauncherError):
    """An image is missing, corrupt, hostile or without the expected file."""

    exit_code = 12
    reason = "ImageInvalid"


class StorageFailed(LauncherError):
    """A disk could not be prepared."""

    exit_code = 13
    reason = "StorageFailed"


class NetworkFailed(LauncherError):
    """The pod's network could not be handed to the guest."""

    exit_code = 14
    reason = "NetworkFailed"


class VmmFailed(LauncherError):
    """The VMM did not start, or refused create or boot; its own words are in the message."""

    exit_code = 15
    reason = "VmmFailed"


class HelperFailed(LauncherError):
    """A helper process (dnsmasq, virtiofsd) kept dying."""

    exit_code = 16
    reason = "HelperFailed"


BY_REASON: dict[str, type[LauncherError]] = {
    leaf.reason: leaf
    for leaf in (
        LauncherError,
        UsageError,
        SpecInvalid,
        HostUnfit,
        ImageInvalid,
        StorageFailed,
        NetworkFailed,
        VmmFailed,
        HelperFailed,
    )
}
