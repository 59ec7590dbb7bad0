from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import StorageFailed
from launcher.facts import DiskFacts, DiskFile
from launcher.plan.build import plan
from launcher.plan.storage import plan_disks
from launcher.plan.types import GiveToVmm
from launcher.spec.types import DataVolumeVolume, Disk, PvcVolume, VmSpec
from tests.unit.plan.made import FACTS, GIB, SPEC

IMAGE = DiskFile(Path("/mnt/data/disk.img"), size=GIB)
DEVICE = DiskFile(Path("/mnt/data"), block=True, size=GIB, gid=6, mode=0o660)


def claim(*, read_only: bool = False, hotpluggable: bool = False) -> VmSpec:
    return replace(
        SPEC,
        instance=replace(SPEC.instance, disks=(Disk("data", read_only),)),
        volumes=(PvcVolume("data", "c1", hotpluggable),),
    )


def refused(file: DiskFile | None, spec: VmSpec | None = None, *block_volumes: str) -> StorageFailed:
    facts = replace(FACTS, disks=(DiskFacts("data", file=file, direct=512),), block_volumes=block_volumes)
    with pytest.raises(StorageFailed) as raised:
        plan(spec or claim(), facts)
    assert raised.value.message.startswith("disk data: ")
    return raised.value


@pytest.mark.parametrize("file", [IMAGE, DEVICE])
@pytest.mark.parametrize("volume", [PvcVolume("data", "c1"), DataVolumeVolume("data", "d1")])
def test_a_claim_is_a_raw_disk_where_it_is_mounted(file: DiskFile, volume: PvcVolume | DataVolumeVolume) -> None:
    facts = replace(FACTS, disks=(DiskFacts("data", file=file, direct=512),))
    disks = plan_disks(replace(claim(), volumes=(volume,)), facts)
    (config,) = disks.configs
    assert (config.path, config.image_type, config.readonly, config.direct) == (str(file.path), "Raw", False, True)
    assert config.serial == "data"
    assert (disks.actions, disks.warnings) == ((), ())


def test_the_disks_group_is_the_gentler_key() -> None:
    facts = replace(FACTS, disks=(DiskFacts("data", file=DEVICE),))
    assert plan_disks(claim(), facts).groups == (6,)
    boot = plan(claim(), facts)
    assert boot.vmm.confinement.groups == (6,)
    assert not [action for action in boot.actions if isinstance(action, GiveToVmm) and action.path == DEVICE.path]


@pytest.mark.parametrize(
    ("file", "read_only"),
    [
        (replace(IMAGE, uid=107, gid=107, mode=0o600), False),
        (replace(IMAGE, mode=0o666), False),
        (replace(IMAGE, mode=0o644), True),
    ],
)
def test_a_disk_that_opens_as_it_is_stays_so(file: DiskFile, read_only: bool) -> None:  # noqa: FBT001  # a parameter
    disks = plan_disks(claim(read_only=read_only), replace(FACTS, disks=(DiskFacts("data", file=file),)))
    assert (disks.actions, disks.groups) == ((), ())


@pytest.mark.parametrize(
    "file", [replace(IMAGE, mode=0o600), replace(IMAGE, mode=0o664), replace(IMAGE, mode=0o640, gid=5)]
)
def test_else_its_owner_changes_and_the_plan_says_so(file: DiskFile) -> None:
    disks = plan_disks(claim(), replace(FACTS, disks=(DiskFacts("data", file=file),)))
    (give,) = disks.actions
    assert isinstance(give, GiveToVmm)
    assert (give.path, give.write) == (IMAGE.path, True)
    assert "not a byte changes" in give.reason


def test_a_missing_claim_names_both_places() -> None:
    error = refused(None)
    assert "neither a block device /mnt/data nor a file /mnt/data/disk.img" in error.message
    assert "the claim c1" in (error.hint or "")


def test_a_missing_block_volume_is_told_by_its_variable() -> None:
    error = refused(None, None, "other", "data")
    assert "there is no block device /mnt/data, and $BLOCK_VOLUMES" in error.message
    assert "volumeDevices, with devicePath /mnt/data" in (error.hint or "")


def test_a_hot_pluggable_disk_may_come_later() -> None:
    disks = plan_disks(claim(hotpluggable=True), replace(FACTS, disks=()))
    assert (disks.configs, disks.disks, disks.actions) == ((), (), ())
    (warning,) = disks.warnings
    assert "/hotplug-volumes/data nor /hotplug-volumes/data.img yet" in warning
    assert plan(claim(hotpluggable=True), replace(FACTS, disks=())).vm_config.disks is None


def test_a_hot_plugged_disk_that_is_there_is_used() -> None:
    file = replace(IMAGE, path=Path("/hotplug-volumes/data.img"))
    (config,) = plan_disks(claim(hotpluggable=True), replace(FACTS, disks=(DiskFacts("data", file=file),))).configs
    assert config.path == "/hotplug-volumes/data.img"


def test_a_disk_in_use_names_its_holder() -> None:
    error = refused(replace(IMAGE, lock="write", holder="cloud-hyperviso (pid 12)"))
    assert "in use: cloud-hyperviso (pid 12) holds a write lock" in error.message
    assert "another process holds a read lock" in refused(replace(IMAGE, lock="read")).message
    assert "a write lock" in refused(replace(IMAGE, lock="write"), claim(read_only=True)).message


def test_readers_share_a_disk() -> None:
    facts = replace(FACTS, disks=(DiskFacts("data", file=replace(IMAGE, lock="read")),))
    assert plan_disks(claim(read_only=True), facts).configs


@pytest.mark.parametrize(
    ("file", "message", "hint"),
    [
        (replace(IMAGE, size=0), "is empty", "raw disk"),
        (replace(IMAGE, format="qcow2"), "begins like a qcow2 image", "qemu-img convert -O raw"),
        (replace(IMAGE, read_only=True), "can only be read", "readOnly: true"),
        (
            DiskFile(IMAGE.path, problem="is a symbolic link", hint="the file itself"),
            "is a symbolic link",
            "the file itself",
        ),
    ],
)
def test_an_unusable_disk_says_why(file: DiskFile, message: str, hint: str) -> None:
    error = refused(file)
    assert str(IMAGE.path) in error.message
    assert message in error.message
    assert hint in (error.hint or "")


def test_a_read_only_mount_suits_a_read_only_disk() -> None:
    facts = replace(FACTS, disks=(DiskFacts("data", file=replace(IMAGE, read_only=True)),))
    assert plan_disks(claim(read_only=True), facts).configs[0].readonly


def test_sectors_of_4096_bytes_are_seen_as_they_are() -> None:
    native = replace(DEVICE, sector=4096)
    disks = plan_disks(claim(), replace(FACTS, disks=(DiskFacts("data", file=native, direct=4096),)))
    assert disks.configs[0].direct  # the guest sees 4096 either way
    assert disks.warnings == ()


@pytest.mark.parametrize(
    ("sector", "table", "warns"),
    [(4096, 512, True), (512, 4096, True), (512, 512, False), (4096, 4096, False), (4096, 0, False)],
)
def test_partitions_for_other_sectors_are_warned_of(sector: int, table: int, warns: bool) -> None:  # noqa: FBT001  # likewise
    file = replace(DEVICE, sector=sector, table=table)
    warnings = plan_disks(claim(), replace(FACTS, disks=(DiskFacts("data", file=file),))).warnings
    assert bool(warnings) == warns
    assert all(
        f"made for sectors of {table} bytes, and the guest sees sectors of {sector}" in text for text in warnings
    )


def test_a_size_that_is_cut_is_warned_of() -> None:
    (warning,) = plan_disks(
        claim(), replace(FACTS, disks=(DiskFacts("data", file=replace(IMAGE, size=1025)),))
    ).warnings
    assert "does not see the last 1" in warning


def test_the_same_rules_hold_for_a_root_disk_that_is_there() -> None:
    locked = DiskFile(Path("/mnt/root/rootfs.raw"), size=GIB, lock="write", holder="qemu (pid 7)")
    disks = (DiskFacts("root", folder=True, rootfs_raw=True, file=locked), DiskFacts("seed", folder=True))
    with pytest.raises(StorageFailed, match=r"disk root: .* qemu \(pid 7\)"):
        plan(SPEC, replace(FACTS, disks=disks))
