"""CRC-32C (Castagnoli) in plain Python, a byte at a time: for the copy kernel's Python twin."""

from __future__ import annotations

from functools import cache

POLYNOMIAL = 0x82F63B78  # bit-reflected


@cache
def _table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        return value

    return tuple(entry(value) for value in range(256))


def crc32c(data: bytes, crc: int = 0) -> int:
    """The checksum of `data`, or of what gave `crc` with `data` behind it."""
    table = _table()
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF
