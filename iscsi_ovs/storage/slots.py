"""Slots: the shared segment, cut in pieces of 64 KiB, handed out as Buffers (CONTRACTS 2 and 3).

A buffer of several slots is one run of neighbours where there is one, so that nearly every request has one part; where
the segment is fragmented it is several runs. A buffer is taken all or nothing. Beside the slots that are taken stand
slots that are *reserved*: promised to open places of command windows, so that unsolicited data always has a place.
This module does arithmetic on memory that it is handed; it maps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from shm_server.abi.ring import Part

_FREE = 1
Run = tuple[int, int]  # first slot, slots


class SlotPool:
    """All slots of one segment. Not thread-safe: one loop owns it."""

    def __init__(self, memory: memoryview, slot_bytes: int) -> None:
        assert memory.format == "B"
        assert not memory.readonly
        self.slot_bytes = slot_bytes
        self.capacity_slots = len(memory) // slot_bytes
        self.free_slots = self.capacity_slots  # neither taken nor reserved
        self.reserved_slots = 0
        self.memory = memory
        self._map = bytearray([_FREE]) * self.capacity_slots  # find() on it is a memchr

    def slots_for(self, length_bytes: int) -> int:
        return -(-length_bytes // self.slot_bytes)

    def reserve(self, slots: int) -> bool:
        if slots > self.free_slots:
            return False
        self.free_slots -= slots
        self.reserved_slots += slots
        return True

    def unreserve(self, slots: int) -> None:
        assert slots <= self.reserved_slots
        self.reserved_slots -= slots
        self.free_slots += slots

    def allocate(self, length_bytes: int, from_reserved_slots: int = 0) -> SlotBuffer | None:
        if length_bytes <= self.slot_bytes:  # what nearly every request needs: one slot
            if from_reserved_slots:
                self.reserved_slots -= 1
            elif self.free_slots:
                self.free_slots -= 1
            else:
                return None
            free = self._map
            first = free.find(_FREE)
            free[first] = 0
            return SlotBuffer(self, first, None, length_bytes, 1)
        count = -(-length_bytes // self.slot_bytes)
        paid = count if count < from_reserved_slots else from_reserved_slots
        if count - paid > self.free_slots:
            return None
        self.reserved_slots -= paid
        self.free_slots -= count - paid
        return self._buffer(self._take(count), length_bytes, count)

    def _buffer(self, runs: list[Run], length_bytes: int, count: int) -> SlotBuffer:
        if len(runs) == 1:
            return SlotBuffer(self, runs[0][0], None, length_bytes, count)
        return SlotBuffer(self, -1, runs, length_bytes, count)

    def allocate_run(self, length_bytes: int) -> SlotBuffer | None:
        """A buffer that is one run of neighbours, so that one view shows all of it. None: no such run now."""
        count = self.slots_for(length_bytes) or 1
        first = self._map.find(b"\x01" * count) if count <= self.free_slots else -1
        if first < 0:
            return None
        self.free_slots -= count
        self._map[first : first + count] = bytes(count)
        return SlotBuffer(self, first, None, length_bytes, count)

    def take_more(self, count: int) -> list[Run] | None:
        """``count`` more slots as runs, or None and nothing has changed."""
        if count > self.free_slots:
            return None
        self.free_slots -= count
        return self._take(count)

    def _take(self, count: int) -> list[Run]:
        """Slots that the accounts say are there."""
        free = self._map
        first = free.find(b"\x01" * count)
        if first >= 0:
            free[first : first + count] = bytes(count)
            return [(first, count)]
        runs = []
        at = 0
        while count:
            first = free.find(_FREE, at)
            assert first >= 0, "the accounts promised a slot that is not there"
            at = free.find(0, first)
            at = self.capacity_slots if at < 0 else at
            length = min(count, at - first)
            free[first : first + length] = bytes(length)
            runs.append((first, length))
            count -= length
        return runs

    def give_back(self, runs: Sequence[Run], count: int, keep_slots: int) -> None:
        """Slots of a released buffer; so many of them stay reserved."""
        for first, length in runs:
            self._map[first : first + length] = b"\x01" * length
        assert keep_slots <= count
        self.reserved_slots += keep_slots
        self.free_slots += count - keep_slots

    def view(self, first: int, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) counted from the start of slot ``first``; may run on into its neighbours."""
        base = first * self.slot_bytes
        return self.memory[base + start : base + stop]

    def close(self) -> None:
        """Let go of the memory, so that its mapping can be closed. Buffers must not be used any more."""
        self.memory.release()


class SlotBuffer:
    """A buffer of whole slots (block.Buffer)."""

    __slots__ = ("_count", "_runs", "first_slot", "length_bytes", "pool")

    def __init__(self, pool: SlotPool, first_slot: int, runs: list[Run] | None, length_bytes: int, count: int) -> None:
        """One run of ``count`` slots from ``first_slot`` on, or several ``runs`` and first_slot -1."""
        self.pool = pool
        self.first_slot = first_slot
        self._runs = runs
        self._count = count
        self.length_bytes = length_bytes

    @property
    def runs(self) -> Sequence[Run]:
        """(first slot, slots), in order."""
        return ((self.first_slot, self._count),) if self._runs is None else self._runs

    @property
    def start_bytes(self) -> int:
        """Where the buffer's first run starts in the segment."""
        return self.runs[0][0] * self.pool.slot_bytes

    def views(self, start: int, stop: int) -> list[memoryview]:
        pool = self.pool
        if stop <= start:
            return []
        if self._runs is None:
            base = self.first_slot * pool.slot_bytes
            return [pool.memory[base + start : base + stop]]
        found: list[memoryview] = []
        base = 0
        for first, length in self._runs:
            end = base + length * pool.slot_bytes
            if start < end and stop > base:
                found.append(pool.view(first, max(start, base) - base, min(stop, end) - base))
            base = end
        return found

    def parts(self, length_bytes: int) -> list[Part]:
        """The first ``length_bytes`` as ring parts."""
        if self._runs is None:
            return [(self.first_slot, 0, length_bytes)]
        parts = []
        for first, length in self._runs:
            piece = min(length_bytes, length * self.pool.slot_bytes)
            if piece == 0:
                break
            parts.append((first, 0, piece))
            length_bytes -= piece
        return parts

    def extend(self, length_bytes: int) -> bool:
        more = self.pool.slots_for(length_bytes) - self._count
        if more > 0:
            runs = self.pool.take_more(more)
            if runs is None:
                return False
            self._runs = [*self.runs, *runs]
            self._count += more
            self.first_slot = -1
        self.length_bytes = max(length_bytes, self.length_bytes)
        return True

    def release(self, keep_slots: int = 0) -> None:
        count = self._count
        assert count, "a buffer is released once"
        pool = self.pool
        if count == 1 and self._runs is None:
            pool._map[self.first_slot] = _FREE
            if keep_slots:
                pool.reserved_slots += 1
            else:
                pool.free_slots += 1
        else:
            pool.give_back(self.runs, count, keep_slots)
        self._count = 0
