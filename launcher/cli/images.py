"""``launcher image``: the image work alone, with the exit codes of ``run``."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli import options
from launcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.host.progress import Advance, Meter

_BAR = 30  # characters
_NOBODY = 65534  # whom a converter runs as, when root asks for one

_image = click.argument("image", type=click.Path(path_type=Path))
_out = click.argument("out", type=click.Path(path_type=Path))


@contextmanager
def _progress() -> Iterator[Meter]:
    """How far a build is, on stderr: a bar on a terminal, a line every five seconds elsewhere."""
    from launcher.host.progress import Meter

    terminal = sys.stderr.isatty()
    drawn = False

    def draw(advance: Advance) -> None:
        nonlocal drawn
        drawn = True
        done = round(advance.share * _BAR)
        click.echo(f"\r\033[K[{'#' * done}{'.' * (_BAR - done)}] {advance}", err=True, nl=False)

    try:
        yield Meter(draw, every=0.2) if terminal else Meter(lambda advance: click.echo(str(advance), err=True), every=5)
    finally:
        if drawn:
            click.echo("\r\033[K", err=True, nl=False)


@click.group("image")
def image() -> None:
    """Look into images, take the kernel out, build root disks, take disks out, fetch images from a registry."""


@image.command()
@_image
@_out
def kernel(image: Path, out: Path) -> None:
    """Extract /vmlinux (and /initramfs, when there is one) into the folder OUT."""
    from launcher.image.kernel import INITRAMFS_PATH, extract_kernel
    from launcher.image.source import open_image

    arch, limits = platform.machine(), options.image_limits()
    with open_image(image, arch=arch, limits=limits) as opened:
        initramfs = out / "initramfs" if opened.find_file(INITRAMFS_PATH) else None
    kind = extract_kernel(image, out / "vmlinux", initramfs, arch=arch, limits=limits)
    click.echo(f"{out / 'vmlinux'}: {kind.value}")
    if initramfs is not None:
        click.echo(str(initramfs))


@image.command()
@_image
@_out
@click.option("--size", required=True, metavar="QUANTITY", help="Size of the disk, as in 4Gi.")
def rootfs(image: Path, out: Path, size: str) -> None:
    """Build the ext4 root disk OUT from an image. An existing OUT is left as it is."""
    from launcher.host.storage import build_root_disk
    from launcher.plan.types import BuildRootDisk
    from launcher.spec.quantity import parse_quantity

    try:
        wanted = parse_quantity(size).ceil()
    except ValueError as error:
        raise UsageError(f"--size: {error}", hint="a Kubernetes quantity, as in 4Gi") from None
    if not 0 < wanted < 1 << 63:
        raise UsageError(f"--size {size}: a disk has more than no bytes and less than 8Ei", hint="as in 4Gi")
    action = BuildRootDisk(out.stem, image, out.absolute(), wanted, "asked for by hand")
    with _progress() as meter:
        disk = build_root_disk(action, arch=platform.machine(), limits=options.image_limits(), meter=meter)
    for lost in disk.lost:
        click.echo(f"warning: {lost}", err=True)
    click.echo(f"{out}: {disk.size} bytes, {'built' if disk.built else 'was there already'}")


@image.command()
@_image
@_out
@click.option("--raw", is_flag=True, help="Make it a raw disk, whatever the image has.")
def disk(image: Path, out: Path, raw: bool) -> None:  # noqa: FBT001  # click passes a flag so
    """Copy the disk of a containerDisk image to OUT, as it is or as a raw disk. An existing OUT is left as it is."""
    from launcher.host.container_disk import copy_as_it_is, copy_raw
    from launcher.host.files import telling
    from launcher.image.source import open_image
    from launcher.plan.types import Confinement

    out = out.absolute()
    if os.path.lexists(out):
        click.echo(f"{out}: was there already")
        return
    limits, nobody = options.image_limits(), Confinement(_NOBODY, _NOBODY)
    with (
        telling("make disk", out),
        open_image(image, arch=platform.machine(), limits=limits) as opened,
        _progress() as meter,
    ):
        found = copy_raw(opened, out, nobody, meter) if raw else copy_as_it_is(opened, out, meter)
    click.echo(f"{out}: {'raw' if raw else found.format}, {found.size} bytes")


@image.command()
@_image
@options.output
def inspect(image: Path, output: str) -> None:
    """Show an image's form, digest, layers, and what of use is in it."""
    from launcher.image.kernel import INITRAMFS_PATH, KERNEL_PATH, inspect_kernel
    from launcher.image.source import open_image

    arch = platform.machine()
    with open_image(image, arch=arch, limits=options.image_limits()) as opened:
        found = opened.find_file(KERNEL_PATH)
        kind = inspect_kernel(found.read_at, found.size, arch, f"{opened.what}: {KERNEL_PATH}").value if found else None
        seen = {
            "form": opened.form.value,
            "digest": opened.digest,
            "layers": [layer.blob.what for layer in opened.layers],
            "kernel": kind,
            "initramfs": "yes" if opened.find_file(INITRAMFS_PATH) else None,
            "rootfs": "/rootfs" if opened.tree() is not opened.root else "/",
        }
    if output == "json":
        click.echo(json.dumps(seen, indent=2))
        return
    for name, value in seen.items():
        for line in value if isinstance(value, list) else [value]:
            click.echo(f"{name:10} {line or 'none'}")


@image.command()
@click.argument("reference", metavar="REF")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--authfile",
    type=click.Path(path_type=Path),
    envvar="LAUNCHER_AUTHFILE",
    show_envvar=True,
    help="Credentials as a dockerconfigjson.  [default: the one mounted at /var/run/secrets/launcher, if any]",
)
@click.option(
    "--cert-dir",
    type=click.Path(path_type=Path),
    envvar="LAUNCHER_CERT_DIR",
    show_envvar=True,
    help="Folder with the registry's authority as *.crt, and *.cert and *.key of ours.",
)
@click.option("--insecure", is_flag=True, help="Take any certificate, or none at all. Never by default.")
def pull(reference: str, folder: Path, authfile: Path | None, cert_dir: Path | None, *, insecure: bool) -> None:
    """Fetch the image REF, for this machine's architecture, from a registry into DIR as an OCI layout."""
    from launcher.host.registry import AUTHFILE, pull

    # The folder a killed pull leaves is removed by the next one; this one, asked to end, removes it itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    if authfile is None and AUTHFILE.exists():
        authfile = AUTHFILE
    digest = pull(
        reference,
        folder.absolute(),
        arch=platform.machine(),
        authfile=authfile,
        cert_dir=cert_dir.absolute() if cert_dir else None,
        insecure=insecure,
    )
    click.echo(f"{folder}: {digest}")
