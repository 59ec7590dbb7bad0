"""How the VMM's uid, which has no capability, may open the device nodes it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.plan.types import GiveToVmm

if TYPE_CHECKING:
    from launcher.facts import DeviceFacts, HostFacts
    from launcher.spec.types import VmSpec

KVM = Path("/dev/kvm")
TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True)
class DevicesPlan:
    """``groups`` are the VMM's supplementary groups, ascending."""

    groups: tuple[int, ...] = ()
    actions: tuple[GiveToVmm, ...] = ()


def plan_devices(spec: VmSpec, facts: HostFacts) -> DevicesPlan:
    """KVM, unless the guest is emulated, and tun, when the VM has an interface.

    The node's group is the gentlest key. Where that does not open it, or is root's, the node changes its owner: it is the
    container's own, so nobody else sees that.
    """
    needed: list[tuple[Path, DeviceFacts]] = []
    if not facts.vmm.emulated:
        needed.append((KVM, facts.kvm))
    if spec.instance.interfaces:
        needed.append((TUN, facts.tun))
    groups: set[int] = set()
    actions: list[GiveToVmm] = []
    for path, node in needed:
        if node.mode & 0o006 == 0o006 or (node.uid == facts.vmm_uid and node.mode & 0o600 == 0o600):
            continue
        if node.mode & 0o060 == 0o060 and node.gid != 0:
            groups.add(node.gid)
        else:
            why = f"neither its mode {node.mode:04o} nor a group of its own opens it"
            actions.append(GiveToVmm(path, facts.vmm_uid, facts.vmm_gid, write=True, reason=why))
    return DevicesPlan(tuple(sorted(groups - {facts.vmm_gid})), tuple(actions))
