"""A store that is a chain of layers: one that is written, over others that are not (docs/ON-DISK.md).

The first write to a page *claims* it for the top layer: the whole page goes to the top's data file, then a record to
its map, then its owner is noted; all of that is with the kernel before the write returns. From then on it is written in
place, as in a store without layers. What is not a whole page is completed from below first. Claims go one at a time;
writes to pages that the top owns, and reads, take no lock. Reads go by the owner of each page, one system call a run.

``push`` puts a new layer on top; whoever calls that sees to it that nothing else is under way (an exclusive claim on
the volume). ``sync`` makes everything below the top durable first, then the top's data, then the barrier in its map.

``read_now`` and ``write_now`` are the path of nearly every I/O: they say in a line what other methods here say in a
call.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from shm_server.stores.base import INLINE_BYTES, Store, Views, copy_by_buffer, views_after, views_until
from shm_server.stores.descriptor import DescriptorStore, write_by_redo
from shm_server.stores.layer import Layer, close_all
from shm_server.stores.maplog import DATA, PAGE_BYTES, ZERO, MapLog, Place, Run
from shm_server.stores.owners import BASE, CHUNK_MASK, CHUNK_PAGES, CHUNK_SHIFT, Owners, runs_of
from shm_server.stores.owners import ZERO as NOBODY
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES, RedoFile
from shm_server.stores.stack import Nobody, Stack
from shm_server.stores.verified import CHUNK_SHIFT as VERIFIED_CHUNK_SHIFT

WRITE_STEP_BYTES = INLINE_BYTES  # claimed at once
ATOMIC_RECORDS = 64  # that there is room for before an atomic write: its own, and those of who writes beside it
NOTE_BYTES = 512 << 10  # of the top's log, that are read again at most when the process was killed

_PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
_PAGE_MASK = PAGE_BYTES - 1

assert VERIFIED_CHUNK_SHIFT == CHUNK_SHIFT, "a page has one place in both"

Piece = tuple[int, int, int]  # owner, offset, length in bytes


class LayeredStore:
    """Owns its layers, oldest first, ``owners`` and ``redo``."""

    can_discard = True
    descriptor = -1  # no one file has the bytes
    max_atomic_write_bytes = MAX_ATOMIC_WRITE_BYTES
    inline_bytes = 0  # to punch and to fill may have to wait for who claims

    def __init__(self, layers: Sequence[Layer], owners: Owners, redo: RedoFile) -> None:
        self.stack = Stack(layers)
        self._owners = owners
        self._chunks, self._known = owners.chunks, owners.known
        self._verified_chunks = layers[0].checking.verified.chunks  # all layers have one
        self._redo = redo
        self._base_bytes = self.stack.base.data.size_bytes()  # it has been sealed, or no page of it is written any more
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

    # Reading --------------------------------------------------------------------------------------------------------

    def read_now(self, views: Views, offset: int) -> int:
        length = len(views[0]) if len(views) == 1 else sum(map(len, views))
        page = offset >> _PAGE_SHIFT
        number, start = page >> CHUNK_SHIFT, page & CHUNK_MASK
        count = (offset + length + _PAGE_MASK >> _PAGE_SHIFT) - page
        chunk = self._chunks.get(number)
        owner = BASE
        if start + count > CHUNK_PAGES:
            return self._read_some_now(views, offset, length)
        if chunk is not None:
            chunk.was_used = True
            owner = chunk.owners[start]
            if count > 1 and (owners := chunk.owners[start : start + count]).count(owner) != count:
                return self._read_pieces_now(owners, views, offset, length)
        elif number < len(self._known) and self._known[number]:
            return self._read_some_now(views, offset, length)
        if owner == BASE and offset + length > self._base_bytes:
            return self._read_some_now(views, offset, length)
        layer = self.stack[owner]
        layer.was_used = True
        reader = layer.open_reader or layer.reader  # held: without a reference its file may be closed while it is read
        if count == 1:
            seen = self._verified_chunks.get(number)
            if seen is not None and seen.bits[start >> 3] >> (start & 7) & 1:
                seen.was_used = True
                return reader.read_verified(views, offset)
        return reader.read_now(views, offset)

    def _read_some_now(self, views: Views, offset: int, length: int) -> int:
        first, count = _pages(offset, length)
        owners = self._owners.now(first, count)
        return 0 if owners is None else self._read_pieces_now(owners, views, offset, length)

    def _read_pieces_now(self, owners: array[int], views: Views, offset: int, length: int) -> int:
        done = 0
        if len(views) > 1 or offset + length > self._base_bytes:
            for owner, at, piece_length in self._pieces(runs_of(owners), offset, length):
                reader = self.stack[owner].reader
                piece_done = reader.read_now(_cut(views, done, piece_length, length), at)
                done += piece_done
                if piece_done < piece_length:
                    break
            return done
        # The same, where every page may have another owner than the one before it.
        stack, (view,) = self.stack, views
        start = piece = offset >> _PAGE_SHIFT & CHUNK_MASK
        seen = self._verified_chunks.get(offset >> _PAGE_SHIFT + CHUNK_SHIFT)
        bits = b"" if seen is None or start + len(owners) > CHUNK_PAGES else seen.bits
        owner, end = owners[0], -(offset & _PAGE_MASK)
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
        owners = self._owners.look(*_pages(offset, total))
        done = 0
        for owner, at, length in self._pieces(runs_of(owners), offset, total):
            self._read_piece(owner, _cut(views, done, length, total), at)
            done += length
        return total

    def _read_piece(self, owner: int, views: Views, offset: int) -> None:
        layer = self.stack[owner]
        try:
            reader = layer.reader
        except OSError:
            # It may just have been merged into another, and its file removed before we had it open.
            if self.stack[owner] is layer:
                raise
            reader = self.stack[owner].reader
        reader.read(views, offset)

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
        for owner, at, piece_length in self._pieces(self._owners.runs(*_pages(offset, length)), offset, length):
            is_data, run = self.stack[owner].data.extent(at, piece_length)
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

    # Writing --------------------------------------------------------------------------------------------------------

    def write_now(self, views: Views, offset: int) -> int:
        length = len(views[0]) if len(views) == 1 else sum(map(len, views))
        page = offset >> _PAGE_SHIFT
        start = page & CHUNK_MASK
        count = (offset + length + _PAGE_MASK >> _PAGE_SHIFT) - page
        chunk = self._chunks.get(page >> CHUNK_SHIFT)
        if chunk is not None and start + count <= CHUNK_PAGES:
            owners, top = chunk.owners, self._top_number
            if owners[start] == top and (count == 1 or owners[start : start + count].count(top) == count):
                chunk.was_used = True
                return self._top_write_now(views, offset)
        return self._claim_now(views, offset, length)

    def _claim_now(self, views: Views, offset: int, length: int) -> int:
        """Where nothing has to be waited for: what is memory has all it needs for that, a disk for whole pages."""
        owners = self._owners.now(*_pages(offset, length))
        if not owners:
            return 0
        if owners.count(self._top_number) == len(owners):
            return self._top_write_now(views, offset)
        is_whole = not (offset | length) & _PAGE_MASK
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
            self._write_step(_cut(views, done, step, total), offset + done, step)
            done += step
        return total

    def write_bytes(self, data: bytes, offset: int) -> None:
        self.write((memoryview(data),), offset)

    def _write_step(self, views: Views, offset: int, length: int) -> None:
        first, count = _pages(offset, length)
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
        with self._owners.lock:
            self._claim_locked(kind, *_pages(offset, length))

    def _claim_locked(self, kind: int, first: int, count: int) -> None:
        """The same for who has the owners' lock, too. It fails as a whole, and before anything was noted."""
        self._owners.make_room(first, count)
        self._log.append(kind, first, count)
        self._owners.set(first, count, self._top_number if kind == DATA else NOBODY)
        if self._log.claimed > self._noted_bytes + NOTE_BYTES:
            self._note()

    @property
    def _log(self) -> MapLog:
        log = self.stack.top.log
        assert log is not None, "the top of a chain has a map"
        return log

    def write_atomic(self, data: bytes, offset: int) -> None:
        first, count = _pages(offset, len(data))
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
            runs = self._owners.runs(*_pages(inner, inner_end - inner))
            for owner, at, piece_length in self._pieces(runs, inner, inner_end - inner):
                if owner == self._top_number:
                    self._top.punch(at, piece_length)
                elif owner != NOBODY:
                    self._hide(self.stack[owner].data, at, piece_length)

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
            owners = self._owners.look(*_pages(offset, length))
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
                self._owners.runs(*_pages(inner, inner_end - inner)), inner, inner_end - inner
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
        self._redo.close()


def _pages(offset: int, length: int) -> tuple[int, int]:
    """First and count of those that a range of bytes touches."""
    first = offset >> _PAGE_SHIFT
    return first, (offset + length + _PAGE_MASK >> _PAGE_SHIFT) - first


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


def _cut(views: Views, done: int, length: int, total: int) -> Views:
    """The ``length`` bytes of ``views`` behind the first ``done``."""
    if length == total:
        return views
    return views_until(views_after(views, done) if done else views, length)
