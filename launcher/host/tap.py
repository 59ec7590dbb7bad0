"""Persistent taps, made through /dev/net/tun: rtnetlink cannot make them.

Source of the numbers: linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import NoReturn

from launcher.errors import HostUnfit, NetworkFailed

TUN = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100


def make_tap(name: str, *, uid: int, multi_queue: bool) -> None:
    """Make a persistent tap owned by ``uid`` in this netns. Killed on the way it leaves nothing behind.

    Raises HostUnfit when there is no usable /dev/net/tun, NetworkFailed when the kernel refuses the tap.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
    try:
        tun = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        _no_tun(error)
    try:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(tun, TUNSETOWNER, uid)
        fcntl.ioctl(tun, TUNSETPERSIST, 1)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise HostUnfit(
                f"not permitted to make the tap {name}", hint="the container needs the capability NET_ADMIN"
            ) from error
        raise NetworkFailed(f"cannot make the tap {name}: {error.strerror}") from error
    finally:
        os.close(tun)


def _no_tun(error: OSError) -> NoReturn:
    if error.errno in {errno.EPERM, errno.EACCES}:
        why, hint = "may not be opened", "let the pod use it: a device plugin, or a device rule of the runtime"
    elif error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        why, hint = "is missing", "load the tun module on the node and give the device to the pod"
    else:
        why, hint = f"cannot be opened: {error.strerror}", None
    raise HostUnfit(f"{TUN} {why}", hint=hint) from error
