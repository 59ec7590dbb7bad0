"""What the resident process may cost, read from the live one with its guest running."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.bench import furnish, memory
from tests.lab.pod import VmPod, vm_pod
from tests.lab.witness import witness

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("budget")]  # one boot for all of them

PSS_MB = 14.0
MODULES = 160
DESCRIPTORS = 18
CALLS = 3000
ARENA_MB = 0.262144  # Python takes memory 256 KiB at a time
HEAVY = frozenset(
    [
        "ssl",
        "asyncio",
        "http",
        "pyroute2",
        "requests",
        "urllib3",
        "psutil",
        "pycdlib",
        "backports",
        "tarfile",
        "click",
        "ctypes",
        "hashlib",
    ]
)
# The shared objects these come with, as they appear in /proc/PID/maps.
HEAVY_OBJECTS = re.compile(r"/(_ssl|_hashlib|_ctypes|_asyncio|_zstd|_psutil\w*|libssl|libcrypto|libffi)[.-][^/]*$")


@pytest.fixture(scope="module")
def alive() -> Iterator[VmPod]:
    """A pod whose guest has its lease."""
    with vm_pod() as pod:
        furnish(pod)
        pod.start("--emulate")
        pod.until_console("GUEST-LEASE", 120)
        pod.until_event('"event": "lease"', 10)
        yield pod


def ask(pod: VmPod) -> dict[str, object]:
    """One GET /status on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("launcher")) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(str(pod.run_dir / "launcher.sock"))
        connection.request("GET", "/status")
        value: dict[str, object] = json.load(connection.getresponse())
        return value


def descriptors(pod: VmPod) -> dict[str, str]:
    return {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{pod.pid}/fd").iterdir()}


def test_memory_stays_within_the_budget(alive: VmPod) -> None:
    assert memory(alive.pid)["Pss"] <= PSS_MB


def test_no_heavy_library_is_mapped(alive: VmPod) -> None:
    mapped = {line.split()[-1] for line in Path(f"/proc/{alive.pid}/maps").read_text().splitlines()}
    assert any("python" in name for name in mapped)
    assert not [name for name in mapped if HEAVY_OBJECTS.search(name)]


def test_one_thread_and_few_descriptors(alive: VmPod) -> None:
    status = Path(f"/proc/{alive.pid}/status").read_text()
    assert re.search(r"^Threads:\s+1$", status, re.MULTILINE), "the resident process needs no threads"
    assert len(descriptors(alive)) <= DESCRIPTORS, descriptors(alive)


def test_asking_thousands_of_times_leaves_nothing_behind(alive: VmPod) -> None:
    for _ in range(2000):  # its heap finds its size
        ask(alive)
    before, open_before = memory(alive.pid), descriptors(alive)
    for _ in range(CALLS):
        assert ask(alive)["phase"] == "running"
    after = memory(alive.pid)
    # The anonymous part is what the process allocated; the rest of its PSS moves with who else maps libc.
    assert after["Pss_Anon"] - before["Pss_Anon"] < ARENA_MB
    assert after["Pss"] <= PSS_MB
    assert len(descriptors(alive)) <= len(open_before)


def test_a_whole_life_loads_nothing_heavy() -> None:
    """By the process's own sys.modules at its end, after a boot and a power-off."""
    with witness() as told, vm_pod(launcher=told.launcher) as pod:
        furnish(pod, "launcher.test=poweroff")
        pod.start("--emulate")
        assert pod.wait(120) == 0, pod.log[-4000:]
        modules = told.modules()
    assert "launcher.supervise.supervisor" in modules
    assert not HEAVY & {name.partition(".")[0] for name in modules}
    assert len(modules) <= MODULES, sorted(modules)


def imported(statement: str) -> set[str]:
    """Top-level names in sys.modules of a Python that ran ``statement``."""
    program = f"import sys\ntry:\n    {statement}\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_the_import_alone_is_light() -> None:
    assert not HEAVY & imported("import launcher.supervise.main")


def test_the_check_would_see_a_heavy_module() -> None:
    assert imported("import launcher.worker") >= {"pyroute2", "asyncio"}


def test_help_and_status_load_neither_netlink_nor_requests() -> None:
    heavy = {"pyroute2", "requests", "urllib3", "asyncio", "pycdlib", "backports"}
    for words in (["--help"], ["run", "--help"], ["status", "--help"]):
        assert not heavy & imported(f"sys.argv[1:] = {words!r}; from launcher.cli import main; main()"), words
