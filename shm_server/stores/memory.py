"""A memfd per volume: gone with the process. A memfd and not a bytearray, so that preadv and pwritev work alike."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from shm_server.stores.base import Chain, LayerFile, Store, WithoutLayers
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES


class MemoryStores(WithoutLayers):
    is_persistent = False
    max_atomic_write_bytes = MAX_ATOMIC_WRITE_BYTES

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def create(self, name: str, size_bytes: int) -> None:
        if name in self._descriptors:
            raise FileExistsError(errno.EEXIST, f"there is a memory store {name} already")
        fd = os.memfd_create(f"volume-{name}", os.MFD_CLOEXEC)
        os.ftruncate(fd, size_bytes)
        self._descriptors[name] = fd

    def open(self, name: str, size_bytes: int, uuid: str, chain: Chain = ()) -> Store:
        return DescriptorStore(os.dup(self._descriptors[name]), is_memory=True)

    def remove(self, name: str) -> None:
        fd = self._descriptors.pop(name, None)
        if fd is not None:
            os.close(fd)

    def footprint_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        return self.allocated_bytes(name)

    def allocated_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        fd = self._descriptors.get(name)
        return 0 if fd is None else os.fstat(fd).st_blocks * 512

    def close(self) -> None:
        for name in list(self._descriptors):
            self.remove(name)
