"""The VMM's REST API as data: what is asked (Call), what comes back (PingInfo, VmInfo …), what a refusal says (VmmRefused).

No I/O here. ``transport`` and ``nonblocking`` carry a Call; the functions below read its Response. Deadlines bound the
waiting, not the VMM's work: a call that timed out may still take effect. The API has one thread, so a call waits for the
one before it; boot and reboot may wait 60 s for a vhost-user socket.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.errors import VmmFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.vmm.http import Response

ROOT = "/api/v1/"

# The last link of the error chain when there is no VM: 404 from v53 on, 500 before.
_NOT_CREATED = ("VM is not created", "VM config is missing")


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``deadline_s`` is seconds for the whole call; ``fds`` stay the caller's and go with the first bytes."""

    method: str
    path: str
    body: bytes | None = None
    deadline_s: float = 5.0
    fds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The route as users know it, e.g. ``vm.boot``."""
        return self.path.removeprefix(ROOT)


def _get(route: str, deadline_s: float) -> Call:
    return Call("GET", ROOT + route, deadline_s=deadline_s)


def _put(route: str, deadline_s: float) -> Call:
    # Without a body: even `{}` would be a Bad Request.
    return Call("PUT", ROOT + route, deadline_s=deadline_s)


def _put_json(route: str, body: Mapping[str, Any], deadline_s: float, fds: tuple[int, ...] = ()) -> Call:
    return Call("PUT", ROOT + route, json.dumps(body, separators=(",", ":")).encode(), deadline_s, fds)


def ping() -> Call:
    """Is the VMM there, and which version."""
    return _get("vmm.ping", 2)


def info() -> Call:
    """The stored config, the state, and the device tree once booted."""
    return _get("vm.info", 2)


def counters() -> Call:
    """I/O counters per disk and net; refused while nothing runs."""
    return _get("vm.counters", 2)


def create(config: Mapping[str, Any]) -> Call:
    """Store the VM's config. Only JSON types are checked now; everything else fails at boot."""
    return _put_json("vm.create", config, 5)


def boot() -> Call:
    """Start the created VM. After a refusal never ask again without delete and create: the second boot may run the VM
    without the devices that the first attempt took out of the config.
    """
    return _put("vm.boot", 90)


def shutdown() -> Call:
    """Stop the VM at once, without telling the guest. The config stays."""
    return _put("vm.shutdown", 15)


def delete() -> Call:
    """Stop the VM if it runs and drop its config; no error when there is none."""
    return _put("vm.delete", 15)


def power_button() -> Call:
    """Press the power button. Success says nothing about the guest: a press before it listens is lost."""
    return _put("vm.power-button", 5)


def pause() -> Call:
    """Stop the vCPUs."""
    return _put("vm.pause", 15)


def resume() -> Call:
    """Let the vCPUs run on."""
    return _put("vm.resume", 15)


def reboot() -> Call:
    """Reset the VM, in the same process and without telling the guest."""
    return _put("vm.reboot", 90)


def add_net(config: Mapping[str, Any], fds: tuple[int, ...] = ()) -> Call:
    """Add a net device; ``fds`` are tap descriptors, one per queue pair. vm.create takes none: call this before boot."""
    return _put_json("vm.add-net", config, 10, fds)


def vmm_shutdown() -> Call:
    """Stop the VM and end the VMM's process, with status 0."""
    return _put("vmm.shutdown", 15)


class VmmRefused(VmmFailed):
    """The VMM answered with an error. ``chain`` is its own words, outermost first; empty when it said nothing."""

    def __init__(self, call: str, status: int, chain: tuple[str, ...]) -> None:
        words = chain[1:] if len(chain) > 1 and chain[0] == "Error from API" else chain
        super().__init__(f"the VMM refused {call}: {': '.join(words) or f'status {status}, without a word'}")
        self.call = call
        self.status = status
        self.chain = chain

    @property
    def not_created(self) -> bool:
        """There is no VM: never created, or deleted."""
        return self.status in {404, 500} and bool(self.chain) and self.chain[-1].endswith(_NOT_CREATED)


@dataclass(frozen=True, slots=True)
class PingInfo:
    """``version`` as in ``53.0.0``, ``build_version`` as git describes it, e.g. ``v53.0``."""

    version: str
    build_version: str
    pid: int


@dataclass(frozen=True, slots=True)
class VmInfo:
    """``state`` is Created, Running, Paused or BreakPoint; a VM that was shut down is Created again, without a tree."""

    state: str
    config: Mapping[str, Any]
    memory_actual_size: int
    device_tree: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that was added to a running VM. ``bdf`` is its PCI address, e.g. ``0000:00:03.0``."""

    id: str
    bdf: str


def accept(call: Call, response: Response) -> None:
    """Raise VmmRefused unless the call succeeded."""
    if not 200 <= response.status < 300:
        raise VmmRefused(call.name, response.status, error_chain(response.body))


def error_chain(body: bytes) -> tuple[str, ...]:
    """An error body's links, outermost first, each as its first line (a backtrace may follow it).

    v47 and later send a JSON list, v46 plain text, and the HTTP parser of every version ``{"error": …}`` with a raw line
    break inside the string.
    """
    text = body.decode(errors="replace").strip()
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        value = text
    if isinstance(value, dict):
        value = value.get("error", text)
    links = value if isinstance(value, list) else [value]
    return tuple(line for link in links if (line := str(link).strip().partition("\n")[0].strip()))


def decode_ping(call: Call, response: Response) -> PingInfo:
    """Raises VmmRefused, or VmmFailed when the answer has another shape."""
    value = _object(call, response)
    return PingInfo(
        _member(call, value, "version", str),
        _member(call, value, "build_version", str, ""),
        _member(call, value, "pid", int, 0),
    )


def decode_info(call: Call, response: Response) -> VmInfo:
    """Raises VmmRefused, or VmmFailed when the answer has another shape."""
    value = _object(call, response)
    tree = value.get("device_tree")
    return VmInfo(
        _member(call, value, "state", str),
        _member(call, value, "config", dict),
        _member(call, value, "memory_actual_size", int, 0),
        tree if isinstance(tree, dict) else None,
    )


def decode_counters(call: Call, response: Response) -> Mapping[str, Mapping[str, int]]:
    """Device id → counter → value. Raises VmmRefused, or VmmFailed when the answer has another shape."""
    return _object(call, response)


def decode_device(call: Call, response: Response) -> DeviceInfo | None:
    """The added device, or None when the VM does not run yet. Raises VmmRefused, or VmmFailed for another shape."""
    accept(call, response)
    if response.status == 204:
        return None
    value = _object(call, response)
    return DeviceInfo(_member(call, value, "id", str), _member(call, value, "bdf", str))


def _object(call: Call, response: Response) -> dict[str, Any]:
    accept(call, response)
    try:
        value = json.loads(response.body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise VmmFailed(
            f"the VMM's answer to {call.name} is no JSON object: {response.body[:80].decode(errors='replace')!r}"
        )
    return value


def _member(call: Call, value: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    member = value.get(name, default)
    if type(member) is not kind:
        raise VmmFailed(f"the VMM's answer to {call.name} has no usable {name!r}")
    return member
