"""CDBs of block commands by their shapes, codes that they answer with, and a disk full of different blocks."""

from __future__ import annotations

BLOCK = 512
CAPACITY = (1 << 20) // BLOCK
OUT_OF_RANGE = (0x5, 0x21, 0x00)
INVALID_FIELD = (0x5, 0x24, 0x00)
INVALID_PARAMETER = (0x5, 0x26, 0x00)
PARAMETER_LENGTH = (0x5, 0x1A, 0x00)


def six(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {lba | flags << 16:06x} {blocks:02x} 00"


def ten(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {flags:02x} {lba:08x} 00 {blocks:04x} 00"


def twelve(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {flags:02x} {lba:08x} {blocks:08x} 00 00"


def sixteen(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {flags:02x} {lba:016x} {blocks:08x} 00 00"


def pattern(blocks: int, seed: int = 1) -> bytes:
    return b"".join(bytes([(seed + number) % 255 + 1]) * BLOCK for number in range(blocks))
