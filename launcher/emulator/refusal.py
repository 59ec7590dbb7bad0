"""How a request is refused: cloud-hypervisor's chain of messages, outermost first, and the HTTP status."""

from __future__ import annotations

import os


class Refused(Exception):
    """A request cannot be carried out; ``chain`` is the JSON list of the answer."""

    def __init__(self, *chain: str, status: int = 500) -> None:
        super().__init__(": ".join(chain))
        self.chain = chain
        self.status = status

    def within(self, *outer: str) -> Refused:
        """The same refusal, told from further out."""
        return Refused(*outer, *self.chain, status=self.status)


class EmulatorFailed(Exception):
    """The emulator cannot go on; one sentence for stderr, exit status 1."""


def not_emulated(what: str) -> Refused:
    """cloud-hypervisor does this, the emulator does not: 501, a status the real one never sends."""
    return Refused("Not Implemented", f"{what} is not emulated", status=501)


def bad_json(problem: str) -> Refused:
    """The body is not what the route takes."""
    return Refused("Failed to deserialize JSON", problem, status=400)


def os_words(error: OSError) -> str:
    """An operating-system error as Rust prints it; Python's own, such as a socket's path being too long, in its words."""
    return f"{os.strerror(error.errno)} (os error {error.errno})" if error.errno else str(error)
