"""Reading a sealed layer: no page that has a checksum is handed out before it was held against it.

Slots are touched by system calls only, so a page is read into memory of ours, verified there, and then read once more,
now out of the kernel's cache, to where it was wanted. That it was verified is remembered (verified.py), and the second
read of a page is the plain one with a look at its bit in front; where that is known of a whole layer, or where there
are no checksums yet, it is the plain one and nothing else. All that is forgotten whenever the page may be another than
the one that was verified: somebody wrote to the file (watching.py), or it had left the kernel's cache and came from the
medium again. The latter is seen by a read that can't be done at once; what the kernel reads ahead with it lies in its
neighbourhood, so that is forgotten too. Where a file can't be watched nothing is remembered.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakSet, WeakValueDictionary

from shm_server.stores.base import BadPageError, LayerFile, Views, views_after, views_until
from shm_server.stores.checksums import PAGE_BYTES, ZERO_SUM, SumsFile, sums_name, sums_of
from shm_server.stores.clock import Clock
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.linux import allocated_bytes
from shm_server.stores.verified import CHUNK_BYTES, CHUNK_SHIFT, Verified
from shm_server.stores.watching import Watch

log = logging.getLogger(__name__)

VERIFIED_CACHE_BYTES = 16 << 20  # for 512 GiB
MAX_OPEN_SUMS = 64  # files
MAX_LANES = 32768  # of all stores (lanes.py)
STEP_PAGES = 256
MAX_TRIES = 3  # to find in the cache what was brought there just now
READ_AHEAD_PAGES = (8 << 20) // PAGE_BYTES  # more than any file system reads ahead, or behind, of what was asked for
_PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
_CHUNK_BYTE_MASK = CHUNK_BYTES - 1


class _Buffers(threading.local):
    """A step's memory for each thread."""

    def __init__(self) -> None:
        self.step = memoryview(bytearray(STEP_PAGES * PAGE_BYTES))


_buffers = _Buffers()


class Checks:
    """The checksums of a pool's layers, and who has verified what."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.looks: list[Watch] = []  # what look() is to be called of before a batch of reads; empty, or one
        self._cache = Clock(VERIFIED_CACHE_BYTES // CHUNK_BYTES)
        self.lanes = Clock(MAX_LANES)
        self._files = Clock(MAX_OPEN_SUMS)
        self._sums: WeakValueDictionary[int, SumsFile] = WeakValueDictionary()
        self._sums_bytes: dict[int, int] = {}  # what files of checksums take, by their layers' numbers
        self._sums_changes = 0
        self._used: dict[int, SumsFile] = {}  # of layers that are read: they stay
        self._gone: set[int] = set()  # numbers of layers, which are not used again
        self._users: dict[int, WeakSet[Verified]] = {}
        self._readers: dict[int, WeakSet[CheckedReader]] = {}
        self._passes: dict[int, int] = {}  # how many go through it
        self._whole: set[int] = set()  # layers of which every page with a checksum is verified
        self._changes: dict[int, int] = {}  # of layers that are watched: counts what may make a page another
        self._watches: dict[int, int] = {}  # of layers
        self._watched: dict[int, int] = {}  # the other way round
        self._is_blind = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._bad: set[tuple[int, int]] = set()  # layer and page of what was told already

    def verified(self) -> Verified:
        """For the layers of one store."""
        return Verified(self._cache)

    def sums(self, file: LayerFile) -> SumsFile:
        with self._lock:
            sums = self._sums.get(file.number)
            if sums is None:
                path = self.directory / sums_name(file.number)
                changed = partial(self._sums_changed, file.number)
                sums = SumsFile(path, file.number, file.uuid, self._files, changed)
                sums.is_gone = file.number in self._gone
                self._sums[file.number] = sums
            return sums

    def remove(self, number: int) -> None:
        """Its layer is no more, or is no layer any more."""
        with self._lock:
            self._gone.add(number)
            sums = self._sums.get(number)
            self._users.pop(number, None)  # it may be a volume's file that is written
            self._let_go(number)
        if sums is not None:
            sums.remove()
        else:
            (self.directory / sums_name(number)).unlink(missing_ok=True)
        self._sums_changed(number)

    def sums_bytes(self, number: int) -> int:
        """What the checksums of a layer take. Asked once as long as nothing is changed there: layers are many."""
        known = self._sums_bytes.get(number)
        if known is None:
            changes = self._sums_changes
            known = allocated_bytes(f"{self.directory}/{sums_name(number)}")
            with self._lock:
                if changes == self._sums_changes:
                    self._sums_bytes[number] = known
        return known

    def _sums_changed(self, number: int) -> None:
        with self._lock:
            self._sums_changes += 1
            self._sums_bytes.pop(number, None)

    # Who reads a layer, and who has changed it ----------------------------------------------------------------------

    def use(self, file: LayerFile, verified: Verified, reader: CheckedReader) -> bool:
        """The two are told when pages of the layer change; False: they can't be, and must remember nothing."""
        sums = self.sums(file)
        with self._lock:
            self._used[file.number] = sums
            self._users.setdefault(file.number, WeakSet()).add(verified)
            self._readers.setdefault(file.number, WeakSet()).add(reader)
            is_watched = self._watch(file)
            changes = self._changes.get(file.number)
        if not sums.is_there:
            self.verified_whole(file.number, changes)
        return is_watched

    def leave(self, file: LayerFile, verified: Verified) -> None:
        """Nobody comes to the layer by this store any more."""
        number = file.number
        with self._lock:
            if users := self._users.get(number):
                users.discard(verified)
            for reader in self._readers.get(number, ()):
                reader.leave(verified, self.verified())
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        if not self._users.get(number) and not self._passes.get(number):
            for kept in (self._users, self._readers, self._passes, self._used):
                kept.pop(number, None)
            self._whole.discard(number)
            if (watch := self._watches.pop(number, None)) is not None:
                del self._watched[watch], self._changes[number]
                self.looks[0].remove(watch)

    def is_whole(self, number: int) -> bool:
        return number in self._whole

    @contextmanager
    def passing(self, file: LayerFile) -> Iterator[int | None]:
        """While somebody goes through the whole layer it is watched; what is given is for verified_whole()."""
        number = file.number
        with self._lock:
            self._passes[number] = self._passes.get(number, 0) + 1
            self._watch(file)
            changes = self._changes.get(number)
        try:
            yield changes
        finally:
            with self._lock:
                self._passes[number] -= 1
                self._let_go(number)

    def verified_whole(self, number: int, changes: int | None) -> None:
        """Every page of the layer that has a checksum was just held against it. ``changes`` None: nobody watched."""
        with self._lock:
            if changes is not None and self._changes.get(number) == changes:
                self._whole.add(number)
                for reader in self._readers.get(number, ()):
                    reader.settle(is_whole=True)

    def settle(self, number: int, reader: CheckedReader) -> None:
        """For a reader that is new."""
        with self._lock:
            reader.settle(is_whole=number in self._whole)

    def _watch(self, file: LayerFile) -> bool:
        if file.number in self._watches:
            return True
        if self._is_closed:
            return False
        try:
            if not self.looks:
                self.looks.append(Watch(self._modified))
            watch = self.looks[0].add(self.directory / file.name)
        except OSError as error:
            if not self._is_blind:
                log.warning("pages of snapshots are verified whenever they are read: %s", error)
            self._is_blind = True
            return False
        self._watches[file.number] = watch
        self._watched[watch] = file.number
        self._changes[file.number] = 0
        return True

    def _modified(self, watch: int | None) -> None:
        with self._lock:
            numbers = list(self._users) if watch is None else [self._watched.get(watch, 0)]
        for number in numbers:
            sums = self._sums.get(number)
            if sums is None or not sums.is_being_merged:  # who merges into it says when that is over
                self.forget(number)

    def forget(self, number: int, first: int = 0, count: int = 0, *, is_passing: bool = False) -> None:
        """Pages of a layer may be others than those that were verified; without a count all of them. ``is_passing``:
        whoever says that goes through the whole layer, and will verify them next."""
        with self._lock:
            self._whole.discard(number)
            for reader in self._readers.get(number, ()):
                reader.settle(is_whole=False)
            if not is_passing and number in self._changes:
                self._changes[number] += 1
            users = list(self._users.get(number, ()))
        for verified in users:
            verified.forget(first, count)

    def complain(self, file: LayerFile, page: int) -> BadPageError:
        """A page is not what its checksum says: told once, and never to be taken from memory again."""
        self.forget(file.number, page, 1)
        error = BadPageError(self.directory / file.name, file.number, page, page * PAGE_BYTES)
        if (file.number, page) not in self._bad and len(self._bad) < 1 << 16:
            self._bad.add((file.number, page))
            log.error("%s", error.strerror)
        return error

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for kept in (self._watches, self._watched, self._changes):
                kept.clear()
            self._whole.clear()
        for watch in self.looks:
            watch.close()
        self.looks.clear()


class CheckedReader:
    """A sealed layer's data, read as a store's. ``read_now`` belongs to the loop's thread, the others to any.
    ``read_verified`` is ``read_now`` for who has seen that the pages are verified.

    Its parts know nothing of it: it goes, and the file is closed, when the last who uses it lets go.
    """

    __slots__ = (
        *("__weakref__", "_verifier", "extent", "is_plain"),
        *("memory_descriptor", "read", "read_now", "read_verified"),
    )

    def __init__(self, data: DescriptorStore, file: LayerFile, checks: Checks, verified: Verified) -> None:
        self._verifier = verifier = _Verifier(data, file, checks, verified)
        # What is memory leaves no cache.
        self.read_verified: Callable[[Views, int], int] = data.read_now if data.is_memory else verifier.read_cached
        self.memory_descriptor = data.memory_descriptor  # for who has seen the same
        self.extent = data.extent
        self.read = self._verifier.read
        self.settle(is_whole=False)
        # Without reads that only look at the cache nobody can say whether a page is still the one that was verified.
        self._verifier.can_remember = checks.use(file, verified, self) and data.can_read_now
        checks.settle(file.number, self)

    def leave(self, verified: Verified, own: Verified) -> None:
        """The store of ``verified`` has these pages elsewhere now: who is still reading here notes nothing there."""
        verifier = self._verifier
        if verifier.verified is verified:
            verifier.can_remember = False
            verifier.verified, verifier.chunks = own, own.chunks
            self.settle(is_whole=False)

    def settle(self, *, is_whole: bool) -> None:
        """How reads go from now on."""
        verifier = self._verifier
        self.is_plain = is_whole and verifier.can_remember
        self.read_now: Callable[[Views, int], int] = self.read_verified if self.is_plain else verifier.read_now


class _Verifier:
    def __init__(self, data: DescriptorStore, file: LayerFile, checks: Checks, verified: Verified) -> None:
        self.data = data
        self.can_remember = False
        self._is_memory = data.is_memory
        self._file = file
        self._checks = checks
        self.verified = verified
        self.chunks = verified.chunks
        self._sums = checks.sums(file)

    def read_now(self, views: Views, offset: int) -> int:
        length = len(views[0]) if len(views) == 1 else sum(map(len, views))
        first = offset >> _PAGE_SHIFT
        last = (offset + length - 1) >> _PAGE_SHIFT
        if first == last:  # in a line what Verified.has() says in a call
            chunk = self.chunks.get(first >> CHUNK_SHIFT)
            if chunk is None or not chunk.bits[(first >> 3) & _CHUNK_BYTE_MASK] >> (first & 7) & 1:
                if not self._verify_now(first, 1):
                    return 0
            else:
                chunk.was_used = True
        elif not self.verified.has(first, last) and not self._verify_range_now(first, last):
            return 0
        return self.data.read_now(views, offset) if self._is_memory else self.read_cached(views, offset)

    def read_cached(self, views: Views, offset: int) -> int:
        """What is verified, if it is still in the kernel's cache."""
        done = self.data.read_now(views, offset)
        if done < (length := len(views[0]) if len(views) == 1 else sum(map(len, views))):
            # Having asked for it at once, it comes soon: another copy.
            first = offset >> _PAGE_SHIFT
            self._forget_around(first, ((offset + length - 1) >> _PAGE_SHIFT) + 1 - first)
        return done

    def _verify_range_now(self, first: int, last: int) -> bool:
        return all(
            self._verify_now(page, min(STEP_PAGES, last + 1 - page)) for page in range(first, last + 1, STEP_PAGES)
        )

    def _verify_now(self, first: int, count: int) -> bool:
        """False: not at once. Raises BadPageError."""
        epoch = self.verified.epoch
        sums = self._sums.entries_now(first, count)
        if sums is None:
            return False
        if any(sums):
            buffer = _buffers.step[: count * PAGE_BYTES]
            got = self.data.read_now((buffer,), first * PAGE_BYTES)
            if got < len(buffer) and first * PAGE_BYTES + got < self.data.size_bytes():
                self._forget_around(first, count)
                return False
            self._compare(first, sums, buffer[:got])
        self._remember(first, count, epoch)
        return True

    def read(self, views: Views, offset: int) -> int:
        total = sum(map(len, views))
        done = 0
        while done < total:
            first = (offset + done) >> _PAGE_SHIFT
            step = min(total - done, (first + STEP_PAGES) * PAGE_BYTES - offset - done)
            self._read_step(views_until(views_after(views, done), step), offset + done, step)
            done += step
        return total

    def _read_step(self, views: Views, offset: int, length: int) -> None:
        first = offset >> _PAGE_SHIFT
        count = ((offset + length - 1) >> _PAGE_SHIFT) + 1 - first
        done = 0
        for _ in range(MAX_TRIES if self.data.can_read_now else 0):
            is_whole = self.can_remember and self._checks.is_whole(self._file.number)
            if is_whole or self.verified.has(first, first + count - 1) or self._verify(first, count):
                done += self.data.read_now(views_after(views, done), offset + done)
                if done == length:
                    return
                # It has left the cache, or never came there: what comes now is another copy of it.
                self._forget_around(first, count)
        self._verify(first, count)
        self.data.read(views_after(views, done), offset + done)

    def _verify(self, first: int, count: int) -> bool:
        """Whatever has to be read for it. Raises BadPageError."""
        epoch = self.verified.epoch
        sums = self._sums.entries(first, count)
        if any(sums):
            buffer = _buffers.step[: count * PAGE_BYTES]
            at = first * PAGE_BYTES
            got = self.data.read_now((buffer,), at)
            if got < len(buffer):
                epoch = self._forget_around(first, count)
                left = min(len(buffer), max(0, self.data.size_bytes() - at))
                self.data.read((buffer[:left],), at)
                got = left
            self._compare(first, sums, buffer[:got])
        self._remember(first, count, epoch)
        return True

    def _forget_around(self, first: int, count: int) -> int:
        """The epoch behind that."""
        start = max(0, first - READ_AHEAD_PAGES)
        self._checks.forget(self._file.number, start, first + count + READ_AHEAD_PAGES - start)
        return self.verified.epoch

    def _remember(self, first: int, count: int, epoch: int) -> None:
        if self.can_remember:
            self.verified.add(first, count, epoch)

    def _compare(self, first: int, sums: array[int], data: memoryview) -> None:
        found = sums_of(data)
        if found != sums:
            for bad in bad_pages(sums, found):
                raise self._checks.complain(self._file, first + bad)


def bad_pages(sums: array[int], found: array[int]) -> Iterator[int]:
    """Those of which the checksum is not the one that was found; behind the end of ``found`` there are zeros."""
    for page, expected in enumerate(sums):
        if expected and (found[page] if page < len(found) else ZERO_SUM) != expected:
            yield page
