"""A guest of 4 KB, made by hand: it boots on the real VMM through the PVH entry and needs no kernel.

32-bit code at 1 MiB: prints "guest up" on the UART at 0x3f8, then either halts for ever or polls the UART for a letter:
p powers off (ACPI S5: 0x34 to port 0x600), r resets (0xfe to port 0x64), c jumps into a hole of the address space, which
no instruction emulator survives; any other letter is echoed.
"""

from __future__ import annotations

import struct

_BASE = 0x100000
_CODE = bytes.fromhex(
    "be55001000"  # 00 mov esi, message
    "baf8030000"  # 05 mov edx, 0x3f8
    "ac84c0"  # 0a lodsb; test al, al
    "7403"  # 0d jz poll
    "eeebf8"  # 0f out dx, al; jmp 0a
    "f390"  # 12 poll: pause
    "bafd030000ec"  # 14 in al, 0x3fd
    "a80174f4"  # 1a test al, 1; jz poll
    "baf8030000ec"  # 1e in al, 0x3f8
    "3c70740f"  # 24 p: jz 37
    "3c727415"  # 28 r: jz 41
    "3c63741b"  # 2c c: jz 4b
    "3c69741e"  # 30 i: jz 52
    "eeebdb"  # 34 out dx, al; jmp poll
    "ba00060000b034eeeb11"  # 37 out 0x600, 0x34; jmp 52
    "ba64000000b0feeeeb07"  # 41 out 0x64, 0xfe; jmp 52
    "b8000000e0ffe0"  # 4b jmp 0xe0000000
    "f4ebfd"  # 52 hlt; jmp 52
)
_MESSAGE = b"guest up\r\n\0"
_JUMP_AFTER_MESSAGE = 0x0E  # the displacement of "jz poll"


def guest_elf(*, listens: bool) -> bytes:
    """The ELF file; with ``listens`` it polls for letters, which costs a CPU, else it halts."""
    code = bytearray(_CODE + _MESSAGE)
    if not listens:
        code[_JUMP_AFTER_MESSAGE] = 0x52 - 0x0F
    note = struct.pack("<III", 4, 4, 18) + b"Xen\0" + struct.pack("<I", _BASE)  # XEN_ELFNOTE_PHYS32_ENTRY
    notes_at, code_at = 64 + 2 * 56, 0x1000
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, code_at, _BASE, _BASE, len(code), len(code), 0x1000)
    head += struct.pack("<IIQQQQQQ", 4, 4, notes_at, 0, 0, len(note), len(note), 4)
    return (head + note).ljust(code_at, b"\0") + bytes(code)
