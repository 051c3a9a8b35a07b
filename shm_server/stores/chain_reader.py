"""Reading a chain of layers: by the owner of each page, one system call a run (owners.py, stack.py).

``read_now`` is the path of nearly every I/O: it says in a line what other methods here say in a call. First it looks
for a lane (lanes.py), which has answered all questions before; else a page is looked for as what it is, the page of an
open file that was verified. Where every page of a request has another owner, the loop over them is the interpreter's
own (``map``), as long as nothing has to be waited for, opened or verified; who has to goes from one to the next.

Whoever reads holds the reader, or its file may be closed meanwhile, and the number of its descriptor be another's.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from operator import attrgetter, call, eq, ne
from typing import TypeVar

from shm_server.stores.base import INLINE_BYTES, Views, views_after, views_until
from shm_server.stores.lanes import LANE_PAGES, LANE_SHIFT, Lanes
from shm_server.stores.layer import Layer
from shm_server.stores.maplog import PAGE_BYTES
from shm_server.stores.owners import BASE, CHUNK_MASK, CHUNK_PAGES, CHUNK_SHIFT, Chunk, Owners, runs_of
from shm_server.stores.owners import ZERO as NOBODY
from shm_server.stores.stack import Nobody, Stack
from shm_server.stores.verified import CHUNK_SHIFT as VERIFIED_CHUNK_SHIFT

STEP_BYTES = INLINE_BYTES  # read at once where the owners change from page to page

T = TypeVar("T")

PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
PAGE_MASK = PAGE_BYTES - 1
CHUNK_BYTES_SHIFT = CHUNK_SHIFT + PAGE_SHIFT
_PAGES = [slice(at, at + PAGE_BYTES) for at in range(0, STEP_BYTES, PAGE_BYTES)]  # of a step
_is_plain = attrgetter("is_plain")
_reader = attrgetter("reader")
data_of = attrgetter("data")
_LEARN_MASK = (64 << 10) - 1  # a page of so many asks for its lane

assert VERIFIED_CHUNK_SHIFT == CHUNK_SHIFT, "a page has one place in both"

Piece = tuple[int, int, int]  # owner, offset, length in bytes


class ChainReader:
    """Of layers, oldest first, of which ``owners`` are resolved before anybody reads."""

    def __init__(self, layers: Sequence[Layer], owners: Owners) -> None:
        self.stack = Stack(layers)
        self._owners = owners
        self._chunks, self._known = owners.chunks, owners.known
        checks, self._verified = layers[0].checking  # all layers have one
        self._verified_chunks = self._verified.chunks
        self._lanes = Lanes(self._verified, checks.lanes)
        self._lanes_found = self._lanes.found
        self._base_bytes = self.stack.base.data.size_bytes()  # it has been sealed, or no page of it is written any more

    def read_now(self, views: Views, offset: int) -> int:
        try:
            (view,) = views
            length = len(view)
        except ValueError:  # there are several
            length = sum(map(len, views))
        lane = self._lanes_found.get(offset >> LANE_SHIFT)
        if lane is not None and offset + length <= lane.end:
            layer = lane.layer
            reader = layer.open_reader  # held: without a reference its file may be closed while it is read
            if reader is not None:
                lane.was_used = layer.was_used = True
                return os.preadv(reader.memory_descriptor, views, offset)
        chunk = self._chunks.get(offset >> CHUNK_BYTES_SHIFT)
        if chunk is None or (offset & PAGE_MASK) + length > PAGE_BYTES:
            return self._read_pages_now(chunk, views, offset, length)
        page = offset >> PAGE_SHIFT & CHUNK_MASK
        owner = chunk.owners[page]
        layer = self.stack[owner]
        reader = layer.open_reader
        if reader is None or (not owner and offset + length > self._base_bytes):
            return self._read_pages_now(chunk, views, offset, length)
        chunk.was_used = layer.was_used = True
        if not offset & _LEARN_MASK:
            self._learn_lane(owner, chunk, offset)
        if not reader.is_plain:
            seen = self._verified_chunks.get(offset >> CHUNK_BYTES_SHIFT)
            if seen is None or not seen.bits[page >> 3] >> (page & 7) & 1:
                return reader.read_now(views, offset)
            seen.was_used = True
        return reader.read_verified(views, offset)

    def _learn_lane(self, owner: int, chunk: Chunk | None, offset: int) -> None:
        """Who owns this page may own all pages about it; None: the base has the whole chunk."""
        if not self._owners.lock.acquire(blocking=False):
            return
        try:
            number = offset >> LANE_SHIFT
            begin, end = number << LANE_SHIFT, number + 1 << LANE_SHIFT
            first = (begin >> PAGE_SHIFT) & CHUNK_MASK
            if self._chunks.get(offset >> CHUNK_BYTES_SHIFT) is not chunk:
                return
            if chunk is not None and chunk.owners[first : first + LANE_PAGES] != array("I", (owner,)) * LANE_PAGES:
                return
            if chunk is None and self._owners.is_known(offset >> CHUNK_BYTES_SHIFT):
                return
            if owner == BASE:
                end = min(end, self._base_bytes)
            self._lanes.note(number, self.stack[owner], end)
        finally:
            self._owners.lock.release()

    def _read_pages_now(self, chunk: Chunk | None, views: Views, offset: int, length: int) -> int:
        """Pages, or what may be in a chunk that is not in memory, in the base, or in a file that is not open."""
        first, count = pages_of(offset, length)
        start, number = first & CHUNK_MASK, first >> CHUNK_SHIFT
        if start + count > CHUNK_PAGES or (chunk is None and self._owners.is_known(number)):
            return self._read_some_now(views, offset, length)
        owner = BASE
        if chunk is not None:
            chunk.was_used = True
            owner = chunk.owners[start]
            if count > 1 and (owners := chunk.owners[start : start + count]) != array("I", (owner,)) * count:
                return self._read_pieces_now(owners, views, offset, length)
        if owner == BASE and offset + length > self._base_bytes:
            return self._read_some_now(views, offset, length)
        if not offset & _LEARN_MASK:
            self._learn_lane(owner, chunk, offset)
        layer = self.stack[owner]
        layer.was_used = True
        reader = layer.open_reader or layer.reader
        return reader.read_now(views, offset)

    def _read_some_now(self, views: Views, offset: int, length: int) -> int:
        first, count = pages_of(offset, length)
        owners = self._owners.now(first, count)
        return 0 if owners is None else self._read_pieces_now(owners, views, offset, length)

    def _read_pieces_now(self, owners: array[int], views: Views, offset: int, length: int) -> int:
        done = 0
        if len(views) > 1 or offset + length > self._base_bytes:
            for owner, at, piece_length in self._pieces(runs_of(owners), offset, length):
                reader = self.stack[owner].reader
                piece_done = reader.read_now(cut(views, done, piece_length, length), at)
                done += piece_done
                if piece_done < piece_length:
                    break
            return done
        (view,) = views
        while done < length:
            step = min(length - done, STEP_BYTES - (offset + done & PAGE_MASK))
            count = pages_of(offset + done, step)[1]
            piece, piece_owners, owners = view[done : done + step], owners[:count], owners[count:]
            if self._read_open_now(piece_owners, piece, offset + done):
                done += step
                continue
            piece_done = self._read_each_now(piece_owners, piece, offset + done)
            done += piece_done
            if piece_done < step:
                break
        return done

    def _read_open_now(self, owners: array[int], view: memoryview, offset: int) -> bool:
        """Without a line of Python for each page, where every page may have another owner than the one before it.
        False: not so. A file is not open, a page has to be looked at first, or could not be had."""
        who, pieces, places = _ranges_of(owners, view, offset)
        layers = list(map(self.stack.__getitem__, who))
        readers = []  # held: without a reference a file may be closed while it is read, and its number be another's
        for layer in layers:
            layer.was_used = True
            reader = layer.open_reader
            if reader is None:
                return False
            readers.append(reader)
        first = offset >> PAGE_SHIFT
        are_plain = all(map(_is_plain, readers))
        if not are_plain and not self._verified.has(first, first + len(owners) - 1):
            return False
        descriptors = [reader.memory_descriptor for reader in readers]
        try:
            if -1 in descriptors:
                done = map(call, [reader.read_verified for reader in readers], zip(pieces, strict=True), places)
            else:
                done = map(os.preadv, descriptors, zip(pieces, strict=True), places)
            return all(map(eq, done, map(len, pieces)))
        except OSError:
            return False  # who goes from one to the next says where

    def _read_each_now(self, owners: array[int], view: memoryview, offset: int) -> int:
        """One by one, up to the first that can't be had at once."""
        stack, done = self.stack, 0
        start = piece = offset >> PAGE_SHIFT & CHUNK_MASK
        seen = self._verified_chunks.get(offset >> CHUNK_BYTES_SHIFT)
        bits = b"" if seen is None or start + len(owners) > CHUNK_PAGES else seen.bits
        owner, end = owners[0], -(offset & PAGE_MASK)
        for page, each in enumerate(owners, start):
            if each != owner:
                layer = stack[owner]
                layer.was_used = True
                reader = layer.open_reader or layer.reader
                is_verified = bits and page - piece == 1 and bits[piece >> 3] >> (piece & 7) & 1
                read = reader.read_verified if is_verified else reader.read_now
                done += read((view[done:end],), offset + done)
                if done < end:
                    return done
                owner, piece = each, page
            end += PAGE_BYTES
        reader = stack[owner].reader
        return done + reader.read_now((view[done:],), offset + done)

    def read(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        owners = self._owners.look(*pages_of(offset, total))
        done = 0
        for owner, at, length in self._pieces(runs_of(owners), offset, total):
            self._read_piece(owner, cut(views, done, length, total), at)
            done += length
        return total

    def _read_piece(self, owner: int, views: Views, offset: int) -> None:
        self._opened(owner, _reader).read(views, offset)

    def _opened(self, owner: int, what: Callable[[Layer | Nobody], T]) -> T:
        """What a layer has open; opened on a thread, beside whoever merges it."""
        layer = self.stack[owner]
        try:
            return what(layer)
        except OSError:
            # It may just have been merged into another, and its file removed before we had it open.
            if self.stack[owner] is layer:
                raise
            return what(self.stack[owner])

    def _pieces(self, runs: Iterable[tuple[int, int]], offset: int, total: int) -> Iterator[Piece]:
        """Runs of pages as ranges of bytes, none beyond what was asked; behind its end the base has zeros."""
        end = offset + total
        page_end = offset // PAGE_BYTES * PAGE_BYTES
        at = offset
        for owner, count in runs:
            page_end += count * PAGE_BYTES
            stop = min(page_end, end)
            if owner == BASE and stop > self._base_bytes:
                if at < self._base_bytes:
                    yield owner, at, self._base_bytes - at
                    at = self._base_bytes
                owner = NOBODY
            yield owner, at, stop - at
            at = stop

    def extent(self, offset: int, length: int) -> tuple[bool, int]:
        found: bool | None = None
        done = 0
        for owner, at, piece_length in self._pieces(self._owners.runs(*pages_of(offset, length)), offset, length):
            is_data, run = self._opened(owner, data_of).extent(at, piece_length)
            if found is not None and is_data is not found:
                break
            found = is_data
            done += run
            if run < piece_length:
                break
        return bool(found), done

    @property
    def base_number(self) -> int:
        return self.stack.base.file.number

    def sources(self, first: int, count: int) -> list[tuple[int, int]]:
        """Who has each page of a range: runs of a layer's number, or NOBODY, and pages. Any thread."""
        return [(self.stack.number_of(owner), pages) for owner, pages in self._owners.runs(first, count)]


def pages_of(offset: int, length: int) -> tuple[int, int]:
    """First and count of those that a range of bytes touches."""
    first = offset >> PAGE_SHIFT
    return first, (offset + length + PAGE_MASK >> PAGE_SHIFT) - first


def _ranges_of(
    owners: array[int], view: memoryview, offset: int
) -> tuple[Iterable[int], Sequence[memoryview], Iterable[int]]:
    """Owner, bytes and place of each run."""
    length, later = len(view), owners[1:]
    changes = list(map(ne, later, owners))
    if 4 * changes.count(True) > 3 * len(changes) and not (offset | length) & PAGE_MASK:
        # Looking for the few runs of two would take longer than reading them as two.
        return owners, list(map(view.__getitem__, _PAGES[: len(owners)])), range(offset, offset + length, PAGE_BYTES)
    begins = [0, *compress(range(PAGE_BYTES - (offset & PAGE_MASK), length, PAGE_BYTES), changes)]
    pieces = [view[begin:end] for begin, end in zip(begins, (*begins[1:], length), strict=True)]
    return (owners[0], *compress(later, changes)), pieces, map(offset.__add__, begins)


def cut(views: Views, done: int, length: int, total: int) -> Views:
    """The ``length`` bytes of ``views`` behind the first ``done``."""
    if length == total:
        return views
    return views_until(views_after(views, done) if done else views, length)
