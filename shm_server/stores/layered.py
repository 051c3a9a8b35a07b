"""A store that is a chain of layers: one that is written, over others that are not (docs/ON-DISK.md).

The first write to a page *claims* it for the top layer: the whole page goes to the top's data file, then a record to
its map, then its owner is noted; all of that is with the kernel before the write returns. From then on it is written in
place, as in a store without layers. What is not a whole page is completed from below first. Claims go one at a time;
writes to pages that the top owns, and reads (chain_reader.py), take no lock.

``push`` puts a new layer on top; whoever calls that sees to it that nothing else is under way (an exclusive claim on
the volume). ``sync`` makes everything below the top durable first, then the top's data, then the barrier in its map.

``write_now`` is the path of nearly every write: it says in a line what other methods here say in a call.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from shm_server.stores.base import INLINE_BYTES, Store, Views, copy_by_buffer
from shm_server.stores.chain_reader import CHUNK_BYTES_SHIFT, PAGE_MASK, PAGE_SHIFT, ChainReader, cut, data_of, pages_of
from shm_server.stores.descriptor import DescriptorStore, write_by_redo
from shm_server.stores.layer import Layer, close_all
from shm_server.stores.maplog import DATA, PAGE_BYTES, ZERO, MapLog, Place, Run
from shm_server.stores.owners import BASE, CHUNK_MASK, Owners
from shm_server.stores.owners import ZERO as NOBODY
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES, RedoFile
from shm_server.stores.stack import Nobody

WRITE_STEP_BYTES = INLINE_BYTES  # claimed at once
CLAIM_STEP_BYTES = 1 << 30  # of pages that are cleared
ATOMIC_RECORDS = 64  # that there is room for before an atomic write: its own, and those of who writes beside it
NOTE_BYTES = 512 << 10  # of the top's log, that are read again at most when the process was killed


class LayeredStore(ChainReader):
    """Owns its layers, oldest first, ``owners`` and ``redo``."""

    can_discard = True
    descriptor = -1  # no one file has the bytes
    max_atomic_write_bytes = MAX_ATOMIC_WRITE_BYTES
    inline_bytes = 0  # to punch and to fill may have to wait for who claims

    def __init__(self, layers: Sequence[Layer], owners: Owners, redo: RedoFile) -> None:
        super().__init__(layers, owners)
        self._redo = redo
        self._lock = threading.Lock()  # who claims pages, or takes them from the layers below
        self._unsealed = [layer for layer in layers if layer.is_writable]
        self._noted_bytes = 0  # of the top's log
        self._look_at_top()
        self.is_sync_instant = self._top.is_sync_instant  # all layers lie on one file system

    def _look_at_top(self) -> None:
        self._top_number = self.stack.top_number
        self._top = self.stack.top.data
        self._top_write_now = self._top.write_now

    def load(self) -> None:
        """Resolve who owns what: by what an earlier life has left, else from the layers' maps. Before anything else."""
        place = self._owners.recall()
        if place is not None and ((known := self.stack.find(place.layer)) is None or not known.has(place)):
            place = None
        if place is None or not self._owners.use(place):
            place = None
            self._owners.renew()
        self._owners.load(self._claims_behind(place))
        if self.stack.top.log is not None:
            self._note()

    def _claims_behind(self, place: Place | None) -> Iterator[tuple[int, int, int]]:
        """All that the owners don't know yet, the oldest first."""
        for layer in self.stack.all_layers():
            number = BASE if layer is self.stack.base else layer.file.number
            if place is None or number > place.layer:
                yield from _claims(number, layer.runs())
            elif number == place.layer:
                yield from _claims(number, layer.runs(place))
            elif layer.is_writable:
                layer.runs()  # is all known; but that opens its map

    def _note(self) -> None:
        """All that the top's log says is known to the owners; for who has the lock, or is alone."""
        place = self._log.place()
        self._owners.note(place)
        self._noted_bytes = place.length

    # Writing --------------------------------------------------------------------------------------------------------

    def write_now(self, views: Views, offset: int) -> int:
        try:
            chunk = self._chunks[offset >> CHUNK_BYTES_SHIFT]
            (view,) = views
        except (KeyError, ValueError):  # it is not in memory; there are several
            return self._write_some_now(views, offset)
        if (
            chunk.owners[offset >> PAGE_SHIFT & CHUNK_MASK] == self._top_number
            and (offset & PAGE_MASK) + len(view) <= PAGE_BYTES
        ):
            chunk.was_used = True
            return self._top_write_now(views, offset)
        return self._write_some_now(views, offset)

    def _write_some_now(self, views: Views, offset: int) -> int:
        """Where nothing has to be waited for: what is memory has all it needs for that, a disk for whole pages."""
        length = sum(map(len, views))
        first, count = pages_of(offset, length)
        owners = self._owners.now(first, count)
        if not owners:
            return 0
        if owners == array("I", (self._top_number,)) * count:
            return self._top_write_now(views, offset)
        is_whole = not (offset | length) & PAGE_MASK
        if not (self.is_sync_instant or (is_whole and self._log.has_room)) or not self._lock.acquire(blocking=False):
            return 0
        try:
            whole, begin = (views, offset) if is_whole else self._completed(views, offset, length)
            if not self._owners.lock.acquire(blocking=False):
                return 0
            try:
                first, end = begin // PAGE_BYTES, (begin + self._top_write_now(whole, begin)) // PAGE_BYTES
                if end <= first:
                    return 0
                self._claim_locked(DATA, first, end - first)
                return min(length, end * PAGE_BYTES - offset)
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
            self._write_step(cut(views, done, step, total), offset + done, step)
            done += step
        return total

    def write_bytes(self, data: bytes, offset: int) -> None:
        self.write((memoryview(data),), offset)

    def _write_step(self, views: Views, offset: int, length: int) -> None:
        first, count = pages_of(offset, length)
        if self._is_top_only(first, count):
            self._top.write(views, offset)
            return
        with self._lock:
            whole, begin = self._completed(views, offset, length)
            self._top.write(whole, begin)
            self._claim(DATA, begin, sum(map(len, whole)))

    def _is_top_only(self, first: int, count: int) -> bool:
        return self._owners.look(first, count).count(self._top_number) == count

    def _completed(self, views: Views, offset: int, length: int) -> tuple[Views, int]:
        """With the edges' pages whole, from below, where the top has them not; and where that begins."""
        end = offset + length
        head_bytes, tail_bytes = offset % PAGE_BYTES, -end % PAGE_BYTES
        whole = list(views)
        begin = offset
        if head_bytes and not self._is_top_only(offset // PAGE_BYTES, 1):
            begin -= head_bytes
            whole.insert(0, self._copy(begin, head_bytes))
        if tail_bytes and not self._is_top_only(end // PAGE_BYTES, 1):
            whole.append(self._copy(end, tail_bytes))
        return whole, begin

    def _copy(self, offset: int, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        self.read((buffer,), offset)
        return buffer

    def _claim(self, kind: int, offset: int, length: int) -> None:
        """These pages are the top's, or nobody's; their data are there. The caller has the lock."""
        end = offset + length
        while offset < end:  # so that not all of their chunks come to memory at once
            step = min(end - offset, CLAIM_STEP_BYTES)
            with self._owners.lock:
                self._claim_locked(kind, *pages_of(offset, step))
            offset += step

    def _claim_locked(self, kind: int, first: int, count: int) -> None:
        """The same for who has the owners' lock, too. It fails as a whole, and before anything was noted."""
        room = self._owners.make_room(first, count)
        log = self._log
        log.append(kind, first, count)
        self._lanes.drop(first, count)
        self._owners.set(room, self._top_number if kind == DATA else NOBODY)
        if log.claimed > self._noted_bytes + NOTE_BYTES:
            self._note()

    @property
    def _log(self) -> MapLog:
        log = self.stack.top.log
        assert log is not None, "the top of a chain has a map"
        return log

    def write_atomic(self, data: bytes, offset: int) -> None:
        first, count = pages_of(offset, len(data))
        self._top.allocate(first * PAGE_BYTES, count * PAGE_BYTES)
        with self._lock:
            # Whatever else may fail is to fail now: what has its redo record must go to its place.
            self._completed((memoryview(data),), offset, len(data))
            with self._owners.lock:
                self._owners.make_room(first, count)
                self._log.make_room(ATOMIC_RECORDS)
        write_by_redo(self._redo, data, offset, self.write_bytes, self._sync_layers)

    def fill(self, pattern: memoryview, offset: int) -> int:
        return self.write((pattern,), offset)

    def copy_from(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        copy_by_buffer(self, source, source_offset, offset, length)

    # Giving back ----------------------------------------------------------------------------------------------------

    def punch(self, offset: int, length: int) -> None:
        """In the top's own pages by a hole; where layers below have data, by a record that nobody has the page."""
        inner, inner_end = self._clear_edges(offset, length)
        with self._lock:
            runs = self._owners.runs(*pages_of(inner, inner_end - inner))
            for owner, at, piece_length in self._pieces(runs, inner, inner_end - inner):
                if owner == self._top_number:
                    self._top.punch(at, piece_length)
                elif owner != NOBODY:
                    self._hide(self._opened(owner, data_of), at, piece_length)

    def _hide(self, below: DescriptorStore | Nobody, offset: int, length: int) -> None:
        """What a layer below has in the range is nobody's now; its holes need no record."""
        done = 0
        while done < length:
            is_data, run = below.extent(offset + done, length - done)
            if is_data:
                self._claim(ZERO, offset + done, run)
            done += run

    def _clear_edges(self, offset: int, length: int) -> tuple[int, int]:
        """Parts of pages read zeros; from where to where there are whole ones in between."""
        end = offset + length
        inner, inner_end = -(-offset // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
        if inner >= inner_end:
            self._clear_edge(offset, length)
            return inner, inner
        self._clear_edge(offset, inner - offset)
        self._clear_edge(inner_end, end - inner_end)
        return inner, inner_end

    def _clear_edge(self, offset: int, length: int) -> None:
        """Parts of at most two pages."""
        if length:
            owners = self._owners.look(*pages_of(offset, length))
            if owners.count(NOBODY) < len(owners):
                self.write((memoryview(bytes(length)),), offset)

    def zero(self, offset: int, length: int) -> bool:
        if self.is_sync_instant:
            return False  # as a store without layers: there zeros are written
        inner, inner_end = self._clear_edges(offset, length)
        if inner == inner_end:
            return True
        with self._lock:
            if not self._top.zero(inner, inner_end - inner):
                return False
            for owner, at, piece_length in self._pieces(
                self._owners.runs(*pages_of(inner, inner_end - inner)), inner, inner_end - inner
            ):
                if owner != self._top_number:
                    self._claim(DATA, at, piece_length)
        return True

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
            # In memory the barrier is for who copies the files elsewhere; but below the top, for who will seal them.
            is_top = layer is self.stack.top
            if log is None:
                continue
            if log.is_behind(covered) and self._lock.acquire(blocking=not self.is_sync_instant or not is_top):
                try:
                    log.barrier(covered)
                    self._note()
                finally:
                    self._lock.release()
                log.sync(covered)
            if not is_top:
                with self._lock:
                    log.witness()

    @property
    def must_settle(self) -> bool:
        return self.stack.top.log is not None

    def settle(self) -> None:
        self.sync()
        logs = [layer.log for layer in self._unsealed if layer.log is not None]
        if not any(log.is_behind(log.claimed) for log in logs):
            self._log.witness()
            self._owners.finish(self._log.place())

    def scrub(self) -> None:
        self._redo.scrub()

    @property
    def dirty_bytes(self) -> int:
        return self._top.dirty_bytes

    # The chain ------------------------------------------------------------------------------------------------------

    def push(self, layer: Layer) -> None:
        """A new, empty layer on top, or all is as it was. Nothing else is under way but, perhaps, sync()."""
        layer.runs()  # there are none, but that opens its map
        layer.data  # noqa: B018 - opens it, or fails, before anything looks at it
        with self._lock:
            self.stack.push(layer)
            self._unsealed.append(layer)
            self._look_at_top()
            self._note()

    def seal(self) -> None:
        """Everything below the top is durable (sync() was called behind push()) and noted so in the catalogue."""
        for layer in self._unsealed[:-1]:
            layer.seal()
        del self._unsealed[:-1]

    def replace(self, upper: int) -> None:
        """A layer, meant by its number, was merged into the one below."""
        if (layer := self.stack.remove(upper)) is not None:
            layer.leave()
            self._top_may_have_gone()

    def rebase(self, number: int) -> None:
        """The layer of that number has all that those below it had: it is the base."""
        gone = self.stack.rebase(number)
        for layer in gone:
            layer.leave()
        if gone:
            base = self.stack.base
            base.file = replace(base.file, is_base=True)
            self._base_bytes = base.data.size_bytes()
            self._top_may_have_gone()

    def _top_may_have_gone(self) -> None:
        """Only where nothing is written. The top of others stays, and push() may be looking at it just now."""
        if not self._unsealed:
            self._look_at_top()

    def resize(self, size_bytes: int) -> None:
        self._top.resize(size_bytes)

    def allocated_bytes(self) -> int:
        """Of the layers that were made for the volume, not of those that it shares."""
        uuid = self.stack.top.file.uuid
        return sum(layer.allocated_bytes() for layer in self.stack.all_layers() if layer.file.uuid == uuid)

    def close(self) -> None:
        close_all(self.stack.all_layers())
        self._owners.close()
        self._lanes.close()
        self._redo.close()


def _claims(number: int, runs: Iterable[Run]) -> Iterator[tuple[int, int, int]]:
    """First page, count, owner; neighbours that were claimed one behind the other are one run."""
    kind, first, end = DATA, 0, 0
    for run in runs:
        if run.kind == kind and run.first == end:
            end += run.pages
        else:
            if end > first:
                yield first, end - first, number if kind == DATA else NOBODY
            kind, first, end = run.kind, run.first, run.first + run.pages
    if end > first:
        yield first, end - first, number if kind == DATA else NOBODY
