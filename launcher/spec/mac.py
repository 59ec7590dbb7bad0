"""MAC addresses: every form Go's ``net.ParseMAC`` takes, and the address a VM gets when its spec gives none."""

from __future__ import annotations

import hashlib
import re

_OCTETS = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2})*")
_DOTTED = re.compile(r"[0-9a-f]{4}(?:\.[0-9a-f]{4})+")
_QEMU_PREFIX = bytes.fromhex("525400")  # Virtink's choice too: locally administered, unicast


def parse_mac(text: str) -> str:
    """Six lower-case octets joined by colons. Raises ``ValueError`` with a sentence.

    Go also takes EUI-64 and InfiniBand addresses (8 and 20 octets), which a guest's network card cannot have.
    """
    lower = text.lower()
    if not (_OCTETS.fullmatch(lower) or _DOTTED.fullmatch(lower)):
        raise ValueError("not a MAC address: six octets are, such as 52:54:00:12:34:56")
    digits = re.sub(r"[:.-]", "", lower)
    if len(digits) != 12:
        raise ValueError(f"not a MAC address: it has {len(digits) // 2} octets, not 6")
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def derive_mac(identity: str, interface: str) -> str:
    """The address of an interface without one: 52:54:00 and three octets that follow from ``identity`` and its name.

    Virtink's webhook draws them at random once and stores them; with no store of our own they must come out the same at
    every start.
    """
    digest = hashlib.sha256(f"{identity}\0{interface}".encode()).digest()
    return (_QEMU_PREFIX + digest[:3]).hex(":")
