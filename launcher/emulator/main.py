"""vmm-emulator: cloud-hypervisor's REST API, with the guest run by QEMU without KVM.

For clusters and CI without KVM: slow (TCG), and no security boundary. It is a program of its own which the launcher
starts like a cloud-hypervisor; apart from that neither knows the other. (Being one, it may use subprocess itself.)
It speaks v53.0's API for creating, booting, pausing, rebooting and stopping a VM with disks, nets and a serial port;
everything else answers 501. One thread: requests, signals and the guest's own doings are handled one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import selectors
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.emulator.api import BUILD, Api
from launcher.emulator.events import Events
from launcher.emulator.http import Request, Response, Server
from launcher.emulator.qemu import PROGRAM
from launcher.emulator.refusal import EmulatorFailed, os_words
from launcher.emulator.vm import Vm

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("vmm-emulator")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """cloud-hypervisor's options as far as they make sense here; argparse exits with 2 on others, as clap does."""
    parser = argparse.ArgumentParser(prog="vmm-emulator", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    version = f"vmm-emulator {BUILD} (cloud-hypervisor's API, guests by QEMU without KVM)"
    parser.add_argument("--api-socket", metavar="PATH|path=PATH|fd=N", required=True)
    parser.add_argument("--event-monitor", metavar="path=PATH|fd=N")
    parser.add_argument("--no-shutdown", action="store_true", help="stay when the guest powers itself off")
    parser.add_argument("--log-file", metavar="PATH", help="where the log goes; stderr otherwise")
    parser.add_argument("--seccomp", metavar="MODE", help="accepted and ignored: QEMU's own sandbox is on")
    parser.add_argument("-v", action="count", default=0, help="log requests")
    parser.add_argument("--version", "-V", action="version", version=version)
    return parser.parse_args(argv)


def open_events(option: str | None) -> int | None:
    """The event monitor's descriptor."""
    match (option or "").partition("="):
        case "", _, _:
            return None
        case "fd", "=", number if number.isdigit():
            return int(number)
        case "path", "=", path if path:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        case _:
            raise EmulatorFailed(f"Error parsing --event-monitor: {option}")


@contextlib.contextmanager
def api_listener(option: str) -> Iterator[socket.socket]:
    """The API's listening socket. One made from a path is locked beside it and removed on an orderly end."""
    kind, equals, value = option.partition("=")
    if kind == "fd" and equals:
        if not value.isdigit():
            raise EmulatorFailed(f"Error parsing --api-socket: {option}")
        yield socket.socket(fileno=int(value))
        return
    path = Path(value if kind == "path" and equals else option)
    with Path(f"{path}.lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmulatorFailed(f'API socket "{path}" is already in use by another running instance') from error
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        yield listener
        path.unlink(missing_ok=True)


def serve(listener: socket.socket, events: Events, *, no_shutdown: bool) -> None:
    """Answer until vmm.shutdown, a signal or the guest's power-off ends it. Raises EmulatorFailed."""
    with selectors.DefaultSelector() as loop:
        vm = Vm(events, loop)
        api = Api(vm)

        def handle(request: Request) -> Response:
            response = api.handle(request)
            log.info("%s %s: %d %s", request.method, request.path, response.status, (response.body or b"").decode())
            return response

        waker, wakened = socket.socketpair()
        with waker, wakened:
            for end in (waker, wakened):
                end.setblocking(False)
            signal.set_wakeup_fd(waker.fileno())
            stops: list[int] = []
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda received, _: stops.append(received))
            loop.register(wakened, selectors.EVENT_READ, lambda: wakened.recv(4096))
            server = Server(listener, loop, handle)
            try:
                leaving = False
                while not leaving:
                    for key, _ in loop.select():
                        key.data()
                        powered_off = vm.take_guest_events()
                        leaving = leaving or api.leaving or bool(stops) or (powered_off and not no_shutdown)
                vm.delete()
                events.emit("vmm", "shutdown")
            finally:
                signal.set_wakeup_fd(-1)
                server.close()


def check_qemu() -> None:
    """Raise EmulatorFailed when there is no QEMU, before anybody relies on us."""
    if shutil.which(PROGRAM) is None:
        raise EmulatorFailed(f"{PROGRAM} is not installed (Debian package qemu-system-x86)")


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit status 0 for an orderly end, 1 with a sentence on stderr, 2 for a bad command line."""
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    os.umask(0o077)
    try:
        logging.basicConfig(
            filename=options.log_file, filemode="w", level=logging.INFO if options.v else logging.WARNING
        )
        check_qemu()
        events = Events(open_events(options.event_monitor))
        events.emit("vmm", "starting")
        with api_listener(options.api_socket) as listener:
            serve(listener, events, no_shutdown=options.no_shutdown)
    except EmulatorFailed as failure:
        sys.exit(f"vmm-emulator: {failure}")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"vmm-emulator: {os_words(error)}{where}")
