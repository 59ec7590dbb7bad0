"""A boot plan to read (``launcher plan``), to keep (``-o json``), and to recognise (its digest)."""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import TYPE_CHECKING, Any

from launcher.codec import to_json
from launcher.plan.vmconfig import wire

if TYPE_CHECKING:
    from launcher.plan.types import BootPlan, GuestDisk, HelperSpec


def render_json(plan: BootPlan) -> dict[str, Any]:
    """The plan as one JSON object: ``name``, ``namespace``, ``uid``, ``vmm``, ``vmConfig`` (the body of ``vm.create``),
    ``actions``, ``helpers``, ``nics``, ``disks``, ``warnings``.

    An action has its type as ``action``, its own fields, ``describe`` and ``reason``. The content of a cloud-init seed may
    hold passwords: its length and SHA-256 stand for it.
    """
    return {
        "name": plan.name,
        "namespace": plan.namespace,
        "uid": plan.uid,
        "vmm": to_json(plan.vmm),
        "vmConfig": wire(plan.vm_config),
        "actions": [
            {"action": type(action).__name__, **to_json(action), "describe": action.describe()}
            for action in plan.actions
        ],
        "helpers": to_json(plan.helpers),
        "nics": to_json(plan.nics),
        "disks": to_json(plan.disks),
        "warnings": list(plan.warnings),
    }


def digest(plan: BootPlan) -> str:
    """The SHA-256 of the plan, in hexadecimal; equal for equal plans."""
    canonical = json.dumps(render_json(plan), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def render_text(plan: BootPlan) -> str:
    """The plan for people; ends in a newline."""
    version = ".".join(map(str, plan.vmm.version))
    identity = plan.vmm.confinement
    groups = f", groups {' '.join(map(str, identity.groups))}" if identity.groups else ""
    sections = [
        f"VM {plan.namespace}/{plan.name}",
        "\n".join(
            [
                f"VMM: {plan.vmm.binary} (version {version}) as {identity.uid}:{identity.gid}{groups}, without capabilities",
                json.dumps(wire(plan.vm_config), indent=2),
            ]
        ),
        "\n".join(
            ["Actions, in this order:"]
            + [f"{at:3}. {action.describe()}\n     why: {action.reason}" for at, action in enumerate(plan.actions, 1)]
        ),
    ]
    if plan.helpers:
        sections.append("\n".join(["Helpers:", *map(_helper, plan.helpers)]))
    if plan.nics:
        sections.append(
            "\n".join(
                ["Interfaces of the guest:"]
                + [
                    f"  {nic.name}: {nic.binding}, mac {nic.mac}, tap {nic.tap}, {' '.join(nic.addresses) or 'no address'}"
                    for nic in plan.nics
                ]
            )
        )
    if plan.disks:
        sections.append("\n".join(["Disks of the guest:", *map(_disk, plan.disks)]))
    if plan.warnings:
        sections.append("\n".join(["Warnings:"] + [f"  {warning}" for warning in plan.warnings]))
    return "\n\n".join(sections) + "\n"


def _helper(helper: HelperSpec) -> str:
    identity = helper.confinement
    capabilities = ", ".join(identity.capabilities) or "none"
    return f"  {helper.name}: {shlex.join(helper.argv)}\n     as {identity.uid}:{identity.gid}, capabilities: {capabilities}"


def _disk(disk: GuestDisk) -> str:
    return f"  {disk.name}: {disk.path}, {disk.form}{', read-only' if disk.read_only else ''}, {disk.io}"
