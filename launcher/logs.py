"""The launcher's own log on stderr: JSON lines for machines, plain lines on a terminal.

Use ``logging.getLogger(__name__)`` with a constant message and ``extra={"fields": {...}}`` for what varies.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        line = f"{record.levelname.lower():7} {record.getMessage()}" + (f"  [{fields}]" if fields else "")
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Sink(logging.Handler):
    def __init__(self, write: Callable[[bytes], object]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record).encode(errors="backslashreplace") + b"\n")


def set_up(write: Callable[[bytes], object] | None = None, *, level: int = logging.INFO) -> None:
    """Send every log record to stderr, in the form that fits who reads it; by ``write``, when that must not block."""
    handler = logging.StreamHandler(sys.stderr) if write is None else _Sink(write)
    handler.setFormatter(_Plain() if sys.stderr.isatty() else _JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
