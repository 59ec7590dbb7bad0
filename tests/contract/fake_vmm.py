"""A program with cloud-hypervisor's command line, API, events, sockets and exit codes, and no guest behind them.

    python -m tests.contract.fake_vmm --api-socket PATH|fd=N [--event-monitor path=P|fd=N] [--no-shutdown] …

Its own options come on top: ``--version-knob 46|47|52|53|54``, ``--strict FILE`` (a line for every body that v53.0 would
not understand as it was meant) and ``--guest-control SOCKET``: a line is an action of the guest, answered with ``ok``:
``poweroff``, ``reboot``, ``vcpu-error``, ``panic [EVENT]``, ``console TEXT``, ``flood MEGABYTES`` (printed as fast as it is
read), ``crash`` (the VMM aborts), ``ignore-power-button``, ``slow-boot SECONDS``. ``--at-start ACTION`` does one before the
API answers. Else the guest prints one line, echoes, and powers off by the button.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import queue
import signal
import socket
import struct
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from tests.contract.fake.devices import F_OFD_SETLK
from tests.contract.fake.events import Events
from tests.contract.fake.http import Answer, Server
from tests.contract.fake.machine import Machine, Panic
from tests.contract.fake.routes import Routes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIGNALS = (signal.SIGTERM, signal.SIGINT)
VM_OPTIONS = ("serial", "console", "cpus", "memory", "disk", "net", "rng", "landlock-rules", "platform", "cmdline")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("cloud-hypervisor", allow_abbrev=False)
    parser.add_argument("--version-knob", type=int, default=53)
    version = parser.parse_known_args([each for each in argv if each not in {"--version", "-V"}])[0].version_knob
    text = f"cloud-hypervisor v{version}.0" + ("\nMigration Protocol Versions: 0" if version >= 53 else "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # keep the second line of --version
    parser.add_argument("-V", "--version", action="version", version=text)
    for name in ("api-socket", "event-monitor", "log-file", "strict", "guest-control"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--at-start", action="append", default=[])
    parser.add_argument("--seccomp", choices=["true", "false", "log", "errno"])
    parser.add_argument("-v", action="count")
    if version >= 52:
        parser.add_argument("--no-shutdown", action="store_true")
        parser.add_argument("--log-format")
    for name in VM_OPTIONS:
        parser.add_argument(f"--{name}")
    parser.add_argument("--landlock", action="store_true")
    options = parser.parse_args(argv)
    if not argv:
        parser.print_help()
        parser.exit(2)
    if options.landlock or any(getattr(options, name.replace("-", "_")) for name in VM_OPTIONS):
        parser.error("the following required arguments were not provided: <--kernel <kernel>|--firmware <firmware>>")
    return options


def fail(message: str) -> int:
    print(f"Error: Cloud Hypervisor exited with the following error:\n  {message}", file=sys.stderr)
    return 1


def listen(where: str, version: int) -> tuple[socket.socket, str | None, int]:
    """The API's listener, the path to remove at the end, and the descriptor whose lock says that we live.

    Raises OSError, with the sentence as its text, when the path cannot be had.
    """
    if where.startswith("fd="):
        return socket.socket(fileno=int(where.removeprefix("fd="))), None, -1
    path = where.removeprefix("path=")
    lock = -1
    listener = socket.socket(socket.AF_UNIX)
    try:
        if version >= 53:
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.fcntl(lock, F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            Path(path).unlink(missing_ok=True)
        listener.bind(path)
    except BlockingIOError:
        listener.close()
        raise OSError(f'API socket "{path}" is already in use by another running instance') from None
    except OSError as error:
        listener.close()
        if version == 52:
            Path(path).unlink(missing_ok=True)
        raise OSError(f"Error starting the API: {error.strerror} (os error {error.errno})") from error
    listener.listen(128)
    return listener, path, lock


def event_fd(where: str | None) -> int:
    if where is None:
        return -1
    kind, _, value = where.partition("=")
    if kind == "fd":
        return int(value)
    if kind != "path":
        raise OSError("Error parsing --event-monitor: path or fd is needed")
    return os.open(value, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


class Program:
    """The machine's thread is the main one; the API's, the serial port's and the guest control's hand it work."""

    def __init__(self, machine: Machine, listener: socket.socket, strict: str | None) -> None:
        self.machine = machine
        self.work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.strict = strict
        self.routes = Routes(machine, self.report, self.work.put)
        self.server = Server(listener, self.call, 4 << 20 if machine.version >= 54 else 51200)

    def report(self, problem: str) -> None:
        if self.strict is not None:
            with Path(self.strict).open("a", encoding="utf-8") as file:
                file.write(f"{problem}\n")

    def call(self, method: str, path: str, body: bytes | None, fds: list[int]) -> Answer:
        future: Future[Answer] = Future()

        def work() -> None:
            try:
                future.set_result(self.routes.answer(method, path, body, fds))
            except Panic:
                future.set_result(
                    self.routes.error(
                        500, "Error from API", "API response receive error", "receiving on a closed channel"
                    )
                )
                raise

        self.work.put(work)
        return future.result()

    def run(self) -> int:
        threading.Thread(target=self.await_signals, daemon=True).start()
        self.machine.events.tell("vmm", "starting")
        self.server.start()
        try:
            while self.machine.exit_code is None:
                self.work.get()()
            code = self.machine.exit_code
        except Panic:
            code = fail("Failed to join on VMM thread: Any { .. }")
        self.server.stop()
        return code

    def await_signals(self) -> None:
        while signal.sigwait(SIGNALS):
            self.work.put(self.machine.interrupt)

    def control(self, path: str) -> None:
        """Serve the guest's control socket, one connection at a time, for ever."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        threading.Thread(target=self.obey, args=(listener,), daemon=True).start()

    def obey(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            with client, client.makefile("rw", encoding="utf-8") as stream:
                for line in stream:
                    action, _, argument = line.strip().partition(" ")
                    done = threading.Event()
                    self.work.put(lambda action=action, argument=argument: self.machine.guest(action, argument))  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
                    self.work.put(done.set)
                    done.wait()
                    stream.write("ok\n")
                    stream.flush()


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before any thread starts: one of them waits for these
    path: str | None = None
    try:
        events = Events(event_fd(options.event_monitor))
        listener, path, lock = listen(options.api_socket, options.version_knob)
    except OSError as error:
        return fail(str(error))
    machine = Machine(options.version_knob, events, no_shutdown=getattr(options, "no_shutdown", False))
    for action in options.at_start:
        machine.guest(*action.split(maxsplit=1))
    program = Program(machine, listener, options.strict)
    if options.guest_control:
        program.control(options.guest_control)
    code = program.run()
    if path is not None and code == 0:
        Path(path).unlink(missing_ok=True)
    if lock >= 0:
        os.close(lock)
    listener.close()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
