"""The verbs that talk to a running launcher, or read what one left behind."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import options
from launcher.errors import LauncherError, UsageError
from launcher.paths import Paths

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@options.run_dir
@options.output
def status(run_dir: Path, output: str) -> None:
    """Show the VM's phase, state, addresses, disks, helpers and memory."""
    seen = _ask(run_dir, "GET", "/status")
    if output == "json":
        click.echo(json.dumps(seen, indent=2))
        return
    for name, text in _status_lines(seen):
        click.echo(f"{name:10} {text}")


@click.group()
def power() -> None:
    """Power actions; each waits for its effect."""


@power.command()
@options.run_dir
@click.option("--timeout", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds to wait.")
@click.option("--force", is_flag=True, help="Cut the guest when it does not react in time.")
def shutdown(run_dir: Path, timeout: float, *, force: bool) -> None:
    """Press the power button until the guest is off."""
    _ask(run_dir, "POST", "/power/shutdown", {"timeout": timeout, "force": force}, wait=timeout + 15)


@power.command()
@options.run_dir
@click.option("--timeout", type=click.FloatRange(min=1), default=10.0, show_default=True, help="Seconds to wait.")
def off(run_dir: Path, timeout: float) -> None:
    """Cut the power at once; the guest is not asked."""
    _ask(run_dir, "POST", "/power/off", {"timeout": timeout}, wait=timeout + 15)


@click.command()
@options.run_dir
@click.option("-f", "--follow", is_flag=True, help="Go on as events come, until the launcher ends.")
@options.output
def events(run_dir: Path, output: str, *, follow: bool) -> None:
    """Show what happened: the launcher's, the VMM's and the helpers' events in one stream."""
    from launcher.cli.stream import read_lines

    path = Paths(run_dir=run_dir)
    try:
        for line in read_lines(path.control_socket, "/events?follow" if follow else "/events"):
            _show_event(line, output)
    except LauncherError:
        if follow:
            raise
        try:
            left = path.events.read_text(errors="replace")
        except OSError:
            left = None
        if left is None:
            raise
        for text in left.splitlines():
            _show_event(text, output)


@click.command()
@options.run_dir
@options.output
def timeline(run_dir: Path, output: str) -> None:
    """Show the boot timeline of a running or ended launcher."""
    path = Paths(run_dir=run_dir).timeline
    try:
        seen = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"there is no timeline at {path}: {error.strerror}", hint="did a launcher run here?") from None
    except ValueError as error:
        raise UsageError(f"{path} is no timeline: {error}", hint="did something else write there?") from None
    if output == "json":
        click.echo(json.dumps(seen, indent=2))
        return
    click.echo(f"started at {seen['startedAt']}")
    points = seen["points"]
    for before, point in zip([None, *points], points, strict=False):
        since = point["ms"] - (before["ms"] if before else 0)
        click.echo(f"{point['ms']:8d} ms {'+' + str(since):>8}  {point['name']}")


@click.command()
@options.run_dir
@click.argument("method", type=click.Choice(["GET", "PUT"], case_sensitive=False))
@click.argument("path")
@click.argument("body", required=False)
def api(run_dir: Path, method: str, path: str, body: str | None) -> None:
    """One raw call to the VMM's REST API, for example `launcher api GET vm.info`."""
    from launcher.vmm.api import ROOT, Call, accept
    from launcher.vmm.requests_transport import RequestsTransport

    target = path if path.startswith("/") else ROOT + path
    call = Call(method.upper(), target, body.encode() if body is not None else None, deadline_s=90)
    response = RequestsTransport(Paths(run_dir=run_dir).api_socket).call(call)
    accept(call, response)
    if response.body:
        click.echo(response.body.decode(errors="replace"))


def _ask(run_dir: Path, method: str, path: str, body: dict[str, Any] | None = None, wait: float = 10) -> dict[str, Any]:
    """One call to the control socket. Raises UsageError with the launcher's own words when it refuses."""
    from launcher.vmm.api import Call
    from launcher.vmm.transport import SocketTransport

    data = json.dumps(body).encode() if body is not None else None
    socket = Paths(run_dir=run_dir).control_socket
    hint = "is it running, and is --run-dir right?"
    if not os.path.lexists(socket):
        raise UsageError(f"no launcher answers in {run_dir}: there is no {socket}", hint=hint)
    try:
        response = SocketTransport(socket).call(Call(method, path, data, wait))
    except LauncherError as error:
        raise UsageError(f"no launcher answers in {run_dir}: {error.message}", hint=hint) from None
    answer: dict[str, Any] = json.loads(response.body)
    if response.status >= 300:
        raise UsageError(str(answer.get("error", f"status {response.status}")))
    return answer


def _show_event(line: str, output: str) -> None:
    try:
        event = json.loads(line)
    except ValueError:  # a launcher was killed while it wrote this line
        return
    if output == "json":
        click.echo(line)
        return
    fields = "  ".join(f"{name}={value}" for name, value in event.items() if name not in {"time", "ms", "event"})
    click.echo(f"{event['time']}  {event['ms']:8d} ms  {event['event']:24} {fields}".rstrip())


def _status_lines(seen: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("phase", seen["phase"] + (f" (VM {seen['vmState']})" if seen.get("vmState") else ""))]
    if vm := seen.get("vm"):
        lines.insert(0, ("vm", f"{vm['namespace']}/{vm['name']}" + (f" ({vm['uid']})" if vm["uid"] else "")))
    if outcome := seen.get("outcome"):
        lines.append(("outcome", f"{outcome['reason']}: {outcome['message']}"))
    lines.append(("uptime", time.strftime("%H:%M:%S", time.gmtime(seen["uptimeSeconds"]))))
    if "vcpus" in seen:
        lines.append(("size", f"{seen['vcpus']} vCPU, {seen['memoryBytes'] >> 20} MiB"))
    for nic in seen.get("nics", []):
        addresses = ", ".join(nic.get("addresses", [])) or "no address"
        lines.append(("nic", f"{nic['name']}: {nic['binding']}, {nic['mac']}, {addresses}, {nic['tap']}"))
    for disk in seen.get("disks", []):
        mode = "read-only" if disk.get("readonly") else "read-write"
        lines.append(("disk", f"{disk['id']}: {disk['path']} ({disk['image_type']}, {mode})"))
    for child in [*([seen["vmm"]] if "vmm" in seen else []), *seen.get("helpers", [])]:
        deaths = f", died {child['recentDeaths']} times lately" if child["recentDeaths"] else ""
        lines.append(
            ("process", f"{child['name']}: {'pid ' + str(child['pid']) if child['alive'] else 'ended'}{deaths}")
        )
    if pss := seen["memory"]["supervisorPssBytes"]:
        lines.append(("memory", f"launcher {pss / 1e6:.1f} MB"))
    return lines
