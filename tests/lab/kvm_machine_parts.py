"""What the KVM machine boots: Debian's full kernel, an initramfs, and the modules that its job may ask for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.bzimage import extract_vmlinux
from tests.lab.debian import (
    BUSYBOX,
    CHAR_DEVICE,
    CPIO_END,
    DIRECTORY,
    FILE,
    PROGRAM,
    KernelPackage,
    cached,
    cpio,
    digest,
    in_load_order,
    locked_cache,
    modules_of,
    newest_kernel,
    package_tree,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

INIT = Path(__file__).with_name("kvm_machine_files") / "init"
RECIPE = (Path(__file__), *(Path(__file__).with_name(name) for name in ("bzimage.py", "debian.py")), INIT, BUSYBOX)
META_PACKAGE = "linux-image-amd64"  # the cloud flavour has no 9p

# Loaded before the job starts; whatever else it needs, the kernel asks modprobe for.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "kvm_amd", "tun", "vhost_net", "loop")
# What the job's modprobe finds, by place below the package's kernel/; with all they depend on.
ON_DEMAND = (
    *("arch/x86/kvm", "crypto", "lib", "drivers/vhost", "drivers/virtio", "drivers/block/loop.ko"),
    *("fs/ext4", "fs/fuse", "fs/isofs", "fs/fat", "fs/nls"),
    *("net/802", "net/8021q", "net/bridge", "net/core", "net/ipv4", "net/ipv6", "net/netfilter", "net/packet"),
    *("net/sched", "net/vmw_vsock"),
    *(f"drivers/net/{name}.ko" for name in ("dummy", "ifb", "macvlan", "macvtap", "tap", "tun", "veth", "vrf")),
    *("drivers/net/ipvlan", "drivers/net/vxlan"),
)


@dataclass(frozen=True, slots=True)
class MachineParts:
    """Paths into the cache, never to be written to."""

    vmlinux: Path
    initramfs: Path  # an uncompressed cpio, to which the job's own is appended
    modules: Path  # what belongs at /lib/modules/RELEASE


def machine_parts() -> MachineParts:
    """The parts for this machine's Debian, made on the first call (about 6 s, 100 MB) and cached afterwards."""
    package = newest_kernel(META_PACKAGE)
    with locked_cache() as root:
        parts = cached(root / f"kvm-machine_{package.version}_{digest(*RECIPE)}", lambda out: _make(package, out))
    return MachineParts(parts / "vmlinux", parts / "initramfs", parts / "lib/modules" / package.release)


def _make(package: KernelPackage, out: Path) -> None:
    """Write vmlinux, initramfs and lib/modules/RELEASE."""
    with package_tree(package) as tree:
        source = tree / "lib/modules" / package.release
        (out / "vmlinux").write_bytes(extract_vmlinux((tree / "boot" / f"vmlinuz-{package.release}").read_bytes()))
        known = modules_of(source / "kernel")
        (out / "initramfs").write_bytes(_initramfs(in_load_order(MODULES, known)))
        target = out / "lib/modules" / package.release
        target.mkdir(parents=True)
        wanted = [
            name
            for name, path in known.items()
            if any(path.relative_to(source / "kernel").is_relative_to(place) for place in ON_DEMAND)
        ]
        for name, code in in_load_order(wanted, known).items():
            (target / f"{name}.ko").write_bytes(code)
        for index in ("modules.builtin", "modules.order"):
            shutil.copyfile(source / index, target / index)
    run("depmod", "-b", out, package.release)


def _initramfs(modules: Mapping[str, bytes]) -> bytes:
    folders = ("bin", "dev", "proc", "sys", "host", "writes", "root", "modules")
    archive = b"".join(cpio(name, DIRECTORY) for name in folders)
    archive += cpio("dev/console", CHAR_DEVICE, device=(5, 1))  # the kernel opens it for PID 1 before devtmpfs is there
    archive += cpio("bin/busybox", PROGRAM, BUSYBOX.read_bytes())
    archive += cpio("init", PROGRAM, INIT.read_bytes())
    for number, (name, code) in enumerate(modules.items()):
        archive += cpio(f"modules/{number:02d}-{name}.ko", FILE, code)
    return archive + CPIO_END
