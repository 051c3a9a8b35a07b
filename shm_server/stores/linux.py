"""What the stores ask of Linux itself. Calls that Python 3.11 does not have, fallocate with a mode and statfs, go by
ctypes, which lets go of the GIL."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

TMPFS_MAGIC = 0x01021994
USEFUL_DESCRIPTORS = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate64.restype = ctypes.c_int
_libc.fstatfs64.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.fstatfs64.restype = ctypes.c_int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    while _libc.fallocate64(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != 4:  # EINTR: again
            raise OSError(number, f"fallocate: {os.strerror(number)}")


def allow_descriptors() -> int:
    """As many as this process may have (RLIMIT_NOFILE's hard limit, up to what is useful); how many that is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = USEFUL_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, USEFUL_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def allocated_bytes(path: Path | str) -> int:
    """Of a file, which need not be there."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def filesystem_magic(fd: int) -> int:
    """f_type of the file system that ``fd`` lives on."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs64(fd, buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"fstatfs: {os.strerror(number)}")
    return int.from_bytes(buffer.raw[:8], "little", signed=True) & 0xFFFFFFFF
