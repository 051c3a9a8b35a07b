"""A split virtqueue, the device's side ("Virtual I/O Device 1.2", 2.7), on guest memory touched by system calls.

An index that jumps, a descriptor that loops, points outside of the table or of memory, or stands in the wrong order
costs the guest its device. Available entries are taken in batches: one look at the index, one copy of the ring's new
part, one of the table; used ones go back in a batch, with one change of the index and at most one call. ``take``
silences the guest's kicks (with EVENT_IDX: by leaving avail_event behind), until ``arm`` asks for the next one and
looks once more.

Indices are 16 bits and change while we look. The kernel may copy them byte by byte, so one whose upper byte has changed
is read until it is twice the same (it never goes back); ours is changed by words.add.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from shm_server.abi import ring
from shm_server.interfaces import words
from shm_server.interfaces.chains import INDIRECT, NEXT, TABLE, Chain, indirect_table
from shm_server.interfaces.guest_memory import GuestMemory, Region
from shm_server.interfaces.inflight import Inflight, RingInflight
from shm_server.interfaces.messages import ProtocolError
from shm_server.interfaces.rings import Ring

if TYPE_CHECKING:
    from shm_server.interfaces.virtqueue import Virtqueue

_NO_INTERRUPT = 1
_U16 = struct.Struct("<H")
_AVAILABLE_HEAD = struct.Struct("<HH")  # flags, index
_USED = struct.Struct("<II")  # id, length


class SplitRing(Ring):
    def __init__(self, queue: Virtqueue) -> None:
        super().__init__(queue)
        self.last_available = queue.base & 0xFFFF
        self._used_index = 0
        self._called_at = 0  # the used index when the guest was last told, or its wish looked at
        self._pending: list[bytes] = []  # used entries to publish
        self._inflight: RingInflight | None = None
        self._again: list[int] = []  # what a server that died has left under way
        self._table: tuple[Region, int]
        self._available: tuple[Region, int]
        self._used: tuple[Region, int]
        self._index: memoryview | None  # words at the used ring's beginning, where they may be stored

    @property
    def base(self) -> int:
        return self.last_available

    def resolve(self, memory: GuestMemory, addresses: tuple[int, int, int]) -> None:
        table, used, available = addresses
        self._available = memory.of_user(available, 6 + 2 * self.entries, 2)
        self._used = memory.of_user(used, 6 + 8 * self.entries, 4)
        self._table = memory.of_user(table, 16 * self.entries, 16)
        region, start = self._used
        _, self._used_index = _AVAILABLE_HEAD.unpack(region.read(start, 4))
        self._called_at = self._used_index
        self._index = region.view[start : start + 4].cast("H") if region.can_load else None

    def keep_track(self, inflight: Inflight) -> None:
        part = inflight.part(self.queue.index)
        if part is None:
            return
        self._inflight = RingInflight(part, inflight.entries)
        self._again = self._inflight.recover(self._used_index)
        if self._again:
            # Used or under way: so many were taken, whatever SET_VRING_BASE says.
            self.last_available = (self._used_index + len(self._again)) & 0xFFFF

    # What the guest asks --------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        if self._again:
            return len(self._again)
        region, start = self._available
        while True:
            index = region.unpack(_U16, start + 2)[0]
            count = (index - self.last_available) & 0xFFFF
            room = self.entries - self.in_flight  # a guest that knows its ring has no more to offer
            if index >> 8 == self.last_available >> 8 and count <= room:
                return int(count)
            # The upper byte has changed, or it seems that it jumped: were both bytes of one moment?
            if region.unpack(_U16, start + 2)[0] == index:
                if count > room:
                    raise ProtocolError(f"the available index of ring {self.queue.index} jumped by {count}")
                return int(count)

    def take(self, memory: GuestMemory, limit: int) -> list[Chain]:
        count = min(self.waiting(), limit)
        if not count:
            return []
        if self._again:  # noted already, in their order
            heads, self._again = self._again[:count], self._again[count:]
        else:
            heads = self._heads(count)
            if self._inflight is not None:
                self._inflight.take(heads)
            self.last_available = (self.last_available + count) & 0xFFFF
        region, start = self._table
        table, begin = region.look(start, 16 * self.entries)
        chains = [self._walk(memory, head, table, begin) for head in heads]
        self.in_flight += count
        return chains

    def _heads(self, count: int) -> list[int]:
        region, start = self._available
        first = self.last_available % self.entries
        straight = min(count, self.entries - first)
        raw = region.read(start + 4 + 2 * first, 2 * straight)
        if straight < count:
            raw += region.read(start + 4, 2 * (count - straight))
        return list(struct.unpack(f"<{count}H", raw))

    def _walk(self, memory: GuestMemory, head: int, table: memoryview | bytes, begin: int) -> Chain:
        """Follow a chain of descriptors; no more of them than there can be."""
        chain = Chain(self, head)
        size, at, left = self.entries, head, self.entries
        is_allowed = self.queue.has_indirect
        while True:
            if at >= size:
                raise ProtocolError(f"descriptor {at} of a table of {size}")
            if not left:
                raise ProtocolError(f"descriptors from {head} loop, or are more than {size}")
            left -= 1
            address, length, flags, following = TABLE.unpack_from(table, begin + 16 * at)
            if flags & INDIRECT:
                table, begin = indirect_table(memory, address, length, flags, is_allowed=is_allowed)
                size = left = length // 16
                is_allowed, at = False, 0
                continue
            chain.add(memory, address, length, flags)
            if not flags & NEXT:
                return chain
            at = following

    # What we answer -------------------------------------------------------------------------------------------------

    def put(self, chain: Chain, written_bytes: int) -> None:
        self._pending.append(_USED.pack(chain.head, written_bytes))
        self.in_flight -= 1
        self.has_pending = True

    def publish(self) -> None:
        pending, self._pending = self._pending, []
        self.has_pending = False
        region, start = self._used
        first = self._used_index % self.entries
        straight = self.entries - first
        region.write(start + 4 + 8 * first, b"".join(pending[:straight]))
        if len(pending) > straight:
            region.write(start + 4, b"".join(pending[straight:]))
        if self._index is not None:
            self._show(pending)
        else:
            while pending:
                # flags and index are one word, the index its upper half; it is added to by powers of two.
                count = 1 << (len(pending).bit_length() - 1)
                self._show(pending[:count])
                pending = pending[count:]
        if self._wants_call():
            self.queue.call()
        self._called_at = self._used_index

    def _show(self, entries: list[bytes]) -> None:
        """By one change of the used index."""
        noted = self._inflight
        if noted is not None:
            heads = [_USED.unpack(entry)[0] for entry in entries]
            noted.chain(heads)
        shown = (self._used_index + len(entries)) & 0xFFFF
        if self._index is not None:
            self._index[1] = shown  # one store of two bytes
            ring.fence()
        else:
            region, start = self._used
            words.add(region.address + start, 16 + len(entries).bit_length() - 1)
        self._used_index = shown
        if noted is not None:
            noted.let_go(heads, shown)

    def _wants_call(self) -> bool:
        region, start = self._available
        if not self.queue.has_event_index:
            return not region.unpack(_U16, start)[0] & _NO_INTERRUPT
        # "used_event": call where the index has passed it since we last looked (2.7.10).
        event = region.unpack(_U16, start + 4 + 2 * self.entries)[0]
        passed = (self._used_index - event - 1) & 0xFFFF
        return bool(passed < (self._used_index - self._called_at) & 0xFFFF)

    def arm(self) -> bool:
        if self.queue.has_event_index:
            region, start = self._used
            region.write(start + 4 + 8 * self.entries, _U16.pack(self.last_available))
            ring.fence()
        self.is_active = bool(self.waiting())
        return not self.is_active
