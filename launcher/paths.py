"""Every path the launcher owns or looks at, derived from three folders: run directory, images, disks.

Source of the names: Virtink's pod contract and docs/reference/run-directory.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things are. All folders are absolute."""

    run_dir: Path = Path("/var/run/virtink")
    images: Path = Path("/mnt/images")
    disks: Path = Path("/mnt")
    hotplug: Path = Path("/hotplug-volumes")  # where Virtink's daemon puts the disks of hot-pluggable volumes

    # --- the run directory: 0711, ours; `vmm/` below it is the VMM's, 0700 ---

    @property
    def lock(self) -> Path:
        """Held with flock as long as the launcher lives; nothing else says that a launcher is alive."""
        return self.run_dir / "lock"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "launcher.sock"

    @property
    def api_socket(self) -> Path:
        """The VMM's API once the VM has booted; before that it is at ``early_api_socket``."""
        return self.run_dir / "ch.sock"

    @property
    def early_api_socket(self) -> Path:
        return self.run_dir / ".ch.sock.early"

    @property
    def state(self) -> Path:
        return self.run_dir / "state.json"

    @property
    def events(self) -> Path:
        return self.run_dir / "events.jsonl"

    @property
    def console_log(self) -> Path:
        return self.run_dir / "console.log"

    @property
    def timeline(self) -> Path:
        return self.run_dir / "timeline.json"

    @property
    def result(self) -> Path:
        return self.run_dir / "result.json"

    @property
    def network(self) -> Path:
        return self.run_dir / "network.json"

    @property
    def dnsmasq_dir(self) -> Path:
        return self.run_dir / "dnsmasq"

    @property
    def boot_dir(self) -> Path:
        """The kernel and initramfs taken out of the kernel image; made anew at every start."""
        return self.run_dir / "boot"

    @property
    def kernel(self) -> Path:
        return self.boot_dir / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.boot_dir / "initramfs"

    @property
    def vmm_dir(self) -> Path:
        """The one folder the VMM's uid may write: its serial socket is bound there."""
        return self.run_dir / "vmm"

    @property
    def serial_socket(self) -> Path:
        return self.vmm_dir / "serial.sock"

    @property
    def virtiofsd_dir(self) -> Path:
        return self.run_dir / "virtiofsd"

    def file_system_socket(self, name: str) -> Path:
        """Where the VMM reaches the virtiofsd of a file system; Virtink's place for it."""
        return self.virtiofsd_dir / f"{name}.sock"

    # --- what the pod mounts ---

    @property
    def kernel_image(self) -> Path:
        return self.images / "kernel"

    def volume_image(self, volume: str) -> Path:
        return self.images / volume

    def volume(self, volume: str) -> Path:
        """A volume's folder, or its block device."""
        return self.disks / volume

    @property
    def prepared_kernel(self) -> Path:
        """Where Virtink's init container leaves a kernel; used as it is."""
        return self.disks / "virtink-kernel" / "vmlinux"

    def rootfs_disk(self, volume: str) -> Path:
        return self.volume(volume) / "rootfs.raw"

    def copied_disk(self, volume: str) -> Path:
        """A containerDisk's disk as a raw copy; where Virtink's init container leaves one."""
        return self.volume(volume) / "disk.raw"

    def disk_overlay(self, volume: str) -> Path:
        """A containerDisk's disk as an overlay: on the image's own file, or on ``disk_base``."""
        return self.volume(volume) / "disk.qcow2"

    def disk_base(self, volume: str) -> Path:
        return self.volume(volume) / "disk.base"

    def claim_disk(self, volume: str) -> Path:
        """The disk of a claim that is a file system; one that is a block device is ``volume`` itself."""
        return self.volume(volume) / "disk.img"

    def hotplugged(self, volume: str) -> tuple[Path, Path]:
        """A hot-pluggable volume's block device, and its file."""
        return self.hotplug / volume, self.hotplug / f"{volume}.img"

    def rootfs_overlay(self, volume: str) -> Path:
        """A root disk that is an overlay on ``rootfs_base``, a hard link to the cached one."""
        return self.volume(volume) / "rootfs.qcow2"

    def rootfs_base(self, volume: str) -> Path:
        return self.volume(volume) / "rootfs.base.raw"

    def seed_disk(self, volume: str) -> Path:
        return self.volume(volume) / "cloud-init.iso"

    @property
    def user_data_secret(self) -> Path:
        """Where Virtink mounts the Secret that holds a VM's user data; one a VM, whatever the volume is called."""
        return self.disks / "virtink-cloud-init-user-data" / "value"

    @property
    def network_data_secret(self) -> Path:
        return self.disks / "virtink-cloud-init-network-data" / "value"
