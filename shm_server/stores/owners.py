"""Which layer of a chain has each page: resolved, so that reading never walks the chain.

A page's owner is a number: 0 the chain's base, else a layer's in the catalogue (stack.py), ZERO nobody (it reads 0s).
They stand four bytes a page in a sparse file without a name, made anew whenever the volume is opened, from the layers'
maps; so nothing here needs to be durable. Chunks of it are kept in memory within a budget that all volumes share
(map_cache_size). A page that no layer above the base ever owned takes no room in either.

Looking at chunks that are in memory takes no lock; getting one, and changing one, does.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from array import array
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from shm_server.stores.clock import Clock, Kept

CHUNK_PAGES = 1 << 14
CHUNK_BYTES = CHUNK_PAGES * 4
ZERO = 0xFFFF_FFFF

_EMPTY = array("I", bytes(CHUNK_BYTES))
_SHIFT = CHUNK_PAGES.bit_length() - 1
_MASK = CHUNK_PAGES - 1


class _Chunk:
    """So many neighbours' owners, in memory. Compared by identity."""

    __slots__ = ("_home", "_number", "owners", "was_used")

    def __init__(self, home: dict[int, _Chunk], number: int, owners: array[int]) -> None:
        self._home = home
        self._number = number
        self.owners = owners
        self.was_used = True

    def throw_away(self) -> None:
        self._home.pop(self._number, None)


class Owners:
    """``lock`` is for whoever must not wait: try it, then use the methods that say so."""

    def __init__(self, directory: Path, cache: Clock) -> None:
        with tempfile.TemporaryFile(dir=directory) as file:
            self._fd = os.dup(file.fileno())
        self._cache = cache
        self._chunks: dict[int, _Chunk] = {}
        self._known: set[int] = set()  # chunks of which anything was ever set
        self.lock = threading.Lock()

    # Looking --------------------------------------------------------------------------------------------------------

    def now(self, first: int, count: int) -> list[tuple[int, int]] | None:
        """Runs (owner, pages) of the range; None: not all of it is in memory."""
        number, start = first >> _SHIFT, first & _MASK
        if start + count <= CHUNK_PAGES:  # nearly always: one chunk
            chunk = self._chunks.get(number)
            if chunk is None:
                return [(0, count)] if number not in self._known else None
            chunk.was_used = True
            return _runs(chunk.owners, start, start + count)
        runs: list[tuple[int, int]] = []
        for number, start, end in _pieces(first, count):
            chunk = self._chunks.get(number)
            if chunk is not None:
                chunk.was_used = True
                _join(runs, _runs(chunk.owners, start, end))
            elif number not in self._known:
                _join(runs, [(0, end - start)])
            else:
                return None
        return runs

    def runs(self, first: int, count: int) -> list[tuple[int, int]]:
        """The same, whatever has to be read for it."""
        runs: list[tuple[int, int]] = []
        for number, start, end in _pieces(first, count):
            chunk = self._chunks.get(number)
            if chunk is None and number in self._known:
                with self.lock:
                    chunk = self._get(number)
            _join(runs, [(0, end - start)] if chunk is None else _runs(chunk.owners, start, end))
        return runs

    # Changing -------------------------------------------------------------------------------------------------------

    def set(self, first: int, count: int, owner: int) -> None:
        with self.lock:
            self.set_locked(first, count, owner)

    def set_locked(self, first: int, count: int, owner: int) -> None:
        """For who has ``lock``. Reads nothing for chunks that now() told of."""
        for number, start, end in _pieces(first, count):
            chunk = self._get(number)
            piece = array("I", [owner]) * (end - start)
            # The file first: the chunk may be thrown away meanwhile.
            if os.pwrite(self._fd, piece, number * CHUNK_BYTES + start * 4) < len(piece) * 4:
                raise OSError(errno.ENOSPC, "no room for the map of a volume")
            chunk.owners[start:end] = piece

    def _get(self, number: int) -> _Chunk:
        chunk = self._chunks.get(number)
        if chunk is None:
            if number in self._known:
                owners = array("I", os.pread(self._fd, CHUNK_BYTES, number * CHUNK_BYTES).ljust(CHUNK_BYTES, b"\0"))
            else:
                owners = array("I", _EMPTY)
                self._known.add(number)
            chunk = self._chunks[number] = _Chunk(self._chunks, number, owners)
            self._cache.add(chunk)
        return chunk

    def close(self) -> None:
        gone: set[Kept] = set(self._chunks.values())
        self._cache.discard(gone)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _pieces(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Chunk by chunk: its number, and which of its pages [start, end)."""
    end = first + count
    while first < end:
        start = first & _MASK
        stop = min(CHUNK_PAGES, start + end - first)
        yield first >> _SHIFT, start, stop
        first += stop - start


def _runs(owners: array[int], start: int, end: int) -> list[tuple[int, int]]:
    owner = owners[start]
    length = end - start
    if length == 1:
        return [(owner, 1)]
    piece = owners[start:end]
    if piece.count(owner) == length:
        return [(owner, length)]
    return [(each, sum(1 for _ in group)) for each, group in groupby(piece)]


def _join(runs: list[tuple[int, int]], more: list[tuple[int, int]]) -> None:
    if runs and more and runs[-1][0] == more[0][0]:
        runs[-1] = (more[0][0], runs[-1][1] + more[0][1])
        more = more[1:]
    runs += more
