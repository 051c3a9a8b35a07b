"""A sealed layer merged into the sealed one below it, which nothing else stands on any more.

What the upper owns it hides in the lower, so nobody sees the lower change there; and until the caller has noted that
the upper is gone, everything of it is still where it was. A merge that a crash ended begins anew.

Checksums go along. Those of pages that will change in the lower are taken away first, durably, and put there when the
data are durable; so at any moment a page of the lower has the right checksum or none. A page that is not what its
checksum says any more is copied as it is, and its checksum too: it stays one that can't be read.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

from shm_server.stores.base import INLINE_BYTES, LayerFile
from shm_server.stores.checked import Checks, bad_pages
from shm_server.stores.checksums import SumsFile, sums_of
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.layer import open_data, open_log
from shm_server.stores.maplog import DATA, PAGE_BYTES, MapLog, Place, Run

STEP_BYTES = INLINE_BYTES
PUNCH_STEP_BYTES = 1 << 30
RESERVE_BYTES = 64 << 20  # of the disk, or a hundredth if that is less, no merge takes
SUMS_STEP_PAGES = 4096
SUMS_STEPS = 64  # at once


def merge(
    upper_file: LayerFile, lower_file: LayerFile, checks: Checks, ends: dict[int, Place] | None = None
) -> Iterator[None]:
    """One step for each next(); durable at the end. Raises OSError, and then nothing has happened. ``ends`` is kept by
    the caller: where the map of the layer ended that was merged into last, or each next one would read all of it."""
    sums = checks.sums(lower_file)
    sums.begin_merge()
    try:
        yield from _Merge(upper_file, lower_file, checks, {} if ends is None else ends).steps()
    finally:
        sums.is_being_merged = False
        checks.forget(lower_file.number)


class _Merge:
    def __init__(self, upper_file: LayerFile, lower_file: LayerFile, checks: Checks, ends: dict[int, Place]) -> None:
        self._upper_file = upper_file
        self._lower_file = lower_file
        self._checks = checks
        self._ends = ends
        self._upper_sums = checks.sums(upper_file)
        self._lower_sums = checks.sums(lower_file)

    def steps(self) -> Iterator[None]:
        directory = self._checks.directory
        source_log = open_log(self._upper_file, directory)
        log = None if self._lower_file.is_base else open_log(self._lower_file, directory)
        with (
            closing(open_data(self._upper_file, directory, is_writable=False)) as upper,
            closing(open_data(self._lower_file, directory, is_writable=True)) as lower,
        ):
            try:
                runs = source_log.open(is_sealed=True)
                if log is not None:
                    end = self._ends.get(self._lower_file.number)
                    log.open(since=end if end is not None and log.has(end) else None)
                yield from self._merge(runs, upper, lower, log)
                self._ends.clear()
                if log is not None:
                    self._ends[self._lower_file.number] = log.place()
            finally:
                source_log.close()
                if log is not None:
                    log.close()

    def _merge(
        self, runs: Sequence[Run], upper: DescriptorStore, lower: DescriptorStore, log: MapLog | None
    ) -> Iterator[None]:
        are_complete = _is_complete(self._upper_sums, upper) and _is_complete(self._lower_sums, lower)
        yield from take_sums_away(self._lower_sums, runs)
        if lower.size_bytes() < upper.size_bytes():
            lower.resize(upper.size_bytes())
        for kind, first, count in runs:
            offset, length = first * PAGE_BYTES, count * PAGE_BYTES
            # In the order in which they were made: what was discarded and written again is there at the end.
            if kind == DATA:
                yield from _copy(upper, lower, offset, length, partial(self._verify, upper))
            else:
                yield from _punch(lower, offset, length)
            if log is not None:
                log.append(kind, first, count)
        _make_durable(lower, log)
        yield from self._put_sums(runs)
        if are_complete:
            self._lower_sums.cover(-(-lower.size_bytes() // PAGE_BYTES))
        else:
            self._lower_sums.sync()

    def _verify(self, upper: DescriptorStore, offset: int, length: int) -> None:
        """Who reads by the upper meanwhile must not take from the kernel's cache what comes there with us."""
        first = offset // PAGE_BYTES
        count = -(-(offset + length) // PAGE_BYTES) - first
        sums = self._upper_sums.entries(first, count)
        if any(sums):
            data = memoryview(bytearray(count * PAGE_BYTES))
            there = min(len(data), upper.size_bytes() - first * PAGE_BYTES)
            upper.read((data[:there],), first * PAGE_BYTES)
            for page in bad_pages(sums, sums_of(data)):
                self._checks.complain(self._upper_file, first + page)

    # Checksums ------------------------------------------------------------------------------------------------------

    def _put_sums(self, runs: Sequence[Run]) -> Iterator[None]:
        steps = 0
        for run in runs:
            if run.kind == DATA:
                for first, count in _sums_steps(self._upper_sums, (run,)):
                    self._lower_sums.put(first, self._upper_sums.entries(first, count))
                    steps += 1
            else:  # which may have been put a run before
                for first, count in _sums_steps(self._lower_sums, (run,)):
                    self._lower_sums.put(first, array("I", bytes(4 * count)))
                    steps += 1
            if steps >= SUMS_STEPS:
                steps = 0
                yield


def take_sums_away(sums: SumsFile, runs: Sequence[Run]) -> Iterator[None]:
    """Of pages that will change; durably."""
    if not sums.is_there:
        return
    sums.uncover()
    none = array("I", bytes(4 * SUMS_STEP_PAGES))
    for step, (first, count) in enumerate(_sums_steps(sums, runs)):
        sums.put(first, none[:count])
        if step % SUMS_STEPS == 0:
            yield
    sums.sync()


def _sums_steps(sums: SumsFile, runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """The pages of the runs that may have a checksum."""
    for _, first, count in runs:
        end = first + count
        page: int | None = first
        while page is not None and page < end:
            page = sums.next_page(page)
            if page is not None and page < end:
                step = min(SUMS_STEP_PAGES, end - page)
                yield page, step
                page += step


def _is_complete(sums: SumsFile, data: DescriptorStore) -> bool:
    return sums.is_there and sums.covered * PAGE_BYTES >= data.size_bytes()


def _make_durable(lower: DescriptorStore, log: MapLog | None) -> None:
    covered = 0 if log is None else log.claimed
    lower.sync_data()
    if log is not None and log.is_behind(covered):
        log.barrier(covered)
        log.sync(covered)
        log.witness()


def _copy(
    upper: DescriptorStore, lower: DescriptorStore, offset: int, length: int, verify: Callable[[int, int], None]
) -> Iterator[None]:
    done = 0
    while done < length:
        is_data, run = upper.extent(offset + done, length - done)
        step = min(run, STEP_BYTES if is_data else PUNCH_STEP_BYTES)
        if is_data:
            verify(offset + done, step)
            _check_room(lower, offset + done, step)
            lower.copy_from(upper, offset + done, offset + done, step)
        else:
            lower.punch(offset + done, step)
        done += step
        yield


def _check_room(lower: DescriptorStore, offset: int, length: int) -> None:
    """ENOSPC before the last space goes, which is for those who write. What is written over takes none."""
    is_data, run = lower.extent(offset, length)
    if is_data and run == length:
        return
    status = os.fstatvfs(lower.fd)
    reserve = min(RESERVE_BYTES, status.f_blocks * status.f_frsize // 100)
    if status.f_bavail * status.f_frsize < length + reserve:
        raise OSError(errno.ENOSPC, "the disk is nearly full")


def _punch(lower: DescriptorStore, offset: int, length: int) -> Iterator[None]:
    for at in range(0, length, PUNCH_STEP_BYTES):
        lower.punch(offset + at, min(PUNCH_STEP_BYTES, length - at))
        yield
