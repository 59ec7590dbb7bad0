"""The same calls through requests, for the command line and the contract tests. The only importer of requests_unixsocket.

A second, independent HTTP client keeps the raw one honest. It cannot pass descriptors, its deadline restarts with every
read, and it takes an answer that was cut inside the head for a whole one, which is checked for here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import requests
import requests_unixsocket

from launcher.errors import LauncherError, VmmFailed
from launcher.vmm.http import Response
from launcher.vmm.nonblocking import connect

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.vmm.api import Call


class RequestsTransport:
    """The VMM's unix socket at ``path``."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._base = f"http+unix://{quote(str(path), safe='')}"

    def call(self, call: Call) -> Response:
        if call.fds:
            raise LauncherError("descriptors cannot be passed through requests", hint="use SocketTransport")
        connect(self._path).close()  # requests_unixsocket leaks a socket that it could not connect
        with requests_unixsocket.Session() as session:
            session.trust_env = False  # no proxy of the environment between us and a unix socket
            try:
                reply = session.request(call.method, self._base + call.path, data=call.body, timeout=call.deadline_s)
            except requests.Timeout as error:
                raise VmmFailed(f"the VMM did not answer {call.name} within {call.deadline_s:g} s") from error
            except requests.RequestException as error:
                raise VmmFailed(f"the VMM did not answer {call.name}: {error}") from error
            headers = {name.lower(): value for name, value in reply.headers.items()}
            if "server" not in headers or (reply.status_code != 204 and "content-length" not in headers):
                raise VmmFailed(f"the VMM did not answer {call.name}: the answer was cut off")
            return Response(reply.status_code, headers, reply.content)
