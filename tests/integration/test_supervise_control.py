"""The control socket of a live supervisor: what any client may do to it, it goes on answering."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.errors import VmmFailed
from launcher.supervise.control import CLIENTS
from launcher.vmm.http import HEAD_LIMIT
from tests.contract.harness import eventually
from tests.lab.supervised import supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.netns import PodNetns
    from tests.lab.supervised import Supervised

pytestmark = pytest.mark.root

RANDOM_REQUESTS = 10_000
STATUS_CALLS = 3_000


@pytest.fixture(scope="module")
def running(quiet_net: PodNetns) -> Iterator[Supervised]:
    """A VM that all tests here talk to; at the end it is as well as ever."""
    with supervised(quiet_net) as vm:
        vm.fake("--at-start", "ignore-power-button")
        vm.boot()
        yield vm
        assert vm.status()["phase"] == "running"
        vm.guest("poweroff")
        vm.end(0, "GuestPoweredOff")


def path(vm: Supervised) -> Path:
    return vm.pod.run_dir / "launcher.sock"


def descriptors(vm: Supervised) -> int:
    """How many descriptors the launcher has."""
    return len(list(Path(f"/proc/{vm.pid}/fd").iterdir()))


def answers(vm: Supervised) -> bool:
    """Whether it has time for us."""
    try:
        return vm.control("GET", "/status").status == 200
    except VmmFailed:  # too many wait
        return False


def curl(vm: Supervised, *options: str, url: str = "/status") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "-sS", "--max-time", "20", "--unix-socket", str(path(vm)), *options, f"http://launcher{url}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_curl_works(running: Supervised) -> None:
    status = json.loads(curl(running).stdout)
    assert status["vm"]["name"] == "demo"
    assert status["vmState"] == "Running"
    assert status["consoleDroppedBytes"] == 0

    events = [json.loads(line) for line in curl(running, url="/events").stdout.splitlines()]
    assert events == running.events()
    answer = curl(running, "-d", '{"timeout": -1}', "-w", "%{http_code}", url="/power/off")
    assert answer.stdout == '{"error": "\\"timeout\\" is a number of seconds above 0, at most 86400"}400'


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"PUT /status HTTP/1.1\r\n\r\n", 405),
        (b"GET /power/off HTTP/1.1\r\n\r\n", 405),
        (b"POST /power/off HTTP/1.1\r\nContent-Length: 4\r\n\r\nnull", 400),
        (b'POST /power/off HTTP/1.1\r\nContent-Length: 12\r\n\r\n{"more": 12}', 400),
        (b'POST /power/off HTTP/1.1\r\nContent-Length: 14\r\n\r\n{"timeout":""}', 400),
        (b'POST /power/shutdown HTTP/1.1\r\nContent-Length: 11\r\n\r\n{"force":1}', 400),
        (b'POST /power/off HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"time\xff\xfe"', 400),
        (b"POST /power/off HTTP/1.1\r\nContent-Length: 60000\r\n\r\n", 413),
        (b"POST /power/off HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /power/off HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /power/off HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET /" + b"x" * HEAD_LIMIT + b" HTTP/1.1\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
    ],
)
def test_what_it_does_not_take_is_refused_in_one_sentence(
    running: Supervised, request_text: bytes, status: int
) -> None:
    with running.connected() as client:
        answer = client.ask(request_text)

        assert answer.status == status
        assert list(json.loads(answer.body)) == ["error"]
        assert client.closed_without_a_word()


def test_ten_thousand_random_requests_leave_it_standing(running: Supervised) -> None:
    chance = random.Random(7)
    pieces = [b"GET ", b"POST ", b"/status", b"/events", b"/power/off", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b": "]
    pieces += [
        b"Content-Length: 5",
        b"Content-Length: 99999999999999999999",
        b"\0\xff",
        b"{}",
        b'{"timeout": 1e999}',
        b"x" * 300,
    ]
    harmful = b"POST /power"
    for _ in range(RANDOM_REQUESTS):
        text = b"".join(chance.choices(pieces, k=chance.randint(1, 8)))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path(running)))  # blocks while too many wait
            with contextlib.suppress(BrokenPipeError):  # likewise they may be sent away without a word
                client.send(text if harmful not in text else text[1:])

    eventually(lambda: answers(running), "they are through")


def test_the_seventeenth_client_is_told_so(running: Supervised) -> None:
    eventually(lambda: answers(running), "the others are gone")
    clients = [running.connected() for _ in range(CLIENTS)]
    try:
        with running.connected() as one_more:
            assert one_more.ask(b"GET /status HTTP/1.1\r\n\r\n").status == 503
    finally:
        for client in clients:
            client.socket.close()
    eventually(lambda: answers(running), "they are gone")


def test_another_uid_is_refused(running: Supervised) -> None:
    stranger = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "curl", "-sS", "--max-time", "20"]
    ask = [*stranger, "-w", "%{http_code}", "--unix-socket", str(path(running)), "http://launcher/status"]
    assert path(running).stat().st_mode & 0o777 == 0o600
    assert subprocess.run(ask, capture_output=True, check=False).returncode == 7  # cannot even connect

    path(running).chmod(0o666)
    told = subprocess.run(ask, capture_output=True, text=True, check=False)
    path(running).chmod(0o600)
    assert told.stdout == '{"error": "only root may talk to the launcher"}403'


def private_bytes(vm: Supervised) -> int:
    """What is the launcher's alone: the PSS grows whenever another Python on the machine ends."""
    lines = Path(f"/proc/{vm.pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def test_status_calls_leak_nothing(running: Supervised) -> None:
    for _ in range(100):
        running.status()
    fds, memory = descriptors(running), private_bytes(running)
    for _ in range(STATUS_CALLS):
        running.status()

    eventually(lambda: descriptors(running) <= fds, "the last connection is closed")
    assert private_bytes(running) - memory < 256 << 10


def test_refused_power_actions_leak_nothing(running: Supervised) -> None:
    before = descriptors(running)
    for _ in range(5):
        # From inside the container: there the launcher can see who asks.
        running.pod.exec_raw(
            *("curl", "-sS", "--unix-socket", str(path(running)), "-d", '{"timeout": 0.001}', "-o", "/dev/null"),
            "http://launcher/power/shutdown",
        )

    eventually(lambda: descriptors(running) <= before, "all are closed")
