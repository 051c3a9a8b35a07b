"""Sizes as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

from iscsi_ovs.errors import ConfigurationError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(?:B|([KMGTP])(?:iB|B)?)?", re.IGNORECASE)
_SIZE_MAX_BYTES = (1 << 63) - 1  # a file's offset


def parse_size(text: str) -> int:
    """``10G``, ``512 MiB``, ``1048576`` → bytes. Units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"size {text!r}: write a number of bytes, or one with K, M, G or T behind it")
    number, unit = match.groups(default="")
    if "." in number and not unit:
        raise ConfigurationError(f"size {text!r}: there are no parts of a byte")
    size = int(Decimal(number) * _UNITS[unit.upper()])
    if size <= 0:
        raise ConfigurationError(f"size {text!r}: a volume has at least one byte")
    if size > _SIZE_MAX_BYTES:
        raise ConfigurationError(f"size {text!r}: more than any volume can have")
    return size


def format_size(size_bytes: int) -> str:
    """Bytes as people read them: the largest unit that leaves a number of 1 or more, exact where it can be."""
    for unit in ("P", "T", "G", "M", "K"):
        if size_bytes >= _UNITS[unit]:
            whole, rest = divmod(size_bytes, _UNITS[unit])
            return f"{whole}{unit}" if rest == 0 else f"{size_bytes / _UNITS[unit]:.1f}{unit}"
    return str(size_bytes)
