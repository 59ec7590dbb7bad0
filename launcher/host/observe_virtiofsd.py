"""Looking for a virtiofsd: the one written in Rust, since QEMU's older one of the same name has other options."""

from __future__ import annotations

import re
import shutil

from launcher.errors import LauncherError
from launcher.facts import ProgramFacts
from launcher.host import process

OLDEST = (1, 10, 0)  # the oldest whose options were read
# Distributions keep it where daemons are started from, and QEMU's in a folder of QEMU's.
_PLACES = ("/usr/libexec", "/usr/lib", "/usr/lib/qemu")
_VERSION = re.compile(r"virtiofsd (\d+)\.(\d+)\.(\d+)")
_HINT = f"install version {'.'.join(map(str, OLDEST))} or later of the one written in Rust in the launcher's image"
_TIMEOUT = 20.0  # seconds, on what may be a busy machine


def observe_virtiofsd(path: str = ":".join((process.BASE_ENV["PATH"], *_PLACES))) -> ProgramFacts | None:
    """The first virtiofsd on ``path`` and its version; None when there is none."""
    program = shutil.which("virtiofsd", path=path)
    if program is None:
        return None
    try:
        answer = process.run([program, "--version"], timeout=_TIMEOUT)
    except LauncherError as error:
        return ProgramFacts(program, problem=error.message, hint=error.hint)
    if answer.returncode:
        return ProgramFacts(program, problem=f"{program} does not tell its version: {answer.failure}", hint=_HINT)
    line = answer.stdout.decode(errors="replace").partition("\n")[0].strip()
    told = _VERSION.match(line)
    if told is None:
        return ProgramFacts(program, problem=f"{program} is another virtiofsd, {line!r}", hint=_HINT)
    version = tuple(map(int, told.groups()))
    if version < OLDEST:
        return ProgramFacts(program, version, problem=f"{program} is version {line.split()[-1]}", hint=_HINT)
    return ProgramFacts(program, version)
