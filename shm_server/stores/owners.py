"""Which layer of a chain has each page: resolved, so that reading never walks the chain.

A page's owner is a number: 0 the chain's base, else a layer's in the catalogue (stack.py), ZERO nobody (it reads 0s).
They stand four bytes a page in a file (table.py). Chunks of it are kept in memory within a budget that all volumes
share (map_cache_size). Chunks of which no layer above the base ever owned a page take no room in either.

A change comes behind its record in a layer's log. So room for it is made before that record (``make_room``), and if it
can't be written after all, the chunk stays in memory for good, and the table is given up: the maps have it.

Looking at chunks that are in memory takes no lock; getting one, and changing one, does.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Iterable, Iterator

from shm_server.stores import table
from shm_server.stores.clock import Clock, Kept
from shm_server.stores.maplog import Place
from shm_server.stores.table import Table

log = logging.getLogger(__name__)

CHUNK_PAGES = table.CHUNK_PAGES
CHUNK_BYTES = table.CHUNK_BYTES
CHUNK_SHIFT = CHUNK_PAGES.bit_length() - 1
CHUNK_MASK = CHUNK_PAGES - 1
LOADED_CHUNKS = 256  # in memory while all maps are read
BASE = 0
ZERO = 0xFFFF_FFFF

_BLOCK_PAGES = 1024  # owners that a file system gives room to at once
_EMPTY = array("I", bytes(CHUNK_BYTES))
_EMPTY_OWNERS = _EMPTY[:_BLOCK_PAGES]
_EMPTY_BLOCK = bytes(_BLOCK_PAGES * 4)


class Chunk:
    """So many neighbours' owners, in memory. Compared by identity."""

    __slots__ = ("_home", "_number", "is_pinned", "owners", "room", "was_used")

    def __init__(self, home: dict[int, Chunk], number: int, owners: array[int], room: int) -> None:
        self._home = home
        self._number = number
        self.owners = owners
        self.room = room  # a bit for each block that has its room in the file
        self.was_used = True
        self.is_pinned = False

    def throw_away(self) -> None:
        if not self.is_pinned:
            self._home.pop(self._number, None)


Room = list[tuple[int, Chunk, int, int]]  # a chunk, held whoever throws it away, and which of its pages [start, end)


class Owners:
    """``lock`` is for whoever must not wait: try it, then use the methods that say so."""

    def __init__(self, table: Table, cache: Clock) -> None:
        self._table = table
        self._cache = cache
        self.chunks: dict[int, Chunk] = {}  # those in memory
        self.known = bytearray()  # by chunk: something was ever set in it; behind its end: no
        self.lock = threading.Lock()

    # Beginning and end ----------------------------------------------------------------------------------------------

    def recall(self) -> Place | None:
        """Up to where in which layer's log an earlier life knew all: then use() that; or renew()."""
        return self._table.recall()

    def use(self, place: Place) -> bool:
        """False: it can't be had, after all."""
        try:
            self._table.use(place)
            for number in self._table.chunks():
                self._make_known(number)
        except OSError as error:
            log.error("the owners of a volume's pages can't be read, all its maps are: %s", error)
            return False
        return True

    def renew(self) -> None:
        """The base owns all."""
        self._table.renew()
        del self.known[:]

    def load(self, claims: Iterable[tuple[int, int, int]]) -> None:
        """First page, count, owner, the oldest first; before anybody looks."""
        kept: dict[int, array[int]] = {}  # or each page would be a system call
        for first, count, owner in claims:
            for number, start, end in _pieces(first, count):
                chunk = kept.get(number)
                if chunk is None:
                    self._make_known(number)
                    if len(kept) == LOADED_CHUNKS:
                        self._table.write(array("I", [owner]) * (end - start), number, start * 4)
                        continue
                    data = self._read(number)
                    chunk = kept[number] = array("I", data.ljust(CHUNK_BYTES, b"\0"))
                chunk[start:end] = array("I", [owner]) * (end - start)
        for number, chunk in kept.items():
            for at in range(0, CHUNK_PAGES, _BLOCK_PAGES):
                block = chunk[at : at + _BLOCK_PAGES]
                if block != _EMPTY_OWNERS:
                    self._table.write(block, number, at * 4)

    def note(self, place: Place) -> None:
        """All that is before it was set."""
        try:
            self._table.note(place)
        except OSError as error:
            self._give_up(error)

    def finish(self, place: Place) -> None:
        """The same, for the last time; and durable: what a later life finds it may believe."""
        try:
            self._table.finish(place, [number for number in range(len(self.known)) if self.known[number]])
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        gone: set[Kept] = set(self.chunks.values())
        if gone:
            self._cache.discard(gone)
        self._table.close()

    def _give_up(self, error: OSError) -> None:
        log.error("the owners of a volume's pages can't be kept, the next open reads all its maps: %s", error)
        try:
            self._table.give_up()
        except OSError as problem:
            log.error("nor can their file be removed: %s", problem)

    # Looking --------------------------------------------------------------------------------------------------------

    def now(self, first: int, count: int) -> array[int] | None:
        """The owner of each page of the range; None: not all of it can be had at once."""
        owners = array("I")
        for number, start, end in _pieces(first, count):
            chunk = self.chunks.get(number)
            if chunk is None and self.is_known(number):
                chunk = self._get_now(number)
                if chunk is None:
                    return None
            owners += self._cut(chunk, start, end)
        return owners

    def look(self, first: int, count: int) -> array[int]:
        """The same, whatever has to be read for it."""
        owners = array("I")
        for number, start, end in _pieces(first, count):
            owners += self._cut(self._find(number), start, end)
        return owners

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Owner, pages; of a range of any length. What is set meanwhile may be seen."""
        for number, start, end in _pieces(first, count):
            chunk = self._find(number)
            yield from ((BASE, end - start),) if chunk is None else runs_of(self._cut(chunk, start, end))

    def is_known(self, number: int) -> bool:
        return number < len(self.known) and self.known[number] != 0

    def _find(self, number: int) -> Chunk | None:
        """None: the base has all of it."""
        chunk = self.chunks.get(number)
        if chunk is None and self.is_known(number):
            with self.lock:
                chunk = self._get(number)
        return chunk

    def _cut(self, chunk: Chunk | None, start: int, end: int) -> array[int]:
        if chunk is None:
            return _EMPTY[start:end]
        chunk.was_used = True
        return chunk.owners[start:end]

    # Changing -------------------------------------------------------------------------------------------------------

    def make_room(self, first: int, count: int) -> Room:
        """For who has ``lock``: set() of what is given will find room, and never fails, until the lock is let go. Reads
        nothing for chunks that now() told of."""
        pieces = []
        for number, start, end in _pieces(first, count):
            chunk = self._get(number)
            pieces.append((number, chunk, start, end))
            for block in range(start // _BLOCK_PAGES, (end - 1) // _BLOCK_PAGES + 1):
                if not chunk.room >> block & 1:
                    at = block * _BLOCK_PAGES
                    self._table.write(chunk.owners[at : at + _BLOCK_PAGES], number, at * 4)
                    chunk.room |= 1 << block
        return pieces

    def set(self, room: Room, owner: int) -> None:
        """For who has ``lock``, and made room with it."""
        for number, chunk, start, end in room:
            piece = array("I", [owner]) * (end - start)
            try:
                # The file first: the chunk may be thrown away meanwhile, or was already.
                self._table.write(piece, number, start * 4)
                chunk.owners[start:end] = piece
            except OSError as error:
                chunk.owners[start:end] = piece
                chunk.is_pinned = True
                self.chunks[number] = chunk
                self._give_up(error)

    def _get(self, number: int) -> Chunk:
        chunk = self.chunks.get(number)
        if chunk is None:
            is_known = self.is_known(number)
            chunk = self._keep(number, self._read(number) if is_known else b"")
        return chunk

    def _read(self, number: int) -> bytes:
        try:
            return self._table.read(number)
        except OSError as error:
            self._give_up(error)  # the maps have it: for who opens the volume next
            raise

    def _get_now(self, number: int) -> Chunk | None:
        """None: it would have to be waited for."""
        if not self.lock.acquire(blocking=False):
            return None
        try:
            data = self._table.read_now(number)
            return None if data is None else self._keep(number, data)
        except OSError as error:
            self._give_up(error)
            raise
        finally:
            self.lock.release()

    def _keep(self, number: int, data: bytes) -> Chunk:
        if data:
            data = data.ljust(CHUNK_BYTES, b"\0")
            blocks = range(CHUNK_PAGES // _BLOCK_PAGES)
            step = len(_EMPTY_BLOCK)
            room = sum(1 << block for block in blocks if data[block * step : (block + 1) * step] != _EMPTY_BLOCK)
            chunk = Chunk(self.chunks, number, array("I", data), room)
        else:
            chunk = Chunk(self.chunks, number, array("I", _EMPTY), 0)
        self._make_known(number)
        self.chunks[number] = chunk
        self._cache.add(chunk)
        return chunk

    def _make_known(self, number: int) -> None:
        if number >= len(self.known):
            self.known += bytes(number + 1 - len(self.known))
        self.known[number] = 1


def _pieces(first: int, count: int) -> Iterable[tuple[int, int, int]]:
    """Chunk by chunk: its number, and which of its pages [start, end)."""
    start = first & CHUNK_MASK
    if 0 < count <= CHUNK_PAGES - start:  # nearly always; a generator takes longer than what is done with it
        return ((first >> CHUNK_SHIFT, start, start + count),)
    return _pieces_of_many(first, count)


def _pieces_of_many(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    end = first + count
    while first < end:
        start = first & CHUNK_MASK
        stop = min(CHUNK_PAGES, start + end - first)
        yield first >> CHUNK_SHIFT, start, stop
        first += stop - start


def runs_of(owners: array[int]) -> Iterator[tuple[int, int]]:
    """Owner, pages."""
    if not owners:
        return
    owner = owners[0]
    if owners.count(owner) == len(owners):
        yield owner, len(owners)
        return
    begin = 0
    for at, each in enumerate(owners):
        if each != owner:
            yield owner, at - begin
            owner, begin = each, at
    yield owner, len(owners) - begin
