"""The REST API's routes: which exist, what they take, and what they answer (vmm/src/api/http of v53.0).

Routes of cloud-hypervisor that are not emulated answer 501, whatever the method; unknown ones 404.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from launcher.emulator.config import parse_net, parse_vm
from launcher.emulator.http import Request, Response
from launcher.emulator.refusal import Refused, not_emulated

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.emulator.vm import Vm

ROOT = "/api/v1/"
VERSION = "53.0.0"
BUILD = "v53.0"
NOT_EMULATED = frozenset({
    *("vm.add-device", "vm.add-user-device", "vm.add-disk", "vm.add-fs", "vm.add-generic-vhost-user", "vm.add-pmem"),
    *("vm.add-vdpa", "vm.add-vsock", "vm.counters", "vm.nmi", "vm.receive-migration", "vm.remove-device"),
    *("vm.resize", "vm.resize-disk", "vm.resize-zone", "vm.restore", "vm.send-migration", "vm.snapshot"),
})  # fmt: skip


class Api:
    """Answers requests; ``leaving`` is set once vmm.shutdown was asked for."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.leaving = False
        self._actions: dict[str, Callable[[], None]] = {
            "vm.boot": vm.boot,
            "vm.delete": vm.delete,
            "vm.pause": vm.pause,
            "vm.power-button": vm.power_button,
            "vm.reboot": vm.reboot,
            "vm.resume": vm.resume,
            "vm.shutdown": vm.shutdown,
        }

    def handle(self, request: Request) -> Response:
        route = request.path.removeprefix(ROOT) if request.path.startswith(ROOT) else ""
        try:
            return self._answer(route, request)
        except Refused as refused:
            outer = ("Error from API",) if refused.status in {404, 500} and refused.chain != ("Not Found",) else ()
            return Response(refused.status, json.dumps([*outer, *refused.chain]).encode())
        finally:
            for fd in request.fds:
                os.close(fd)

    def _answer(self, route: str, request: Request) -> Response:
        bad_request = Refused("Bad Request", status=400)
        match route, request.method:
            case "vmm.ping", "GET":
                return _json({"build_version": BUILD, "version": VERSION, "pid": os.getpid(), "features": []})
            case "vm.info", "GET":
                return _json(self._vm.info())
            case "vmm.shutdown", "PUT":
                if request.body is not None:
                    raise bad_request
                self.leaving = True
                return Response(200)
            case "vm.create", "PUT":
                if request.body is None:
                    return Response(400)
                self._vm.create(parse_vm(request.body))
                return Response(204)
            case "vm.add-net", "PUT":
                if request.body is None:
                    raise bad_request
                self._vm.add_net(parse_net(request.body), request.fds)
                return Response(204)
            case (("vmm.ping" | "vm.info" | "vmm.shutdown" | "vm.create"), _):
                raise bad_request
            case _ if route in NOT_EMULATED:
                raise not_emulated(route)
            case _ if route in self._actions or route == "vm.add-net":
                if request.method not in {"GET", "PUT"}:
                    return Response(400)
                if request.method == "GET" or request.body is not None:
                    raise bad_request
                self._actions[route]()
                return Response(204)
            case _:
                raise Refused("Not Found", status=404)


def _json(value: Any) -> Response:
    return Response(200, json.dumps(value).encode())
