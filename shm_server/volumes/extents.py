"""Which bytes of a volume are allocated, asked of the store as seldom as possible.

Where the store is memory the kernel looks at every page of a run to find its end: 16 ms a GiB. QEMU asks before each
read until it knows, eight times at once at depth eight; so one question goes to the store at a time, and the last run
of data that was found is remembered. Writes only add to such a run; whatever may take from it happens in
``giving_back``. A hole is never remembered: the next write may be in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shm_server.runtime import Call, Lane, Runtime, Wait
from shm_server.stores.base import Store


class Extents:
    """Belongs to the loop's thread."""

    def __init__(self, runtime: Runtime, lane: Lane, store: Store) -> None:
        self._runtime = runtime
        self._lane = lane
        self._store = store
        self._is_looking = False
        self._waiters: list[Wait[None]] = []
        self._start = self._end = 0  # bytes; a run of data, where there is one
        self._forgotten = 0

    def change_store(self, store: Store) -> None:
        """The same bytes, otherwise kept: what was found may be found otherwise."""
        self._store = store
        self._forget()

    async def find(self, offset: int, length: int) -> tuple[bool, int]:
        """Is there data at ``offset``, and for how many of the ``length`` bytes that holds."""
        while not self._start <= offset < self._end:
            if not self._is_looking:
                return await self._look(offset, length)
            turn: Wait[None] = Wait()
            self._waiters.append(turn)
            await turn
        return True, min(self._end - offset, length)

    async def _look(self, offset: int, length: int) -> tuple[bool, int]:
        forgotten = self._forgotten
        self._is_looking = True
        try:
            found: tuple[bool, int] = await Call(self._runtime, self._lane, lambda: self._store.extent(offset, length))
            if found[0] and forgotten == self._forgotten:
                self._start, self._end = offset, offset + found[1]
            return found
        finally:
            self._is_looking = False
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:  # one by one, not one out of the other: there may be a ring full of them
                waiter.set()

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """Space is given back inside; nothing that was found before its end is remembered behind it."""
        self._forget()
        try:
            yield
        finally:
            self._forget()

    def _forget(self) -> None:
        self._start = self._end = 0
        self._forgotten += 1
