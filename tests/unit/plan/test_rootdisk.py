from __future__ import annotations

from pathlib import Path

import pytest

from launcher.facts import CacheFacts, DiskFacts, ImageFacts
from launcher.plan.rootdisk import choose_way

CACHE = CacheFacts(Path("/cache"), 1 << 30, file_system="xfs")
IMAGE = ImageFacts("root", "OCI layout", "sha256:00")


@pytest.mark.parametrize(
    ("reflink", "link", "way"),
    [(True, True, "reflink"), (True, False, "reflink"), (False, True, "overlay"), (False, False, "copy")],
)
def test_the_cheapest_way_that_the_machine_allows(*, reflink: bool, link: bool, way: str) -> None:
    disk = DiskFacts("root", cache_reflink=reflink, cache_link=link)
    chosen, why = choose_way(IMAGE, disk, CACHE)
    assert chosen == way
    assert why


@pytest.mark.parametrize(
    ("image", "cache", "why"),
    [
        (IMAGE, None, ""),
        (IMAGE, CacheFacts(Path("/cache"), 1, problem="/cache is not a folder"), "/cache is not a folder"),
        (ImageFacts("root", "image root directory"), CACHE, "an image root directory has no digest"),
    ],
)
def test_without_the_cache(image: ImageFacts, cache: CacheFacts | None, why: str) -> None:
    way, told = choose_way(image, DiskFacts("root", cache_reflink=True), cache)
    assert way is None
    assert why in told
    assert bool(why) is bool(told)
