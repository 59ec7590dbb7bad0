"""Bad input, met with one sentence and the right code: each as a pod's container meets it, with nothing lost by it.

A case is a function that spoils a good pod. What ``run`` then says is compared word for word: the sentences are part of
the product. ``plan`` is a preflight and says the same, but for what only the work itself brings to light.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.netns import PLAIN, PodNetns, pod_netns
from tests.lab.pod import VmPod, golden_spec, vm_pod
from tests.unit.image.build import Layout, folder, hardlink, item, layout, symlink, tar
from tests.unit.image.test_kernel import PVH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.root

GUEST_DATA = b"a disk with a guest's data" * 100


@dataclass(frozen=True)
class Case:
    spoil: Callable[[Attempt], None]
    code: int
    reason: str
    says: str  # {root} is the pod's folder, … anything
    planned: bool  # `plan` refuses likewise
    has_run_dir: bool  # there is one for result.json


@dataclass
class Attempt:
    """A pod that would start, until a case spoils it."""

    pod: VmPod
    stack: ExitStack
    options: tuple[str, ...] = ("--emulate",)

    def __post_init__(self) -> None:
        self.env: dict[str, str] = {}
        self.document = golden_spec(size="16Mi")
        self.document["spec"]["instance"]["disks"].append({"name": "data"})
        self.document["spec"]["volumes"].append(
            {"name": "data", "containerRootfs": {"image": "lab/data", "size": "8Mi"}}
        )
        self.pod.write_spec(self.document)
        self.kernel(item("vmlinux", PVH))
        self.image("root", folder("rootfs"), item("rootfs/hello", "hello"))
        kept = self.pod.root / "disks/data/rootfs.raw"
        kept.parent.mkdir()
        kept.write_bytes(GUEST_DATA)

    def image(self, name: str, *items: Any) -> Path:
        return layout(self.pod.root / "images" / name, tar(*items))

    def kernel(self, *items: Any) -> None:
        """The kernel image, as a root directory or a layer would be too: here a single layer."""
        (self.pod.root / "images/kernel").write_bytes(tar(*items))

    def spec(self, **instance: Any) -> None:
        self.document["spec"]["instance"].update(instance)
        self.pod.write_spec(self.document)

    def program(self, text: str, mode: int = 0o755) -> None:
        """A VMM of our own making."""
        path = self.pod.root / "vmm"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        self.options = ("--vmm", str(path))

    def own_network(self) -> PodNetns:
        self.pod.net = self.stack.enter_context(pod_netns(PLAIN))
        return self.pod.net


CASES: dict[str, Case] = {}


def case(
    code: int, reason: str, says: str, *, planned: bool = True, has_run_dir: bool = True
) -> Callable[[Callable[[Attempt], None]], None]:
    def add(spoil: Callable[[Attempt], None]) -> None:
        CASES[spoil.__name__] = Case(spoil, code, reason, says, planned, has_run_dir)

    return add


# --- the spec ---------------------------------------------------------------------------------------------------------


@case(
    10,
    "SpecInvalid",
    "there is no VM spec: no --spec, no $LAUNCHER_SPEC, no /etc/launcher/vm.json and no $VM_DATA (mount the VirtualMachine as JSON at /etc/launcher/vm.json, or name it with --spec)",
)
def no_spec(attempt: Attempt) -> None:
    attempt.env["LAUNCHER_SPEC"] = ""


@case(
    10,
    "SpecInvalid",
    "cannot read the VM spec {root}/vm.json: No such file or directory (check the mount and --spec)",
)
def spec_missing(attempt: Attempt) -> None:
    attempt.pod.spec.unlink()


@case(
    10,
    "SpecInvalid",
    "cannot read the VM spec {root}/vm.json: Is a directory (check the mount and --spec)",
)
def spec_is_a_folder(attempt: Attempt) -> None:
    attempt.pod.spec.unlink()
    attempt.pod.spec.mkdir()


@case(
    10,
    "SpecInvalid",
    "$: the document is empty",
)
def spec_is_empty(attempt: Attempt) -> None:
    attempt.pod.spec.write_text("")


@case(
    10,
    "SpecInvalid",
    "$: not JSON at line 1, column 1: …",
)
def spec_is_not_json(attempt: Attempt) -> None:
    attempt.pod.spec.write_text("apiVersion: v1\nkind: VirtualMachine\n")


@case(
    10,
    "SpecInvalid",
    '$.apiVersion: expected "virt.virtink.smartx.com/v1alpha1", got "v1"; $.kind: expected "VirtualMachine", got "Pod"',
)
def spec_is_of_another_kind(attempt: Attempt) -> None:
    attempt.pod.spec.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}))


@case(
    10,
    "SpecInvalid",
    "$: expected object, got array",
)
def spec_is_a_list(attempt: Attempt) -> None:
    attempt.pod.spec.write_text("[]")


@case(
    10,
    "SpecInvalid",
    "the VM spec /dev/zero has more than 4194304 bytes (is it another file?)",
)
def spec_never_ends(attempt: Attempt) -> None:
    attempt.env["LAUNCHER_SPEC"] = "/dev/zero"


@case(
    10,
    "SpecInvalid",
    '$.spec.instance.memory.size: "1Gib" is not a quantity: a number with at most one suffix is, such as 512Mi, 1.5Gi or 2G',
)
def quantity_with_a_small_b(attempt: Attempt) -> None:
    attempt.spec(memory={"size": "1Gib"})


@case(
    10,
    "SpecInvalid",
    "$VM_DATA is not base64: Only base64 data is allowed (it is the VirtualMachine as base64 JSON)",
)
def vm_data_is_not_base64(attempt: Attempt) -> None:
    attempt.env |= {"LAUNCHER_SPEC": "", "VM_DATA": "{}"}


@case(
    10,
    "SpecInvalid",
    "not supported yet: $.spec.instance.interfaces[0].masquerade (a guest behind address translation)",
)
def masquerade(attempt: Attempt) -> None:
    attempt.spec(interfaces=[{"name": "pod", "masquerade": {}}])


@case(
    11,
    "HostUnfit",
    "there is no firmware /nowhere.fd (check --firmware)",
)
def no_firmware(attempt: Attempt) -> None:
    attempt.env["LAUNCHER_FIRMWARE"] = "/nowhere.fd"
    attempt.document["spec"]["volumes"][0] = {"name": "root", "containerDisk": {"image": "x"}}
    attempt.spec(kernel=None)


@case(
    12,
    "ImageInvalid",
    "image {root}/images/root: /disk names a backing file, '/etc/shadow': it would be a file of this machine; "
    "the spec wants x there (put everything into one file: qemu-img convert -O qcow2)",
)
def container_disk_with_a_backing_file(attempt: Attempt) -> None:
    image = attempt.pod.root / "images/root"
    shutil.rmtree(image)
    image.mkdir()
    create: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "/etc/shadow",
        "-F",
        "raw",
        image / "disk",
        "1M",
    ]
    subprocess.run(create, check=True)
    attempt.document["spec"]["volumes"][0] = {"name": "root", "containerDisk": {"image": "x"}}
    attempt.spec()


@case(
    13,
    "StorageFailed",
    "disk root: there is neither a block device {root}/disks/root nor a file {root}/disks/root/disk.img "
    "(mount the claim x there (volumeMounts, or volumeDevices for a block volume))",
)
def claim_that_is_not_mounted(attempt: Attempt) -> None:
    attempt.document["spec"]["volumes"][0] = {"name": "root", "persistentVolumeClaim": {"claimName": "x"}}
    attempt.spec()


# --- the kernel image -------------------------------------------------------------------------------------------------


@case(
    12,
    "ImageInvalid",
    "there is no image at {root}/images/kernel (mount lab/kernel there, or prepare {root}/disks/virtink-kernel/vmlinux)",
)
def kernel_image_missing(attempt: Attempt) -> None:
    (attempt.pod.root / "images/kernel").unlink()


@case(
    12,
    "ImageInvalid",
    "there is no image at {root}/nowhere/kernel (mount lab/kernel there, or prepare {root}/disks/virtink-kernel/vmlinux)",
)
def images_folder_missing(attempt: Attempt) -> None:
    attempt.options += ("--images", str(attempt.pod.root / "nowhere"))


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: is an empty file; the spec wants lab/kernel there",
)
def kernel_image_is_an_empty_file(attempt: Attempt) -> None:
    (attempt.pod.root / "images/kernel").write_bytes(b"")


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: has no /vmlinux; the spec wants lab/kernel there (a kernel image holds the kernel at /vmlinux)",
)
def kernel_image_is_an_empty_folder(attempt: Attempt) -> None:
    (attempt.pod.root / "images/kernel").unlink()
    (attempt.pod.root / "images/kernel").mkdir()


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: cannot be opened: No such file or directory; the spec wants lab/kernel there",
)
def kernel_image_is_a_dangling_link(attempt: Attempt) -> None:
    (attempt.pod.root / "images/kernel").unlink()
    (attempt.pod.root / "images/kernel").symlink_to("gone")


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: has no /vmlinux; the spec wants lab/kernel there (a kernel image holds the kernel at /vmlinux)",
)
def kernel_image_without_vmlinux(attempt: Attempt) -> None:
    attempt.kernel(item("boot/vmlinuz", PVH))


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: /vmlinux is a text file, not a kernel this machine can boot; the spec wants lab/kernel there (expected an x86-64 ELF with a PVH note (CONFIG_PVH=y) or a bzImage)",
)
def kernel_is_a_text_file(attempt: Attempt) -> None:
    attempt.kernel(item("vmlinux", "version https://git-lfs.github.com/spec/v1\n"))


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: '/vmlinux' is a symlink to '/etc/shadow', which the image does not have; the spec wants lab/kernel there",
)
def kernel_is_a_link_to_the_hosts_shadow(attempt: Attempt) -> None:
    attempt.kernel(symlink("vmlinux", "/etc/shadow"))


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: '/vmlinux' is a symlink to '../../../../../../../../etc/shadow', which the image does not have; the spec wants lab/kernel there",
)
def kernel_folder_links_to_the_hosts_shadow(attempt: Attempt) -> None:
    (attempt.pod.root / "images/kernel").unlink()
    (attempt.pod.root / "images/kernel").mkdir()
    (attempt.pod.root / "images/kernel/vmlinux").symlink_to("../../../../../../../../etc/shadow")


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel, entry 'vmlinux': is a hard link to '/etc/shadow', which does not exist; the spec wants lab/kernel there",
)
def kernel_is_a_hard_link_to_the_hosts_shadow(attempt: Attempt) -> None:
    attempt.kernel(hardlink("vmlinux", "/etc/shadow"))


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel, layer 1 of 1 (sha256:…): its content has the digest sha256:…, not sha256:…; the spec wants lab/kernel there",
)
def kernel_layer_has_another_digest(attempt: Attempt) -> None:
    (attempt.pod.root / "images/kernel").unlink()
    made = Layout(attempt.pod.root / "images/kernel")
    layer = tar(item("vmlinux", PVH))
    made.finish(made.image(layer))
    blob = made.file("sha256:" + hashlib.sha256(layer).hexdigest())
    blob.write_bytes(blob.read_bytes().replace(b"Linux", b"Minux"))


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel: the gzip data is cut off after … bytes; the spec wants lab/kernel there",
)
def kernel_gzip_is_truncated(attempt: Attempt) -> None:
    packed = gzip.compress(tar(item("vmlinux", PVH)))
    (attempt.pod.root / "images/kernel").write_bytes(packed[: len(packed) * 2 // 3])


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel, entry 'vmlinux': the data is cut off; the spec wants lab/kernel there",
)
def kernel_tar_is_truncated(attempt: Attempt) -> None:
    (attempt.pod.root / "images/kernel").write_bytes(tar(item("vmlinux", PVH))[:4096])


@case(
    12,
    "ImageInvalid",
    "image {root}/images/kernel, entry '../../x': its path '../../x' leads out of the image; the spec wants lab/kernel there",
)
def layer_entry_climbs_out(attempt: Attempt) -> None:
    attempt.kernel(item("vmlinux", PVH), item("../../x", "outside"))


# --- the root image and its disk --------------------------------------------------------------------------------------


@case(
    12,
    "ImageInvalid",
    "there is no image at {root}/images/root (mount lab/rootfs there, or prepare {root}/disks/root/rootfs.raw)",
)
def root_image_missing(attempt: Attempt) -> None:
    (attempt.pod.root / "images/root").rename(attempt.pod.root / "images/elsewhere")


@case(
    12,
    "ImageInvalid",
    "image {root}/images/root, layer 1 of 1 (sha256:…), entry '../../x': its path '../../x' leads out of the image",
    planned=False,
)
def root_layer_climbs_out(attempt: Attempt) -> None:
    (attempt.pod.root / "images/root").rename(attempt.pod.root / "unused")
    attempt.image("root", item("../../x", "outside"))


@case(
    12,
    "ImageInvalid",
    "image {root}/images/root: the gzip data is cut off after … bytes",
    planned=False,
)
def root_gzip_is_truncated(attempt: Attempt) -> None:
    (attempt.pod.root / "images/root").rename(attempt.pod.root / "unused")
    packed = gzip.compress(tar(item("rootfs/file", bytes(range(256)) * 4000)))
    (attempt.pod.root / "images/root").write_bytes(packed[: len(packed) // 2])


@case(
    13,
    "StorageFailed",
    "the root file system in {root}/images/root needs a disk of 25Mi, volume root has 16777216 bytes (give the volume a size of 25Mi and what the guest is to write)",
    planned=False,
)
def root_tree_is_larger_than_its_disk(attempt: Attempt) -> None:
    (attempt.pod.root / "images/root").rename(attempt.pod.root / "unused")
    attempt.image("root", item("rootfs/large", bytes(20 << 20)))


@case(
    13,
    "StorageFailed",
    "no space is left for the disk {root}/disks/root/rootfs.raw: it takes 5Mi, 1Mi are free (make room, or mount a larger volume there)",
    planned=False,
)
def no_space_left(attempt: Attempt) -> None:
    (attempt.pod.root / "images/root").rename(attempt.pod.root / "unused")
    attempt.image("root", item("rootfs/large", b"x" * (4 << 20)))
    attempt.pod.mounts = [f"mount -t tmpfs -o size=2m none {attempt.pod.root}/disks"]
    attempt.document["spec"]["instance"]["disks"].pop()
    attempt.document["spec"]["volumes"].pop()
    attempt.spec()


@case(
    13,
    "StorageFailed",
    "…",
    planned=False,
)
def space_ends_while_the_disk_is_built(attempt: Attempt) -> None:
    # Room for the tree, and none for what makes a file system of it.
    attempt.pod.mounts = [f"mount -t tmpfs -o size=40k none {attempt.pod.root}/disks"]
    attempt.document["spec"]["instance"]["disks"].pop()
    attempt.document["spec"]["volumes"].pop()
    attempt.spec()


def _read_only(folder: Path) -> list[str]:
    quoted = shlex.quote(str(folder))
    return [f"mount --bind {quoted} {quoted}", f"mount -o remount,bind,ro {quoted}"]


@case(
    13,
    "StorageFailed",
    "cannot build disk {root}/disks/root/rootfs.raw: Read-only file system (mount a writable volume there, such as an emptyDir)",
    planned=False,
)
def disks_are_read_only(attempt: Attempt) -> None:
    (attempt.pod.root / "disks/root").mkdir()
    _disks_read_only(attempt)


@case(
    11,
    "HostUnfit",
    "cannot make folder {root}/disks/root: Read-only file system (mount a writable volume there, such as an emptyDir)",
    planned=False,
)
def disks_are_read_only_and_the_volume_has_no_folder(attempt: Attempt) -> None:
    _disks_read_only(attempt)


def _disks_read_only(attempt: Attempt) -> None:
    """With the other disk, which is there, as one that the guest only reads."""
    attempt.document["spec"]["instance"]["disks"][1]["readOnly"] = True
    attempt.spec()
    attempt.pod.mounts = _read_only(attempt.pod.root / "disks")


@case(
    13,
    "StorageFailed",
    "disk data: {root}/disks/data/rootfs.raw can only be read (say readOnly: true of the disk, or mount it writable)",
    planned=False,
)
def a_disk_that_is_there_is_on_a_read_only_mount(attempt: Attempt) -> None:
    attempt.pod.mounts = _read_only(attempt.pod.root / "disks")


@case(
    11,
    "HostUnfit",
    "cannot make folder {root}/disks/root: Not a directory (something else is there: move it away)",
    planned=False,
)
def volume_folder_is_a_file(attempt: Attempt) -> None:
    (attempt.pod.root / "disks/root").write_text("not a folder")


@case(
    13,
    "StorageFailed",
    "disk root: {root}/disks/root/rootfs.raw is a symbolic link (put the file itself there)",
    planned=False,
)
def disk_is_a_link(attempt: Attempt) -> None:
    (attempt.pod.root / "disks/root").mkdir()
    (attempt.pod.root / "disks/root/rootfs.raw").symlink_to("/etc/shadow")


@case(
    13,
    "StorageFailed",
    "disk root: {root}/disks/root/rootfs.raw is a symbolic link (put the file itself there)",
    planned=False,
)
def disk_is_a_dangling_link(attempt: Attempt) -> None:
    (attempt.pod.root / "disks/root").mkdir()
    (attempt.pod.root / "disks/root/rootfs.raw").symlink_to("gone")


@case(
    13,
    "StorageFailed",
    "{root}/disks/root/rootfs.raw is not a file (a raw disk is expected there, or nothing: move it away)",
    planned=False,
)
def disk_is_a_folder(attempt: Attempt) -> None:
    (attempt.pod.root / "disks/root/rootfs.raw").mkdir(parents=True)


# --- the machine ------------------------------------------------------------------------------------------------------


@case(
    14,
    "NetworkFailed",
    "the pod has no eth0 (the pod needs a network: hostNetwork cannot be used)",
)
def no_pod_interface(attempt: Attempt) -> None:
    attempt.own_network().pod("ip", "link", "del", "eth0")


@case(
    11,
    "HostUnfit",
    "there is no /dev/net/tun (request the tun device of a device plugin, or have the node make one (modprobe tun))",
)
def no_tun(attempt: Attempt) -> None:
    attempt.pod.devices = ("kvm",)


@case(
    11,
    "HostUnfit",
    "/dev/net/tun is not a device (request the tun device of a device plugin, or have the node make one (modprobe tun))",
)
def tun_is_no_device(attempt: Attempt) -> None:
    attempt.pod.devices = ("kvm",)
    attempt.pod.mounts = ["mkdir /dev/net", "touch /dev/net/tun"]


@case(
    11,
    "HostUnfit",
    "there is no /dev/kvm (request the KVM device of a device plugin on a node with KVM, or pass --emulate to run the guest slowly without it)",
)
def no_kvm(attempt: Attempt) -> None:
    attempt.program("echo cloud-hypervisor v53.0")
    attempt.pod.devices = ("net/tun",)


@case(
    11,
    "HostUnfit",
    "there is no program /nowhere/cloud-hypervisor (name the VMM with --vmm or $LAUNCHER_VMM)",
)
def vmm_missing(attempt: Attempt) -> None:
    attempt.options = ("--vmm", "/nowhere/cloud-hypervisor")


@case(
    11,
    "HostUnfit",
    "{root}/vmm is not executable (name the VMM with --vmm or $LAUNCHER_VMM)",
)
def vmm_not_executable(attempt: Attempt) -> None:
    attempt.program("echo cloud-hypervisor v53.0", mode=0o644)


@case(
    11,
    "HostUnfit",
    "{root} is not a program (name the VMM with --vmm or $LAUNCHER_VMM)",
)
def vmm_is_a_folder(attempt: Attempt) -> None:
    attempt.options = ("--vmm", str(attempt.pod.root))


@case(
    11,
    "HostUnfit",
    "{root}/vmm is cloud-hypervisor v30.0.0, which does not lock disk images (v46.0 or later is needed)",
)
def vmm_is_too_old(attempt: Attempt) -> None:
    attempt.program("echo cloud-hypervisor v30.0")


@case(
    11,
    "HostUnfit",
    "/bin/true does not say that it is cloud-hypervisor (set --vmm or $LAUNCHER_VMM)",
)
def vmm_is_another_program(attempt: Attempt) -> None:
    attempt.options = ("--vmm", "/bin/true")


@case(
    11,
    "HostUnfit",
    "{root}/vmm does not run as uid 107: … ended with status 127: no such library (…)",
)
def vmm_does_not_run(attempt: Attempt) -> None:
    attempt.program("echo no such library >&2; exit 127")


@case(
    11,
    "HostUnfit",
    "the run directory {root}/run cannot be used: Read-only file system (mount a writable emptyDir there, or choose another with --run-dir)",
    planned=False,
    has_run_dir=False,
)
def run_directory_is_read_only(attempt: Attempt) -> None:
    attempt.pod.mounts = _read_only(attempt.pod.run_dir)


@case(
    11,
    "HostUnfit",
    "the run directory {root}/run cannot be used: File exists (mount a writable emptyDir there, or choose another with --run-dir)",
    planned=False,
    has_run_dir=False,
)
def run_directory_is_a_file(attempt: Attempt) -> None:
    attempt.pod.run_dir.rmdir()
    attempt.pod.run_dir.touch()


@case(
    11,
    "HostUnfit",
    "the run directory {root}/longlong… cannot be used: AF_UNIX path too long (it needs room for sockets and logs, and a path short enough for a socket (100 bytes))",
    planned=False,
    has_run_dir=False,
)
def run_directory_is_too_long_for_a_socket(attempt: Attempt) -> None:
    attempt.options += ("--run-dir", str(attempt.pod.root / ("long" * 25)))


@case(
    11,
    "HostUnfit",
    "another launcher is alive in {root}/run (one launcher per VM: talk to it with launcher status, or choose another --run-dir)",
    planned=False,
    has_run_dir=False,
)
def another_launcher_is_alive(attempt: Attempt) -> None:
    lock = attempt.stack.enter_context((attempt.pod.run_dir / "lock").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    (attempt.pod.run_dir / "state.json").write_text("the other's")


# --- the judgement ----------------------------------------------------------------------------------------------------


_OPERATIONAL = re.compile(r" state \w+|NO-CARRIER,|,LOWER_UP| linkdown")  # follows the configuration a little later


def network_of(net: PodNetns) -> list[str]:
    """Links, addresses, routes and fixed neighbours; not IPv6's link-local ones, which the kernel makes when it likes."""
    commands = ("link", "-4 addr", "-6 addr show scope global", "-4 route show table all", "neigh show nud permanent")
    return [_OPERATIONAL.sub("", net.pod("ip", *command.split())) for command in commands]


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's inode and content; a link's is where it leads."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_ino,
            os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def as_pattern(says: str, root: Path) -> re.Pattern[str]:
    return re.compile(".*?".join(map(re.escape, says.replace("{root}", str(root)).split("…"))))


@pytest.mark.parametrize("name", CASES)
def test_refusal(name: str) -> None:
    wanted = CASES[name]
    with ExitStack() as stack:
        attempt = Attempt(stack.enter_context(vm_pod()), stack)
        wanted.spoil(attempt)
        pod = attempt.pod
        before = network_of(pod.net), files_below(pod.root / "disks"), files_below(pod.root / "images")
        says = as_pattern(wanted.says, pod.root)

        pod.start(*attempt.options, env=attempt.env)
        code = pod.wait()

        told = json.loads(pod.termination_message)
        assert (code, told["reason"], told["exitCode"]) == (wanted.code, wanted.reason, wanted.code), told
        assert says.fullmatch(told["message"]), told["message"]
        if wanted.has_run_dir:
            assert pod.result == told
        assert "Traceback" not in pod.log
        log = [json.loads(line) for line in pod.log.splitlines()]
        errors = [entry for entry in log if entry["level"] == "error"]
        assert [entry["reason"] for entry in errors] == [wanted.reason]
        assert pod.console == ""

        assert (network_of(pod.net), files_below(pod.root / "disks"), files_below(pod.root / "images")) == before
        leftovers = [path for path in pod.root.rglob(".*") if path.name.endswith((".building", ".new"))]
        assert not leftovers
        if wanted.planned:
            check_plan(attempt, wanted, says)


def check_plan(attempt: Attempt, wanted: Case, says: re.Pattern[str]) -> None:
    """``plan`` in the same container: the same code and words, the hint on a line of its own."""
    pod = attempt.pod
    (pod.root / "stderr").write_text("")
    pod.start(*attempt.options, verb="plan", env=attempt.env)
    assert pod.wait() == wanted.code
    lines = pod.log.removeprefix("launcher: ").splitlines()
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    sentence = [line for line in lines if not line.startswith("hint: ")]
    assert len(hints) <= 1
    text = ("; " if sentence[0].startswith("$") else "\n").join(sentence) + (f" ({hints[0]})" if hints else "")
    assert says.fullmatch(text), text
    assert pod.console == ""


def test_forty_problems_are_all_told() -> None:
    """All of them in the log; in the termination message, which the kubelet cuts at 4096 bytes, as many as fit."""
    paths = [f"$.spec.instance.disks[{number}].name: " for number in range(40)]
    with ExitStack() as stack:
        attempt = Attempt(stack.enter_context(vm_pod()), stack)
        attempt.spec(disks=[{"name": f"Disk_{number}"} for number in range(40)])
        attempt.pod.start("--emulate")
        assert attempt.pod.wait() == 10
        (error,) = (entry for entry in map(json.loads, attempt.pod.log.splitlines()) if entry["level"] == "error")
        assert [path for path in paths if path not in error["message"]] == []
        assert len(attempt.pod.termination_message.encode()) <= 4096
        assert json.loads(attempt.pod.termination_message)["message"].startswith(paths[0])
