from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from launcher.errors import HostUnfit, ImageInvalid
from launcher.facts import DiskFacts, FirmwareFacts, ImageFacts
from launcher.plan.storage import plan_disks, plan_payload
from launcher.plan.types import BuildRootDisk, BuildSeed, ExtractKernel, GiveToVmm, MakeFolder
from launcher.spec.types import ContainerRootfsVolume, Disk, Kernel, VmSpec
from tests.unit.plan.made import FACTS, GIB, SPEC

KERNEL = Kernel("registry.example/kernel:1", "console=ttyS0  'quoted  words' root=/dev/vda")


def with_root_disks(*names: str, read_only: bool = False) -> VmSpec:
    return replace(
        SPEC,
        instance=replace(SPEC.instance, disks=tuple(Disk(name, read_only) for name in names)),
        volumes=tuple(ContainerRootfsVolume(name, f"registry.example/{name}", GIB) for name in names),
    )


def test_the_kernel_and_its_initramfs_are_extracted() -> None:
    payload = plan_payload(KERNEL, FACTS)
    assert payload.config.kernel == "/var/run/virtink/boot/vmlinux"
    assert payload.config.initramfs == "/var/run/virtink/boot/initramfs"
    assert payload.config.cmdline == KERNEL.cmdline
    folder, extract = payload.actions
    assert isinstance(folder, MakeFolder)
    assert isinstance(extract, ExtractKernel)
    assert (extract.image, extract.kernel, extract.initramfs) == (
        Path("/mnt/images/kernel"),
        Path(payload.config.kernel),
        Path(payload.config.initramfs),
    )


def test_an_image_without_an_initramfs_gives_none() -> None:
    payload = plan_payload(KERNEL, replace(FACTS, kernel_image=ImageFacts("kernel", "layer", kernel="pvh-elf")))
    assert payload.config.initramfs is None
    assert isinstance(payload.actions[-1], ExtractKernel)
    assert payload.actions[-1].initramfs is None


def test_a_prepared_kernel_is_used_as_it_is() -> None:
    payload = plan_payload(KERNEL, replace(FACTS, prepared_kernel=True, kernel_image=None))
    assert payload.config.kernel == "/mnt/virtink-kernel/vmlinux"
    (give,) = payload.actions
    assert isinstance(give, GiveToVmm)
    assert not give.write


def test_a_missing_kernel_image_names_its_place_and_its_reference() -> None:
    with pytest.raises(ImageInvalid) as raised:
        plan_payload(KERNEL, replace(FACTS, kernel_image=None))
    assert "/mnt/images/kernel" in raised.value.message
    assert KERNEL.image in (raised.value.hint or "")


def test_an_unusable_kernel_image_is_told_as_it_was_found() -> None:
    facts = replace(FACTS, kernel_image=ImageFacts("kernel", problem="it is a text file", hint="a kernel"))
    with pytest.raises(ImageInvalid, match="it is a text file") as raised:
        plan_payload(KERNEL, facts)
    assert KERNEL.image in raised.value.message
    assert raised.value.hint == "a kernel"


def test_disks_keep_the_specs_order_and_names() -> None:
    facts = replace(FACTS, images=tuple(ImageFacts(name) for name in ("b", "a", "c")), disks=())
    configs = plan_disks(with_root_disks("b", "a", "c"), facts).configs
    assert [config.id for config in configs] == ["b", "a", "c"]
    assert [config.path for config in configs] == [f"/mnt/{name}/rootfs.raw" for name in ("b", "a", "c")]
    assert all(config.image_type == "Raw" and not config.readonly for config in configs)


def test_a_root_disk_and_a_seed_are_built_and_given_to_the_vmm() -> None:
    disks = plan_disks(SPEC, FACTS)
    build, give, seed, give_seed = disks.actions
    assert isinstance(build, BuildRootDisk)
    assert (build.image, build.disk, build.size) == (Path("/mnt/images/root"), Path("/mnt/root/rootfs.raw"), 4 * GIB)
    assert isinstance(seed, BuildSeed)
    assert seed.disk == Path("/mnt/seed/cloud-init.iso")
    assert isinstance(give, GiveToVmm)
    assert isinstance(give_seed, GiveToVmm)
    assert (give.path, give.write) == (build.disk, True)
    assert (give_seed.path, give_seed.write) == (seed.disk, False)
    assert [config.readonly for config in disks.configs] == [False, True]


def test_what_is_prepared_is_only_given() -> None:
    prepared = (DiskFacts("root", folder=True, rootfs_raw=True), DiskFacts("seed", folder=True, cloud_init_iso=True))
    disks = plan_disks(SPEC, replace(FACTS, disks=prepared, images=()))
    assert [type(action) for action in disks.actions] == [GiveToVmm, GiveToVmm]


def test_a_seed_of_ours_follows_its_input() -> None:
    ours = DiskFacts("seed", folder=True, cloud_init_iso=True, cloud_init_ours=True)
    disks = plan_disks(SPEC, replace(FACTS, disks=(DiskFacts("root", folder=True, rootfs_raw=True), ours)))
    assert [type(action) for action in disks.actions] == [GiveToVmm, BuildSeed, GiveToVmm]


def test_root_without_capabilities_is_given_the_disks_too() -> None:
    prepared = (DiskFacts("root", folder=True, rootfs_raw=True), DiskFacts("seed", folder=True, cloud_init_iso=True))
    facts = replace(FACTS, vmm_uid=0, vmm_gid=0, disks=prepared, prepared_kernel=True)
    actions = (*plan_disks(SPEC, facts).actions, *plan_payload(KERNEL, facts).actions)
    assert [(type(action), getattr(action, "uid", None)) for action in actions] == [(GiveToVmm, 0)] * 3


def test_a_folder_nothing_is_mounted_at_is_made_for_what_is_built() -> None:
    disks = plan_disks(SPEC, replace(FACTS, disks=()))
    assert [action.path for action in disks.actions if isinstance(action, MakeFolder)] == [
        Path("/mnt/root"),
        Path("/mnt/seed"),
    ]


def test_a_read_only_disk_is_only_read() -> None:
    facts = replace(FACTS, images=(ImageFacts("a"),))
    disks = plan_disks(with_root_disks("a", read_only=True), facts)
    assert disks.configs[0].readonly
    assert [action.write for action in disks.actions if isinstance(action, GiveToVmm)] == [False]


def test_a_missing_volume_image_names_its_place_and_its_reference() -> None:
    with pytest.raises(ImageInvalid) as raised:
        plan_disks(SPEC, replace(FACTS, images=()))
    assert "/mnt/images/root" in raised.value.message
    assert "registry.example/ubuntu:22.04" in (raised.value.hint or "")


def test_serials_fit_stay_and_differ() -> None:
    long = ("a-root-disk-with-a-very-long-name-1", "a-root-disk-with-a-very-long-name-2", "x" * 20, "short")
    facts = replace(FACTS, images=tuple(ImageFacts(name) for name in long))
    serials = [config.serial or "" for config in plan_disks(with_root_disks(*long), facts).configs]
    assert serials[2:] == ["x" * 20, "short"]
    assert serials[0] == "a-root-disk-66bacdd3"
    assert len(set(serials)) == 4
    assert all(len(serial.encode()) <= 20 for serial in serials)


@pytest.mark.parametrize(
    ("block", "direct", "why"),
    [
        (512, True, "direct I/O: it is possible there, in blocks of 512 bytes"),
        (1, True, "direct I/O: it is possible there, in blocks of 1 bytes"),
        (0, None, "through the page cache: direct I/O is not possible there"),
        (4096, None, "through the page cache: with direct I/O the guest would see sectors of 4096 bytes, not 512"),
    ],
)
def test_direct_io_only_where_the_guest_sees_sectors_of_512(block: int, direct: Literal[True] | None, why: str) -> None:
    facts = replace(FACTS, disks=(DiskFacts("root", folder=True, direct=block), DiskFacts("seed", direct=512)))
    disks = plan_disks(SPEC, facts)
    assert [config.direct for config in disks.configs] == [direct, None]
    assert disks.disks[0].io == why
    assert [disk.name for disk in disks.disks] == ["root", "seed"]


def test_without_a_kernel_a_firmware_boots() -> None:
    payload = plan_payload(None, replace(FACTS, firmware=FirmwareFacts(Path("/fw/CLOUDHV.fd"))))
    assert (payload.config.firmware, payload.config.kernel, payload.config.cmdline) == ("/fw/CLOUDHV.fd", None, None)
    (give,) = payload.actions
    assert isinstance(give, GiveToVmm)
    assert (give.path, give.write) == (Path("/fw/CLOUDHV.fd"), False)
    assert payload.warnings == ()


def test_the_firmware_that_boots_fewer_images_is_warned_of() -> None:
    payload = plan_payload(None, replace(FACTS, firmware=FirmwareFacts(Path("/fw/hypervisor-fw"))))
    assert "does not boot newer images" in payload.warnings[0]


def test_without_a_firmware_the_remedy_is_told() -> None:
    with pytest.raises(HostUnfit, match="no firmware at /x") as raised:
        plan_payload(None, replace(FACTS, firmware=FirmwareFacts(problem="no firmware at /x", hint="get one")))
    assert raised.value.hint == "get one"
