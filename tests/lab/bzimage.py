"""The ELF kernel inside a distribution's bzImage."""

from __future__ import annotations

import lzma
import struct

SETUP_HEADER = 0x1F1  # Documentation/arch/x86/boot.rst: setup_sects; "HdrS" at 0x202; payload_offset at 0x248


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage, found by the boot header's payload_offset and payload_length."""
    if image[0x202:0x206] != b"HdrS":
        raise ValueError("not a bzImage")
    setup_sectors = image[SETUP_HEADER] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\x02\x21\x4c\x18"):
        vmlinux = _unlz4_legacy(payload[:-4])  # the last word is the unpacked size
    elif payload.startswith(b"\xfd7zXZ\0"):
        vmlinux = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    else:
        raise ValueError(f"the kernel's payload is packed in an unknown way ({payload[:4].hex()})")
    if not vmlinux.startswith(b"\x7fELF"):
        raise ValueError("the kernel's payload is not an ELF file")
    return vmlinux


def _unlz4_legacy(data: bytes) -> bytes:
    """Unpack LZ4's legacy frame: a magic number, then blocks of 8 MiB unpacked, each after its packed size."""
    out = bytearray()
    at = 4
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        out += _unlz4_block(data[at + 4 : at + 4 + size])
        at += 4 + size
    return bytes(out)


def _unlz4_block(block: bytes) -> bytearray:
    out = bytearray()
    at = 0
    while True:
        token = block[at]
        at += 1
        literals = token >> 4
        if literals == 15:
            while (more := block[at]) == 255:
                literals, at = literals + 255, at + 1
            literals, at = literals + more, at + 1
        out += block[at : at + literals]
        at += literals
        if at >= len(block):
            return out
        distance = block[at] | block[at + 1] << 8
        at += 2
        match = token & 15
        if match == 15:
            while (more := block[at]) == 255:
                match, at = match + 255, at + 1
            match, at = match + more, at + 1
        match += 4
        start = len(out) - distance
        if distance >= match:
            out += out[start : start + match]
        else:  # it overlaps what it writes: a pattern repeated
            out += (out[start:] * (match // distance + 1))[:match]
