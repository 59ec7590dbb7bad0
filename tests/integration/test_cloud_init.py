"""cloud-init's data from Secrets: it gets to the guest's disk, and to no other place."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.supervised import small_spec

if TYPE_CHECKING:
    from tests.lab.supervised import Supervised

pytestmark = pytest.mark.root

PASSWORD = "correct-horse-battery-staple"
WIFI = "wrong-pony-generator-paperclip"


def with_secrets(vm: Supervised) -> None:
    spec = small_spec()
    spec["spec"]["instance"]["disks"] = [{"name": "seed"}]
    seed = {"userDataSecretName": "web-user", "networkDataSecretName": "web-network"}
    spec["spec"]["volumes"] = [{"name": "seed", "cloudInit": seed}]
    vm.pod.write_spec(spec)


def mount(vm: Supervised, kind: str, text: str) -> Path:
    """As the kubelet does it: the value is a link to a folder that a newer one may replace."""
    folder = vm.pod.root / f"disks/virtink-cloud-init-{kind}-data"
    (folder / "..1").mkdir(parents=True, exist_ok=True)
    (folder / "..1/value").write_text(text)
    (folder / "..1/value").chmod(0o400)
    if not (folder / "value").is_symlink():
        (folder / "value").symlink_to("..1/value")
    return folder / "value"


def on_the_disk(vm: Supervised, name: str) -> str:
    disk = vm.pod.root / "disks/seed/cloud-init.iso"
    return subprocess.run(["bsdtar", "-xOf", disk, name], check=True, capture_output=True, text=True).stdout


def test_a_secret_is_on_the_disk_and_nowhere_else(vm: Supervised) -> None:
    with_secrets(vm)
    mount(vm, "user", f"#cloud-config\npassword: {PASSWORD}\n")
    mount(vm, "network", f"version: 2\nwifis: {{w: {{access-points: {{a: {{password: {WIFI}}}}}}}}}\n")
    told = {}
    for verb in ("plan", "facts"):
        argv = [*vm.pod.argv(verb), *vm.options]
        done = subprocess.run(
            ["ip", "netns", "exec", vm.pod.net.pod_name, *argv], env=vm.pod.environment, capture_output=True, check=True
        )
        told[verb] = done.stdout + done.stderr
    assert b"web-user" not in told["facts"]
    assert json.loads(told["facts"])["user_data_secret"]["size"] == 53
    seen: dict[int, bytes] = {}
    vm.start()

    def running() -> bool:
        with contextlib.suppress(OSError):  # not there yet, or gone
            for pid in vm.pod.processes():
                for name in ("cmdline", "environ"):
                    seen[pid] = seen.get(pid, b"") + Path(f"/proc/{pid}/{name}").read_bytes()
        return "running" in vm.names()

    vm.until("running", running)
    assert len(seen) >= 3, "neither the launcher, the worker nor the VMM was seen"
    status = json.dumps(vm.status())
    vm.kill()
    vm.end(143, "Terminated")

    assert PASSWORD in on_the_disk(vm, "user-data")
    assert WIFI in on_the_disk(vm, "network-config")
    told |= {str(pid): text for pid, text in seen.items()}
    told |= {path.name: path.read_bytes() for path in vm.pod.run_dir.rglob("*") if path.is_file()}
    told |= {"status": status.encode(), "log": vm.pod.log.encode(), "message": vm.pod.termination_message.encode()}
    assert {"result.json", "events.jsonl", "timeline.json", "plan", "facts"} <= told.keys()
    assert not [where for where, text in told.items() if PASSWORD.encode() in text or WIFI.encode() in text]
    # Only root and the VMM can read the disk.
    assert (vm.pod.root / "disks/seed/cloud-init.iso").stat().st_mode & 0o077 == 0


def test_the_next_start_follows_a_secret_that_changed(vm: Supervised) -> None:
    with_secrets(vm)
    value = mount(vm, "user", "#cloud-config\n# first\n")
    mount(vm, "network", "version: 2\n")
    disk = vm.pod.root / "disks/seed/cloud-init.iso"
    inodes = []
    for text in ("first", "first", "second"):
        value.chmod(0o600)
        value.write_text(f"#cloud-config\n# {text}\n")
        vm.boot()
        vm.kill()
        vm.end(143, "Terminated")
        (vm.pod.run_dir / "events.jsonl").unlink()
        assert text in on_the_disk(vm, "user-data")
        inodes.append(disk.stat().st_ino)

    assert inodes[0] == inodes[1] != inodes[2]


def test_a_seed_of_somebody_elses_needs_no_secret_and_stays(vm: Supervised) -> None:
    with_secrets(vm)
    disk = vm.pod.root / "disks/seed/cloud-init.iso"
    disk.parent.mkdir()
    (vm.pod.root / "meta-data").write_text("instance-id: theirs\n")
    subprocess.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", disk, vm.pod.root / "meta-data"],
        check=True,
    )
    before = disk.read_bytes()
    vm.boot()
    vm.kill()
    vm.end(143, "Terminated")

    assert disk.read_bytes() == before


def test_a_secret_that_is_not_mounted_fails_the_start_with_the_remedy(vm: Supervised) -> None:
    with_secrets(vm)
    mount(vm, "user", "#cloud-config\n")
    vm.start()
    result = vm.end(13, "StorageFailed")

    assert f"there is no {vm.pod.root}/disks/virtink-cloud-init-network-data/value" in result["message"]
    assert "mount the Secret" in result["message"]
