"""Serial number arithmetic of 32 bits (RFC 1982, as RFC 7143 section 4.2.2 wants it for CmdSN, StatSN and the like)."""

from __future__ import annotations

MASK = 0xFFFFFFFF
_HALF = 0x80000000


def add(number: int, increment: int) -> int:
    """``number`` + ``increment`` modulo 2**32."""
    return (number + increment) & MASK


def distance(start: int, end: int) -> int:
    """How far ``end`` is ahead of ``start``: −2**31 … 2**31−1, negative where it lies behind."""
    ahead = (end - start) & MASK
    return ahead - 0x100000000 if ahead >= _HALF else ahead


def is_before(first: int, second: int) -> bool:
    """True where ``first`` lies before ``second``."""
    return distance(first, second) > 0
