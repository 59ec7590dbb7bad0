"""The KVM machine: a machine of QEMU's own making, emulated SVM included, for hosts whose KVM cannot run guests.

``KvmMachine().run(...)`` boots it, runs one job there and powers it off. The job sees the host's file system, read-only
over 9p under a tmpfs that takes its writes, so the checkout, its Python and the installed programs are where they are on
the host; it sees a /dev/kvm and a /dev/vhost-net that work, Debian's network modules and file systems (loaded on
demand), and of the network nothing but ``lo``. What it writes to the folder for results is the host's.

A job starts about 3 s after the machine; a bare Python takes 0.5 s there, a guest that boots with ``quiet`` 5 to 7 s (a
talkative one takes twice as long). Call Python by its real path or the virtualenv's, never by a shim written in shell.

``python -m tests.lab.kvm_machine [--timeout SECONDS] [--results DIR] -- COMMAND...`` runs a command there.

Debian packages: qemu-system-x86, busybox-static, kmod (apt and dpkg are there).
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import functools
import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.lab.debian import CPIO_END, DIRECTORY, FILE, LabError, cpio
from tests.lab.guest import lab_guest
from tests.lab.kvm_machine_parts import machine_parts

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

JOB_INIT = Path(__file__).with_name("kvm_machine_files") / "job-init"

QEMU = "qemu-system-x86_64"
# With one vCPU: with two, guests were seen to hang. With AVX (EPYC has it): without, the guest's init dies of SIGSEGV.
MACHINE = ("-M", "q35", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt", "-smp", "1")
# norandmaps halves Python's start (1.0 to 0.5 s): code at the same address is translated once for all processes.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off norandmaps"
TAIL = 2000  # characters of a log that go into an error


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended: its exit status (128+n for signal n), the machine's whole wall time, stdout and stderr."""

    exit_code: int
    seconds: float
    log: str


class JobTimeout(LabError):
    """The job was cut off at its deadline."""


class KvmMachine:
    """A machine that is made anew for each job; what it is made of is downloaded once and cached."""

    def __init__(self) -> None:
        self._parts = machine_parts()

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        cwd: Path,
        timeout: float,
        results: Path,
        memory_mib: int = 4096,
    ) -> JobResult:
        """Run one command in a new machine and return how it ended; what it prints appears on our stdout at once.

        ``env`` is its whole environment. ``results`` is made when it is not there; the job sees it under the same name
        and what it writes there stays. ``timeout`` is in seconds and counts from the machine's start. Raises JobTimeout
        at the deadline and LabError when the machine ends without the job's exit status (a panic, say).
        """
        results = results.resolve()
        results.mkdir(parents=True, exist_ok=True)
        variables = [f"{name}={value}" for name, value in env.items()]
        command = shlex.join(["/usr/bin/env", "-i", *variables, *map(str, argv)])
        job = {
            "init": JOB_INIT.read_text(),
            "run": f"cd {shlex.quote(str(cwd))} || exit\n{command}\nexit $?\n",
            "modules": str(self._parts.modules),
            "results": str(results),
        }
        with tempfile.TemporaryDirectory(prefix="kvm-machine-") as scratch:
            initramfs, status, console, errors = (
                Path(scratch, name) for name in ("initramfs", "status", "console", "errors")
            )
            initramfs.write_bytes(
                self._parts.initramfs.read_bytes()
                + cpio("job", DIRECTORY)
                + b"".join(cpio(f"job/{name}", FILE, text.encode()) for name, text in job.items())
                + CPIO_END
            )
            qemu = [
                *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *MACHINE),
                *("-m", str(memory_mib), "-serial", f"file:{console}"),
                *("-kernel", str(self._parts.vmlinux), "-initrd", str(initramfs), "-append", KERNEL_OPTIONS),
                *_share("host", Path("/"), ",readonly=on"),
                *_share("results", results, ""),
                *("-device", "virtio-serial-pci"),
                *("-chardev", "file,id=log,path=/dev/stdout", "-device", "virtserialport,nr=1,chardev=log"),
                *("-chardev", f"file,id=status,path={status}", "-device", "virtserialport,nr=2,chardev=status"),
            ]
            began = time.monotonic()
            log = ""
            with errors.open("wb") as stderr, contextlib.closing(_output(qemu, timeout, stderr)) as output:
                for text in output:
                    log += text
                    sys.stdout.write(text)
                    sys.stdout.flush()
            seconds = time.monotonic() - began
            code, said = _content(status), log + _content(errors) + _content(console)
        if code:
            return JobResult(int(code), seconds, log)
        if seconds >= timeout:
            raise JobTimeout(f"the job did not end within {timeout:g} s; the last it said: {said[-TAIL:]}")
        raise LabError(f"the KVM machine ended without the job's exit status; the last it said: {said[-TAIL:]}")


def _share(tag: str, folder: Path, options: str) -> tuple[str, ...]:
    """QEMU's options for a folder over 9p; ``remap`` keeps inode numbers apart when it spans file systems."""
    name = str(folder).replace(",", ",,")
    return (
        *("-fsdev", f"local,id={tag},path={name},security_model=none,multidevs=remap{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    )


def _content(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _output(argv: Sequence[str], timeout: float, stderr: IO[bytes] | int) -> Generator[str]:
    """What a program says on stdout, live.

    It is killed after ``timeout`` seconds, when the generator is closed, and when we die: nothing stays behind.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    ) as program:
        assert program.stdout is not None
        try:
            chunk = b"more"
            while chunk and (left := deadline - time.monotonic()) > 0:
                if select.select([program.stdout], [], [], left)[0]:
                    chunk = os.read(program.stdout.fileno(), 65536)
                    yield decoder.decode(chunk, final=not chunk)
        finally:
            program.kill()


@functools.cache
def kvm_runs_guests(timeout: float = 10.0) -> bool:
    """Whether this host's own KVM runs a guest under the real cloud-hypervisor: one is booted, for ``timeout`` seconds
    at most; False as well when the program is not there.

    That /dev/kvm opens and answers proves nothing: there are hosts whose KVM has every extension and runs an
    unmodified kernel in an instruction emulator that it does not survive.
    """
    program = shutil.which("cloud-hypervisor")
    if program is None or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    guest = lab_guest()
    word = "KVM-RUNS-GUESTS"
    # The initramfs' busybox as PID 1 with arguments of its own: it prints the word and ends, so the kernel panics.
    options = f"console=ttyS0 quiet panic=-1 rdinit=/bin/busybox -- echo {word}"
    argv = [program, "--kernel", str(guest.vmlinux), "--initramfs", str(guest.initramfs), "--cmdline", options]
    argv += ["--cpus", "boot=1", "--memory", "size=256M", "--serial", "file=/dev/stdout", "--console", "off"]
    said = ""
    with contextlib.closing(_output(argv, timeout, subprocess.DEVNULL)) as output:
        return any(word in (said := said + text) for text in output)


def main() -> int:
    """Run the command of our own command line in a KVM machine; the result is its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.kvm_machine", description="run a command in a KVM machine"
    )
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--results", type=Path, metavar="DIR", help="a folder whose content outlives the machine")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = KvmMachine().run(
            given.command,
            env=os.environ,
            cwd=Path.cwd(),
            timeout=given.timeout,
            results=given.results or Path(scratch),
        )
    sys.stderr.write(f"exit status {result.exit_code} after {result.seconds:.1f} s\n")
    return result.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"error: {error}")
