"""What a long or large build does to the machine: how it is told, how it ends early, what it takes."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.errors import ImageInvalid
from launcher.host import storage
from launcher.host.progress import Advance, Meter
from launcher.image.limits import Limits
from launcher.plan.types import BuildRootDisk
from tests.lab.pod import LAUNCHER
from tests.unit.image.build import PACK, folder, item, layout, tar

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("large image")]  # one image for all of them

MIB = 1 << 20
# A worker's build, alone: the same process, without a VM around it.
BUILD = """
import re, sys
from pathlib import Path
import launcher.worker
from launcher.host.storage import build_root_disk
from launcher.plan.types import BuildRootDisk
build_root_disk(BuildRootDisk("root", Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), ""), arch="x86_64")
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def build(image: Path, disk: Path, size: int = 64 * MIB) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, image, disk, str(size)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of 300 MB in three layers, that takes a second to build."""
    noise = random.Random(1).randbytes(10 * MIB)
    layers = [tar(*(item(f"{number}/{n}", noise) for n in range(10))) for number in range(3)]
    return layout(tmp_path_factory.mktemp("large") / "image", *layers, pack="+zstd")


def test_memory_does_not_grow_with_the_image(large: Path, tmp_path: Path) -> None:
    peaks = {}
    for name, image in {"small": layout(tmp_path / "small", tar(item("f"))), "large": large}.items():
        with build(image, tmp_path / f"{name}.raw", 400 * MIB) as worker:
            assert worker.stdout
            peaks[name] = int(worker.stdout.read())
        assert worker.returncode == 0
    assert peaks["large"] < 80_000, peaks  # kB
    assert peaks["large"] < peaks["small"] + 15_000, peaks


def in_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def test_sigterm_ends_a_build_at_once_and_the_next_start_finds_nothing_half_made(large: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with build(large, work / "disk", 400 * MIB) as worker:
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        deadline = time.monotonic() + 60
        fed = 0  # mke2fs's pid, once it has read a part of the tree
        while not fed:
            assert time.monotonic() < deadline
            assert worker.poll() is None
            for child in map(int, children.read_text().split()):
                try:
                    told = re.search(r"rchar: (\d+)", Path(f"/proc/{child}/io").read_text())
                    arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if b"-d" in arguments and arguments[0] == b"mke2fs" and told and int(told[1]) > 20 * MIB:
                    fed = child
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        worker.wait()
        while in_state(fed) not in {"gone", "Z"}:
            assert time.monotonic() - began < 1
        assert time.monotonic() - began < 1
    assert worker.returncode == -signal.SIGTERM
    assert not (work / "disk").exists()
    storage.build_root_disk(
        BuildRootDisk("root", layout(tmp_path / "next", tar(item("f"))), work / "disk", 64 * MIB, ""), arch="amd64"
    )
    assert [path.name for path in work.iterdir()] == ["disk"]


def test_progress_is_told_in_bytes_entries_and_time(large: Path, tmp_path: Path) -> None:
    told: list[Advance] = []
    ticks = iter(range(1_000_000))
    meter = Meter(told.append, every=10, clock=lambda: next(ticks))
    storage.build_root_disk(BuildRootDisk("root", large, tmp_path / "disk", 400 * MIB, ""), arch="amd64", meter=meter)
    stages = {advance.stage: advance for advance in told}
    assert list(stages) == ["reading the image", "writing the disk"]
    for advance in told:
        assert 0 < advance.share <= 1
    written = stages["writing the disk"]
    assert (written.total, written.entries) == (300 * MIB, 34)
    assert written.share > 0.95
    half = Advance("writing the disk", 150_000_000, 300_000_000, 17, 12.0)
    assert str(half) == "writing the disk: 50%, 150 of 300 MB, 17 entries, 12 s left"


def test_the_command_draws_a_bar_on_a_terminal_and_takes_limits_from_the_environment(
    large: Path, tmp_path: Path
) -> None:
    argv: list[str | Path] = [LAUNCHER, "image", "rootfs", large, tmp_path / "disk", "--size", "400Mi"]
    refused = subprocess.run(
        argv, check=False, capture_output=True, text=True, env={**os.environ, "LAUNCHER_IMAGE_MAX_ENTRIES": "9"}
    )
    assert refused.returncode == ImageInvalid.exit_code
    assert "raise $LAUNCHER_IMAGE_MAX_ENTRIES" in refused.stderr
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123  # a descriptor
        built = subprocess.run(argv, check=False, stdout=subprocess.PIPE, stderr=theirs)
        os.set_blocking(ours, False)
        drawn = terminal.read(1 << 16).decode()
        os.close(theirs)
    assert built.returncode == 0
    bars = re.findall(r"\[(#*)(\.*)\] (\w[^\r]*)\r", drawn)
    assert {len(done) + len(left) for done, left, _ in bars} == {30}
    assert any("of 314 MB" in told for _, _, told in bars)
    assert drawn.endswith("\033[K")


def test_a_full_directory_is_refused_with_a_way_round(tmp_path: Path) -> None:
    image = layout(tmp_path / "i", tar(*(item(f"var/mail/{number:05}") for number in range(1200))))
    action = BuildRootDisk("root", image, tmp_path / "disk", 64 * MIB, "")
    with pytest.raises(ImageInvalid, match="directory 'var/mail': has 1200 names") as caught:
        storage.build_root_disk(action, arch="amd64", limits=Limits(directory=1000))
    assert "LAUNCHER_IMAGE_MAX_DIRECTORY" in str(caught.value.hint)
    assert storage.build_root_disk(action, arch="amd64", limits=Limits(directory=1200)).built


def test_a_sparse_file_takes_no_room(tmp_path: Path) -> None:
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.realsize": str(500 * MIB)}
    image = layout(tmp_path / "i", tar(item("f", "data", pax_headers=headers | {"GNU.sparse.map": f"{400 * MIB},4"})))
    disk = tmp_path / "disk"
    storage.build_root_disk(BuildRootDisk("root", image, disk, 64 * MIB, ""), arch="amd64")
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
    subprocess.run(["debugfs", "-R", f"dump /f {tmp_path}/f", disk], check=True, capture_output=True)
    content = (tmp_path / "f").read_bytes()
    assert len(content) == 500 * MIB
    assert content[400 * MIB : 400 * MIB + 4] == b"data"
    assert content.count(0) == 500 * MIB - 4


def test_odd_entries_do_not_stop_a_build(tmp_path: Path) -> None:
    """A directory that mke2fs makes itself, an entry upon another, names with every byte."""
    names = ["a\nb", "tab\t", 'quote"', "\\", "#hash", " ", "-d", "ünï", "%s"]
    layers = [
        tar(
            folder("lost+found", mode=0o711), item("twice", "1"), folder("twice"), *(item(name, "x") for name in names)
        ),
        tar(item("lost+found/f", "x"), *(item(f"d/{name}", name) for name in names)),
    ]
    disk = tmp_path / "disk"
    storage.build_root_disk(
        BuildRootDisk("root", layout(tmp_path / "i", *layers, pack="+zstd"), disk, 64 * MIB, ""), arch="amd64"
    )
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
    (tmp_path / "out").mkdir()
    subprocess.run(["debugfs", "-R", f"rdump /d {tmp_path}/out", disk], check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "out/d").iterdir()} == set(names)


def test_a_lost_and_found_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """mke2fs 1.47.2 makes a damaged file system of it, without a word."""
    (tmp_path / "layer").write_bytes(PACK["+gzip"](tar(item("lost+found", "x"))))
    action = BuildRootDisk("root", tmp_path / "layer", tmp_path / "disk", 64 * MIB, "")
    with pytest.raises(ImageInvalid, match=r"lost\+found is no directory"):
        storage.build_root_disk(action, arch="amd64")
