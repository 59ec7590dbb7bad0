"""Pulling from a real registry: every way it goes wrong is one sentence with a remedy, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.errors import HostUnfit, ImageInvalid, LauncherError, StorageFailed, UsageError
from launcher.host import process
from launcher.host.registry import pull
from launcher.image.source import Form, open_image
from tests.lab.guest import lab_guest
from tests.lab.registry import PASSWORD, registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.registry import Registry

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("registry")]

LAUNCHER = Path(sys.executable).with_name("launcher")


@dataclass(frozen=True, slots=True)
class Pushed:
    """A registry with the lab guest's images: lab/kernel:1, lab/rootfs:1 and lab/rootfs:multi (amd64 and s390x)."""

    registry: Registry
    digest: str  # of lab/rootfs:1

    def pull(self, name: str, folder: Path, *, arch: str = "x86_64", authfile: Path | None = None) -> str:
        there = self.registry
        return pull(
            f"docker://{there.host}/{name}",
            folder,
            arch=arch,
            authfile=authfile or there.authfile,
            cert_dir=there.cert_dir,
        )


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    with registry(tmp_path_factory.mktemp("registry")) as there:
        there.push(lab_guest().kernel_image, "lab/kernel:1")
        digest = there.push(lab_guest().rootfs_image, "lab/rootfs:1")
        size = there.blob(digest).stat().st_size
        manifests = [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest,
                "size": size,
                "platform": {"os": "linux", "architecture": architecture},
            }
            for architecture in ("s390x", "amd64")
        ]
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        }
        there.put_index("lab/rootfs", "multi", json.dumps(index).encode())
        yield Pushed(there, digest)


def nothing_is_left(folder: Path) -> bool:
    return not folder.exists() and not list(folder.parent.glob(".*.building"))


def launcher(*argv: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAUNCHER, *argv],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"]} | (env or {}),
    )


def test_a_pulled_image_is_a_layout_that_the_other_verbs_take(pushed: Pushed, tmp_path: Path) -> None:
    there = pushed.registry
    env = {"LAUNCHER_AUTHFILE": str(there.authfile), "LAUNCHER_CERT_DIR": str(there.cert_dir)}
    for name in ("kernel", "rootfs"):
        done = launcher("image", "pull", f"docker://{there.host}/lab/{name}:1", tmp_path / name, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{tmp_path / name}: sha256:")

    seen = launcher("image", "inspect", tmp_path / "kernel", "-o", "json")
    assert json.loads(seen.stdout)["kernel"] == "pvh-elf"
    assert launcher("image", "kernel", tmp_path / "kernel", tmp_path / "boot").returncode == 0
    assert (tmp_path / "boot/vmlinux").read_bytes() == lab_guest().vmlinux.read_bytes()
    built = launcher("image", "rootfs", tmp_path / "rootfs", tmp_path / "root.raw", "--size", "64Mi")
    assert built.returncode == 0, built.stderr
    assert subprocess.run(["e2fsck", "-fn", tmp_path / "root.raw"], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["lab/rootfs@{digest}", "lab/rootfs:1@{digest}", "lab/rootfs:multi", "lab/rootfs:1"])
def test_a_reference_by_digest_by_tag_or_to_many_platforms(pushed: Pushed, tmp_path: Path, name: str) -> None:
    digest = pushed.pull(name.format(digest=pushed.digest), tmp_path / "image")

    assert digest == pushed.digest
    with open_image(tmp_path / "image", arch="amd64") as image:
        assert (image.form, image.digest) == (Form.OCI_LAYOUT, digest)
        assert image.find_file("/rootfs/etc/hostname")
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o755


def test_an_older_layout_is_replaced_and_anything_else_is_not(pushed: Pushed, tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "other"
    pushed.pull("lab/kernel:1", image)
    assert pushed.pull("lab/rootfs:1", image) == pushed.digest
    other.mkdir()
    (other / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(image)

    for place in (other, other / "mine", tmp_path / "link"):
        with pytest.raises(UsageError):
            pushed.pull("lab/rootfs:1", place)

    assert (other / "mine").read_text() == "mine"
    with open_image(image, arch="amd64") as opened:
        assert opened.digest == pushed.digest
    assert not list(tmp_path.glob(".*"))


def test_a_failed_pull_leaves_the_older_layout(pushed: Pushed, tmp_path: Path) -> None:
    pushed.pull("lab/rootfs:1", tmp_path / "image")
    with pytest.raises(ImageInvalid):
        pushed.pull("lab/nothing:1", tmp_path / "image")
    with open_image(tmp_path / "image", arch="amd64") as opened:
        assert opened.digest == pushed.digest


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("lab/rootfs:2", ImageInvalid, "does not have it"),
        ("lab/rootfs@sha256:" + "0" * 64, ImageInvalid, "does not have it"),
        ("lab/nothing:1", ImageInvalid, "does not have it"),
        ("LAB/rootfs:1", UsageError, "no reference of an image: repository name must be lowercase"),
    ],
)
def test_what_the_registry_does_not_have(
    pushed: Pushed, tmp_path: Path, name: str, error: type[LauncherError], words: str
) -> None:
    with pytest.raises(error, match=words) as told:
        pushed.pull(name, tmp_path / "image")
    assert told.value.hint
    assert nothing_is_left(tmp_path / "image")


def test_no_image_for_this_machine(pushed: Pushed, tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="no image for this machine's architecture, arm64"):
        pushed.pull("lab/rootfs:multi", tmp_path / "image", arch="aarch64")
    # Of an image for one platform only its config tells which.
    with pytest.raises(ImageInvalid, match="no image for linux/arm64"):
        pushed.pull("lab/rootfs:1", tmp_path / "image", arch="aarch64")
    assert nothing_is_left(tmp_path / "image")


def test_credentials(pushed: Pushed, tmp_path: Path) -> None:
    there, mine = pushed.registry, tmp_path / "auth.json"
    mine.write_text(there.dockerconfig(password="wrong"))
    with pytest.raises(ImageInvalid, match="does not give it to us") as told:
        pushed.pull("lab/rootfs:1", tmp_path / "image", authfile=mine)
    assert "--authfile" in str(told.value.hint)
    with pytest.raises(ImageInvalid, match="does not give it to us"):
        pull(f"docker://{there.host}/lab/rootfs:1", tmp_path / "image", arch="x86_64", cert_dir=there.cert_dir)
    assert nothing_is_left(tmp_path / "image")

    # As some write it by hand: name and password apart, and a helper that is not here.
    entry = {"username": "puller", "password": PASSWORD}
    mine.write_text(json.dumps({"auths": {f"https://{there.host}": entry}, "credsStore": "desktop"}))
    assert pushed.pull("lab/rootfs:1", tmp_path / "image", authfile=mine) == pushed.digest


def test_certificates(pushed: Pushed, tmp_path: Path) -> None:
    there = pushed.registry
    image, name = tmp_path / "image", f"docker://{there.host}/lab/rootfs:1"
    with pytest.raises(ImageInvalid, match="signed by an authority unknown here") as told:
        pull(name, image, arch="x86_64", authfile=there.authfile)
    assert "--cert-dir" in str(told.value.hint)
    with pytest.raises(ImageInvalid, match=r"cannot be trusted: certificate is .*valid for"):
        pull(name.replace("127.0.0.1", "localhost"), image, arch="x86_64", cert_dir=there.cert_dir)
    assert nothing_is_left(image)

    assert pull(name, image, arch="x86_64", authfile=there.authfile, insecure=True) == pushed.digest


def test_registries_that_are_not_there(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(ImageInvalid, match="cannot be reached: connection refused"):
            pull(f"docker://127.0.0.1:{port}/a:1", image, arch="x86_64")
    with pytest.raises(ImageInvalid, match=r"the host name registry\.invalid cannot be resolved"):
        pull("docker://registry.invalid/a:1", image, arch="x86_64")
    assert nothing_is_left(image)


def test_a_damaged_registry(tmp_path: Path) -> None:
    """A digest is a promise: neither a layer nor a manifest that breaks it gets through."""
    (tmp_path / "r").mkdir()
    with registry(tmp_path / "r") as there:
        digest = there.push(lab_guest().rootfs_image, "lab/rootfs:1")
        pushed = Pushed(there, digest)
        layer = there.blob(json.loads(there.blob(digest).read_bytes())["layers"][0]["digest"])
        for victim, name in ((layer, "lab/rootfs:1"), (there.blob(digest), f"lab/rootfs@{digest}")):
            whole = victim.read_bytes()
            victim.write_bytes(
                whole.replace(b'"size":', b'"size" :') if victim != layer else whole[:-9] + b"!" + whole[-8:]
            )
            with pytest.raises(ImageInvalid, match="does not have the digest it should have"):
                pushed.pull(name, tmp_path / "image")
            victim.write_bytes(whole)
            assert nothing_is_left(tmp_path / "image")


def test_no_room(pushed: Pushed, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", small], check=True)
    try:
        with pytest.raises(StorageFailed, match="no room"):
            pushed.pull("lab/rootfs:1", small / "image")
        with pytest.raises(UsageError, match="mount point"):
            pushed.pull("lab/rootfs:1", small)
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


def test_no_skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(process.BASE_ENV, "PATH", str(tmp_path))
    with pytest.raises(HostUnfit, match="skopeo is not installed"):
        pull("docker://registry.invalid/a:1", tmp_path / "image", arch="x86_64")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_is_stopped(pushed: Pushed, tmp_path: Path, number: signal.Signals) -> None:
    """A registry that never answers; the pull ends at once, its skopeo with it, and the next one cleans up."""
    image = tmp_path / "image"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        argv = [str(LAUNCHER), "image", "pull", f"docker://127.0.0.1:{port}/a:1", str(image)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as pulling:
            silent.settimeout(30)
            connection, _ = silent.accept()  # skopeo is at work now
            with connection:
                [skopeo] = children(pulling.pid)
                pulling.send_signal(number)
                assert pulling.wait(10) != 0
                deadline = time.monotonic() + 10
                while Path(f"/proc/{skopeo}/exe").is_symlink() and is_running(skopeo):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
    assert not image.exists()
    if number != signal.SIGKILL:
        assert nothing_is_left(image)
    pushed.pull("lab/rootfs:1", image)
    assert not list(tmp_path.glob(".*"))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_password_in_argv_or_environment(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(30)
        port = silent.getsockname()[1]
        auth = tmp_path / "auth.json"
        auth.write_text(json.dumps({"auths": {f"127.0.0.1:{port}": {"username": "u", "password": PASSWORD}}}))
        argv = [
            str(LAUNCHER),
            "image",
            "pull",
            "--authfile",
            str(auth),
            f"docker://127.0.0.1:{port}/a:1",
            str(tmp_path / "image"),
        ]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as pulling:
            connection, _ = silent.accept()
            with connection:
                [skopeo] = children(pulling.pid)
                shown = Path(f"/proc/{skopeo}/cmdline").read_bytes() + Path(f"/proc/{skopeo}/environ").read_bytes()
                pulling.terminate()
                pulling.wait(10)
    assert b"/proc/self/fd/0" in shown
    assert not any(secret in shown for secret in (PASSWORD.encode(), b"dTpwYTpzcyB3b3Jk"))
