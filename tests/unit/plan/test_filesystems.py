"""Shared file systems: the VMM's devices, and a virtiofsd for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import HostUnfit, StorageFailed
from launcher.facts import DiskFacts, ProgramFacts
from launcher.paths import Paths
from launcher.plan.build import plan
from launcher.plan.filesystems import FileSystemsPlan, plan_file_systems
from launcher.plan.fitness import check_machine
from launcher.plan.vmconfig import FsConfig, wire
from launcher.spec.types import DataVolumeVolume, FileSystem, PvcVolume
from tests.unit.plan.made import FACTS, SPEC

SHARING = replace(
    SPEC,
    instance=replace(SPEC.instance, file_systems=(FileSystem("b"), FileSystem("a"))),
    volumes=(*SPEC.volumes, PvcVolume("a", "claim"), DataVolumeVolume("b", "data")),
)
READY = replace(
    FACTS,
    virtiofsd=ProgramFacts("/usr/libexec/virtiofsd", (1, 13, 2)),
    disks=(*FACTS.disks, DiskFacts("a", folder=True), DiskFacts("b", folder=True)),
)


def test_without_file_systems_there_is_nothing() -> None:
    assert plan_file_systems(SPEC, READY) == FileSystemsPlan()
    config = wire(plan(SPEC, READY).vm_config)
    assert "fs" not in config
    assert "shared" not in config["memory"]


def test_each_has_a_device_and_a_helper_at_one_socket_in_the_specs_order() -> None:
    planned = plan_file_systems(SHARING, READY)
    socket = "/var/run/virtink/virtiofsd/b.sock"
    assert planned.configs[0] == FsConfig("b", "b", socket, 1, 1024)
    assert [config.tag for config in planned.configs] == ["b", "a"]
    helper = planned.helpers[0]
    assert (helper.name, helper.listen) == ("virtiofsd-b", Path(socket))
    assert helper.argv[:2] == ("/usr/libexec/virtiofsd", "--shared-dir=/mnt/b")
    assert {"--sandbox=none", "--inode-file-handles=never"} <= set(helper.argv)
    assert set(helper.confinement.capabilities) <= set(FACTS.capabilities)


def test_the_memory_is_shared_and_the_plan_says_what_it_costs() -> None:
    boot = plan(SHARING, READY)
    assert boot.vm_config.memory.shared
    assert [warning for warning in boot.warnings if "shared" in warning]
    assert [helper.name for helper in boot.helpers] == ["virtiofsd-b", "virtiofsd-a", "dnsmasq-br-eth0"]


def test_it_is_shut_up_in_its_folder_where_the_container_may_do_that() -> None:
    planned = plan_file_systems(SHARING, replace(READY, capabilities=(*READY.capabilities, "sys_chroot")))
    for helper in planned.helpers:
        assert "--sandbox=chroot" in helper.argv
        assert "sys_chroot" in helper.confinement.capabilities


def test_without_a_usable_virtiofsd_the_machine_is_unfit() -> None:
    with pytest.raises(HostUnfit, match="virtiofsd is not installed"):
        plan_file_systems(SHARING, replace(READY, virtiofsd=None))
    with pytest.raises(HostUnfit, match="it is too old") as raised:
        plan_file_systems(SHARING, replace(READY, virtiofsd=ProgramFacts("/v", problem="it is too old", hint="newer")))
    assert raised.value.hint == "newer"


def test_a_folder_that_is_not_mounted_is_named() -> None:
    with pytest.raises(StorageFailed, match="there is no folder /mnt/a for the file system a"):
        plan_file_systems(SHARING, replace(READY, disks=(DiskFacts("b", folder=True), DiskFacts("a"))))


def test_the_sockets_of_file_systems_must_fit_too() -> None:
    long = replace(SPEC.instance, file_systems=(FileSystem("x" * 36),))
    facts = replace(READY, paths=Paths(run_dir=Path("/" + "r" * 60)))
    check_machine(SPEC, facts)
    with pytest.raises(HostUnfit, match="too long for the sockets"):
        check_machine(replace(SPEC, instance=long), facts)
