from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import pytest

from launcher.vmm.requests_transport import RequestsTransport
from launcher.vmm.transport import SocketTransport, Transport
from tests.contract.harness import Vmm, fake_command, real_binary
from tests.contract.machine import INSIDE, MARKER, KvmCannotSave, problem_in_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    try:
        return (yield)
    except KvmCannotSave:
        if INSIDE in os.environ:
            raise
    if problem := problem_in_machine(pyfuncitem):
        pytest.fail(problem, pytrace=False)
    return True


class Start(Protocol):
    """Start a VMM: ``bound`` passes it a listening socket, else it makes ``ch.sock`` itself."""

    def __call__(
        self,
        *options: str,
        name: str = "a",
        bound: bool = True,
        version: int = 53,
        transport: Callable[[Path], Transport] = ...,
    ) -> Vmm: ...


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.vmm)])
def command(request: pytest.FixtureRequest) -> list[str]:
    """cloud-hypervisor as a command: the fake one, then the real one."""
    return [real_binary()] if request.param == "real" else fake_command()


@pytest.fixture
def start(command: list[str], tmp_path: Path) -> Iterator[Start]:
    running: list[Vmm] = []
    real = len(command) == 1

    def begin(
        *options: str,
        name: str = "a",
        bound: bool = True,
        version: int = 53,
        transport: Callable[[Path], Transport] = SocketTransport,
    ) -> Vmm:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        own = [] if real else ["--version-knob", str(version), "--strict", "strict", "--guest-control", "control"]
        if not real:
            (folder / "control").unlink(missing_ok=True)
        vmm = Vmm(folder, [*command, *own, *options], transport, real=real, bound=bound)
        running.append(vmm)
        return vmm

    yield begin
    for vmm in running:
        vmm.close()
    strict = [line for vmm in running if (vmm.folder / "strict").exists() for line in (vmm.folder / "strict").open()]
    assert not strict, f"bodies that v53.0 would not understand as meant: {strict}"


@pytest.fixture(params=[SocketTransport, RequestsTransport], ids=["socket", "requests"])
def transport(request: pytest.FixtureRequest) -> Callable[[Path], Transport]:
    """Both of the launcher's clients."""
    chosen: Callable[[Path], Transport] = request.param
    return chosen


@pytest.fixture
def vmm(start: Start, transport: Callable[[Path], Transport]) -> Vmm:
    """A VMM that was just started."""
    return start(transport=transport)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., Vmm]]:
    """Start the fake VMM of any version."""
    running: list[Vmm] = []

    def begin(version: int, *options: str, bound: bool = True) -> Vmm:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        extra = ["--version-knob", str(version), "--guest-control", "control", *options]
        running.append(Vmm(folder, fake_command(*extra), SocketTransport, real=False, bound=bound))
        return running[-1]

    yield begin
    for vmm in running:
        vmm.close()
