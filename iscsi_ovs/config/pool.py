"""What ``serve`` makes at its first start: directories of our own, and the pool's vpool.json."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from iscsi_ovs.errors import ConfigurationError

POOL_NAME = "pool"


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


def write_first_pool(path: Path) -> bool:
    """The vpool.json of a new state directory, its shared-memory interface on. False: there is one, left as it is.

    The pool lies beside it, and is so named: a directory that is copied or moved is whole.
    """
    document = {
        "filesystem": {"fs_enable_shm_interface": True, "fs_nullio": False},
        "shm_interface": {"shm_region_size": 268435456},
        "backend_connection_manager": {"backend_type": "LOCAL", "local_connection_path": POOL_NAME},
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
