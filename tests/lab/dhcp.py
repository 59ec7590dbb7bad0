"""A DHCP client on the wire: hand-made packets through AF_PACKET, so that every byte of the answers can be looked at."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Self

from tests.lab.netns import entered

MAGIC = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
ETH_P_ALL, ETH_P_IP = 3, 0x0800
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
        self._socket.settimeout(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def discover(self, *, asks_for: bytes = b"") -> Answer:
        """Send DISCOVER and return the OFFER; ``asks_for`` is the parameter request list."""
        self._send(DISCOVER, asks_for, {})
        return self._receive(OFFER)

    def request(self, offer: Answer, *, asks_for: bytes = b"") -> Answer:
        """Accept an offer and return the ACK."""
        self._send(REQUEST, asks_for, {50: socket.inet_aton(offer.your_address), 54: offer.options[54]})
        return self._receive(ACK)

    def wait_for(self, kind: int) -> bytes:
        """The next frame of this EtherType that comes in."""
        while True:
            frame = self._socket.recv(65535)
            if int.from_bytes(frame[12:14], "big") == kind:
                return frame

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def silence(self, seconds: float) -> None:
        """From now on waiting ends in TimeoutError after so long."""
        self._socket.settimeout(seconds)

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

    def _receive(self, kind: int) -> Answer:
        while True:
            frame = self._socket.recv(65535)
            udp = frame[34:]
            if frame[12:14] == b"\x08\x00" and frame[23] == 17 and udp[2:4] == b"\x00\x44":
                bootp = udp[8:]
                options = _options(bootp[240:])
                if bootp[28:34] == self.mac and options[53] == bytes([kind]):
                    return Answer(frame[:6], socket.inet_ntoa(bootp[16:20]), options)


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
