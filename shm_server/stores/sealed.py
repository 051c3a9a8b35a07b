"""A chain of sealed layers to be read: what a snapshot is, while somebody has it open.

The volume that the snapshot was made of goes on above it, and what is merged below it changes no byte of it, so any
number of these may be open, each with the owners of its pages resolved from the layer's map that the snapshot names
down. Nothing of it is ever written: whoever tries hears EROFS.
"""

from __future__ import annotations

import errno
from typing import NoReturn

from shm_server.stores.base import Store, Views
from shm_server.stores.layered import LayeredStore


class SealedStore:
    """Owns ``chain``, whose layers are all sealed. Reading is its own, without a call in between."""

    can_discard = False
    descriptor = -1
    max_atomic_write_bytes = 0
    inline_bytes = 0
    is_sync_instant = True
    dirty_bytes = 0
    must_settle = False

    def __init__(self, chain: LayeredStore) -> None:
        self._chain = chain
        self.read_now = chain.read_now
        self.read = chain.read
        self.extent = chain.extent
        self.replace = chain.replace
        self.rebase = chain.rebase
        self.allocated_bytes = chain.allocated_bytes
        self.close = chain.close
        self.sources = chain.sources

    @property
    def base_number(self) -> int:
        """Another, when the volume was promoted."""
        return self._chain.base_number

    def sync(self) -> None:
        """It is durable since it has its name."""

    def settle(self) -> None:
        """It never was anything else."""

    def scrub(self) -> None:
        """There is no copy beside it."""

    def write_now(self, views: Views, offset: int, /) -> int:
        _refuse()

    def write(self, views: Views, offset: int) -> int:
        _refuse()

    def write_atomic(self, data: bytes, offset: int) -> None:
        _refuse()

    def fill(self, pattern: memoryview, offset: int) -> int:
        _refuse()

    def copy_from(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        _refuse()

    def punch(self, offset: int, length: int) -> None:
        _refuse()

    def zero(self, offset: int, length: int) -> bool:
        _refuse()

    def resize(self, size_bytes: int) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise OSError(errno.EROFS, "a snapshot can't be written")
