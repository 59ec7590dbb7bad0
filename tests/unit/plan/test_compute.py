from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.errors import HostUnfit, SpecInvalid
from launcher.plan.compute import plan_cpus, plan_memory
from launcher.plan.vmconfig import CpuAffinity, CpuTopology, MemoryConfig
from launcher.spec.types import Cpu, Memory
from tests.unit.plan.made import FACTS

MIB = 1 << 20


def test_the_topology_has_sockets_as_packages_and_never_threads() -> None:
    cpus = plan_cpus(Cpu(sockets=2, cores_per_socket=3), FACTS)
    assert (cpus.boot_vcpus, cpus.max_vcpus) == (6, 6)
    assert cpus.topology == CpuTopology(threads_per_core=1, cores_per_die=3, dies_per_package=1, packages=2)
    assert cpus.affinity is None


@pytest.mark.parametrize(("cpu", "field"), [(Cpu(65536, 1), "sockets"), (Cpu(1, 65536), "coresPerSocket")])
def test_a_topology_beyond_what_the_vmm_counts_to_is_refused(cpu: Cpu, field: str) -> None:
    with pytest.raises(SpecInvalid, match=f"cpu.{field}: the VMM counts to 65535"):
        plan_cpus(cpu, FACTS)


def test_dedicated_vcpus_get_one_cpu_each_in_ascending_order() -> None:
    cpus = plan_cpus(Cpu(2, 2, dedicated_cpu_placement=True), replace(FACTS, cpus=(9, 3, 12, 4)))
    assert cpus.affinity == (
        CpuAffinity(0, (3,)),
        CpuAffinity(1, (4,)),
        CpuAffinity(2, (9,)),
        CpuAffinity(3, (12,)),
    )


@pytest.mark.parametrize("allowed", [(), (0,), (0, 1, 2)])
def test_dedicated_placement_needs_exactly_as_many_cpus(allowed: tuple[int, ...]) -> None:
    with pytest.raises(HostUnfit, match=rf"needs 2 CPUs, the container may use {len(allowed)}\b"):
        plan_cpus(Cpu(2, 1, dedicated_cpu_placement=True), replace(FACTS, cpus=allowed))


def test_memory_of_whole_pages_is_taken_as_it_is() -> None:
    memory = plan_memory(Memory(512 * MIB), FACTS)
    assert memory.config == MemoryConfig(512 * MIB)
    assert memory.warnings == ()


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_memory_is_rounded_down_to_the_page_and_says_so(page: int) -> None:
    memory = plan_memory(Memory(512 * MIB + page - 1), replace(FACTS, page_size=page))
    assert memory.config.size == 512 * MIB
    (warning,) = memory.warnings
    assert str(512 * MIB + page - 1) in warning
    assert str(page) in warning


def test_memory_below_one_page_is_no_memory() -> None:
    with pytest.raises(SpecInvalid) as raised:
        plan_memory(Memory(4095), FACTS)
    assert [problem.path for problem in raised.value.problems] == ["$.spec.instance.memory.size"]


def test_hugepages_are_asked_for_with_their_size() -> None:
    memory = plan_memory(Memory(64 * MIB, hugepage_size=2 * MIB), replace(FACTS, hugepages=((2 * MIB, 32),)))
    assert memory.config == MemoryConfig(64 * MIB, hugepages=True, hugepage_size=2 * MIB)


@pytest.mark.parametrize("page", [None, 2 * MIB])
def test_memory_is_shared_only_when_it_is_asked_for(page: int | None) -> None:
    facts = replace(FACTS, hugepages=((2 * MIB, 32),))
    assert plan_memory(Memory(64 * MIB, page), facts).config.shared is None
    assert plan_memory(Memory(64 * MIB, page), facts, shared=True).config.shared is True


@pytest.mark.parametrize("there", [(), ((2 * MIB, 31),), ((1024 * MIB, 32),)])
def test_too_few_hugepages_are_found_before_the_boot(there: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(HostUnfit, match="needs 32 hugepages of 2 MiB"):
        plan_memory(Memory(64 * MIB, hugepage_size=2 * MIB), replace(FACTS, hugepages=there))
