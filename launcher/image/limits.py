"""How much of an image we take: what keeps a hostile one from taking all time, memory and disk."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import ImageInvalid


@dataclass(frozen=True, slots=True)
class Limits:
    """Each may be raised by the environment variable ``variable`` names. Numbers: docs/explanation/images-and-disks.md."""

    entries: int = 1_000_000  # of all layers together; some 500 bytes of memory each
    bytes: int = 64 << 30  # that all layers inflate to, and that the files of the tree have
    metadata: int = 64 << 20  # bytes of names, link targets and extended attributes
    directory: int = 20_000  # names in one directory of a root disk; mke2fs takes the square of it in time

    @staticmethod
    def variable(name: str) -> str:
        """The environment variable of a field."""
        return f"LAUNCHER_IMAGE_MAX_{name.upper()}"

    def exceeded(self, name: str, message: str) -> ImageInvalid:
        """The error for an image that goes beyond the field ``name``; ``message`` begins with the place."""
        variable = self.variable(name)
        return ImageInvalid(
            f"{message}: more than the {getattr(self, name)} that are taken",
            hint=f"where such an image is meant, raise ${variable}",
        )


DEFAULT = Limits()
