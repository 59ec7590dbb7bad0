"""Layers with damage anywhere: whatever comes, it is ImageInvalid, and it comes soon."""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.errors import ImageInvalid
from launcher.image.limits import Limits
from launcher.image.source import open_image
from launcher.image.stream import flatten, tar_stream
from tests.unit.image.build import PACK, folder, hardlink, item, symlink, tar

LIMITS = Limits(entries=1000, bytes=8 << 20, metadata=1 << 20)
STEPS = 200  # chunks of a MiB or an entry each that a layer of so few bytes may come to
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "holes", "GNU.sparse.realsize": "90000"}
REAL = tar(
    folder("d", mode=0o1777),
    item("d/f", "content", pax_headers={"SCHILY.xattr.user.k": "v", "mtime": "-1.5"}),
    item("n" * 150, "x" * 700, uid=3_000_000),
    symlink("l", "d/f"),
    hardlink("h", "d/f"),
    item("GNUSparseFile.0/holes", b"1\n4096\n10\n".ljust(512, b"\0") + b"0123456789", pax_headers=SPARSE),
    item("null", type_=tarfile.CHRTYPE, devmajor=1, devminor=3),
    item("d/.wh.x"),
)
GNU = tar(
    item("n" * 150, "x"), symlink("l", "t" * 150), item("big", uid=3_000_000, mtime=-5), format_=tarfile.GNU_FORMAT
)

_changes = st.lists(
    st.tuples(st.integers(0, len(REAL) - 1), st.one_of(st.binary(max_size=4), st.sampled_from([b"0", b"\xff" * 12]))),
    max_size=4,
)


def with_sums(data: bytearray) -> bytes:
    """The tar with every header's checksum made right, so that damage is not found by that alone."""
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


@given(
    st.sampled_from([REAL, GNU, REAL + GNU]),
    _changes,
    st.sampled_from(sorted(PACK)),
    st.booleans(),
    _changes,
    st.integers(0, 30_000),
)
@settings(max_examples=1000, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_damaged_layer_gives_a_tree_or_image_invalid(  # noqa: PLR0917  # the strategies, in order
    real: bytes,
    inside: list[tuple[int, bytes]],
    pack: str,
    mend: bool,  # noqa: FBT001  # a strategy's value
    outside: list[tuple[int, bytes]],
    length: int,
) -> None:
    data = bytearray(real)
    for place, change in inside:
        data[place % len(data) : place % len(data) + len(change)] = change
    packed = bytearray(PACK[pack](with_sums(data) if mend else bytes(data)))
    for place, change in outside if not mend else []:
        packed[place % len(packed) : place % len(packed) + len(change)] = change
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(ImageInvalid):
        file.write(packed[: len(packed) if mend else length])
        file.flush()
        with open_image(Path(file.name), arch="amd64", limits=LIMITS) as image:
            stream = tar_stream(image, flatten(image.tree(), image.what, LIMITS), frozenset())
            assert sum(1 for _ in stream) < STEPS
