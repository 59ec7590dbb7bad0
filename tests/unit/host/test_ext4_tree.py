"""What a tree needs on ext4, and what has to be put back."""

from __future__ import annotations

import struct

import pytest

from launcher.host.ext4_tree import acl_from_text, plan_tree, time_fields
from launcher.image.merge import MergedDirectory
from launcher.image.stream import flatten
from launcher.image.tree import Entry, Kind


def directory(**children: Entry | MergedDirectory) -> MergedDirectory:
    made = MergedDirectory(Entry(Kind.DIRECTORY, 0o755, 0, 0, 0))
    made.children.update(children)
    return made


def file(size: int = 0, **fields: object) -> Entry:
    return Entry(Kind.FILE, 0o644, 0, 0, fields.pop("mtime_ns", 0), size, **fields)  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize(
    ("nanoseconds", "fields"),
    [
        (0, ()),
        (1_700_000_000 * 10**9, ()),
        (1_700_000_000 * 10**9 + 5, (("mtime_extra", 20),)),
        (-1, (("mtime_extra", 999_999_999 << 2),)),
        (2**31 * 10**9, (("mtime", 2**31), ("mtime_extra", 1))),
        ((2**32 + 7) * 10**9 + 1, (("mtime", 7), ("mtime_extra", 5))),
        (-(2**40) * 10**9, ()),
        (2**40 * 10**9, (("mtime", 2**31 - 1), ("mtime_extra", 3))),
    ],
)
def test_times_mke2fs_cannot_write_become_fields(nanoseconds: int, fields: tuple[tuple[str, int], ...]) -> None:
    assert time_fields(nanoseconds) == fields


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, who) for tag, bits, who in entries)


NOBODY = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        (b"user::rw-,group::r--,other::r--", b""),
        (
            b"user::rw-,user:1000:r-x,group::r--,mask::r-x,other::---",
            acl((1, 6, NOBODY), (2, 5, 1000), (4, 4, NOBODY), (16, 5, NOBODY), (32, 0, NOBODY)),
        ),
        (
            b"user::rw-\nuser:joe:rwx:1001\ngroup::r--\ngroup:x:-w-:7\nmask::rwx\t#effective\nother::--x\n",
            acl((1, 6, NOBODY), (2, 7, 1001), (4, 4, NOBODY), (8, 2, 7), (16, 7, NOBODY), (32, 1, NOBODY)),
        ),
        (b"user::rw-,user:joe:rwx,group::r--,mask::r--,other::r--", None),
        (b"nonsense", None),
    ],
)
def test_text_acls_become_the_kernels(text: bytes, packed: bytes | None) -> None:
    assert acl_from_text(text) == packed


def test_blocks_and_inodes_are_counted() -> None:
    first = file(4097)
    first.linked = True
    tree = directory(
        a=first,
        again=first,
        long=Entry(Kind.SYMLINK, 0o777, 0, 0, 0, target="x" * 60),
        short=Entry(Kind.SYMLINK, 0o777, 0, 0, 0, target="x" * 59),
        empty=file(),
        d=directory(**{f"{number:0200}": file(1) for number in range(40)}),
    )
    plan = plan_tree(flatten(tree, "it"))
    assert plan.inodes == 11 + 1 + 4 + 1 + 40
    # root, d of 40 * 208 bytes in 19 per block, the file's two, the long symlink's, 40 small files
    assert plan.blocks == 1 + 3 + 2 + 1 + 40
    assert plan.extras == ()
    assert not plan.lost


def test_what_is_lost_is_counted() -> None:
    tree = directory(
        one=file(xattrs={"user.big": b"x" * 5000, "user.small": b"y", "odd.name": b"", "user.a b": b""}),
        **{"new\nline": file(mtime_ns=1, xattrs={"user.x": b""})},
        two=file(xattrs={"SCHILY.acl.access": b"user:joe:rwx,user::r--,group::r--,other::r--,mask::r--"}),
        sock=Entry(Kind.SOCKET, 0o755, 0, 0, 0),
    )
    plan = plan_tree(flatten(tree, "it"))
    assert plan.lost == {"extended attributes": 5, "sub-second times": 1, "sockets": 1}
    assert [(extra.path, dict(extra.xattrs)) for extra in plan.extras] == [("one", {"user.small": b"y"})]
