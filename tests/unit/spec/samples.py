"""Specs to start from, and a small language to change them with."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings

from launcher.errors import SpecInvalid, SpecProblem
from launcher.spec.load import load

if TYPE_CHECKING:
    from launcher.spec.types import VmSpec

UID = "7d9a2d5c-0f38-4d6e-8a54-3f5f2a0c9e11"
UNSET: Any = object()
# No deadline: other tests share the processor. No database: a run leaves nothing in the tree.
PROPERTY = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
INSTANCE = "spec.instance"

GOLDEN: dict[str, Any] = {
    "apiVersion": "virt.virtink.smartx.com/v1alpha1",
    "kind": "VirtualMachine",
    "metadata": {"name": "web", "namespace": "shop", "uid": UID},
    "spec": {
        "runPolicy": "Always",
        "instance": {
            "cpu": {"sockets": 2, "coresPerSocket": 2},
            "memory": {"size": "2Gi"},
            "kernel": {"image": "example.org/kernel:6.1", "cmdline": "console=ttyS0 root=/dev/vda rw"},
            "disks": [{"name": "root"}, {"name": "seed", "readOnly": True}],
            "fileSystems": [{"name": "share"}],
            "interfaces": [{"name": "pod"}, {"name": "storage", "mac": "52:54:00:00:00:01", "sriov": {}}],
        },
        "volumes": [
            {"name": "root", "containerRootfs": {"image": "example.org/rootfs:1", "size": "4Gi"}},
            {"name": "seed", "cloudInit": {"userData": "#cloud-config\n"}},
            {"name": "share", "persistentVolumeClaim": {"claimName": "share"}},
        ],
        "networks": [{"name": "pod", "pod": {}}, {"name": "storage", "multus": {"networkName": "net-a"}}],
    },
}


def _steps(path: str) -> list[str | int]:
    return [int(step) if step.isdigit() else step for step in path.split(".")]


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """GOLDEN with values put in at dotted paths (``spec.volumes.0.name``); UNSET removes, one index past the end adds."""
    document = copy.deepcopy(GOLDEN)
    for path, value in changes.items():
        *parents, last = _steps(path)
        place: Any = document
        for step in parents:
            place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]
        if value is UNSET:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(value)
        else:
            place[last] = value
    return document


def encode(document: object) -> bytes:
    return json.dumps(document).encode()


def read(changes: dict[str, Any]) -> VmSpec:
    return load(encode(changed(changes))).spec


def problems_of(document: bytes) -> tuple[SpecProblem, ...]:
    """Every problem of a document; none when it is valid."""
    try:
        load(document)
    except SpecInvalid as error:
        problems = error.problems
    else:
        return ()
    assert problems
    assert all(problem.path.startswith("$") and problem.message for problem in problems)
    return problems
