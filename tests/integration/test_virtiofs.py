"""virtiofsd as a helper: who it is, what it may see, and what its end means. No guest: a test is the VMM at its socket."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.host.observe_virtiofsd import observe_virtiofsd
from tests.lab.pod import CAPABILITIES
from tests.lab.supervised import small_spec, supervised

if TYPE_CHECKING:
    from tests.lab.netns import PodNetns
    from tests.lab.supervised import Supervised

FOUND = observe_virtiofsd()
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        FOUND is None or FOUND.problem is not None,
        reason="no virtiofsd written in Rust is installed; Debian has it as a package from 13 on",
    ),
]

MAY = {"chown": 0, "dac_override": 1, "fowner": 3, "setgid": 6, "setuid": 7}  # linux/capability.h


def share(vm: Supervised) -> Path:
    spec = small_spec()
    spec["spec"]["instance"]["fileSystems"] = [{"name": "share"}]
    spec["spec"]["volumes"] = [{"name": "share", "persistentVolumeClaim": {"claimName": "share"}}]
    vm.pod.write_spec(spec)
    folder = vm.pod.root / "disks/share"
    folder.mkdir()
    return folder


def helper(vm: Supervised) -> dict[str, Any]:
    [found] = vm.status()["helpers"]
    assert isinstance(found, dict)
    return found


def host_pid(vm: Supervised) -> int:
    [pid] = [pid for pid, text in vm.pod.processes().items() if "--shared-dir" in text and "setpriv" not in text]
    return pid


def ready(vm: Supervised) -> int:
    """Its pid on the host once it has given away what it needs for its start alone."""

    def limited() -> bool:
        try:
            return "CapBnd:\t0000000000000000" in Path(f"/proc/{host_pid(vm)}/status").read_text()
        except (OSError, ValueError):
            return False

    vm.until("virtiofsd has dropped its capabilities", limited)
    return host_pid(vm)


@pytest.mark.parametrize("chroot", [False, True])
def test_it_runs_as_little_as_it_can(quiet_net: PodNetns, *, chroot: bool) -> None:
    with supervised(quiet_net, capabilities=(*CAPABILITIES, *(["sys_chroot"] if chroot else []))) as vm:
        folder = share(vm)
        vm.boot()
        pid = ready(vm)
        fields = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        effective = int(fields["CapEff"], 16)
        assert {name for name, bit in MAY.items() if effective >> bit & 1} == set(MAY)
        assert effective == int(fields["CapPrm"], 16) == sum(1 << bit for bit in MAY.values())
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        assert Path(f"/proc/{pid}/root").stat().st_ino == (folder if chroot else Path("/")).stat().st_ino
        at = vm.pod.run_dir / "virtiofsd/share.sock"
        assert (at.stat().st_uid, at.stat().st_mode & 0o777) == (107, 0o600)
        vm.guest("poweroff")
        vm.end(0, "GuestPoweredOff")
        assert not at.exists()


def test_the_end_of_a_connection_is_no_death(vm: Supervised) -> None:
    share(vm)
    vm.boot()
    for times in range(2, 8):  # more often than a helper may die
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(vm.pod.run_dir / "virtiofsd/share.sock"))
        vm.until_event("helper-started", times)
    assert helper(vm)["recentDeaths"] == 0
    vm.guest("poweroff")
    vm.end(0, "GuestPoweredOff")


def test_the_next_one_serves_who_was_waiting(vm: Supervised) -> None:
    share(vm)
    vm.boot()
    ready(vm)
    at = vm.pod.run_dir / "virtiofsd/share.sock"
    inode = at.stat().st_ino
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(str(at))
        second.connect(str(at))  # as the VMM of a guest that reboots
        first.close()
        second.settimeout(20)
        # VHOST_USER_GET_FEATURES, version 1 of the protocol, no payload; the answer has the same number.
        second.sendall((1).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(4))
        assert second.recv(12)[:4] == (1).to_bytes(4, "little")
        assert at.stat().st_ino == inode
    vm.guest("poweroff")
    vm.end(0, "GuestPoweredOff")


def test_one_that_dies_ends_the_vm(vm: Supervised) -> None:
    share(vm)
    vm.boot("--grace", "4")
    os.kill(ready(vm), signal.SIGKILL)
    result = vm.end(16, "HelperFailed")
    assert "virtiofsd-share was killed by signal 9, and the guest cannot go on without it" in result["message"]


def test_a_folder_that_is_not_mounted_fails_the_start(vm: Supervised) -> None:
    share(vm).rmdir()
    vm.start()
    result = vm.end(13, "StorageFailed")
    assert f"there is no folder {vm.pod.root}/disks/share" in result["message"]
