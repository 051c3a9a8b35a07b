"""What all sessions of a target share: the slots of the segment (CONTRACTS 3).

Half of the slots at most stands behind open command windows (*grants*: FirstBurstLength for each place, so that
unsolicited data always has somewhere to land). The rest is for what a command needs beyond that: read buffers and
solicited data. It is taken all or nothing, in order of arrival, so whoever has it can always finish, and nobody waits
for somebody who waits. A grant lasts as long as the window; it is never needed to make another command finish.

When the volume server dies the pool goes with it; ``attach`` takes the next one and pays every living window again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from iscsi_ovs import block

# A window's share at its birth, and each step of its growth: one part in so many of what windows may still take.
_FAIR_PARTS = 16
_FIRST_PLACES = 8
# Unsolicited data is not worth having below this.
_SMALL_BURST_BYTES = 65536
_COMPACT_AT = 256  # waiters


class Grantee(Protocol):
    """A command window: it must be paid again from a new pool."""

    granted_slots: int
    generation: int


class Waiter:
    """Somebody in the queue for slots: ``length_bytes`` all at once, or later."""

    __slots__ = ("grab", "is_cancelled")

    def __init__(self, grab: Callable[[], bool]) -> None:
        self.grab = grab  # takes what it needs and goes on; False: not yet
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Space:
    """The slots of one target process."""

    def __init__(self) -> None:
        self.pool: block.Pool | None = None
        self.generation = 0  # counts pools: a buffer of an older one is not ours to account for
        self.granted_slots = 0
        self._waiters: deque[Waiter] = deque()
        self._compact_at = _COMPACT_AT

    def attach(self, pool: block.Pool, windows: Iterable[Grantee]) -> None:
        """A (new) segment is there. Windows that it can't pay for any more live on unpaid (TASK SET FULL)."""
        self.pool = pool
        self.generation += 1
        self.granted_slots = 0
        for window in windows:
            window.generation = self.generation
            if not self.grant(window.granted_slots):
                window.granted_slots = 0

    def detach(self) -> None:
        """The segment is gone. Who waits is answered by its owner, not by space that returns."""
        self.pool = None
        self.granted_slots = 0
        self._waiters.clear()

    # Windows ---------------------------------------------------------------------------------------------------

    @property
    def _grantable_slots(self) -> int:
        pool = self.pool
        if pool is None:
            return 0
        return min(pool.capacity_slots // 2 - self.granted_slots, pool.free_slots)

    def first_burst_bytes(self, wanted_bytes: int) -> int:
        """The FirstBurstLength to offer to a session that begins now; 0: no unsolicited data at all."""
        pool = self.pool
        if pool is None:
            return wanted_bytes  # the volume server is away: by the time commands come the window will tell
        fair = self._grantable_slots // _FAIR_PARTS
        if fair >= pool.slots_for(wanted_bytes):
            return wanted_bytes
        return _SMALL_BURST_BYTES if fair >= pool.slots_for(_SMALL_BURST_BYTES) else 0

    def first_places(self, slots_a_place: int) -> int:
        """How many places a new window opens, 1 … 8, before it has shown that it uses them."""
        if slots_a_place == 0:
            return _FIRST_PLACES
        return max(1, min(_FIRST_PLACES, self._grantable_slots // _FAIR_PARTS // slots_a_place))

    def growth_places(self, slots_a_place: int, wanted: int) -> int:
        """How many more places a window that is in use may have now."""
        if slots_a_place == 0:
            return wanted
        return max(0, min(wanted, self._grantable_slots // (_FAIR_PARTS // 4) // slots_a_place))

    def grant(self, slots: int) -> bool:
        """Keep ``slots`` for a window. False: they are not there."""
        if slots == 0:
            return True
        pool = self.pool
        if pool is None or slots > self._grantable_slots or not pool.reserve(slots):
            return False
        self.granted_slots += slots
        return True

    def ungrant(self, slots: int) -> None:
        """A window closes."""
        if slots and self.pool is not None:
            self.pool.unreserve(slots)
            self.granted_slots -= slots

    # Transfers -------------------------------------------------------------------------------------------------

    @property
    def largest_bytes(self) -> int:
        """What can be had at once at all; a longer transfer would wait for ever."""
        pool = self.pool
        return 0 if pool is None else (pool.capacity_slots - pool.capacity_slots // 2) * pool.slot_bytes

    def wait(self, grab: Callable[[], bool]) -> Waiter | None:
        """Take it now if nobody waits and it is there (None), else wait in order of arrival."""
        if not self._waiters and grab():
            return None
        waiter = Waiter(grab)
        waiters = self._waiters
        waiters.append(waiter)
        if len(waiters) > self._compact_at:
            # Who has cancelled stays behind a head that waits: forget them before they are more than the living.
            self._waiters = waiters = deque(other for other in waiters if not other.is_cancelled)
            self._compact_at = max(_COMPACT_AT, 2 * len(waiters))
        return waiter

    def serve(self) -> None:
        """Slots have come back: serve who waits, in order, as far as it goes."""
        waiters = self._waiters
        while waiters and (waiters[0].is_cancelled or waiters[0].grab()):
            waiters.popleft()

    @property
    def has_waiters(self) -> bool:
        return bool(self._waiters)
