"""Options that several verbs share, and where the spec comes from."""

from __future__ import annotations

import base64
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launcher.errors import SpecInvalid, UsageError
from launcher.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.image.limits import Limits
    from launcher.supervise.handoff import Settings

F = TypeVar("F", bound="Callable[..., Any]")

SPEC_FILE = Path("/etc/launcher/vm.json")
SPEC_LIMIT = 4 << 20  # bytes; an API object is at most 1.5 MiB
_NOBODY = (1 << 32) - 1  # (uid_t)-1, "leave it as it is" to chown

run_dir = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    envvar="LAUNCHER_RUN_DIR",
    default=Paths().run_dir,
    show_default=True,
    show_envvar=True,
    help="Folder for sockets, state and logs.",
)
output = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the output."
)


def host_options(function: F) -> F:
    """What `run`, `prepare`, `plan` and `facts` need to know of the pod."""
    options = [
        run_dir,
        click.option(
            "--images",
            type=click.Path(path_type=Path),
            envvar="LAUNCHER_IMAGES",
            default=Paths().images,
            show_default=True,
            show_envvar=True,
            help="Folder of images: kernel, and one per volume.",
        ),
        click.option(
            "--disks",
            type=click.Path(path_type=Path),
            envvar="LAUNCHER_DISKS",
            default=Paths().disks,
            show_default=True,
            show_envvar=True,
            help="Folder of disks: one folder (or block device) per volume.",
        ),
        click.option(
            "--cache",
            type=click.Path(path_type=Path),
            envvar="LAUNCHER_CACHE",
            show_envvar=True,
            help="Folder to share root disks in, so that they are built once.  [default: none]",
        ),
        click.option(
            "--cache-size",
            metavar="QUANTITY",
            envvar="LAUNCHER_CACHE_SIZE",
            default="20Gi",
            show_default=True,
            show_envvar=True,
            help="What the cache may take; disks not used for longest go first.",
        ),
        click.option(
            "--cache-verify",
            is_flag=True,
            envvar="LAUNCHER_CACHE_VERIFY",
            show_envvar=True,
            help="Look at all of a cached disk before it is used.",
        ),
        click.option(
            "--vmm",
            type=click.Path(path_type=Path),
            envvar="LAUNCHER_VMM",
            show_envvar=True,
            help="The cloud-hypervisor binary.  [default: the one on PATH]",
        ),
        click.option(
            "--emulate",
            is_flag=True,
            envvar="LAUNCHER_EMULATE",
            show_envvar=True,
            help="Run the guest by emulation, without KVM: slow, and no security boundary.",
        ),
        click.option(
            "--firmware",
            type=click.Path(path_type=Path),
            envvar="LAUNCHER_FIRMWARE",
            show_envvar=True,
            help="What boots a VM without a kernel.  [default: CLOUDHV.fd or hypervisor-fw in /var/lib/cloud-hypervisor]",
        ),
        click.option(
            "--container-disk",
            type=click.Choice(["overlay", "raw"]),
            envvar="LAUNCHER_CONTAINER_DISK",
            default="overlay",
            show_default=True,
            show_envvar=True,
            help="What is made of a containerDisk image: an overlay on its disk, or a raw copy.",
        ),
        click.option(
            "--vmm-user",
            metavar="UID[:GID]",
            envvar="LAUNCHER_VMM_USER",
            show_envvar=True,
            help="Whom the VMM runs as.  [default: 107:107; 0:0 with $VM_DATA]",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


spec_option = click.option(
    "--spec",
    type=click.Path(path_type=Path, allow_dash=True),
    envvar="LAUNCHER_SPEC",
    show_envvar=True,
    help=f"The VM spec as JSON; - is stdin.  [default: {SPEC_FILE}, else $VM_DATA]",
)
spec_argument = click.argument("spec", required=False, type=click.Path(path_type=Path, allow_dash=True))


def read_spec(path: Path | None) -> tuple[bytes, bool]:
    """The spec's bytes, and whether they came from $VM_DATA. First match wins: ``path``, $LAUNCHER_SPEC, the mounted
    file, $VM_DATA.

    Raises SpecInvalid when there is none, or it cannot be read.
    """
    if path is None and (named := os.environ.get("LAUNCHER_SPEC")):
        path = Path(named)
    if path is None and os.path.lexists(SPEC_FILE):
        path = SPEC_FILE
    if path is not None:
        return _read(path), False
    if (data := os.environ.get("VM_DATA")) is not None:
        try:
            # Lines are fine: Go's decoder, which Virtink uses, passes over their ends too.
            return base64.b64decode(data.replace("\r", "").replace("\n", ""), validate=True), True
        except ValueError as error:
            raise SpecInvalid(
                f"$VM_DATA is not base64: {error}", hint="it is the VirtualMachine as base64 JSON"
            ) from None
    raise SpecInvalid(
        f"there is no VM spec: no --spec, no $LAUNCHER_SPEC, no {SPEC_FILE} and no $VM_DATA",
        hint=f"mount the VirtualMachine as JSON at {SPEC_FILE}, or name it with --spec",
    )


def _read(path: Path) -> bytes:
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise SpecInvalid("there is no VM spec on stdin: it is closed", hint="pipe it in, or name a file")
            document = sys.stdin.buffer.read(SPEC_LIMIT + 1)
        else:
            with path.open("rb") as file:
                document = file.read(SPEC_LIMIT + 1)
    except OSError as error:
        raise SpecInvalid(
            f"cannot read the VM spec {path}: {error.strerror}", hint="check the mount and --spec"
        ) from None
    if len(document) > SPEC_LIMIT:
        raise SpecInvalid(f"the VM spec {path} has more than {SPEC_LIMIT} bytes", hint="is it another file?")
    return document


def settings(document: bytes, *, from_vm_data: bool, vmm_user: str | None, **options: Any) -> Settings:
    """What the command line and the environment say, as the worker takes it."""
    from launcher.supervise.handoff import Settings

    uid, gid = user(vmm_user, default=0 if from_vm_data else 107)
    return Settings(
        document=base64.b64encode(document).decode(),
        from_vm_data=from_vm_data,
        run_dir=options["run_dir"].absolute(),
        images=options["images"].absolute(),
        disks=options["disks"].absolute(),
        cache=options["cache"].absolute() if options["cache"] else None,
        cache_size=_size(options["cache_size"]),
        cache_verify=options["cache_verify"],
        vmm=options["vmm"],
        emulate=options["emulate"],
        firmware=options["firmware"].absolute() if options["firmware"] else None,
        vmm_uid=uid,
        vmm_gid=gid,
        container_disk=options["container_disk"],
        block_volumes=tuple(name for name in os.environ.get("BLOCK_VOLUMES", "").split(",") if name),
        receive_migration=os.environ.get("RECEIVE_MIGRATION") == "true",
        limits=image_limits(),
    )


def image_limits() -> Limits:
    """What the environment says about how much of an image is taken. Raises UsageError."""
    from launcher.image.limits import Limits

    told = {}
    for field in dataclasses.fields(Limits):
        variable = Limits.variable(field.name)
        if value := os.environ.get(variable):
            if not value.isdecimal():
                raise UsageError(f"${variable} is not a number: {value!r}", hint="as in 2000000")
            told[field.name] = int(value)
    return Limits(**told)


def _size(text: str) -> int:
    """A Kubernetes quantity in bytes. Raises UsageError."""
    from launcher.spec.quantity import parse_quantity

    hint = "a Kubernetes quantity, as in 20Gi"
    try:
        size = parse_quantity(text).ceil()
    except ValueError as error:
        raise UsageError(f"--cache-size: {error}", hint=hint) from None
    if size < 0:
        raise UsageError(f"--cache-size {text}: a cache has no less than no bytes", hint=hint)
    return size


def user(text: str | None, *, default: int) -> tuple[int, int]:
    """``UID`` or ``UID:GID`` as numbers. Raises UsageError."""
    if text is None:
        return default, default
    uid, colon, gid = text.partition(":")
    if not all(number.isdecimal() and int(number) < _NOBODY for number in ([uid, gid] if colon else [uid])):
        raise UsageError(f"--vmm-user {text!r} is not UID or UID:GID", hint="numbers, as in 107:107")
    return int(uid), int(gid or uid)
