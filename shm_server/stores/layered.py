"""A store that is a chain of layers: one that is written, over others that are not (docs/ON-DISK.md).

The first write to a page *claims* it for the top layer: the whole page goes to the top's data file, then a record to
its map, then its owner is noted; all of that is with the kernel before the write returns. From then on it is written in
place, as in a store without layers. What is not a whole page is completed from below first. Claims go one at a time;
writes to pages that the top owns, and reads, take no lock. Reads go by the owner of each page, one system call a run.

``push`` puts a new layer on top; whoever calls that sees to it that nothing else is under way (an exclusive claim on
the volume). ``sync`` makes everything below the top durable first, then the top's data, then the barrier in its map.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

from shm_server.stores.base import INLINE_BYTES, Chain, Store, Views, copy_by_buffer, views_after, views_until
from shm_server.stores.descriptor import MAX_INLINE_WRITE_BYTES, DescriptorStore, write_by_redo
from shm_server.stores.layer import Layer
from shm_server.stores.maplog import DATA, PAGE_BYTES, ZERO, MapLog, Run
from shm_server.stores.owners import ZERO as NOBODY
from shm_server.stores.owners import Owners
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES, RedoFile
from shm_server.stores.stack import BASE, Stack

WRITE_STEP_BYTES = INLINE_BYTES  # claimed at once
_zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)

Piece = tuple[int, int, int]  # owner, offset, length in bytes


class LayeredStore:
    """Owns its layers, oldest first, and ``redo``."""

    can_discard = True
    descriptor = -1  # no one file has the bytes
    max_atomic_write_bytes = MAX_ATOMIC_WRITE_BYTES
    inline_bytes = 0  # to punch and to fill may have to wait for who claims
    is_sync_instant = False  # and so may the barrier

    def __init__(self, layers: Sequence[Layer], owners: Owners, redo: RedoFile) -> None:
        self.stack = Stack(layers)
        self._owners = owners
        self._redo = redo
        self._base_bytes = self.stack.base.data.size_bytes()  # it has been sealed, or no page of it is written any more
        self._lock = threading.Lock()  # who claims pages, or takes them from the layers below
        self._unsealed = [layer for layer in layers if layer.is_writable]
        self._look_at_top()

    def _look_at_top(self) -> None:
        self._top_number = self.stack.top_number
        self._top = self.stack.top.data

    def load(self) -> None:
        """Resolve who owns what, from the layers' maps: before anything else."""
        for layer in self.stack.all_layers():
            for kind, first, count in _joined(layer.runs()):
                self._owners.set(first, count, layer.file.number if kind == DATA else NOBODY)

    # Reading --------------------------------------------------------------------------------------------------------

    def read_now(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        first = offset // PAGE_BYTES
        runs = self._owners.now(first, -(-(offset + total) // PAGE_BYTES) - first)
        if runs is None:
            return 0
        done = 0
        for owner, at, length in self._pieces(runs, offset, total):
            done_now = self._read_piece_now(owner, _cut(views, done, length, total), at)
            done += done_now
            if done_now < length:
                break
        return done

    def _read_piece_now(self, owner: int, views: Views, offset: int) -> int:
        if owner == NOBODY:
            return os.preadv(_zeros, views, 0)
        reader = self.stack[owner].reader  # held: without a reference to it its file may be closed before it is read
        return reader.read_now(views, offset)

    def read(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        first = offset // PAGE_BYTES
        runs = self._owners.runs(first, -(-(offset + total) // PAGE_BYTES) - first)
        done = 0
        for owner, at, length in self._pieces(runs, offset, total):
            piece = _cut(views, done, length, total)
            if owner == NOBODY:
                _read_zeros(piece, length)
            else:
                self.stack[owner].reader.read(piece, at)
            done += length
        return total

    def _pieces(self, runs: Sequence[tuple[int, int]], offset: int, total: int) -> Iterator[Piece]:
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
        while done < length:
            first = (offset + done) // PAGE_BYTES
            step = min(length - done, WRITE_STEP_BYTES * 64)
            runs = self._owners.runs(first, -(-(offset + done + step) // PAGE_BYTES) - first)
            for owner, at, piece_length in self._pieces(runs, offset + done, step):
                if owner == NOBODY:
                    is_data, run = False, piece_length
                else:
                    is_data, run = self.stack[owner].data.extent(at, piece_length)
                if found is not None and is_data is not found:
                    return found, done
                found = is_data
                done += run
                if run < piece_length:
                    return found, done
        return bool(found), done

    @property
    def base_number(self) -> int:
        return self.stack.base.file.number

    def sources(self, first: int, count: int) -> list[tuple[int, int]]:
        """Who has each page of a range: runs of a layer's number, or NOBODY, and pages. Any thread."""
        runs = self._owners.runs(first, count)
        return [(owner if owner == NOBODY else self.stack[owner].file.number, pages) for owner, pages in runs]

    # Writing --------------------------------------------------------------------------------------------------------

    def write_now(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        first = offset // PAGE_BYTES
        count = -(-(offset + total) // PAGE_BYTES) - first
        runs = self._owners.now(first, count)
        if runs is None:
            return 0
        if len(runs) == 1 and runs[0][0] == self._top_number:
            return self._top.write_now(views, offset)
        if (offset | total) % PAGE_BYTES or total > MAX_INLINE_WRITE_BYTES or not self._lock.acquire(blocking=False):
            return 0
        try:
            if not self._owners.lock.acquire(blocking=False):
                return 0
            try:
                done = self._top.write_now(views, offset) // PAGE_BYTES * PAGE_BYTES
                if done:
                    self._log.append(DATA, first, done // PAGE_BYTES)
                    self._owners.set_locked(first, done // PAGE_BYTES, self._top_number)
                return done
            finally:
                self._owners.lock.release()
        finally:
            self._lock.release()

    def write(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        done = 0
        while done < total:
            # Up to a page's end, so that a claim in several steps completes no page twice.
            step = min(total - done, WRITE_STEP_BYTES - (offset + done) % PAGE_BYTES)
            self._write_step(_cut(views, done, step, total), offset + done, step)
            done += step
        return total

    def write_bytes(self, data: bytes, offset: int) -> None:
        self.write((memoryview(data),), offset)

    def _write_step(self, views: Views, offset: int, length: int) -> None:
        first = offset // PAGE_BYTES
        count = -(-(offset + length) // PAGE_BYTES) - first
        if self._is_top_only(first, count):
            self._top.write(views, offset)
            return
        with self._lock:
            if self._is_top_only(first, count):
                self._top.write(views, offset)
            else:
                self._claim(views, offset, length)

    def _is_top_only(self, first: int, count: int) -> bool:
        runs = self._owners.runs(first, count)
        return len(runs) == 1 and runs[0][0] == self._top_number

    def _claim(self, views: Views, offset: int, length: int) -> None:
        """Write, with the edges' pages completed from below where the top has them not. The caller has the lock."""
        end = offset + length
        head_bytes, tail_bytes = offset % PAGE_BYTES, -end % PAGE_BYTES
        whole = list(views)
        if head_bytes and not self._is_top_only(offset // PAGE_BYTES, 1):
            offset -= head_bytes
            whole.insert(0, self._copy(offset, head_bytes))
        if tail_bytes and not self._is_top_only(end // PAGE_BYTES, 1):
            whole.append(self._copy(end, tail_bytes))
            end += tail_bytes
        self._top.write(whole, offset)
        first = offset // PAGE_BYTES
        count = -(-end // PAGE_BYTES) - first
        self._log.append(DATA, first, count)
        self._owners.set(first, count, self._top_number)

    def _copy(self, offset: int, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        self.read((buffer,), offset)
        return buffer

    @property
    def _log(self) -> MapLog:
        log = self.stack.top.log
        assert log is not None, "the top of a chain has a map"
        return log

    def write_atomic(self, data: bytes, offset: int) -> None:
        self._top.allocate(offset, len(data))
        write_by_redo(self._redo, data, offset, self.write_bytes, self._sync_layers)

    def fill(self, pattern: memoryview, offset: int) -> int:
        return self.write((pattern,), offset)

    def copy_from(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        copy_by_buffer(self, source, source_offset, offset, length)

    # Giving back ----------------------------------------------------------------------------------------------------

    def punch(self, offset: int, length: int) -> None:
        """In the top's own pages by a hole; where layers below have data, by a record that nobody has the page."""
        end = offset + length
        inner, inner_end = -(-offset // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
        if inner >= inner_end:
            self._clear_edge(offset, length)
            return
        self._clear_edge(offset, inner - offset)
        self._clear_edge(inner_end, end - inner_end)
        with self._lock:
            runs = self._owners.runs(inner // PAGE_BYTES, (inner_end - inner) // PAGE_BYTES)
            for owner, at, piece_length in list(self._pieces(runs, inner, inner_end - inner)):
                if owner == self._top_number:
                    self._top.punch(at, piece_length)
                elif owner != NOBODY:
                    self._hide(self.stack[owner].data, at, piece_length)

    def _hide(self, below: DescriptorStore, offset: int, length: int) -> None:
        """What a layer below has in the range is nobody's now; its holes need no record."""
        done = 0
        while done < length:
            is_data, run = below.extent(offset + done, length - done)
            if is_data:
                first = (offset + done) // PAGE_BYTES
                count = -(-(offset + done + run) // PAGE_BYTES) - first
                self._log.append(ZERO, first, count)
                self._owners.set(first, count, NOBODY)
            done += run

    def _clear_edge(self, offset: int, length: int) -> None:
        """Parts of at most two pages."""
        if length:
            first = offset // PAGE_BYTES
            runs = self._owners.runs(first, -(-(offset + length) // PAGE_BYTES) - first)
            if runs != [(NOBODY, runs[0][1])]:
                self.write((memoryview(bytes(length)),), offset)

    def zero(self, offset: int, length: int) -> bool:
        return False  # the space of pages that the top does not own would have to be made first: zeros are written

    # Durability -----------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        self._sync_layers()
        self._redo.sync()

    def _sync_layers(self) -> None:
        for layer in list(self._unsealed):
            log = layer.log
            covered = 0
            if log is not None:
                covered = log.claimed  # before the sync: what is claimed while we wait is not covered
            layer.data.sync_data()
            if log is not None and log.is_behind(covered):
                with self._lock:
                    log.barrier(covered)
                log.sync(covered)

    @property
    def must_sync(self) -> bool:
        log = self._log
        return log.is_behind(log.claimed)

    def scrub(self) -> None:
        self._redo.scrub()

    @property
    def dirty_bytes(self) -> int:
        return self._top.dirty_bytes

    # The chain ------------------------------------------------------------------------------------------------------

    def index_of_top(self, chain: Chain) -> int:
        """Where our top is in ``chain``."""
        return [file.number for file in chain].index(self.stack.top.file.number)

    def push(self, layer: Layer) -> None:
        """A new, empty layer on top. Nothing else is under way but, perhaps, sync()."""
        layer.runs()  # there are none, but that opens its map
        self.stack.push(layer)
        self._unsealed.append(layer)
        self._look_at_top()

    def seal(self) -> None:
        """Everything below the top is durable (sync() was called behind push()) and noted so in the catalogue."""
        for layer in self._unsealed[:-1]:
            layer.seal()
        del self._unsealed[:-1]

    def replace(self, upper: int) -> None:
        """A layer, meant by its number, was merged into the one below."""
        if (layer := self.stack.remove(upper)) is not None:
            layer.leave()
            self._look_at_top()  # where nothing is written that may have been it

    def rebase(self, number: int) -> None:
        """The layer of that number has all that those below it had: it is the base."""
        gone = self.stack.rebase(number)
        for layer in gone:
            layer.leave()
        if gone:
            base = self.stack.base
            base.file = replace(base.file, is_base=True)
            self._base_bytes = base.data.size_bytes()
            self._look_at_top()

    def resize(self, size_bytes: int) -> None:
        self._top.resize(size_bytes)

    def allocated_bytes(self) -> int:
        """Of the layers that were made for the volume, not of those that it shares."""
        uuid = self.stack.top.file.uuid
        return sum(layer.allocated_bytes() for layer in self.stack.all_layers() if layer.file.uuid == uuid)

    def close(self) -> None:
        for layer in self.stack.all_layers():
            layer.close()
        self._owners.close()
        self._redo.close()


def _joined(runs: Sequence[Run]) -> Iterator[Run]:
    """Neighbours that were claimed one behind the other are one run."""
    kind, first, end = DATA, 0, 0
    for run in runs:
        if run.kind == kind and run.first == end:
            end += run.pages
        else:
            if end > first:
                yield Run(kind, first, end - first)
            kind, first, end = run.kind, run.first, run.first + run.pages
    if end > first:
        yield Run(kind, first, end - first)


def _cut(views: Views, done: int, length: int, total: int) -> Views:
    """The ``length`` bytes of ``views`` behind the first ``done``."""
    if length == total:
        return views
    return views_until(views_after(views, done) if done else views, length)


def _read_zeros(views: Views, length: int) -> None:
    done = 0
    while done < length:
        done += os.preadv(_zeros, views_after(views, done), 0)
