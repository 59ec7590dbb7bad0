"""Snapshots and migrations of a VM without a guest: the files and the order of events, no memory."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.contract.fake.devices import Refused, os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.fake.machine import Machine

FILES = ("config.json", "state.json", "memory-ranges")


def folder(url: str) -> Path:
    if not url.startswith("file://"):
        raise Refused("Failed to send migratable component snapshot", f"Could not extract path from URL: {url}")
    path = Path(url.removeprefix("file://"))
    if not path.is_dir():
        raise Refused("Failed to send migratable component snapshot", f'Destination is not a directory: "{path}"')
    return path


def snapshot(machine: Machine, url: str) -> None:
    vm = machine.running()
    machine.events.tell("vm", "snapshotting")
    if vm.state == "Running":
        raise Refused(
            "Cannot snapshot VM", "Failed to snapshot migratable component", "Trying to snapshot while VM is running"
        )
    try:
        for name in FILES:
            path = folder(url) / name
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(machine.config if name == "config.json" else {}, file)
    except OSError as error:
        raise Refused(
            "Cannot send VM snapshot",
            "Failed to send migratable component snapshot",
            f'Error creating "{path}"',
            os_error(error),
        ) from error
    except Refused as refused:
        raise Refused("Cannot send VM snapshot", *refused.chain) from refused
    machine.events.tell("vm", "snapshotted")


def restore(machine: Machine, data: dict[str, Any]) -> None:
    if machine.config is not None:
        raise Refused("VM is already created")
    try:
        path = folder(data["source_url"]) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(
            "Cannot restore VM",
            "Failed to receive migratable component snapshot",
            f'Error opening VM config snapshot file "{path}"',
            os_error(error),
        ) from error
    except Refused as refused:
        raise Refused("Cannot restore VM", *refused.chain) from refused
    machine.events.tell("vm", "restoring")
    adopt(machine, config, "Paused")
    machine.events.tell("vm", "restored")
    if data["resume"]:
        machine.resume()


def adopt(machine: Machine, config: dict[str, Any], state: str) -> None:
    machine.config = config
    try:
        machine.start()
    except Refused:
        machine.delete()
        raise
    if machine.vm is not None:
        machine.vm.state = state
    if machine.serial is not None:
        machine.serial.start()


def peer(url: str) -> tuple[int, Any]:
    if url.startswith("unix:"):
        return socket.AF_UNIX, url.removeprefix("unix:")
    host, _, port = url.removeprefix("tcp:").rpartition(":")
    return socket.AF_INET, (host, int(port))


def send(machine: Machine, data: dict[str, Any], submit: Callable[[Callable[[], None]], None]) -> None:
    """Answers at once; the other end's word, or its silence, comes back through ``submit``."""
    machine.running()
    machine.migrating = True
    machine.events.tell("vm", "migration-started")
    threading.Thread(target=_send, args=(machine, data["destination_url"], submit), daemon=True).start()


def _send(machine: Machine, url: str, submit: Callable[[Callable[[], None]], None]) -> None:
    family, address = peer(url)
    try:
        with socket.socket(family) as other:
            other.connect(address)
            other.sendall(json.dumps(machine.config).encode() + b"\n")
            sent = other.recv(1) == b"k"
            _finish(machine, submit, succeeded=sent)
    except OSError:
        _finish(machine, submit, succeeded=False)


def _finish(machine: Machine, submit: Callable[[Callable[[], None]], None], *, succeeded: bool) -> None:
    done = threading.Event()
    submit(lambda: _sent(machine, succeeded=succeeded))
    submit(done.set)
    done.wait(10)  # the VM is taken apart before the connection closes: the receiver waits for that


def _sent(machine: Machine, *, succeeded: bool) -> None:
    machine.migrating = False
    if not succeeded or machine.vm is None:
        machine.events.tell("vm", "migration-failed")
        return
    for event in ("pausing", "paused", "snapshotting", "snapshotted", "migration-finished"):
        machine.events.tell("vm", event)
    machine.stop()
    machine.end()


def receive(machine: Machine, url: str) -> None:
    """Blocks until the other VMM has sent its VM."""
    if machine.config is not None:
        raise Refused("VM is already created")
    family, address = peer(url)
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(1)
        machine.events.tell("vm", "migration-receive-ready")
        other, _ = listener.accept()
    with other, other.makefile("rb") as stream:
        machine.events.tell("vm", "migration-receive-started")
        config = json.loads(stream.readline())
        other.sendall(b"k")
        stream.read()  # the sender lets go of its disks and taps before it closes
    for event in ("restoring", "restored", "resuming", "resumed", "migration-receive-finished"):
        machine.events.tell("vm", event)
    adopt(machine, config, "Running")
