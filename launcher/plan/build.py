"""From a spec and the facts to the boot plan: total, deterministic, without any I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.errors import NetworkFailed, SpecInvalid
from launcher.plan.compute import CONSOLE, plan_cpus, plan_memory, serial
from launcher.plan.devices import plan_devices
from launcher.plan.filesystems import plan_file_systems
from launcher.plan.fitness import check_machine, refuse_unsupported
from launcher.plan.network import NetworkPlan, plan_bridge
from launcher.plan.storage import CMDLINE, plan_disks, plan_payload
from launcher.plan.types import BootPlan, Confinement, MakeFolder, VmmLaunch
from launcher.plan.vmconfig import BODY_LIMIT, VmConfig, body_size

if TYPE_CHECKING:
    from launcher.facts import HostFacts
    from launcher.plan.types import Action
    from launcher.spec.types import VmSpec

_EMULATED = "the guest is emulated, without KVM: it is slow, and the emulator is not a security boundary"


def plan(spec: VmSpec, facts: HostFacts) -> BootPlan:
    """What has to be done on this machine to boot this VM.

    Raises what stands in the way, the first of: SpecInvalid for what this version or the VMM cannot run, HostUnfit for what the
    machine lacks, ImageInvalid for an unusable image, StorageFailed for a disk or a folder that is missing or unusable,
    NetworkFailed for a network that cannot be handed to the guest.
    """
    refuse_unsupported(spec, facts)
    check_machine(spec, facts)
    cpus = plan_cpus(spec.instance.cpu, facts)
    memory = plan_memory(spec.instance.memory, facts, shared=bool(spec.instance.file_systems))
    payload = plan_payload(spec.instance.kernel, facts)
    disks = plan_disks(spec, facts)
    file_systems = plan_file_systems(spec, facts)
    network = _plan_network(spec, facts)
    devices = plan_devices(spec, facts)
    groups = {*devices.groups, *disks.groups} - {facts.vmm_gid}
    paths = facts.paths
    actions: tuple[Action, ...] = (
        MakeFolder(paths.run_dir, 0o711, 0, 0, "the run directory; the VMM's uid may pass through it"),
        # The kernel comes first: a wrong one is found before anything else is touched, the network last of all.
        *payload.actions,
        *disks.actions,
        *file_systems.actions,
        *devices.actions,
        MakeFolder(paths.vmm_dir, 0o700, facts.vmm_uid, facts.vmm_gid, "the VMM binds the guest's serial port in it"),
        *network.actions,
    )
    vm_config = VmConfig(
        cpus=cpus,
        memory=memory.config,
        payload=payload.config,
        disks=disks.configs or None,
        net=network.nets or None,
        fs=file_systems.configs or None,
        serial=serial(paths.serial_socket),
        console=CONSOLE,
        pvpanic=True,
    )
    if (size := body_size(vm_config)) > BODY_LIMIT:
        raise SpecInvalid.at(
            CMDLINE, f"with it the VM's configuration has {size} bytes, the VMM takes at most {BODY_LIMIT}: shorten it"
        )
    return BootPlan(
        name=spec.name,
        namespace=spec.namespace,
        uid=spec.uid,
        vmm=VmmLaunch(
            facts.vmm.path, facts.vmm.version, Confinement(facts.vmm_uid, facts.vmm_gid, groups=tuple(sorted(groups)))
        ),
        vm_config=vm_config,
        actions=actions,
        helpers=(*file_systems.helpers, *network.helpers),
        nics=network.nics,
        disks=disks.disks,
        warnings=(
            *((_EMULATED,) if facts.vmm.emulated else ()),
            *memory.warnings,
            *payload.warnings,
            *disks.warnings,
            *file_systems.warnings,
            *network.warnings,
        ),
    )


def _plan_network(spec: VmSpec, facts: HostFacts) -> NetworkPlan:
    if not spec.instance.interfaces:
        return NetworkPlan()
    if facts.network.problem:
        raise NetworkFailed(facts.network.problem, hint=facts.network.hint)
    return plan_bridge(spec, facts)
