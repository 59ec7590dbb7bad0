"""The cache of root disks with real file systems: shared, bounded, crash-safe, and O(1) from the second start on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.errors import ImageInvalid, StorageFailed
from launcher.host import cache as cache_module
from launcher.host.cache import content_digest, entry, evict
from launcher.host.cached_disk import clone_root_disk
from launcher.host.clone import can_link, can_reflink, data_runs, file_system
from launcher.host.overlay import overlay_flaw
from launcher.image.source import open_image
from launcher.plan.types import CloneRootDisk
from tests.lab.guest import lab_guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launcher.plan.types import CloneWay

pytestmark = pytest.mark.root

LAUNCHER = Path(sys.executable).with_name("launcher")
SIZE = 64 << 20
GIB = 1 << 30


def action(
    root: Path, vm: str, way: CloneWay = "copy", *, size: int = SIZE, limit: int = GIB, image: Path | None = None
) -> CloneRootDisk:
    """The root disk of one VM; the cache of all is ``root/cache``."""
    image = image or lab_guest().rootfs_image
    folder = root / vm
    folder.mkdir(exist_ok=True)
    with open_image(image, arch="amd64") as opened:
        digest = opened.digest
    assert digest
    return CloneRootDisk(
        volume="root",
        image=image,
        digest=digest,
        disk=folder / ("rootfs.qcow2" if way == "overlay" else "rootfs.raw"),
        base=folder / "rootfs.base.raw" if way == "overlay" else None,
        size=size,
        way=way,
        cache=root / "cache",
        limit=limit,
        verify=False,
        reason="a test",
    )


def clone(todo: CloneRootDisk) -> tuple[bool, int]:
    """Whether it was built, and how many bytes were copied."""
    done = clone_root_disk(todo, arch="amd64")
    assert done.path == todo.disk
    return done.built, done.copied


def entries(root: Path) -> list[Path]:
    return sorted(path for path in (root / "cache").iterdir() if path.is_dir())


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def check(disk: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", disk], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    """A file system of a kind of its own, on a loop device."""
    backing, place = folder / f"{kind}.img", folder / kind
    place.mkdir()
    with backing.open("wb") as file:
        file.truncate(400 << 20)
    made = subprocess.run([f"mkfs.{kind}", "-q", backing], check=False, capture_output=True)
    if made.returncode == 0:
        made = subprocess.run(["mount", "-o", "loop", backing, place], check=False, capture_output=True)
    if made.returncode != 0:
        pytest.skip(f"this machine cannot mount {kind}: {made.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        backing.unlink()


# --- the ways ---


def test_a_sparse_copy_copies_data_once_and_no_hole(tmp_path: Path) -> None:
    assert clone(action(tmp_path, "a")) == (True, allocated_data(entries(tmp_path)[0] / "disk"))
    built, copied = clone(action(tmp_path, "b"))

    base = entries(tmp_path)[0] / "disk"
    assert not built
    assert copied == allocated_data(base) < SIZE / 4
    disk = tmp_path / "b/rootfs.raw"
    assert disk.stat().st_size == SIZE
    assert content_digest(disk) == content_digest(base) == content_digest(tmp_path / "a/rootfs.raw")
    assert allocated(disk) <= allocated(base) * 1.1
    assert disk.stat().st_ino != base.stat().st_ino
    assert disk.stat().st_mode & 0o777 == 0o644
    check(disk)
    assert not list((tmp_path / "b").glob(".*"))


def allocated_data(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return sum(length for _, length in data_runs(fd))
    finally:
        os.close(fd)


def test_an_overlay_takes_nothing_whatever_the_size_of_the_disk(tmp_path: Path) -> None:
    assert clone(action(tmp_path, "a", "overlay", size=SIZE)) == (True, 0)
    assert clone(action(tmp_path, "b", "overlay", size=SIZE)) == (False, 0)
    assert clone(action(tmp_path, "huge", "overlay", size=64 * GIB, limit=100 * GIB)) == (True, 0)

    for vm in ("a", "b", "huge"):
        overlay, base = tmp_path / vm / "rootfs.qcow2", tmp_path / vm / "rootfs.base.raw"
        assert allocated(overlay) <= 4 * 65536
        assert base.stat().st_mode & 0o777 == 0o444
        assert overlay_flaw(overlay, base) is None
        told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", overlay]))
        assert told["virtual-size"] == base.stat().st_size
        assert told["backing-filename"] == str(base)
        assert told["backing-filename-format"] == "raw"
        subprocess.run(["qemu-img", "check", "-q", overlay], check=True)
        subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", overlay, base], check=True)
    assert (tmp_path / "a/rootfs.base.raw").samefile(tmp_path / "b/rootfs.base.raw")


def test_a_guest_writes_to_its_overlay_and_not_to_the_base(tmp_path: Path) -> None:
    for vm in ("a", "b"):
        clone(action(tmp_path, vm, "overlay"))
    base = entries(tmp_path)[0] / "disk"
    before = base.read_bytes()

    subprocess.run(
        ["qemu-io", "-c", "write -P 0xab 32M 1M", tmp_path / "a/rootfs.qcow2"], check=True, capture_output=True
    )

    assert base.read_bytes() == before
    there = subprocess.run(
        ["qemu-io", "-r", "-c", "read -P 0xab 32M 1M", tmp_path / "a/rootfs.qcow2"], check=True, capture_output=True
    )
    assert b"verification failed" not in there.stdout
    same = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw"]
    assert subprocess.run([*same, tmp_path / "b/rootfs.qcow2", base], check=False).returncode == 0
    assert subprocess.run([*same, tmp_path / "a/rootfs.qcow2", base], check=False).returncode == 1


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_reflink_shares_every_block(tmp_path: Path, kind: str) -> None:
    with mounted(kind, tmp_path) as root:
        assert can_reflink(root, root)
        assert file_system(root) == kind
        assert not can_reflink(root, tmp_path)
        assert list(root.iterdir()) == []  # looking leaves nothing
        assert clone(action(root, "a", "reflink"))[0]
        os.sync()
        before = os.statvfs(root)
        for vm in ("b", "c", "d", "e"):
            assert clone(action(root, vm, "reflink")) == (False, 0)
        os.sync()
        after = os.statvfs(root)

        base = entries(root)[0] / "disk"
        assert (before.f_bfree - after.f_bfree) * after.f_frsize < 1 << 20 < allocated_data(base)
        digest = content_digest(base)
        with (root / "b/rootfs.raw").open("r+b") as disk:
            disk.write(b"written by a guest")
        assert content_digest(base) == digest == content_digest(root / "c/rootfs.raw")
        check(root / "c/rootfs.raw")
        evict(root / "cache", 0)
        assert entries(root) == []
        assert content_digest(root / "c/rootfs.raw") == digest


def test_a_reflink_that_cannot_be_made_is_a_copy(tmp_path: Path) -> None:
    with mounted("xfs", tmp_path) as root:
        todo = replace(action(root, "a", "reflink"), cache=tmp_path / "cache")
        built, copied = clone(todo)
        assert built
        assert copied > 1 << 20
        check(todo.disk)


def test_what_the_machine_allows(tmp_path: Path) -> None:
    """Links are judged by the mount: a bind mount of the same file system does not take one."""
    other = tmp_path / "other"
    other.mkdir()
    assert can_link(tmp_path, other)
    subprocess.run(["mount", "--bind", other, other], check=True)
    try:
        assert not can_link(tmp_path, other)
        todo = replace(action(tmp_path, "other", "overlay"))
        with pytest.raises(StorageFailed, match="hard link") as told:
            clone(todo)
        assert told.value.hint
        assert not todo.disk.exists()
    finally:
        subprocess.run(["umount", other], check=True)
    assert not can_link(tmp_path / "nothing", tmp_path)


def test_a_disk_that_is_there_is_left_alone(tmp_path: Path) -> None:
    todo = action(tmp_path, "a")
    todo.disk.write_bytes(b"guest data")
    assert clone(todo) == (False, 0)
    assert todo.disk.read_bytes() == b"guest data"
    assert not todo.cache.exists()


def test_another_image_under_the_same_name_never_gets_into_the_cache(tmp_path: Path) -> None:
    todo = replace(action(tmp_path, "a"), digest="sha256:" + "0" * 64)
    with pytest.raises(ImageInvalid, match="changed while it was used"):
        clone(todo)
    assert entries(tmp_path) == []
    assert not todo.disk.exists()


# --- several at once ---


def _work(todo: CloneRootDisk, begin: str, results: str) -> None:
    while not Path(begin).exists():
        time.sleep(0.001)
    built, copied = clone(todo)
    Path(results, f"{os.getpid()}").write_text(json.dumps([built, copied, str(todo.disk)]))


def at_once(root: Path, todos: list[CloneRootDisk]) -> list[tuple[bool, int, str]]:
    results = root / "results"
    results.mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(todo, str(root / "begin"), str(results))) for todo in todos]
    for worker in workers:
        worker.start()
    (root / "begin").touch()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
        worker.close()
    return [tuple(json.loads(path.read_text())) for path in results.iterdir()]


def test_four_starts_of_one_image_build_it_once(tmp_path: Path) -> None:
    done = at_once(tmp_path, [action(tmp_path, vm, "overlay" if vm in "ab" else "copy") for vm in "abcd"])
    assert [built for built, _, _ in done].count(True) == 1
    assert len(entries(tmp_path)) == 1
    for vm in "cd":
        check(tmp_path / vm / "rootfs.raw")


def test_four_starts_of_different_images_build_side_by_side(tmp_path: Path) -> None:
    done = at_once(tmp_path, [action(tmp_path, vm, size=SIZE + at * (4 << 20)) for at, vm in enumerate("abcd")])
    assert all(built for built, _, _ in done)
    assert len(entries(tmp_path)) == 4
    for vm in "abcd":
        check(tmp_path / vm / "rootfs.raw")


def test_starts_in_a_cache_that_is_always_too_small(tmp_path: Path) -> None:
    """Everybody evicts everybody: every disk is whole all the same."""
    todos = [action(tmp_path, vm, size=SIZE + at % 2 * (4 << 20), limit=1) for at, vm in enumerate("abcd")]
    at_once(tmp_path, todos)
    for todo in todos:
        check(todo.disk)
    evict(tmp_path / "cache", 0)
    assert list((tmp_path / "cache").iterdir()) == []


# --- killed ---


def test_killed_at_any_moment_and_used_again(tmp_path: Path) -> None:
    """What is under an entry's or a disk's name is whole; what is half goes with the next start."""
    chance = random.Random(20)
    context = multiprocessing.get_context("fork")
    started = time.monotonic()
    clone(action(tmp_path, "measure", size=SIZE + (4 << 20)))
    whole = time.monotonic() - started
    todo = action(tmp_path, "vm", "overlay")
    for _ in range(8):
        (tmp_path / "begin").touch()
        (tmp_path / "results").mkdir(exist_ok=True)
        worker = context.Process(target=_work, args=(todo, str(tmp_path / "begin"), str(tmp_path / "results")))
        worker.start()
        worker.join(chance.uniform(0, whole))
        worker.kill()
        worker.join()
        worker.close()
        for place in entries(tmp_path):
            if not place.name.startswith("."):
                about = json.loads((place / "about.json").read_text())
                assert about["digest"] == content_digest(place / "disk")
        if todo.disk.exists():
            assert overlay_flaw(todo.disk, todo.disk.with_name("rootfs.base.raw")) is None
            shutil.rmtree(todo.disk.parent)
            todo.disk.parent.mkdir()
            evict(tmp_path / "cache", 0)
    clone(todo)
    check(todo.disk.with_name("rootfs.base.raw"))
    assert not [path for path in tmp_path.rglob(".*") if path.name.endswith(".building")]


# --- bounds ---


def of_size(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(os.urandom(size))

    return write


def use(folder: Path, name: str, size: int = 1 << 20, *, verify: bool = False, at: int | None = None) -> bool:
    """Whether an entry of random bytes had to be built; ``at`` is when, in seconds, it is said to have been used."""
    with entry(folder, {"name": name}, of_size(size), verify=verify) as found:
        if at is not None:
            os.utime(found.path.parent / "about.json", (at, at))
        return found.built


def test_the_entry_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    for at, name in enumerate("abcd"):
        assert use(tmp_path, name, at=1000 + at)
    assert not use(tmp_path, "a")  # now the newest

    evict(tmp_path, 2 << 20)

    assert [use(tmp_path, name) for name in "ad"] == [False, False]
    assert [use(tmp_path, name) for name in "bc"] == [True, True]
    evict(tmp_path, 4 << 20)
    assert len(list(tmp_path.iterdir())) == 8


def test_an_entry_in_use_stays(tmp_path: Path) -> None:
    use(tmp_path, "a")
    with entry(tmp_path, {"name": "a"}, of_size(1)) as found:
        evict(tmp_path, 0)
        assert found.path.exists()
    evict(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_base_of_an_overlay_neither_counts_nor_goes(tmp_path: Path) -> None:
    clone(action(tmp_path, "a", "overlay", limit=0))
    evict(tmp_path / "cache", 0)
    assert len(entries(tmp_path)) == 1
    assert clone(action(tmp_path, "b", "overlay", limit=0)) == (False, 0)
    for vm in "ab":
        shutil.rmtree(tmp_path / vm)
    evict(tmp_path / "cache", 0)
    assert entries(tmp_path) == []


def test_an_overlay_outlives_a_cache_that_is_deleted(tmp_path: Path) -> None:
    clone(action(tmp_path, "a", "overlay"))
    shutil.rmtree(tmp_path / "cache")
    assert overlay_flaw(tmp_path / "a/rootfs.qcow2", tmp_path / "a/rootfs.base.raw") is None
    check(tmp_path / "a/rootfs.base.raw")


def test_what_dead_builds_left_goes(tmp_path: Path) -> None:
    dead = tmp_path / ".0123.4567.building"
    (dead / "entry").mkdir(parents=True)
    (dead / "entry/disk").write_bytes(b"half")
    (tmp_path / "0123.lock").touch()
    evict(tmp_path, GIB)
    assert not dead.exists()


# --- trust ---


def damage(tmp_path: Path) -> Path:
    [disk] = tmp_path.glob("*/disk")
    disk.chmod(0o644)
    with disk.open("r+b") as file:
        file.seek(500_000)
        file.write(b"!")
    return disk


def test_a_changed_entry_is_built_again(tmp_path: Path) -> None:
    assert use(tmp_path, "a")
    damage(tmp_path)
    assert use(tmp_path, "a")
    assert not use(tmp_path, "a")


def test_a_change_that_hides_is_found_when_asked_to_look(tmp_path: Path) -> None:
    """The trade-off of docs/adr/0010-a-cache-that-shares-blocks.md: size, time and inode are looked at always, the content when asked."""
    assert use(tmp_path, "a")
    before = next(tmp_path.glob("*/disk")).stat()
    disk = damage(tmp_path)
    os.utime(disk, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not use(tmp_path, "a")
    assert use(tmp_path, "a", verify=True)
    assert not use(tmp_path, "a", verify=True)


def test_a_restored_entry_is_looked_at_once_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert use(tmp_path, "a")
    [disk] = tmp_path.glob("*/disk")
    shutil.copyfile(disk, disk.with_name("copy"))
    disk.with_name("copy").replace(disk)
    looks: list[Path] = []

    def look(path: Path) -> str:
        looks.append(path)
        return content_digest(path)

    monkeypatch.setattr(cache_module, "content_digest", look)
    assert not use(tmp_path, "a")
    assert not use(tmp_path, "a")
    assert looks == [disk]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": 1, "madeOf": {}, "identity": []}', None])
def test_an_entry_whose_record_is_damaged_is_built_again(tmp_path: Path, text: str | None) -> None:
    assert use(tmp_path, "a")
    [about] = tmp_path.glob("*/about.json")
    if text is None:
        about.unlink()
    else:
        about.write_text(text)
    assert use(tmp_path, "a")


def test_an_entry_that_cannot_be_read_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotten medium: the first look fails, the digest of what is built then does not."""
    assert use(tmp_path, "a")
    answers = iter([OSError(errno.EIO, "Input/output error")])

    def look(path: Path) -> str:
        for failure in answers:
            raise failure
        return content_digest(path)

    monkeypatch.setattr(cache_module, "content_digest", look)
    assert use(tmp_path, "a", verify=True)


@pytest.mark.parametrize(("text", "words"), [("many", "--cache-size"), ("-1", "no less than no bytes")])
def test_a_size_that_is_none(text: str, words: str) -> None:
    argv: list[str | Path] = [LAUNCHER, "facts", "--cache", "/nowhere", "--cache-size", text]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert "hint: a Kubernetes quantity" in done.stderr


def test_the_facts_tell_of_the_cache_and_make_nothing(tmp_path: Path) -> None:
    cache, disks = tmp_path / "new/cache", tmp_path / "disks"
    (disks / "root").mkdir(parents=True)
    argv: list[str | Path] = [
        LAUNCHER,
        "facts",
        "--cache",
        cache,
        "--cache-size",
        "1Gi",
        "--disks",
        disks,
        "--images",
        tmp_path / "none",
    ]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    seen = json.loads(done.stdout)
    assert seen["cache"] == {"folder": str(cache), "limit": GIB, "file_system": file_system(tmp_path)}
    assert seen["disks"][0]["cache_link"] is True
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disks", "root"]

    (tmp_path / "file").touch()
    argv[3] = tmp_path / "file"
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["cache"]["problem"] == f"{tmp_path / 'file'} is not a folder"


@pytest.mark.parametrize("victim", ["disk", "about.json"])
def test_links_in_the_cache_lead_nowhere(tmp_path: Path, victim: str) -> None:
    assert use(tmp_path, "a")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    [path] = tmp_path.glob(f"*/{victim}")
    path.rename(outside)
    path.symlink_to(outside)
    if victim == "disk":
        assert use(tmp_path, "a")
    content = outside.read_bytes()
    evict(tmp_path, 0)
    assert outside.read_bytes() == content
    outside.unlink()


def test_the_digest_does_not_depend_on_holes(tmp_path: Path) -> None:
    sparse, dense, other = tmp_path / "sparse", tmp_path / "dense", tmp_path / "other"
    with sparse.open("wb") as file:
        file.seek(3 << 20)
        file.write(b"data")
        file.truncate(8 << 20)
    dense.write_bytes(sparse.read_bytes())
    other.write_bytes(sparse.read_bytes() + b"\0")
    assert allocated(sparse) < allocated(dense)
    assert content_digest(sparse) == content_digest(dense) != content_digest(other)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise StorageFailed("no")

    with pytest.raises(StorageFailed), entry(tmp_path, {"name": "a"}, fail):
        pass
    assert list(tmp_path.iterdir()) == []
    assert use(tmp_path, "a")
