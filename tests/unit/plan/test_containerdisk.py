from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import ImageInvalid, StorageFailed
from launcher.facts import DiskFacts, DiskFile, DiskImageFacts, HostFacts, ImageFacts
from launcher.plan.build import plan
from launcher.plan.storage import plan_disks
from launcher.plan.types import GiveToVmm, MakeContainerDisk, MakeFolder
from launcher.spec.types import ContainerDiskVolume, Disk
from tests.unit.plan.made import FACTS, GIB, SPEC

VM = replace(
    SPEC,
    instance=replace(SPEC.instance, disks=(Disk("os"),)),
    volumes=(ContainerDiskVolume("os", "registry.example/fedora:42"),),
)
OWN = DiskImageFacts(Path("/mnt/images/os/disk/fedora.qcow2"), "qcow2", 5 * GIB, "1 bytes of 2")
FOLDER = ImageFacts("os", "image root directory", disk=OWN)
LAYERS = ImageFacts("os", "OCI layout", "sha256:" + "3" * 64)
OVERLAY = DiskFile(Path("/mnt/os/disk.qcow2"), size=196608, format="qcow2", base=OWN.path, mark=OWN.mark)


def facts(image: ImageFacts | None, file: DiskFile | None = None, container_disk: str = "overlay") -> HostFacts:
    disks = (DiskFacts("os", folder=True, file=file, direct=512),)
    return replace(FACTS, images=(image,) if image else (), disks=disks, container_disk=container_disk)


def make(seen: HostFacts) -> MakeContainerDisk:
    (action,) = (action for action in plan(VM, seen).actions if isinstance(action, MakeContainerDisk))
    return action


def test_the_images_own_file_is_the_base() -> None:
    action = make(facts(FOLDER))
    assert (action.disk, action.base, action.in_place, action.mark) == (OVERLAY.path, OWN.path, True, OWN.mark)
    assert "nothing of it is copied" in action.reason
    (config,) = plan_disks(VM, facts(FOLDER)).configs
    assert (config.path, config.image_type, config.backing_files) == (str(OVERLAY.path), "Qcow2", True)
    assert (config.direct, config.readonly, config.serial) == (None, False, "os")


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (LAYERS, "in layers"),
        (replace(FOLDER, disk=replace(OWN, mode=0o600)), "with mode 0600 is closed"),
        (replace(FOLDER, disk=replace(OWN, closed=True)), "a folder on the way"),
    ],
)
def test_a_disk_that_cannot_be_read_in_place_is_extracted(image: ImageFacts, why: str) -> None:
    action = make(facts(image))
    assert (action.base, action.in_place, action.mark) == (Path("/mnt/os/disk.base"), False, "")
    assert why in action.reason
    assert "extract the disk" in action.describe()


@pytest.mark.parametrize("change", [{"uid": 107, "mode": 0o400}, {"gid": 107, "mode": 0o440}])
def test_the_vmms_own_files_are_read_in_place(change: dict[str, int]) -> None:
    assert make(facts(replace(FOLDER, disk=replace(OWN, **change)))).in_place  # type: ignore[arg-type]  # integers all


def test_a_raw_copy_can_be_asked_for() -> None:
    action = make(facts(LAYERS, container_disk="raw"))
    assert (action.disk, action.base) == (Path("/mnt/os/disk.raw"), None)
    (config,) = plan_disks(VM, facts(LAYERS, container_disk="raw")).configs
    assert (config.image_type, config.backing_files, config.direct) == ("Raw", None, True)
    (config,) = plan_disks(VM, facts(FOLDER, container_disk="raw")).configs
    assert config.direct is None  # it may become a reflink


def test_what_virtink_prepared_is_used_as_it_is() -> None:
    disks = plan_disks(VM, facts(None, DiskFile(Path("/mnt/os/disk.raw"), size=GIB)))
    assert [type(action) for action in disks.actions] == [GiveToVmm]
    assert (disks.configs[0].path, disks.configs[0].image_type) == ("/mnt/os/disk.raw", "Raw")


@pytest.mark.parametrize("container_disk", ["overlay", "raw"])
def test_an_overlay_that_is_there_holds_guest_data_and_is_used(container_disk: str) -> None:
    disks = plan_disks(VM, facts(FOLDER, OVERLAY, container_disk))
    assert [type(action) for action in disks.actions] == [GiveToVmm]
    assert disks.configs[0].path == str(OVERLAY.path)


def test_an_overlay_on_an_extracted_disk_needs_no_image() -> None:
    extracted = replace(OVERLAY, base=Path("/mnt/os/disk.base"), mark="")
    assert plan_disks(VM, facts(None, extracted)).configs[0].backing_files


@pytest.mark.parametrize(
    ("image", "file"),
    [
        (replace(FOLDER, disk=replace(OWN, mark="another")), OVERLAY),
        (None, OVERLAY),
        (LAYERS, OVERLAY),
        (FOLDER, replace(OVERLAY, base=Path("/etc/shadow"))),
        (FOLDER, replace(OVERLAY, base=None, format="raw")),
    ],
)
def test_an_overlay_on_anything_else_is_refused(image: ImageFacts | None, file: DiskFile) -> None:
    with pytest.raises(StorageFailed, match="is no overlay on the disk in /mnt/images/os") as raised:
        plan(VM, facts(image, file))
    assert "move it away" in (raised.value.hint or "")


def test_a_missing_or_unusable_image_is_told() -> None:
    with pytest.raises(ImageInvalid, match="no image at /mnt/images/os") as raised:
        plan(VM, facts(None))
    assert "/mnt/os/disk.raw" in (raised.value.hint or "")
    with pytest.raises(ImageInvalid, match="names a backing file"):
        plan(VM, facts(ImageFacts("os", problem="image os: /disk names a backing file")))


def test_a_folder_is_made_where_nothing_is_mounted() -> None:
    disks = plan_disks(VM, replace(facts(FOLDER), disks=()))
    assert isinstance(disks.actions[0], MakeFolder)
