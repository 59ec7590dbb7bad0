"""A real registry on loopback: Debian's docker-registry with TLS by an authority of its own, and a password.

``with registry(folder) as r: r.push(layout, "team/image:1")``. It listens on a port the kernel chose.
Debian packages: docker-registry, apache2-utils (htpasswd), openssl, skopeo.
"""

from __future__ import annotations

import base64
import json
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = "puller", "pa:ss word"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Registry:
    """``folder`` has ca/ca.crt, auth.json (a dockerconfigjson) and the registry's files."""

    folder: Path
    port: int

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def cert_dir(self) -> Path:
        return self.folder / "ca"

    @property
    def authfile(self) -> Path:
        return self.folder / "auth.json"

    def blob(self, digest: str) -> Path:
        """Where the registry keeps a blob or manifest."""
        algorithm, _, digits = digest.partition(":")
        return self.folder / f"data/docker/registry/v2/blobs/{algorithm}/{digits[:2]}/{digits}/data"

    def dockerconfig(self, user: str = USER, password: str = PASSWORD) -> str:
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        return json.dumps({"auths": {self.host: {"auth": auth}}})

    def push(self, layout: Path, name: str) -> str:
        """Push the image of a layout and return the digest it has there."""
        digest = self.folder / "digest"
        _run(
            *("skopeo", "copy", "--quiet", "--dest-authfile", self.authfile, "--dest-cert-dir", self.cert_dir),
            *("--digestfile", digest, f"oci:{layout}", f"docker://{self.host}/{name}"),
        )
        return digest.read_text().strip()

    def put_index(self, name: str, tag: str, index: bytes) -> None:
        """Push an image index, which skopeo would not make."""
        _run(
            *("curl", "-sSf", "--cacert", self.cert_dir / "ca.crt", "-u", f"{USER}:{PASSWORD}", "-X", "PUT"),
            *("-H", "Content-Type: application/vnd.oci.image.index.v1+json", "--data-binary", "@-"),
            f"https://{self.host}/v2/{name}/manifests/{tag}",
            stdin=index,
        )


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """A registry that lives as long as the block; everything it has is in ``folder``."""
    _make_certificates(folder)
    hashed = _run("htpasswd", "-niB", USER, stdin=PASSWORD.encode())
    (folder / "htpasswd").write_bytes(hashed)
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {
            "addr": "127.0.0.1:0",
            "secret": "of this test",
            "tls": {"certificate": str(folder / "server.crt"), "key": str(folder / "server.key")},
        },
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        served = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        found = Registry(folder, _listening_port(served, folder / "log"))
        found.authfile.write_text(found.dockerconfig())
        yield found
    finally:
        served.kill()
        served.wait()


def _run(*argv: str | Path, stdin: bytes = b"") -> bytes:
    # Blob caches are kept per home; a shared one makes skopeo reuse blobs of another compression.
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
    return subprocess.run(argv, input=stdin, check=True, stdout=subprocess.PIPE, timeout=60, env=env).stdout


def _make_certificates(folder: Path) -> None:
    (folder / "ca").mkdir()
    ca, ca_key, request = folder / "ca/ca.crt", folder / "ca.key", folder / "server.csr"
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    quiet = ("sh", "-euc", 'exec "$@" 2>/dev/null', "sh", "openssl")
    _run(*quiet, "req", "-x509", *_KEY, "-keyout", ca_key, "-out", ca, "-subj", "/CN=lab authority", "-days", "2")
    _run(*quiet, "req", *_KEY, "-keyout", folder / "server.key", "-out", request, "-subj", "/CN=lab registry")
    _run(
        *(*quiet, "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2"),
        *("-extfile", folder / "names", "-out", folder / "server.crt"),
    )


def _listening_port(served: subprocess.Popen[bytes], log: Path) -> int:
    """The port of the one socket it listens on, from /proc."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and served.poll() is None:
        links = [link.readlink().name for link in Path(f"/proc/{served.pid}/fd").iterdir() if link.is_symlink()]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                return int(fields[1].partition(":")[2], 16)
        time.sleep(0.01)
    raise AssertionError(f"the registry does not listen: {log.read_text()}")
