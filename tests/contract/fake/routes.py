"""The routes under /api/v1/: who takes which method and body, and how an error is told in which version."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from tests.contract.fake import schema, transfer
from tests.contract.fake.devices import Refused
from tests.contract.fake.http import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.fake.machine import Machine

ROOT = "/api/v1/"

# Route → the second link of its error chain. Routes without a body.
BARE = {
    "vm.boot": "The VM could not boot",
    "vm.delete": "The VM could not be deleted",
    "vm.shutdown": "The VM could not shutdown",
    "vm.reboot": "The VM could not reboot",
    "vm.pause": "The VM could not be paused",
    "vm.resume": "The VM could not resume",
    "vm.power-button": "Error triggering power button",
    "vm.nmi": "Error triggering NMI",
}
# Route → (rules of its body, second link)
BODIED: dict[str, tuple[schema.Struct, str]] = {
    "vm.create": (schema.VM, "The VM could not be created"),
    "vm.add-disk": (schema.DISK, "The disk could not be added to the VM"),
    "vm.add-net": (schema.NET, "The network device could not be added to the VM"),
    "vm.add-fs": (schema.FS, "The fs could not be added to the VM"),
    "vm.remove-device": (schema.REMOVE, "The device could not be removed from the VM"),
    "vm.resize": (schema.RESIZE, "The VM could not be resized"),
    "vm.resize-disk": (schema.RESIZE_DISK, "The disk could not be resized"),
    "vm.snapshot": (schema.SNAPSHOT, "The VM could not be snapshotted"),
    "vm.restore": (schema.RESTORE, "The VM could not be restored"),
    "vm.send-migration": (schema.SEND, "Error dispatching the migration worker"),
    "vm.receive-migration": (schema.RECEIVE, "Error receiving migration"),
}
GETS = {"vmm.ping": "", "vm.info": "The VM info is not available", "vm.counters": "The VM info is not available"}
# Routes of the real one that no test here needs: they say so rather than guess.
NOT_IMITATED = {
    f"vm.{name}"
    for name in (
        "add-device",
        "add-generic-vhost-user",
        "add-pmem",
        "add-user-device",
        "add-vdpa",
        "add-vsock",
        "resize-zone",
    )
}
STRICT_METHODS = {"vm.create", "vm.info", "vmm.ping", "vmm.shutdown"}
STATUS = {
    "missing": (404, 53),
    "invalid": (400, 54),
    "duplicate": (409, 54),
    "unknown": (404, 54),
}  # since which version


class Routes:
    """``report`` is told what strict mode objects to; ``submit`` queues work for the machine's thread."""

    def __init__(
        self, machine: Machine, report: Callable[[str], None], submit: Callable[[Callable[[], None]], None]
    ) -> None:
        self.machine = machine
        self.report = report
        self.submit = submit

    def answer(self, method: str, path: str, body: bytes | None, fds: list[int]) -> Answer:
        route = path.removeprefix(ROOT)
        if path == ROOT + route and route in NOT_IMITATED:
            return self.error(501, "Not imitated by the fake VMM")
        known = route in BARE or route in BODIED or route in GETS or route == "vmm.shutdown"
        if not path.startswith(ROOT) or not known:
            return self.error(404, "Not Found")
        if method != ("GET" if route in GETS else "PUT"):
            return (
                self.error(400, "Bad Request")
                if method in {"GET", "PUT"} or route in STRICT_METHODS
                else Answer(400, b"")
            )
        link = ""
        try:
            if route in GETS:
                link = GETS[route]
                return Answer(200, _json(self.get(route)))
            if route not in BODIED:
                if body is not None:
                    return self.error(400, "Bad Request")
                link = BARE.get(route, "")
                return self.put_bare(route)
            if body is None:
                return Answer(400, b"") if route == "vm.create" else self.error(400, "Bad Request")
            rules, link = BODIED[route]
            value = self.decode(rules, route, body)
            told = self.put(route, value, fds)
            return Answer(204) if told is None else Answer(200, _json(told))
        except schema.DecodeError as error:
            return self.error(400, "Failed to deserialize JSON", str(error))
        except Refused as refused:
            return self.refuse(refused, link)

    def decode(self, rules: schema.Struct, route: str, body: bytes) -> dict[str, Any]:
        try:
            value = json.loads(body)
        except ValueError as error:
            raise schema.DecodeError(str(error)) from error
        context = schema.Context(nulls=self.machine.version <= 52)
        decoded = rules(value, "$", context)
        for problem in context.objections:
            self.report(f"{route} {problem}")
        return decoded

    def get(self, route: str) -> dict[str, Any]:
        machine = self.machine
        match route:
            case "vmm.ping":
                return {
                    "build_version": f"v{machine.version}.0",
                    "version": f"{machine.version}.0.0",
                    "pid": os.getpid(),
                    "features": ["io_uring", "kvm"],
                }
            case "vm.info":
                return machine.info()
            case _:
                return machine.counters()

    def put_bare(self, route: str) -> Answer:
        machine = self.machine
        match route:
            case "vmm.shutdown":
                machine.end()
                return Answer(200, b"")
            case "vm.nmi":
                machine.running()
            case _:
                getattr(machine, route.removeprefix("vm.").replace("-", "_"))()
        return Answer(204)

    def put(self, route: str, value: dict[str, Any], fds: list[int]) -> dict[str, str] | None:
        machine = self.machine
        match route:
            case "vm.create":
                machine.create(value)
            case "vm.add-disk":
                return machine.add("disks", value, "plug_disk")
            case "vm.add-net":
                if fds:
                    value["fds"] = fds
                return machine.add("net", value, "plug_net")
            case "vm.add-fs":
                return machine.add("fs", value, "plug_fs")
            case "vm.remove-device":
                machine.remove_device(value["id"])
            case "vm.resize":
                machine.resize(value)
            case "vm.resize-disk":
                machine.resize_disk(value["id"], value["desired_size"])
            case "vm.snapshot":
                transfer.snapshot(machine, value["destination_url"])
            case "vm.restore":
                transfer.restore(machine, value)
            case "vm.send-migration":
                transfer.send(machine, value, self.submit)
            case _:
                transfer.receive(machine, value["receiver_url"])
        return None

    def refuse(self, refused: Refused, link: str) -> Answer:
        if refused.kind == "busy":
            return self.error(429, "Too Many Requests")
        status, since = STATUS.get(refused.kind, (500, 0))
        return self.error(status if self.machine.version >= since else 500, "Error from API", link, *refused.chain)

    def error(self, status: int, *chain: str) -> Answer:
        return Answer(status, _json(list(chain)) if self.machine.version >= 47 else ": ".join(chain).encode())


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
