"""What all sessions of a target share: the slots of the segment (CONTRACTS 3).

Half of the slots at most stands behind open command windows (*grants*: FirstBurstLength for each place, so that
unsolicited data always has somewhere to land). The rest is for what a command needs beyond that: read buffers and
solicited data. It is taken all or nothing, so whoever has it can always finish, and nobody waits for somebody who
waits. A grant lasts as long as the window; it is never needed to make another command finish.

Nobody starves: the last slots (the *reserve*) are for sessions that hold little, however much the others ask for, and
sessions that wait are served in turn, each in its own order of arrival. What a session holds is counted only when it
matters, so that it costs nothing as long as there is enough.

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
_COMPACT_AT = 256  # waiters of one session
_LARGEST_TRANSFER_BYTES = 8 << 20  # transfer.MAX_TRANSFER_BYTES
_CONTENDED = 1 << 62  # more slots than there are


class Grantee(Protocol):
    """A command window: it must be paid again from a new pool."""

    granted_slots: int
    generation: int


class Holder(Protocol):
    """A session, as far as slots are concerned."""

    def held_slots(self) -> int:
        """What it has of the slots that are nobody's grant (rather more than less)."""


class Waiter:
    """Somebody in the queue for slots: all at once, or later."""

    __slots__ = ("grab", "is_cancelled", "slots")

    def __init__(self, grab: Callable[[], bool], slots: int = 0) -> None:
        self.grab = grab  # takes what it needs and goes on; False: not yet
        self.slots = slots
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Space:
    """The slots of one target process."""

    def __init__(self) -> None:
        self.pool: block.Pool | None = None
        self.generation = 0  # counts pools: a buffer of an older one is not ours to account for
        self.granted_slots = 0
        self._queues: dict[Holder | None, deque[Waiter]] = {}  # whose turn is next stands first
        self._reserve_slots = 0
        self._calm_slots = 0
        self.tight_below_slots = 0  # with fewer free ones, ask ``may_take`` or ``wait``; with as many, just take them

    def attach(self, pool: block.Pool, windows: Iterable[Grantee]) -> None:
        """A (new) segment is there. Windows that it can't pay for any more live on unpaid (TASK SET FULL)."""
        self.pool = pool
        self.generation += 1
        self.granted_slots = 0
        transfer_slots = pool.capacity_slots - pool.capacity_slots // 2
        largest = pool.slots_for(_LARGEST_TRANSFER_BYTES)
        self._reserve_slots = min(transfer_slots // 2, largest)
        self._calm_slots = self.tight_below_slots = min(transfer_slots, self._reserve_slots + largest)
        for window in windows:
            window.generation = self.generation
            if not self.grant(window.granted_slots):
                window.granted_slots = 0

    def detach(self) -> None:
        """The segment is gone. Who waits is answered by its owner, not by space that returns."""
        self.pool = None
        self.granted_slots = 0
        self._queues.clear()

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

    def may_take(self, slots: int, holder: Holder) -> bool:
        """Before everybody who waits? Only where there is enough for all."""
        pool = self.pool
        assert pool is not None
        return pool.free_slots >= self.tight_below_slots or (not self._queues and self._has_a_share(slots, holder))

    def _has_a_share(self, slots: int, holder: Holder | None) -> bool:
        """The reserve is for sessions that hold less than it: others may not dig into it."""
        pool = self.pool
        if pool is None or holder is None or pool.free_slots - slots >= self._reserve_slots:
            return True
        held = holder.held_slots()
        return held == 0 or held + slots <= self._reserve_slots

    def wait(self, grab: Callable[[], bool], slots: int = 0, holder: Holder | None = None) -> Waiter | None:
        """Take it now if nobody waits, it is there and it is within the share (None), else wait for one's turn."""
        if not self._queues and self._has_a_share(slots, holder) and grab():
            return None
        waiter = Waiter(grab, slots)
        queue = self._queues.get(holder)
        if queue is None:
            queue = self._queues[holder] = deque()
        elif len(queue) >= _COMPACT_AT:
            # Who has cancelled stays behind a head that waits: forget them before they are many.
            queue = self._queues[holder] = deque(other for other in queue if not other.is_cancelled)
        queue.append(waiter)
        self.tight_below_slots = _CONTENDED
        return waiter

    def serve(self) -> None:
        """Slots have come back: serve who waits, session by session, as far as it goes."""
        while self._queues and self._serve_one():
            pass
        if not self._queues:
            self.tight_below_slots = self._calm_slots

    def _serve_one(self) -> bool:
        """Serve the first whose turn it is. False: nobody can be served now."""
        for holder, queue in list(self._queues.items()):
            while queue and queue[0].is_cancelled:
                queue.popleft()
            if not queue:
                del self._queues[holder]
                continue
            if not self._has_a_share(queue[0].slots, holder):
                continue  # it waits for what it holds itself
            if not queue[0].grab():
                return False  # whose turn it is is not overtaken: a large wish would never be fulfilled
            queue.popleft()
            del self._queues[holder]
            if queue:
                self._queues[holder] = queue  # behind all others
            return True
        return False

    @property
    def has_waiters(self) -> bool:
        return bool(self._queues)
