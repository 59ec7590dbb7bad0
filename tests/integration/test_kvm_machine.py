from __future__ import annotations

import shlex
from pathlib import Path

import psutil
import pytest

from tests.lab.kvm_machine import JobTimeout, KvmMachine
from tests.lab.vmm import require_vmm

pytestmark = [pytest.mark.vmm, pytest.mark.root]

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_a_job_brings_back_its_status_its_output_and_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vmm = require_vmm()
    results, beside = tmp_path / "a folder, for results", tmp_path / "beside"
    script = f"""
        echo "$GREETING from $(hostname) in $PWD"
        env | wc -l
        {vmm.path} --version | grep ^cloud
        exec 3<>/dev/kvm 4<>/dev/net/tun 5<>/dev/vhost-net || exit 1
        ip link add pod0 type dummy && ip -br link show pod0 >{shlex.quote(str(results))}/link
        echo lost >{shlex.quote(str(beside))}
        sleep 1000 & # what a job leaves behind does not hold the machine up
        echo 'ünd stderr' >&2
        exit 7
    """
    job = ["/bin/sh", "-c", script]
    env = {"PATH": PATH, "GREETING": "it's me"}
    done = KvmMachine().run(job, env=env, cwd=ROOT, timeout=120, results=results)
    assert done.exit_code == 7, done.log
    assert done.log.splitlines() == [
        f"it's me from kvm-machine in {ROOT}",
        "3",  # PATH, GREETING and the shell's PWD
        f"cloud-hypervisor {vmm.version}",
        "ünd stderr",
    ]
    assert capsys.readouterr().out == done.log
    assert (results / "link").read_text().startswith("pod0 ")
    assert not beside.exists()


def test_a_job_killed_by_a_signal_has_the_shells_status(tmp_path: Path) -> None:
    require_vmm()
    job = ["/bin/sh", "-c", "kill -KILL $$"]
    assert KvmMachine().run(job, env={}, cwd=ROOT, timeout=120, results=tmp_path).exit_code == 137


def test_the_deadline_ends_machine_and_job(tmp_path: Path) -> None:
    require_vmm()
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(JobTimeout, match=r"did not end within 1\.5 s"):
        KvmMachine().run(["/bin/sleep", "1000"], env={}, cwd=ROOT, timeout=1.5, results=tmp_path)
    assert set(psutil.Process().children(recursive=True)) <= before
