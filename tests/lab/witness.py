"""What the resident supervisor has really imported: told by the process itself, at its end.

``python -I`` takes no orders from the environment, so the launcher is run from a virtualenv of its own that differs from
ours in one line: a .pth file that has the resident process write the names in ``sys.modules`` when it ends. Whatever it
loaded in its whole life, a boot and a shutdown included, is among them.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NAME = "lab_witness"
SITE = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")

_HOOK = """
import sys

if "launcher.supervise" in sys.orig_argv:
    import atexit

    def _tell():
        with open({report!r}, "w", encoding="utf-8") as file:
            file.writelines(name + "\\n" for name in sorted(sys.modules))

    atexit.register(_tell)
"""


@dataclass(frozen=True, slots=True)
class Witness:
    """``launcher`` is the program to start in place of the installed one."""

    launcher: Path
    report: Path

    def modules(self) -> frozenset[str]:
        """What the resident process had imported when it ended, without the witness itself."""
        return frozenset(self.report.read_text(encoding="utf-8").split()) - {NAME}


@contextlib.contextmanager
def witness() -> Iterator[Witness]:
    """The virtualenv, as long as the context lasts; any uid may read it, as the VMM's has to."""
    folder = Path(tempfile.mkdtemp(prefix="witness-"))
    try:
        folder.chmod(0o755)
        yield _make(folder)
    finally:
        shutil.rmtree(folder)


def _make(folder: Path) -> Witness:
    report = folder / "modules"
    site = folder / SITE
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text(
        f"home = {Path(sys.executable).resolve().parent}\ninclude-system-site-packages = false\n"
    )
    (site / f"{NAME}.py").write_text(_HOOK.format(report=str(report)))
    (site / f"{NAME}.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\nimport {NAME}\n")
    for name, entry in (("launcher", "launcher.cli"), ("vmm-emulator", "launcher.emulator.main")):
        program = folder / "bin" / name
        program.write_text(f"#!{folder}/bin/python\nimport sys\nfrom {entry} import main\nsys.exit(main())\n")
        program.chmod(0o755)
    return Witness(folder / "bin/launcher", report)
