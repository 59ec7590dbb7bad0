"""The command line from outside: as a clumsy user types it, and as scripts use it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.cli import launcher
from tests.e2e.test_refusals import files_below, network_of
from tests.lab.netns import PLAIN, pod_netns
from tests.lab.opened import ROOT
from tests.lab.pod import LAUNCHER, VmPod, golden_spec, vm_pod
from tests.unit.docs.test_cli import verbs
from tests.unit.image.build import folder, item, layout, symlink, tar
from tests.unit.image.test_kernel import PVH

if TYPE_CHECKING:
    from collections.abc import Iterator

FACTS = str(ROOT / "tests/golden/facts/clean-pod.json")
NOBODY = ("--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")


def call(*argv: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """``launcher ARGV``, with nothing of our own environment that could mean something to it."""
    clean = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **(env or {})}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if "input" in options:
        del streams["stdin"]
    return subprocess.run([LAUNCHER, *argv], env=clean, text=True, timeout=60, check=False, **(streams | options))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "vm.json"
    path.write_text(json.dumps(golden_spec()))
    return path


# --- every verb -------------------------------------------------------------------------------------------------------


def test_every_verb_has_help() -> None:
    for name in ["launcher", *dict(verbs(launcher, "launcher"))]:
        done = call(*name.split()[1:], "--help")
        assert (done.returncode, done.stderr) == (0, ""), name
        assert done.stdout.startswith(f"Usage: {name} ")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "Usage"),
        (("bogus",), "No such command 'bogus'"),
        (("validate", "a", "b"), "unexpected extra argument (b)"),
        (("plan", "-o", "yaml"), "'yaml' is not one of 'text', 'json'"),
        (("run", "--grace", "abc"), "'abc' is not a valid float"),
        (("run", "--grace", "-1"), "-1.0 is not in the range"),
        (("run", "--grace", "nan"), "is not a number of seconds"),
        (("run", "--hold-failure", "nan"), "is not a number of seconds"),
        (("run", "--hold-failure", "soon"), "neither a number of seconds nor 'forever'"),
        (("plan", "--vmm-user", "bob"), "--vmm-user 'bob' is not UID or UID:GID"),
        (("plan", "--vmm-user", "1:"), "--vmm-user '1:' is not UID or UID:GID"),
        (("plan", "--vmm-user", "4294967295"), "--vmm-user '4294967295' is not UID or UID:GID"),
        (("image", "rootfs", "IMAGE", "OUT", "--size", "1Gib"), "--size: not a quantity"),
        (("image", "rootfs", "IMAGE", "OUT", "--size", "0"), "--size 0: a disk has more than no bytes"),
        (("image", "rootfs", "IMAGE", "OUT", "--size", "1e30"), "--size 1e30: a disk has more than no bytes"),
        (("plan", "--facts", "/dev/zero"), "the facts /dev/zero have more than 16777216 bytes"),
        (("plan", "--facts", "/"), "cannot read the facts /: Is a directory"),
        (("plan", "--facts", "/etc/hostname"), "/etc/hostname is not JSON"),
    ],
)
def test_a_bad_command_line_is_told(argv: tuple[str, ...], says: str, spec: Path) -> None:
    done = call(*argv, env={"LAUNCHER_SPEC": str(spec)})
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "argv",
    [["status"], ["events"], ["events", "-f"], ["timeline"], ["power", "off"], ["power", "shutdown"]],
    ids=" ".join,
)
def test_without_a_launcher_the_verbs_that_need_one_say_so(argv: list[str], tmp_path: Path) -> None:
    done = call(*argv, "--run-dir", tmp_path / "none")
    assert done.returncode == 2
    sentence, hint = done.stderr.splitlines()
    assert re.match(r"launcher: (no launcher answers|there is no timeline) ", sentence)
    assert str(tmp_path / "none") in sentence
    assert hint.startswith("hint: ")
    assert not (tmp_path / "none").exists()


def test_what_a_killed_launcher_left_can_be_read(tmp_path: Path) -> None:
    """Its last event is half a line; so may be the timeline after a full disk."""
    whole = '{"time": "2026-01-01T00:00:00.000Z", "ms": 1, "event": "started", "pid": 1}'
    (tmp_path / "events.jsonl").write_text(whole + "\n" + whole[:30])
    (tmp_path / "timeline.json").write_text('{"startedAt": "20')
    done = call("events", "--run-dir", tmp_path)
    assert (done.returncode, done.stdout.count("started")) == (0, 1)
    done = call("events", "-o", "json", "--run-dir", tmp_path)
    assert (done.returncode, done.stdout) == (0, whole + "\n")
    done = call("timeline", "--run-dir", tmp_path)
    assert done.returncode == 2
    assert "timeline.json is no timeline" in done.stderr


# --- where output goes and input comes from ---------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error(spec: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = call("plan", spec, "--facts", FACTS, "-o", "json", stdout=gone)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "argv", [["plan", "--facts", FACTS], ["--help"], ["facts", "--emulate"]], ids=lambda argv: argv[0]
)
def test_output_that_cannot_be_written_is_told(argv: list[str], spec: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = call(*argv, env={"LAUNCHER_SPEC": str(spec)}, stdout=full)
    assert done.returncode == 2
    assert done.stderr == (
        "launcher: cannot write the output: No space left on device\nhint: look after where it goes\n"
    )


def test_the_exit_code_tells_what_a_full_stderr_cannot(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = call("validate", tmp_path / "none", stderr=full)
    assert done.returncode == 10


def test_closed_streams(spec: Path) -> None:
    def shell(redirection: str) -> subprocess.CompletedProcess[str]:
        line = f'"$0" plan "$1" --facts {FACTS} {redirection}'
        argv = ["sh", "-c", line, str(LAUNCHER), "-" if redirection == "<&-" else str(spec)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    assert [(done.returncode, done.stderr) for done in map(shell, (">&-", ">&- 2>&-"))] == [(0, ""), (0, "")]
    done = shell("<&-")
    assert done.returncode == 10
    assert done.stderr.startswith("launcher: there is no VM spec on stdin: it is closed\nhint: ")


@pytest.mark.root
def test_the_spec_is_the_first_of_four(tmp_path: Path) -> None:
    def document(name: str) -> bytes:
        return json.dumps(golden_spec(name)).encode()

    for name in ("option", "variable", "mounted"):
        (tmp_path / name).write_bytes(document(name))
    (tmp_path / "over").mkdir()
    data = base64.encodebytes(document("data")).decode()  # in lines, as `base64` prints it
    assert data.count("\n") > 2

    def plan(*options: str, mounted: bool, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        # The host's /etc, and over it what the pod mounts.
        script = f"""
            mount -t tmpfs none {tmp_path}/over
            cd {tmp_path}/over
            mkdir -p etc/launcher work
            cp {tmp_path}/mounted etc/launcher/{"vm.json" if mounted else "another"}
            mount -t overlay -o lowerdir=/etc,upperdir=etc,workdir=work none /etc
            exec "$@"
        """
        argv = ["unshare", "--mount", "sh", "-euc", script, "sh", str(LAUNCHER), "plan", "--facts", FACTS, *options]
        return subprocess.run(
            argv,
            env={"PATH": os.environ["PATH"]} | env,
            input=document("stdin").decode(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    everything = {"LAUNCHER_SPEC": str(tmp_path / "variable"), "VM_DATA": data}
    for options, mounted, env, name in (
        (["-"], True, everything, "stdin"),
        ([str(tmp_path / "option")], True, everything, "option"),
        ([], True, everything, "variable"),
        ([], True, {"LAUNCHER_SPEC": "", "VM_DATA": data}, "mounted"),
        ([], False, {"VM_DATA": data}, "data"),
    ):
        done = plan(*options, mounted=mounted, env=env)
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"VM default/{name}"), done.stderr
    done = plan(mounted=False, env={})
    assert done.returncode == 10
    assert "there is no VM spec" in done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/dev/zero", "has more than 4194304 bytes"),
        ("/dev/null", "the document is empty"),
        ("/", "Is a directory"),
        ("/nowhere", "No such file or directory"),
        ("/proc/self/mem", "Input/output error"),
        ("large", "has more than 4194304 bytes"),
        ("deep", "nested too deeply"),
        ("binary", "not UTF-8 text"),
    ],
)
def test_validate_reads_anything(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("[" * 200_000)
    (tmp_path / "binary").write_bytes(b"\x7fELF\xff")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(50_000_000)
    done = call("validate", tmp_path / name)
    assert done.returncode == 10
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_validate_reads_a_fifo(spec: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen([LAUNCHER, "validate", fifo], stderr=subprocess.PIPE) as validating:
        fifo.write_bytes(spec.read_bytes())
        _, errors = validating.communicate(timeout=60)
    assert (validating.returncode, errors) == (0, b"")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    document = golden_spec()
    document["spec"]["instance"]["disks"] = [{"name": f"Disk_{number}"} for number in range(40)]
    spec = tmp_path / "vm.json"
    spec.write_text(json.dumps(document))
    for argv in (["validate", str(spec)], ["plan", str(spec), "--facts", FACTS]):
        done = call(*argv)
        assert done.returncode == 10
        lines = done.stderr.splitlines()
        assert [line.partition(":")[0] for line in lines] == [f"$.spec.instance.disks[{n}].name" for n in range(40)]


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("interfaces", [{"name": "pod", "masquerade": {}}], "$.spec.instance.interfaces[0].masquerade"),
    ],
)
def test_what_cannot_be_run_yet_is_valid_all_the_same(key: str, value: object, path: str, tmp_path: Path) -> None:
    document = golden_spec()
    instance = document["spec"]["instance"]
    instance[key] = value
    spec = tmp_path / "vm.json"
    spec.write_text(json.dumps(document))
    done = call("validate", spec)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = call("plan", spec, "--facts", FACTS)
    assert done.returncode == 10
    assert done.stderr.startswith(f"launcher: not supported yet: {path} ")


# --- plan without any rights ------------------------------------------------------------------------------------------


@contextmanager
def nobody() -> Iterator[tuple[VmPod, Any]]:
    """A pod without a network, and a function that runs a verb in it as uid 65534 without any capability."""
    with (
        pod_netns() as net,
        vm_pod(net, capabilities=("setuid", "setgid", "setpcap"), launcher=Path("/usr/bin/setpriv")) as pod,
    ):
        net.pod("ip", "link", "del", "eth0")
        pod.write_spec(golden_spec())

        def run(*argv: str) -> int:
            for name in ("stdout", "stderr"):
                (pod.root / name).write_text("")
            pod.start(*NOBODY, str(LAUNCHER), *argv, verb="--reuid=65534")
            return pod.wait()

        yield pod, run


@pytest.mark.root
def test_a_plan_from_facts_needs_nothing(spec: Path) -> None:
    expected = call("plan", spec, "--facts", FACTS, "-o", "json")
    assert expected.returncode == 0
    assert json.loads(expected.stdout)["vmConfig"]["payload"]
    with nobody() as (pod, run):
        assert run("plan", "--facts", FACTS, "-o", "json") == 0, pod.log
        assert pod.console == expected.stdout
        assert run("plan", "--emulate") == 11
        assert pod.log.startswith("launcher: the container lacks the capabilities CHOWN, ")
        assert run("facts", "--emulate") == 0
        assert json.loads(pod.console)["vmm"]["emulated"] is True
        assert run("prepare", "--emulate") == 11
        assert run("network", "restore") == 11
        assert "run cannot be used: Permission denied" in pod.log


@pytest.mark.root
def test_a_pod_without_a_default_route_gets_a_warning() -> None:
    with pod_netns(PLAIN) as net, prepared_pod(net) as pod:
        pod.start("--emulate", verb="plan")
        assert pod.wait() == 0, pod.log
        assert "eth0 has no default route: the guest gets a lease without a router" in pod.console


# --- the images' verbs ------------------------------------------------------------------------------------------------


def test_image_kernel(tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "out"
    layout(image, tar(item("vmlinux", PVH), item("initramfs", "a cpio")))
    for _ in range(2):
        done = call("image", "kernel", image, out)
        assert (done.returncode, done.stdout) == (0, f"{out}/vmlinux: pvh-elf\n{out}/initramfs\n")
    assert sorted(path.name for path in out.iterdir()) == ["initramfs", "vmlinux"]
    assert (out / "vmlinux").read_bytes() == PVH


def test_image_inspect(tmp_path: Path) -> None:
    layout(tmp_path / "image", tar(item("vmlinux", PVH)), tar(folder("rootfs")), pack="+zstd")
    done = call("image", "inspect", tmp_path / "image", "-o", "json")
    seen = json.loads(done.stdout)
    assert (seen["form"], len(seen["layers"])) == ("OCI layout", 2)
    assert (seen["kernel"], seen["initramfs"], seen["rootfs"]) == ("pvh-elf", None, "/rootfs")


@pytest.mark.root
def test_image_rootfs(tmp_path: Path) -> None:
    layout(tmp_path / "image", tar(item("rootfs/large", os.urandom(4 << 20))))
    disk = tmp_path / "disk.raw"
    done = call("image", "rootfs", tmp_path / "image", disk, "--size", "4Mi")
    assert done.returncode == 13
    needed = re.search(r"needs a disk of (\d+Mi), volume disk has 4194304 bytes", done.stderr)
    assert needed, done.stderr
    assert not disk.exists()
    done = call("image", "rootfs", tmp_path / "image", disk, "--size", needed[1])
    assert (done.returncode, done.stdout.rpartition(", ")[2]) == (0, "built\n"), done.stderr
    before = files_below(tmp_path)
    done = call("image", "rootfs", tmp_path / "image", disk, "--size", "1Gi")
    assert (done.returncode, done.stdout.rpartition(", ")[2]) == (0, "was there already\n")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("verb", ["inspect", "kernel", "rootfs"])
@pytest.mark.parametrize("name", ["missing", "/dev/zero", "/dev/null", "text", "empty", "climbs", "shadow", "fifo"])
def test_a_bad_image_is_told(verb: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not an image " * 1000)
    (tmp_path / "empty").touch()
    (tmp_path / "climbs").write_bytes(tar(item("../../x", "outside")))
    (tmp_path / "shadow").write_bytes(tar(symlink("vmlinux", "/etc/shadow"), symlink("rootfs", "/etc")))
    os.mkfifo(tmp_path / "fifo")
    before = sorted(path.name for path in tmp_path.iterdir())
    out = str(tmp_path / "out")
    more: dict[str, list[str]] = {"inspect": [], "kernel": [out], "rootfs": [out, "--size", "16Mi"]}
    done = call("image", verb, tmp_path / name, *more[verb])
    assert done.returncode == 12
    assert done.stdout == ""
    assert done.stderr.startswith(f"launcher: image {tmp_path / name}")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# --- preparing, and taking it back ------------------------------------------------------------------------------------


@contextmanager
def prepared_pod(net: Any = None, **options: Any) -> Iterator[VmPod]:
    """A pod with all that ``prepare`` needs; its kernel does not boot."""
    with vm_pod(net, **options) as pod:
        pod.write_spec(golden_spec(size="16Mi"))
        layout(pod.root / "images/kernel", tar(item("vmlinux", PVH)))
        layout(pod.root / "images/root", tar(folder("rootfs"), item("rootfs/hello", "hello")))
        yield pod


@pytest.mark.root
def test_prepare_twice_and_restore_twice() -> None:
    with prepared_pod() as pod:
        clean = network_of(pod.net)

        def verb(*argv: str) -> str:
            (pod.root / "stdout").write_text("")
            pod.start(*argv[1:], verb=argv[0])
            assert pod.wait() == 0, pod.log
            return pod.console

        def prepare() -> tuple[Any, ...]:
            handoff = json.loads(verb("prepare", "--emulate", "-o", "json"))
            del handoff["steps"], handoff["digest"]  # the second plan has no disk to build
            return handoff, network_of(pod.net), files_below(pod.root / "disks")

        first = prepare()
        assert first[1] != clean
        assert prepare() == first
        assert "default/demo is prepared" in verb("prepare", "--emulate")

        assert verb("network", "restore") == "the pod's network is as the CNI made it\n"
        assert network_of(pod.net) == clean
        assert verb("network", "restore") == "the pod's network is as the CNI made it, and was before\n"
        assert network_of(pod.net) == clean


@pytest.mark.root
def test_the_network_can_be_restored_after_a_run() -> None:
    """A run that got as far as the VMM, which refuses the kernel, keeps the network handed over for the next one."""
    with prepared_pod() as pod:
        clean = network_of(pod.net)
        pod.start("--emulate")
        assert pod.wait() == 15
        assert pod.result["reason"] == "VmmFailed"
        assert "QEMU" in pod.result["message"]
        assert network_of(pod.net) != clean
        events = [
            json.loads(line)["event"]
            for line in call("events", "-o", "json", "--run-dir", pod.run_dir).stdout.splitlines()
        ]
        assert events[0] == "started"
        assert json.loads(call("timeline", "-o", "json", "--run-dir", pod.run_dir).stdout)["points"]
        pod.start("restore", verb="network")
        assert pod.wait() == 0
        assert network_of(pod.net) == clean


@pytest.mark.root
def test_the_drop_in_form_holds_a_failed_start_and_warns_of_new_fields() -> None:
    document = golden_spec()
    document["spec"]["fancy"] = True
    data = base64.b64encode(json.dumps(document).encode()).decode()
    env = {"LAUNCHER_SPEC": "", "VM_DATA": data}
    with vm_pod() as pod:
        pod.start("--emulate", env=env)
        pod.until("the result", (pod.run_dir / "result.json").exists)
        assert pod.result["reason"] == "ImageInvalid"
        assert json.loads(pod.termination_message) == pod.result
        held = pod.exec("status", "-o", "json")
        assert json.loads(held.stdout)["outcome"]["reason"] == "ImageInvalid", held.stderr
        environment = Path(f"/proc/{pod.pid}/environ").read_text()
        assert data not in environment
        pod.kill(signal.SIGTERM)
        assert pod.wait(5) == 12
    done = call("validate", env=env)
    assert (done.returncode, done.stderr) == (0, "warning: $.spec.fancy: unknown field\n")
    done = call("plan", "--facts", FACTS, env=env)
    assert done.returncode == 0
