"""Where two chains of one family differ, by who has each page: no byte of data is looked at.

A page of a sealed layer never changes. So where the resolved maps of two chains name the same layer the page is the
same, and where they don't it may be another. What is found is never too little; it is too much only where a page was
written again with what it was.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from shm_server.stores.base import Store
from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import PAGE_BYTES
from shm_server.stores.owners import ZERO as NOBODY
from shm_server.stores.sealed import SealedStore

WINDOW_PAGES = 1 << 14
STEP_S = 0.001  # then others have their turn: it is the interpreter that they would wait for

Change = tuple[int, int, bool]  # offset, length in bytes; False: it reads zeros now
Sources = list[tuple[int, int]]  # runs: the number of a layer, or NOBODY, and pages


class Changes:
    """What ``store`` has otherwise than ``base``, a window after the other. EINVAL: they are of no one family."""

    def __init__(self, store: Store, base: Store, clock: Callable[[], float]) -> None:
        if not isinstance(store, LayeredStore | SealedStore) or not isinstance(base, SealedStore):
            raise _strangers()
        if store.base_number != base.base_number:
            raise _strangers()
        self._store = store
        self._base = base
        self._clock = clock

    def find(self, offset: int, end: int, limit: int) -> tuple[list[Change], int]:
        """From ``offset`` on, in order, for STEP_S or ``limit`` changes, about; and how far that is. Any thread."""
        found: list[Change] = []
        until = self._clock() + STEP_S
        at, stop = offset // PAGE_BYTES, -(-end // PAGE_BYTES)
        while at < stop and len(found) < limit and self._clock() < until:
            count = min(WINDOW_PAGES, stop - at)
            first = at
            for pages, source in _differing(self._store.sources(at, count), self._base.sources(at, count)):
                if source is not None:
                    _add(found, first * PAGE_BYTES, pages * PAGE_BYTES, source != NOBODY)
                first += pages
            at += count
        return found, min(at * PAGE_BYTES, end)


def _differing(new: Sources, old: Sources) -> Iterator[tuple[int, int | None]]:
    """Pages of the same range in a row, and who has them now; None where that is who had them."""
    olds = iter(old)
    had, left = next(olds)
    for has, pages in new:
        while pages:
            if not left:
                had, left = next(olds)
            step = min(pages, left)
            yield step, None if has == had else has
            pages -= step
            left -= step


def _add(found: list[Change], offset: int, length: int, is_data: bool) -> None:
    if found:
        last_offset, last_length, was_data = found[-1]
        if last_offset + last_length == offset and was_data is is_data:
            found[-1] = last_offset, last_length + length, is_data
            return
    found.append((offset, length, is_data))


def _strangers() -> OSError:
    return OSError(errno.EINVAL, "they have no past in common")
