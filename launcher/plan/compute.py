"""vCPUs, memory and the fixed devices of the VM.

Source: Virtink ``cmd/virt-prerunner/main.go:81-124`` for the topology and the pinning; cloud-hypervisor ``vmm/src/cpu.rs``
and ``vmm/src/vm_config.rs`` (v53.0) for what it accepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit, SpecInvalid
from launcher.plan.vmconfig import ConsoleConfig, CpuAffinity, CpusConfig, CpuTopology, MemoryConfig

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.facts import HostFacts
    from launcher.spec.types import Cpu, Memory

# The guest's serial port goes to a socket of ours; the second, paravirtual console is left out, since its default is
# the VMM's own stdout.
CONSOLE = ConsoleConfig(mode="Off")


_TOPOLOGY_MAX = 65535  # each part is a u16


def serial(socket: Path) -> ConsoleConfig:
    """The first serial port, reachable through ``socket``: ttyS0, on arm64 ttyAMA0."""
    return ConsoleConfig(mode="Socket", socket=str(socket))


def plan_cpus(cpu: Cpu, facts: HostFacts) -> CpusConfig:
    """As many vCPUs as the topology has, all there at boot; threads are never invented.

    With dedicated placement each vCPU has one of the container's CPUs to itself, both in ascending order. Raises HostUnfit
    when the container does not have exactly as many: with a CPU it may not use, ``vm.boot`` would never return; SpecInvalid
    for more sockets or cores than the VMM can count.
    """
    for name, count in (("sockets", cpu.sockets), ("coresPerSocket", cpu.cores_per_socket)):
        if count > _TOPOLOGY_MAX:
            raise SpecInvalid.at(f"$.spec.instance.cpu.{name}", f"the VMM counts to {_TOPOLOGY_MAX}, not to {count}")
    affinity = None
    if cpu.dedicated_cpu_placement:
        if len(facts.cpus) != cpu.vcpus:
            raise HostUnfit(
                f"dedicated CPU placement needs {_count(cpu.vcpus, 'CPU')}, the container may use {len(facts.cpus)}",
                hint="give the container as many whole CPUs, request equal to limit, "
                "on a node whose CPU manager policy is static",
            )
        affinity = tuple(CpuAffinity(vcpu, (host,)) for vcpu, host in enumerate(sorted(facts.cpus)))
    return CpusConfig(
        boot_vcpus=cpu.vcpus,
        max_vcpus=cpu.vcpus,
        topology=CpuTopology(
            threads_per_core=1, cores_per_die=cpu.cores_per_socket, dies_per_package=1, packages=cpu.sockets
        ),
        affinity=affinity,
    )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    config: MemoryConfig
    warnings: tuple[str, ...] = ()


def plan_memory(memory: Memory, facts: HostFacts, *, shared: bool = False) -> MemoryPlan:
    """The guest's RAM in bytes, a multiple of the page it is made of.

    Raises SpecInvalid when not one page is left, HostUnfit when the machine has too few free hugepages. The page size is
    always said for hugepages: without it the VMM looks for a mount at /dev/hugepages. ``shared`` lets another process map it.
    """
    page = memory.hugepage_size or facts.page_size
    size = memory.size - memory.size % page
    if not size:
        raise SpecInvalid.at(
            "$.spec.instance.memory.size", f"{memory.size} bytes are less than one page of {page} bytes"
        )
    warnings: tuple[str, ...] = ()
    if size != memory.size:
        warnings = (f"memory is rounded down from {memory.size} to {size} bytes, a multiple of the page size {page}",)
    if memory.hugepage_size is None:
        return MemoryPlan(MemoryConfig(size=size, shared=shared or None), warnings)
    free = dict(facts.hugepages).get(page, 0)
    if free < size // page:
        raise HostUnfit(
            f"the VM needs {_count(size // page, 'hugepage')} of {page >> 20} MiB, {free} are free on this machine",
            hint=f"reserve more through /sys/kernel/mm/hugepages/hugepages-{page >> 10}kB/nr_hugepages",
        )
    return MemoryPlan(MemoryConfig(size=size, hugepages=True, hugepage_size=page, shared=shared or None), warnings)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
