"""Drops all I/O, for measuring what everything else costs: writes vanish, reads give zeros.

The files of the volumes are made, grown and removed as the file store does, but never read or written, so that a pool
can be measured with fs_nullio and used again afterwards.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

from shm_server.stores.base import INLINE_BYTES, Chain, Store, Views
from shm_server.stores.file import FileStores


class NullStore:
    """Zeros come from /dev/zero, so that a read costs its copy into the slot and faults as any other."""

    can_discard = True
    must_settle = False
    descriptor = -1
    max_atomic_write_bytes = 0
    inline_bytes = INLINE_BYTES
    is_sync_instant = True
    dirty_bytes = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        self._nothing = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        self.read_now = partial(os.preadv, self._zeros)
        self.write_now = partial(os.pwritev, self._nothing)

    def read(self, views: Views, offset: int) -> int:
        return sum(os.preadv(self._zeros, (view,), offset) for view in views)

    def write(self, views: Views, offset: int) -> int:
        return sum(map(len, views))

    def write_atomic(self, data: bytes, offset: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "this store keeps nothing")

    def scrub(self) -> None:
        pass

    def fill(self, pattern: memoryview, offset: int) -> int:
        return len(pattern)

    def copy_from(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        pass

    def punch(self, offset: int, length: int) -> None:
        pass

    def zero(self, offset: int, length: int) -> bool:
        return True

    def extent(self, offset: int, length: int) -> tuple[bool, int]:
        return True, length  # or initiators would not read at all, and there would be nothing to measure

    def sync(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def resize(self, size_bytes: int) -> None:
        os.truncate(self._path, size_bytes)

    def allocated_bytes(self) -> int:
        return 0

    def close(self) -> None:
        if self._zeros >= 0:
            os.close(self._zeros)
            os.close(self._nothing)
            self._zeros = self._nothing = -1


class NullStores(FileStores):
    can_layer = False
    max_atomic_write_bytes = 0

    def open(self, name: str, size_bytes: int, uuid: str, chain: Chain = ()) -> Store:
        return NullStore(self.path(name))
