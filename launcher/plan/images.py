"""Which images a plan can rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.errors import ImageInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.facts import ImageFacts


def usable(image: ImageFacts | None, path: Path, reference: str, otherwise: str) -> ImageFacts:
    """The image that shall be at ``path`` for ``reference``. Raises ImageInvalid; ``otherwise`` is another way round it."""
    if image is None:
        raise ImageInvalid(f"there is no image at {path}", hint=f"mount {reference} there, {otherwise}")
    if image.problem:
        raise ImageInvalid(f"{image.problem}; the spec wants {reference} there", hint=image.hint)
    return image
