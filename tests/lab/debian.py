"""What the lab's machines are made of: Debian's kernel packages by apt, their modules, and a cache of what was made.

Everything is kept under ``$XDG_CACHE_HOME/launcher-lab``; concurrent callers wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BUSYBOX = Path("/bin/busybox")  # busybox-static
MODULE_SUFFIX = re.compile(r"\.ko(\.xz)?$")
DIRECTORY, PROGRAM, FILE, CHAR_DEVICE = 0o040755, 0o100755, 0o100644, 0o020600  # modes of cpio members


class LabError(RuntimeError):
    """A part of the lab cannot be made or used here; the sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class KernelPackage:
    name: str
    version: str

    @property
    def release(self) -> str:
        """The kernel's release as ``uname -r`` says it."""
        return self.name.removeprefix("linux-image-")


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a program to its end and return its stdout; a failure is a LabError with its stderr."""
    try:
        done = subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed: run `make setup`") from error
    except subprocess.CalledProcessError as error:
        raise LabError(f"{' '.join(map(str, argv))}: {error.stderr.strip()}") from error
    return done.stdout


# --- the cache --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked_cache() -> Iterator[Path]:
    """The cache's folder, ours alone as long as the context lasts."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "launcher-lab"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root


def cached(path: Path, make: Callable[[Path], None]) -> Path:
    """The folder ``path``, made aside and renamed when it is not there: half a result is never seen."""
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            make(made)
            made.rename(path)
    return path


def digest(*paths: Path) -> str:
    """Twelve hex digits that name these files' contents: the recipe in a cached folder's name."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


# --- kernels ----------------------------------------------------------------------------------------------------------


def newest_kernel(meta_package: str) -> KernelPackage:
    """The newest kernel of a flavour (``linux-image-cloud-amd64``, ``linux-image-amd64``) that apt knows."""
    depends = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", meta_package))
    if depends is None:
        raise LabError(f"apt does not know {meta_package}: run `apt-get update`")
    record = run("apt-cache", "show", "--no-all-versions", depends[1])
    version = re.search(r"^Version: (\S+)$", record, re.MULTILINE)
    if version is None:
        raise LabError(f"apt does not know {depends[1]}: run `apt-get update`")
    return KernelPackage(depends[1], version[1])


@contextlib.contextmanager
def package_tree(package: KernelPackage) -> Iterator[Path]:
    """The package's files: those installed here, else downloaded and unpacked for as long as the context lasts."""
    if Path(f"/boot/vmlinuz-{package.release}").exists():
        yield Path("/")
        return
    with tempfile.TemporaryDirectory() as scratch:
        sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        run("apt-get", *sandbox, "download", package.name, cwd=Path(scratch))
        (deb,) = Path(scratch).glob("*.deb")
        run("dpkg-deb", "-x", deb, Path(scratch, "tree"))
        yield Path(scratch, "tree")


def modules_of(folder: Path) -> dict[str, Path]:
    """The modules in a kernel's folder below lib/modules, by the name ``lsmod`` gives them."""
    return {MODULE_SUFFIX.sub("", path.name).replace("-", "_"): path for path in folder.rglob("*.ko*")}


def in_load_order(names: Iterable[str], known: dict[str, Path]) -> dict[str, bytes]:
    """The code of these modules and of all they depend on, each after those (``depends=`` of its .modinfo section)."""
    code: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in code:
            return
        if name not in known:
            raise LabError(f"the kernel package has no module {name}")
        path = known[name]
        module = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", module)
        for needed in depends[1].decode().split(",") if depends else []:
            if needed:
                load(needed.replace("-", "_"))
        code[name] = module

    for name in names:
        load(name)
    return code


def cpio(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of an initramfs, newc format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    links = 2 if mode & 0o040000 and not content else 1
    fields = (0, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


CPIO_END = cpio("TRAILER!!!", 0)
