"""Pulling an image from a registry, for use without a kubelet. The only module that knows skopeo."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import HostUnfit, ImageInvalid, LauncherError, StorageFailed, UsageError
from launcher.host import process
from launcher.host.credentials import read_credentials
from launcher.host.files import telling
from launcher.host.workspace import workspace
from launcher.image.manifest import oci_architecture
from launcher.image.source import open_image

if TYPE_CHECKING:
    from launcher.host.process import Finished

AUTHFILE = Path("/var/run/secrets/launcher/.dockerconfigjson")  # where credentials are looked for when none are named
_POLICY = Path("/etc/containers/policy.json")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_CERTIFICATES = {".crt", ".cert", ".key"}  # containers-certs.d(5)

# What skopeo says, what that means to a user, and the remedy. The first that is found counts.
_FAILURES: tuple[tuple[str, type[LauncherError], str, str | None], ...] = (
    (
        r"unauthorized|authentication required|denied: |invalid username/password|status(?:code)?: 40[13]",
        ImageInvalid,
        "the registry does not give it to us",
        "name a dockerconfigjson that may pull it with --authfile, and look for a typing error in the name",
    ),
    (
        r"manifest unknown|name unknown|not found|status(?:code)?: 404",
        ImageInvalid,
        "the registry does not have it",
        "look for a typing error in its name, tag or digest",
    ),
    (
        r"no image found in (?:manifest list|image index)",
        ImageInvalid,
        "it has no image for this machine's architecture, {arch}",
        "build it for this platform too",
    ),
    (
        r"does not match provided manifest digest|digest did not match",
        ImageInvalid,
        "what the registry sent does not have the digest it should have",
        "the registry's copy is damaged, or something on the way changes it: push the image again",
    ),
    (
        r"certificate signed by unknown authority",
        ImageInvalid,
        "the registry's certificate is signed by an authority unknown here",
        "give the folder with the authority's certificate, a *.crt, with --cert-dir",
    ),
    (
        r"x509: (?P<why>[^\n]*)",
        ImageInvalid,
        "the registry's certificate cannot be trusted: {why}",
        "look at the names and the time it is valid for",
    ),
    (
        r"server gave HTTP response to HTTPS client",
        ImageInvalid,
        "the registry speaks plain HTTP",
        "--insecure pulls without TLS: only where nobody is on the way",
    ),
    (
        r"lookup (?P<host>\S+) .*(?:no such host|server misbehaving|i/o timeout)",
        ImageInvalid,
        "the host name {host} cannot be resolved",
        "look for a typing error in it, and at the pod's DNS",
    ),
    (
        r"(?P<why>connection refused|no route to host|network is unreachable|i/o timeout|TLS handshake timeout)",
        ImageInvalid,
        "the registry cannot be reached: {why}",
        "is it running there, and may the pod connect to it?",
    ),
    (
        r"Invalid source name [^\n]*: (?P<why>[^\n]*)",
        UsageError,
        "that is no reference of an image: {why}",
        "as in docker://registry.example/team/image:tag, or …/image@sha256:…",
    ),
    (
        r"(?P<why>no space left on device|disk quota exceeded)",
        StorageFailed,
        "there is no room for it: {why}",
        "make room, or mount a larger volume there",
    ),
)


def pull(
    reference: str,
    folder: Path,
    *,
    arch: str,
    authfile: Path | None = None,
    cert_dir: Path | None = None,
    insecure: bool = False,
) -> str:
    """Fetch an image into ``folder``, as an OCI layout of this one platform, and return its manifest's digest.

    ``folder`` gets its name when it is whole, and takes the place of an older layout; it is refused where it holds anything
    else. Without ``authfile`` the registry is asked as nobody. Raises ImageInvalid for what the registry has or says,
    UsageError for the reference, the folder or the credentials, HostUnfit without skopeo, StorageFailed.
    """
    if shutil.which("skopeo", path=process.BASE_ENV["PATH"]) is None:
        raise HostUnfit("skopeo is not installed", hint="install it in the launcher's image: images are pulled by it")
    source = _source(reference)
    credentials = read_credentials(authfile) if authfile else None
    if cert_dir:
        with telling("read", cert_dir, UsageError):
            if not any(path.suffix in _CERTIFICATES for path in cert_dir.iterdir()):
                raise UsageError(f"{cert_dir} holds no *.crt", hint="put the authority's certificate there, PEM")
    with telling("pull into", folder):
        _check_place(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with workspace(folder) as aside:
            layout = aside / "layout"
            options = ["--src-cert-dir", str(cert_dir)] if cert_dir else []
            options += ["--src-tls-verify=false"] if insecure else []
            _copy(source, layout, options, credentials, oci_architecture(arch))
            with open_image(layout, arch=arch) as image:
                digest = image.digest or ""
            if folder.exists():  # an older layout, or an empty folder
                folder.rename(aside / "old")
            layout.rename(folder)
    return digest


def _source(reference: str) -> str:
    """The reference as skopeo takes it. Of a tag and a digest the digest counts, as it does for the kubelet."""
    name = reference.removeprefix("docker://")
    if "://" in name:
        raise UsageError(f"{reference} is not in a registry", hint="docker://… is the one transport that pull knows")
    return "docker://" + re.sub(r":[^:/@]+@", "@", name)


def _check_place(folder: Path) -> None:
    """Raise UsageError where something is that we would have to destroy."""
    if not folder.is_symlink() and not folder.exists():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError(f"{folder} is there and not a folder", hint="name a new folder, or an older layout")
    if not (folder / "oci-layout").exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} holds something that is no OCI layout", hint="name a new folder, or an older layout"
        )
    if folder.is_mount():
        raise UsageError(
            f"{folder} is a mount point, the image could not appear there all at once",
            hint=f"mount {folder.parent} instead",
        )


def _copy(source: str, layout: Path, options: list[str], credentials: bytes | None, arch: str) -> None:
    tmp = layout.parent / "tmp"
    tmp.mkdir()
    fd = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        os.write(fd, credentials or b"")
        argv = [
            # Dies with us, so that a killed pull does not go on.
            *("setpriv", "--pdeathsig", "KILL", "skopeo"),
            *("--override-os", "linux", "--override-arch", arch, "--tmpdir", str(tmp)),
            *([] if _POLICY.exists() else ["--insecure-policy"]),
            *("copy", "--quiet", "--dest-oci-accept-uncompressed-layers", *options),
            # Read through its stdin: neither a file of ours nor an argument ever holds a password.
            *(["--src-authfile", "/proc/self/fd/0"] if credentials else ["--src-no-creds"]),
            *(source, f"oci:{layout}"),
        ]
        env = {"HOME": str(tmp)} | {name: os.environ[name] for name in _PROXIES if name in os.environ}
        done = process.run(argv, stdin=fd, env=env)
    finally:
        os.close(fd)
    if done.returncode != 0:
        raise _failed(done, source, arch)


def _failed(skopeo: Finished, source: str, arch: str) -> LauncherError:
    """What skopeo's last words mean."""
    told = re.findall(r'level=fatal msg="((?:[^"\\]|\\.)*)"', skopeo.stderr)
    words = re.sub(r"\\(.)", lambda escaped: " " if escaped[1] in "nt" else escaped[1], told[-1]) if told else ""
    for pattern, kind, meaning, hint in _FAILURES:
        if found := re.search(pattern, words, re.IGNORECASE):
            return kind(f"cannot pull {source}: {meaning.format(arch=arch, **found.groupdict())}", hint=hint)
    return ImageInvalid(f"cannot pull {source}: {words or skopeo.failure}")
