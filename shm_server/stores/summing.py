"""Making the checksums of a sealed layer, and holding all of it against them; both in steps of a MiB, for a thread.

Whatever is not a hole in the data file gets a checksum, whether or not the layer's map knows the page: so this file
knows no maps. A page that has one keeps it, whatever its data are.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import closing

from shm_server.stores.base import Findings, LayerFile
from shm_server.stores.checked import READ_AHEAD_PAGES, STEP_PAGES, Checks, bad_pages
from shm_server.stores.checksums import BLOCK_PAGES, NONE, PAGE_BYTES, ZERO_SUM, SumsFile, sums_name, sums_of
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.layer import open_data, open_log
from shm_server.stores.linux import allocated_bytes
from shm_server.stores.maplog import Run

CHECKPOINT_PAGES = (64 << 20) // PAGE_BYTES  # of what was read: so much is done again after a crash


def is_complete(file: LayerFile, checks: Checks) -> bool:
    """Every page has its checksum that needs one. Damage is nothing that more checksums would mend."""
    sums = checks.sums(file)
    if sums.is_there and sums.is_header_damaged:
        return True
    with _opened(file, checks) as data:
        size = data.size_bytes()
        if sums.is_there:
            return sums.covered * PAGE_BYTES >= size
        return data.extent(0, size) == (False, size)


def complete(file: LayerFile, checks: Checks) -> Iterator[int]:
    """Make what is missing; how many bytes each step read."""
    sums = checks.sums(file)
    is_fresh, merges = not sums.is_there, sums.merges
    with checks.passing(file) as changes, _opened(file, checks) as data:
        data.sync_data()  # or the checksum may be on the disk before its page: a merge that was given up syncs nothing
        size = data.size_bytes()
        total = _page_after(size)
        page = sums.covered if sums.is_there else 0
        since = 0
        for group in _groups(_pieces(data, size, page)):
            count = sum(pages for _, pages in group)
            since += count
            with sums.lock:  # or a merge would write to the data in between
                if not _is_ours(sums, merges):
                    return  # a merge sees to it, or it begins anew
                _sum(file, checks, data, group)
                if since >= CHECKPOINT_PAGES:
                    sums.cover(sum(group[-1]))
                    since = 0
            yield count * PAGE_BYTES
        with sums.lock:
            if _is_ours(sums, merges):
                sums.cover(total)
                if is_fresh:
                    checks.verified_whole(file.number, changes)


def _is_ours(sums: SumsFile, merges: int) -> bool:
    """To go on with: no merge has begun since, even one that was given up, which took checksums away behind us."""
    return not sums.is_being_merged and not sums.is_gone and sums.merges == merges


def _sum(file: LayerFile, checks: Checks, data: DescriptorStore, group: Sequence[tuple[int, int]]) -> None:
    """For who has the checksums' lock."""
    sums = checks.sums(file)
    begin, end = group[0][0], sum(group[-1])
    entries = sums.entries(begin, end - begin)
    are_new = False
    for first, count in group:
        here = slice(first - begin, first - begin + count)
        if NONE not in entries[here]:
            continue
        made, was_there = _read(data, first, count)
        if not was_there:
            # The kernel's cache is for others: what had to be brought there goes again.
            os.posix_fadvise(data.fd, first * PAGE_BYTES, count * PAGE_BYTES, os.POSIX_FADV_DONTNEED)
            checks.forget(file.number, first, count + READ_AHEAD_PAGES)
        entries[here] = array("I", [old or new for old, new in zip(entries[here], made, strict=True)])
        are_new = True
    if are_new:
        sums.put(begin, entries)


def scrub(file: LayerFile, checks: Checks, found: Findings) -> Iterator[int]:
    """Read everything from the medium, as far as the kernel lets go of what it has, and note what is wrong."""
    sums = checks.sums(file)
    with checks.passing(file) as changes, _opened(file, checks) as data:
        size = data.size_bytes()
        for first, count in _pieces(data, size, 0, sums):
            if sums.is_gone:
                return
            _hold_against(file, checks, data, first, count, found)
            yield count * PAGE_BYTES
        if not found.bad and not sums.is_being_merged:
            checks.verified_whole(file.number, changes)
    found.damaged_blocks = sorted(sums.damaged_blocks)
    found.is_header_damaged = sums.is_header_damaged


def _hold_against(
    file: LayerFile, checks: Checks, data: DescriptorStore, first: int, count: int, found: Findings
) -> None:
    sums = checks.sums(file)
    merges = sums.merges
    is_merged = sums.is_being_merged
    entries = sums.entries(first, count)
    if first >= sums.covered and not any(entries):
        return
    os.posix_fadvise(data.fd, first * PAGE_BYTES, count * PAGE_BYTES, os.POSIX_FADV_DONTNEED)
    checks.forget(file.number, first, count + READ_AHEAD_PAGES, is_passing=True)
    made, _ = _read(data, first, count)
    again = sums.entries(first, count)  # a merge takes checksums away before it changes data
    settled = array("I", [old if old == new else NONE for old, new in zip(entries, again, strict=True)])
    found.pages += sum(1 for entry in settled if entry)
    for page in bad_pages(settled, made):
        checks.complain(file, first + page)
        found.bad.append(first + page)
    if is_merged or sums.is_being_merged or sums.merges != merges or NONE not in again:
        return  # what a merge took away it puts there again; it may be over since
    for page, (entry, now) in enumerate(zip(again, made, strict=True)):
        is_lost = entry == NONE and now != ZERO_SUM and first + page < sums.covered
        if is_lost and (first + page) // BLOCK_PAGES not in sums.damaged_blocks:
            found.lost.append(first + page)


def _pieces(data: DescriptorStore, size: int, page: int, sums: SumsFile | None = None) -> Iterator[tuple[int, int]]:
    """Pages that have data, or a checksum, from ``page`` on: a step's worth of neighbours at a time. What is a hole and
    has none is not gone through: a layer of a large volume has few pages."""
    end = _page_after(size)
    while page < end:
        is_data, run = data.extent(page * PAGE_BYTES, size - page * PAGE_BYTES)
        stop = page * PAGE_BYTES + run
        if is_data:
            last = _page_after(stop)
        elif (last := stop // PAGE_BYTES if stop < size else end) == page:
            last = page + 1  # a page of which only the end has data
        else:
            found = sums.next_run(page, last) if sums is not None else None
            if found is None:
                page = last
                continue
            page, count = found
            last = page + count
        while page < last:
            count = min(STEP_PAGES, last - page)
            yield page, count
            page += count


def _groups(pieces: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Those that lie within a step's worth of pages together: a layer may be all small ones, each of which would be a
    call of a thread, and a block of checksums read and written."""
    group: list[tuple[int, int]] = []
    for first, count in pieces:
        if group and first + count - group[0][0] > STEP_PAGES:
            yield group
            group = []
        group.append((first, count))
    if group:
        yield group


def _read(data: DescriptorStore, first: int, count: int) -> tuple[array[int], bool]:
    """The checksums of what is there, zeros behind the end; and whether the kernel had all of it."""
    buffer = memoryview(bytearray(count * PAGE_BYTES))
    at = first * PAGE_BYTES
    there = min(len(buffer), max(0, data.size_bytes() - at))
    got = data.read_now((buffer[:there],), at)
    if got < there:
        data.read((buffer[got:there],), at + got)
    return sums_of(buffer), got == there


def _opened(file: LayerFile, checks: Checks) -> closing[DescriptorStore]:
    return closing(open_data(file, checks.directory, is_writable=False))


def _page_after(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES)


class LayerChecks:
    """What a server does with the checksums of its layers (base.LayerChecks)."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self.looks = checks.looks

    def is_complete(self, file: LayerFile) -> bool:
        return is_complete(file, self._checks)

    def complete(self, file: LayerFile) -> Iterator[int]:
        return complete(file, self._checks)

    def scrub(self, file: LayerFile, found: Findings) -> Iterator[int]:
        return scrub(file, self._checks, found)

    def allocated_bytes(self, file: LayerFile) -> int:
        return allocated_bytes(self._checks.directory / file.name)

    def check_map(self, file: LayerFile) -> None:
        if not file.is_base:
            self._runs(file)

    def _runs(self, file: LayerFile) -> Sequence[Run]:
        log = open_log(file, self._checks.directory)
        try:
            return log.open(is_sealed=True)  # even if it is not: it is looked at, and nothing is changed
        finally:
            log.close()

    def owned(self, file: LayerFile, pages: Collection[int]) -> set[int]:
        wanted = sorted(pages)
        return {
            page
            for _, first, count in self._runs(file)
            for page in wanted[bisect_left(wanted, first) : bisect_left(wanted, first + count)]
        }

    def renew(self, file: LayerFile) -> None:
        self._checks.sums(file).renew()

    def remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._checks.remove(number)

    def keep(self, numbers: Container[int]) -> None:
        for path in self._checks.directory.glob(sums_name("*")):
            if path.stem.isdecimal() and int(path.stem) not in numbers:
                self._checks.remove(int(path.stem))
