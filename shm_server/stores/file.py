"""A sparse file per volume: <pool>/volumes/NAME.raw. The space a volume takes is what was written and not discarded.

Beside it, from its first WRITE ATOMIC on, NAME.redo (redo.py).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from shm_server.stores import linux
from shm_server.stores.base import Store
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES, RedoFile, sync_directory


class FileStores:
    is_persistent = True
    max_atomic_write_bytes = MAX_ATOMIC_WRITE_BYTES

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.raw"

    def _redo_path(self, name: str) -> Path:
        return self._directory / f"{name}.redo"

    def create(self, name: str, size_bytes: int) -> None:
        path = self.path(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise FileExistsError(
                errno.EEXIST, f"{path} exists, but no volume {name} is in the catalogue: move it away"
            ) from None
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)
        sync_directory(self._directory)

    def open(self, name: str, size_bytes: int, uuid: str) -> Store:
        path = self.path(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise OSError(errno.EIO, f"volume {name} is in the catalogue, but its file {path} is missing") from None
        try:
            actual = os.fstat(fd).st_size
            if actual < size_bytes:
                raise OSError(errno.EIO, f"{path} has {actual} bytes, volume {name} has {size_bytes}")
            # A loss that the kernel has not reported yet is reported here, not to somebody's FLUSH (CONTRACTS 1).
            os.fdatasync(fd)
            is_memory = linux.filesystem_magic(fd) == linux.TMPFS_MAGIC
            redo = RedoFile(self._redo_path(name), uuid)
            try:
                redo.replay(fd, actual)
            except OSError:
                redo.close()
                raise
            return DescriptorStore(fd, is_memory=is_memory, redo=redo)
        except OSError:
            os.close(fd)
            raise

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)  # first: a store that stays keeps its record
        self._redo_path(name).unlink(missing_ok=True)
        sync_directory(self._directory)

    def allocated_bytes(self, name: str) -> int:
        try:
            return os.stat(self.path(name)).st_blocks * 512
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        pass
