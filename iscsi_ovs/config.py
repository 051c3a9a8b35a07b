"""Knobs from files and options: the pool's first vpool.json, sizes as people write them. It fills, it obeys nothing."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path

import msgspec

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


def parse_volume_option(text: str) -> tuple[str, int]:
    """``NAME=SIZE`` of --volume."""
    name, equals, size = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"--volume {text!r}: write NAME=SIZE, for instance demo=10G")
    return name, parse_size(size)


def make_private_directory(path: Path) -> None:
    """A directory (and its parents) that only we can enter."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"can't make {path}: {error.strerror}; choose another place with --state-dir"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigurationError(f"can't write in {path}; choose another place with --state-dir")


def write_first_pool(path: Path, pool_directory: Path) -> bool:
    """The vpool.json of a new state directory, its shared-memory interface on. False: there is one, left as it is."""
    document = {
        "filesystem": {"fs_enable_shm_interface": True, "fs_nullio": False},
        "shm_interface": {"shm_region_size": 268435456},
        "backend_connection_manager": {"backend_type": "LOCAL", "local_connection_path": str(pool_directory)},
    }
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigurationError(f"can't write {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return True
