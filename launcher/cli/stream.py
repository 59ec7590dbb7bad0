"""Reading the launcher's event stream: an HTTP answer without a length, one JSON object a line."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from launcher.errors import UsageError
from launcher.vmm.http import encode_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read_lines(path: Path, target: str) -> Iterator[str]:
    """The lines of the answer to GET ``target`` on the control socket, as they come. Raises UsageError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(path))
            connection.sendall(encode_request("GET", target, None))
            with connection.makefile("rb") as stream:
                status = stream.readline().split()
                while stream.readline().strip():
                    pass
                if status[1:2] != [b"200"]:
                    raise UsageError(f"the launcher refused {target}: {stream.read(1000).decode(errors='replace')}")
                for line in stream:
                    yield line.decode().rstrip("\n")
        except OSError as error:
            raise UsageError(
                f"no launcher answers at {path}: {error.strerror or error}", hint="is it running?"
            ) from None
