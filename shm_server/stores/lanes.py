"""Stretches of a volume that are read without a question: all pages have one owner, whose file is memory, and none of
them has to be held against a checksum first.

Who owns a page and whether it was verified are asked once for a lane, then its layer is noted. That is forgotten with
what was verified (verified.py: a page was changed, a layer was sealed or merged), and when a page of the lane gets
another owner. Both happen under a lock that is held, too, while a lane is noted: so none is noted behind its back.
"""

from __future__ import annotations

from shm_server.stores.checked import CheckedReader
from shm_server.stores.clock import Clock, Kept
from shm_server.stores.layer import Layer
from shm_server.stores.maplog import PAGE_BYTES
from shm_server.stores.stack import Nobody
from shm_server.stores.verified import Verified

LANE_SHIFT = 20
LANE_BYTES = 1 << LANE_SHIFT
LANE_PAGES = LANE_BYTES // PAGE_BYTES
_PAGES_SHIFT = LANE_PAGES.bit_length() - 1


class Lane:
    """``layer`` has it up to the byte ``end``. Compared by identity."""

    __slots__ = ("_home", "_number", "end", "layer", "was_used")

    def __init__(self, home: dict[int, Lane], number: int, layer: Layer | Nobody, end: int) -> None:
        self._home = home
        self._number = number
        self.layer = layer
        self.end = end
        self.was_used = True

    def throw_away(self) -> None:
        if self._home.get(self._number) is self:  # it may have been dropped, and another have come
            self._home.pop(self._number, None)


class Lanes:
    """Of one store. ``found`` is looked at by whoever reads; the methods are for who has the lock of the owners."""

    def __init__(self, verified: Verified, cache: Clock) -> None:
        self.found: dict[int, Lane] = {}
        self._verified = verified
        self._cache = cache
        verified.on_forget = self._forget

    def note(self, number: int, layer: Layer | Nobody, end: int) -> None:
        """It has all pages of the lane that begin before ``end``. They count if they need no look, as things are."""
        epoch = self._verified.epoch  # first: what is forgotten from here on is not noted
        reader = layer.open_reader
        if reader is None or reader.memory_descriptor < 0:
            return
        if isinstance(reader, CheckedReader):
            first = number << _PAGES_SHIFT
            is_sure = reader.is_plain or self._verified.has(first, (end - 1) // PAGE_BYTES)
        else:
            is_sure = layer.is_writable  # a layer that is being sealed has this reader, too, for a moment
        if is_sure:
            lane = Lane(self.found, number, layer, end)
            if self._verified.while_at(epoch, lambda: self.found.__setitem__(number, lane)):
                self._cache.add(lane)

    def drop(self, first: int, count: int) -> None:
        """These pages get another owner."""
        if self.found:
            for number in range(first >> _PAGES_SHIFT, (first + count - 1 >> _PAGES_SHIFT) + 1):
                lane = self.found.pop(number, None)
                if lane is not None:
                    lane.was_used = False

    def _forget(self) -> None:
        for lane in list(self.found.values()):
            lane.was_used = False  # so that it is the next to go from the cache
        self.found.clear()

    def close(self) -> None:
        """Nobody reads any more."""
        gone: set[Kept] = set(self.found.values())
        if gone:
            self.found.clear()
            self._cache.discard(gone)
