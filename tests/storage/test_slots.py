"""SlotPool and SlotBuffer against a naive model: who owns which slot, what is promised, which bytes a view shows."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iscsi_ovs import block
from iscsi_ovs.storage.slots import SlotBuffer, SlotPool

SLOT = 16
SLOTS = 24
LENGTHS = st.integers(0, SLOT * (SLOTS + 2))


def new_pool() -> SlotPool:
    return SlotPool(memoryview(bytearray(SLOT * SLOTS)), SLOT)


def slots_of(buffer: SlotBuffer) -> list[int]:
    """The slots of a buffer in its order, told by where its views lie."""
    pool = buffer.pool
    pool.memory[:] = bytes(slot for slot in range(SLOTS) for _ in range(SLOT))
    shown = b"".join(buffer.views(0, SLOT * SLOTS if len(buffer.runs) > 1 else buffer._count * SLOT))
    return list(shown[::SLOT])


class Slots(RuleBasedStateMachine):
    """The model: for each living buffer its length, its slots in order, and the bytes it was filled with."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = new_pool()
        self.buffers: dict[int, tuple[SlotBuffer, list[int], bytes]] = {}
        self.reserved = 0
        self.fill = 0
        self.number = 0

    @property
    def taken(self) -> set[int]:
        return {slot for _, slots, _ in self.buffers.values() for slot in slots}

    @property
    def free(self) -> int:
        return SLOTS - len(self.taken) - self.reserved

    def _adopt(self, buffer: SlotBuffer, kept: bytes = b"") -> None:
        """Note a buffer's slots and fill what of it is not filled; slots must be nobody else's."""
        slots = [slot for slot in range(SLOTS) if slot in self._raw(buffer)]
        assert not self.taken & set(slots)
        self.fill = self.fill % 255 + 1
        content = kept + bytes([self.fill]) * (buffer.length_bytes - len(kept))
        at = 0
        for view in buffer.views(0, buffer.length_bytes):
            view[:] = content[at : at + len(view)]
            at += len(view)
        assert at == buffer.length_bytes
        self.number += 1
        self.buffers[self.number] = (buffer, slots, content)

    @staticmethod
    def _raw(buffer: SlotBuffer) -> set[int]:
        return {slot for first, length in buffer.runs for slot in range(first, first + length)}

    @rule(length=LENGTHS, paid=st.integers(0, 6))
    def allocate(self, length: int, paid: int) -> None:
        count = -(-length // SLOT) or 1
        paid = min(paid, self.reserved)
        used = min(paid, count)
        buffer = self.pool.allocate(length, paid)
        if count - used > self.free:
            assert buffer is None
            return
        assert buffer is not None
        assert buffer.length_bytes == length
        self.reserved -= used
        self._adopt(buffer)
        assert len(self.buffers[self.number][1]) == count

    @rule(length=LENGTHS)
    def allocate_run(self, length: int) -> None:
        count = -(-length // SLOT) or 1
        owned = self.taken
        has_run = any(not owned & set(range(at, at + count)) for at in range(SLOTS - count + 1))
        buffer = self.pool.allocate_run(length)
        assert (buffer is not None) is (has_run and count <= self.free)
        if buffer is not None:
            self._adopt(buffer)
            slots = self.buffers[self.number][1]
            assert slots == list(range(slots[0], slots[0] + count))
            assert buffer.start_bytes == slots[0] * SLOT

    @precondition(lambda self: self.buffers)
    @rule(data=st.data(), length=LENGTHS)
    def extend(self, data: st.DataObject, length: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.buffers)))
        buffer, slots, content = self.buffers[key]
        more = -(-length // SLOT) - len(slots)
        fits = more <= self.free
        assert buffer.extend(length) is fits
        if fits:
            assert buffer.length_bytes == max(length, len(content))
            del self.buffers[key]
            self._adopt(buffer, content)

    @precondition(lambda self: self.buffers)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.buffers)))
        buffer, _, _ = self.buffers.pop(key)
        buffer.release()
        with pytest.raises(AssertionError):
            buffer.release()

    @rule(slots=st.integers(0, SLOTS))
    def reserve(self, slots: int) -> None:
        fits = slots <= self.free
        assert self.pool.reserve(slots) is fits
        self.reserved += slots if fits else 0

    @rule(slots=st.integers(0, SLOTS))
    def unreserve(self, slots: int) -> None:
        slots = min(slots, self.reserved)
        self.pool.unreserve(slots)
        self.reserved -= slots

    @precondition(lambda self: self.buffers)
    @rule(data=st.data(), start=LENGTHS, stop=LENGTHS)
    def look(self, data: st.DataObject, start: int, stop: int) -> None:
        """Views of any part show that part, and parts() names the same bytes."""
        buffer, _, content = self.buffers[data.draw(st.sampled_from(sorted(self.buffers)))]
        start, stop = min(start, len(content)), min(stop, len(content))
        views = buffer.views(start, stop)
        assert b"".join(views) == content[start:stop]
        assert all(views)
        parts = buffer.parts(stop)
        pieces = [self.pool.memory[slot * SLOT + at : slot * SLOT + at + length] for slot, at, length in parts]
        assert b"".join(pieces) == content[:stop]

    @invariant()
    def accounts_balance(self) -> None:
        assert (self.pool.free_slots, self.pool.reserved_slots) == (self.free, self.reserved)
        owned = self.taken
        assert list(self.pool._map) == [slot not in owned for slot in range(SLOTS)]

    @invariant()
    def nobody_writes_over_a_neighbour(self) -> None:
        for buffer, _, content in self.buffers.values():
            assert b"".join(buffer.views(0, len(content))) == content


Slots.TestCase.settings = settings(stateful_step_count=40)
TestSlots = Slots.TestCase


def test_pool_is_a_block_pool() -> None:
    """What the port promises is there."""
    pool: block.Pool = new_pool()
    buffer: block.Buffer | None = pool.allocate(1)
    assert buffer is not None
    assert (pool.capacity_slots, pool.slots_for(0), pool.slots_for(1), pool.slots_for(SLOT + 1)) == (SLOTS, 0, 1, 2)


def test_fragmented_memory_is_still_all_there() -> None:
    """Every second slot free: a buffer of all of them, in as many parts, and views that cross from part to part."""
    pool = new_pool()
    singles = [pool.allocate(SLOT) for _ in range(SLOTS)]
    for buffer in singles[::2]:
        assert buffer is not None
        buffer.release()
    assert pool.allocate_run(2 * SLOT) is None
    scattered = pool.allocate(SLOT * SLOTS // 2)
    assert scattered is not None
    assert pool.free_slots == 0
    assert slots_of(scattered) == list(range(0, SLOTS, 2))
    assert [len(view) for view in scattered.views(SLOT - 1, 2 * SLOT + 1)] == [1, SLOT, 1]
    assert scattered.parts(SLOT + 3) == [(0, 0, SLOT), (2, 0, 3)]
    assert scattered.extend(SLOT * SLOTS // 2)
    assert not scattered.extend(SLOT * SLOTS // 2 + 1)
    scattered.release()
    assert pool.free_slots == SLOTS // 2


def test_a_reservation_pays_for_what_free_slots_cannot() -> None:
    """An open window place finds its slots when all others are taken."""
    pool = new_pool()
    assert pool.reserve(4)
    assert pool.allocate(SLOT * (SLOTS - 4)) is not None
    assert pool.allocate(1) is None
    assert pool.allocate(SLOT * 5, from_reserved_slots=4) is None
    assert pool.reserved_slots == 4
    assert pool.allocate(SLOT * 3, from_reserved_slots=4) is not None
    assert (pool.reserved_slots, pool.free_slots) == (1, 0)


def test_close_lets_go_of_the_memory() -> None:
    """A mapping can be closed only when no view of it lives."""
    memory = bytearray(SLOT * SLOTS)
    pool = SlotPool(memoryview(memory), SLOT)
    buffer = pool.allocate(3 * SLOT)
    assert buffer is not None
    buffer.release()
    pool.close()
    memory.clear()  # raises BufferError while a view lives
