"""Which pages of one store have been held against their checksums since they came into memory.

A bit a page, in chunks of 64 MiB of data, within a budget that all stores share; what was thrown away is verified once
more when it is read. Pages are those of the store: each is in one sealed layer, or in the one that is written, which
asks nothing here. When a page may have come to be another layer's (a layer was sealed, or merged) all is forgotten.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shm_server.stores.clock import Clock, Kept

CHUNK_SHIFT = 14
CHUNK_PAGES = 1 << CHUNK_SHIFT
CHUNK_BYTES = CHUNK_PAGES // 8
_MASK = CHUNK_PAGES - 1


class Chunk:
    """The bits of so many neighbours. Compared by identity."""

    __slots__ = ("_home", "_number", "bits", "was_used")

    def __init__(self, home: dict[int, Chunk], number: int) -> None:
        self._home = home
        self._number = number
        self.bits = bytearray(CHUNK_BYTES)
        self.was_used = True

    def throw_away(self) -> None:
        self._home.pop(self._number, None)


class Verified:
    """Any thread may look, add and forget."""

    def __init__(self, cache: Clock) -> None:
        self.chunks: dict[int, Chunk] = {}
        self.epoch = 0  # what was read before it changed is not added any more
        self.on_forget: Callable[[], object] = _nothing  # with the lock held
        self._cache = cache
        self._lock = threading.Lock()

    def has(self, first: int, last: int) -> bool:
        """All pages from ``first`` to ``last``, that one too."""
        while True:
            chunk = self.chunks.get(first >> CHUNK_SHIFT)
            if chunk is None:
                return False
            stop = min(last, first | _MASK)
            if not _has(chunk.bits, first & _MASK, (stop & _MASK) + 1):
                return False
            chunk.was_used = True
            if stop == last:
                return True
            first = stop + 1

    def add(self, first: int, count: int, epoch: int) -> None:
        with self._lock:
            if epoch == self.epoch:
                self._set(first, count, True)

    def forget(self, first: int = 0, count: int = 0) -> None:
        """So many pages; without a count all of them."""
        with self._lock:
            self.epoch += 1
            self.on_forget()
            if count:
                self._set(first, count, False)
            elif self.chunks:
                gone: set[Kept] = set(self.chunks.values())
                self.chunks.clear()
                self._cache.discard(gone)

    def while_at(self, epoch: int, act: Callable[[], object]) -> bool:
        """Do it, if nothing was forgotten since ``epoch``, and before anything is."""
        with self._lock:
            is_now = epoch == self.epoch
            if is_now:
                act()
            return is_now

    def _set(self, first: int, count: int, value: bool) -> None:
        end = first + count
        while first < end:
            number, start = first >> CHUNK_SHIFT, first & _MASK
            stop = min(CHUNK_PAGES, start + end - first)
            first += stop - start
            chunk = self.chunks.get(number)
            if chunk is None:
                if not value:
                    continue
                chunk = self.chunks[number] = Chunk(self.chunks, number)
                self._cache.add(chunk)
            mask = ((1 << (stop - start)) - 1) << (start & 7)
            low, high = start >> 3, (stop + 7) >> 3
            piece = int.from_bytes(chunk.bits[low:high], "little")
            piece = piece | mask if value else piece & ~mask
            chunk.bits[low:high] = piece.to_bytes(high - low, "little")


def _has(bits: bytearray, start: int, stop: int) -> bool:
    if (start | stop) & 7 == 0:
        return bits.count(0xFF, start >> 3, stop >> 3) == (stop - start) >> 3
    piece = int.from_bytes(bits[start >> 3 : (stop + 7) >> 3], "little") >> (start & 7)
    mask = (1 << (stop - start)) - 1
    return piece & mask == mask


def _nothing() -> None:
    pass
