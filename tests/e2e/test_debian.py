"""A real distribution: Debian's boot loader, kernel and systemd, from a qcow2 container disk to the login."""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import ExitStack

import pytest

from tests.e2e.scenarios import Stage
from tests.lab.debian_disk import debian_disk
from tests.lab.pod import golden_spec

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


def test_debian_boots_to_its_login_by_firmware() -> None:
    with ExitStack() as stack:
        stage = Stage(stack, pace=4)
        pod = stage.pod()
        (pod.root / "images/root").unlink()
        disk = pod.root / "images/root/disk/debian.qcow2"
        disk.parent.mkdir(parents=True)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", debian_disk(), disk], check=True)
        spec = golden_spec(memory="1Gi")
        del spec["spec"]["instance"]["kernel"]
        spec["spec"]["volumes"] = [{"name": "root", "containerDisk": {"image": "lab/debian"}}]
        pod.write_spec(spec)

        stage.start(pod, "--grace", "60")
        pod.until_console("cloudlike login:", 100 * stage.pace)
        status = json.loads(pod.exec("status", "-o", "json", timeout=60 * stage.pace).stdout)
        assert status["vmState"] == "Running"
        pod.kill(signal.SIGTERM)
        result = stage.end(pod, 143, "Terminated", within=70)
        assert any("Power down" in line or "poweroff" in line.lower() for line in result["console"])
