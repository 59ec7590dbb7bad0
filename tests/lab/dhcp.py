"""A DHCP client on the wire: hand-made packets through AF_PACKET, so that every byte of the answers can be looked at."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Self

from tests.lab.netns import entered

MAGIC = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
ETH_P_ALL, ETH_P_IP, ETH_P_ARP = 3, 0x0800, 0x0806
ATTEMPTS, RETRY = 40, 0.5  # seconds
BROADCAST = b"\xff" * 6


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply: where the frame went, the address offered, and the raw bytes of each option."""

    to: bytes
    your_address: str
    options: dict[int, bytes]


class Client:
    """A client with this MAC on a link of a netns. A context manager."""

    def __init__(self, netns: str, link: str, mac: str) -> None:
        self.mac = bytes.fromhex(mac.replace(":", ""))
        with entered(netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._socket.bind((link, ETH_P_ALL))
        self._socket.settimeout(RETRY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def discover(self, *, asks_for: bytes = b"") -> Answer:
        """Send DISCOVER and return the OFFER; ``asks_for`` is the parameter request list."""
        return self._ask(DISCOVER, OFFER, asks_for, {})

    def request(self, offer: Answer, *, asks_for: bytes = b"") -> Answer:
        """Accept an offer and return the ACK."""
        wanted = {50: socket.inet_aton(offer.your_address), 54: offer.options[54]}
        return self._ask(REQUEST, ACK, asks_for, wanted)

    def call_out(self) -> None:
        """Send DISCOVER and wait for nothing."""
        self._send(DISCOVER, b"", {})

    def answers(self) -> list[Answer]:
        """The answers to this client that have come in up to now."""
        found = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                if answer := self._parse(self._socket.recv(65535)):
                    found.append(answer)
        self._socket.settimeout(RETRY)
        return found

    def answers_arp(self, address: str, witness: str) -> bool:
        """Whether anybody answers for the address, seen when the answer to a later question, for ``witness``, is there."""
        asked = [socket.inet_aton(address), socket.inet_aton(witness)]
        for _ in range(ATTEMPTS):
            for one in asked:
                request = struct.pack("!HHBBH6s4x6x4s", 1, ETH_P_IP, 6, 4, 1, self.mac, one)
                self._socket.send(BROADCAST + self.mac + struct.pack("!H", ETH_P_ARP) + request)
            answered = set()
            with contextlib.suppress(TimeoutError):
                while asked[1] not in answered:
                    frame = self._socket.recv(65535)
                    if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02":
                        answered.add(frame[28:32])
                return asked[0] in answered
        raise TimeoutError(f"{witness} does not answer")

    def _ask(self, kind: int, wanted: int, asks_for: bytes, options: dict[int, bytes]) -> Answer:
        """A port that came up just now may lose a frame, so a question is repeated."""
        for _ in range(ATTEMPTS):
            self._send(kind, asks_for, options)
            with contextlib.suppress(TimeoutError):
                while True:
                    answer = self._parse(self._socket.recv(65535))
                    if answer and answer.options[53] == bytes([wanted]):
                        return answer
        raise TimeoutError("the DHCP server does not answer")

    def _send(self, kind: int, asks_for: bytes, options: dict[int, bytes]) -> None:
        said = {53: bytes([kind]), **options}
        if asks_for:
            said[55] = asks_for
        body = b"".join(bytes([code, len(value)]) + value for code, value in said.items())
        bootp = struct.pack("!BBBBIHH16x16s64x128x", 1, 1, 6, 0, 0x5EED, 0, 0, self.mac) + MAGIC + body + b"\xff"
        udp = struct.pack("!HHHH", 68, 67, 8 + len(bootp), 0) + bootp
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
        header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
        self._socket.send(BROADCAST + self.mac + struct.pack("!H", ETH_P_IP) + header + udp)

    def _parse(self, frame: bytes) -> Answer | None:
        udp = frame[34:]
        if frame[12:14] != b"\x08\x00" or frame[23] != 17 or udp[2:4] != b"\x00\x44":
            return None
        bootp = udp[8:]
        if bootp[28:34] != self.mac:
            return None
        return Answer(frame[:6], socket.inet_ntoa(bootp[16:20]), _options(bootp[240:]))


def _options(data: bytes) -> dict[int, bytes]:
    """Options by code; the parts of one that comes several times are joined (RFC 3396)."""
    options: dict[int, bytes] = {}
    at = 0
    while data[at] != 0xFF:
        if data[at] == 0:
            at += 1
            continue
        code, length = data[at], data[at + 1]
        options[code] = options.get(code, b"") + data[at + 2 : at + 2 + length]
        at += 2 + length
    return options


def _checksum(header: bytes) -> int:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~int(total + (total >> 16)) & 0xFFFF
