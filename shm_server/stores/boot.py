"""Which life of this machine it is. Between two of them there may have been a power cut."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def boot_id() -> bytes:
    """16 bytes, new at each start of the kernel."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", ""))
