"""Taps opened as cloud-hypervisor opens them, so that QEMU gets ready descriptors and the same things fail the same way.

Source: net_util/src/open_tap.rs and tap.rs (v53.0), linux/if_tun.h, linux/sockios.h.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Any

from launcher.emulator.refusal import Refused, os_words

TUNSETIFF = 0x400454CA
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU, SIOCGIFHWADDR = 0x8913, 0x8914, 0x8922, 0x8927
IFF_UP, IFF_RUNNING = 0x1, 0x40
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x2, 0x1000, 0x100, 0x4000
IFNAMSIZ = 16


def open_taps(net: dict[str, Any]) -> list[int]:
    """One descriptor per queue pair of a NetConfig without fds; fills ``tap`` and ``host_mac`` in, as the real one does.

    Brings the interface up and sets ``mtu`` when it is given, which needs CAP_NET_ADMIN unless there is nothing to do.
    """
    try:
        return _open(net)
    except Refused as refused:
        raise refused.within("Cannot create virtio-net device", "Failed to open taps") from refused


def _open(net: dict[str, Any]) -> list[int]:
    pairs = net["num_queues"] // 2
    name = net.get("tap", "vmtap%d")
    if len(name) >= IFNAMSIZ:
        raise Refused("Open tap device failed", f"Interface name too long (max length is {IFNAMSIZ - 1}): {name}")
    _check_multi_queue(name, pairs)
    fds: list[int] = []
    try:
        for _ in range(pairs):
            fd, name = _attach(name, pairs)
            fds.append(fd)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            net.update(tap=name, host_mac=_mac(control, name))
            if "mtu" in net:
                _ioctl(control, SIOCSIFMTU, name, struct.pack("i", net["mtu"]), "Setting MTU failed")
            _enable(control, name)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _check_multi_queue(name: str, pairs: int) -> None:
    try:
        flags = int(Path("/sys/class/net", name, "tun_flags").read_text(encoding="ascii"), 16)
    except OSError:  # it does not exist yet, or is no tap
        return
    if flags & IFF_MULTI_QUEUE and pairs == 1:
        raise Refused("Error related to the multiqueue support (no support device side)")
    if not flags & IFF_MULTI_QUEUE and pairs > 1:
        raise Refused("Error related to the multiqueue support (no support TAP side)")


def _attach(name: str, pairs: int) -> tuple[int, str]:
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if pairs > 1 else 0)
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused("Open tap device failed", "Couldn't open /dev/net/tun", os_words(error)) from error
    try:
        answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise Refused("Open tap device failed", "Unable to configure tap interface", os_words(error)) from error
    return fd, answer[:IFNAMSIZ].rstrip(b"\0").decode()


def _enable(control: socket.socket, name: str) -> None:
    failed = "Enabling tap interface failed"
    (flags,) = struct.unpack_from("H", _ioctl(control, SIOCGIFFLAGS, name, b"", failed), IFNAMSIZ)
    if not flags & IFF_UP:
        _ioctl(control, SIOCSIFFLAGS, name, struct.pack("H", flags | IFF_UP | IFF_RUNNING), failed)


def _mac(control: socket.socket, name: str) -> str:
    answer = _ioctl(control, SIOCGIFHWADDR, name, b"", "Getting MAC address failed")
    return answer[IFNAMSIZ + 2 : IFNAMSIZ + 8].hex(":")


def _ioctl(control: socket.socket, request: int, name: str, value: bytes, failed: str) -> bytes:
    try:
        return fcntl.ioctl(control, request, struct.pack("16s24s", name.encode(), value))
    except OSError as error:
        raise Refused(failed, f"Ioctl failed ({request})", os_words(error)) from error
