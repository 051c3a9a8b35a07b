"""A packed virtqueue, the device's side ("Virtual I/O Device 1.2", 2.8), on guest memory touched by system calls.

Driver and device write into one ring of descriptors, and know by two flags and a wrap counter whose turn a descriptor
is: available where AVAIL is as the counter and USED is not, used where both are. What is available is looked at first
and copied then: a descriptor's flags are behind what they vouch for, and one copy might be of two moments. Used
descriptors go into the ring in a batch, whose first one is shown last, by turning its USED bit in one store or one
locked instruction (words.add): the driver polls that one, and finds the others behind it.

Kicks are silenced while there is work by leaving the position for which one was asked behind, until ``arm`` asks anew.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from shm_server.abi import ring
from shm_server.interfaces import words
from shm_server.interfaces.chains import DESCRIPTOR_BYTES, INDIRECT, NEXT, TABLE, WRITE, Chain, indirect_table
from shm_server.interfaces.guest_memory import GuestMemory, Region
from shm_server.interfaces.inflight import Inflight
from shm_server.interfaces.messages import ProtocolError
from shm_server.interfaces.packed_inflight import Descriptor, PackedInflight, Position
from shm_server.interfaces.rings import Ring

if TYPE_CHECKING:
    from shm_server.interfaces.virtqueue import Virtqueue

AVAILABLE, USED = 1 << 7, 1 << 15
_MARKS = AVAILABLE | USED
_IS_AVAILABLE = (USED, AVAILABLE)  # marks of an available descriptor, by the wrap counter
_IS_USED = (0, AVAILABLE | USED)
_FLAGS_AT, _LENGTH_AT, _WORD_AT, _USED_BIT = 14, 8, 12, 31
_U16 = struct.Struct("<H")
_EVENT = struct.Struct("<HH")  # offset and wrap counter of a descriptor, flags
_EVENT_WRAP = 1 << 15
_EVENT_DISABLE, _EVENT_DESCRIPTOR = 1, 2
INITIAL_BASE = _EVENT_WRAP | _EVENT_WRAP << 16  # both wrap counters are "initialized to 1"

_Used = tuple[int, int, int, int]  # ID, length, slots, where it was noted


class PackedRing(Ring):
    def __init__(self, queue: Virtqueue) -> None:
        super().__init__(queue)
        base = queue.base
        # What is in bits 16 to 31, where used ones go on, says the same: nothing that we know of is under way.
        self._at, self._wrap = base & (_EVENT_WRAP - 1), base >> 15 & 1
        if self._at >= self.entries:
            raise ProtocolError(f"a packed ring of {self.entries} that begins at {self._at}")
        self._used_at, self._used_wrap = self._at, self._wrap
        self._is_doubtful = base == 0
        self._slots_in_flight = 0
        self._pending: list[_Used] = []
        self._inflight: PackedInflight | None = None
        self._again: list[tuple[int, list[Descriptor]]] = []  # what a server that died has left under way
        self._ring: tuple[Region, int]
        self._words: memoryview | None  # of the ring, where they may be stored
        self._ours: tuple[Region, int]  # device event suppression
        self._theirs: tuple[Region, int]  # driver event suppression

    @property
    def base(self) -> int:
        return self._at | self._wrap << 15 | self._used_at << 16 | self._used_wrap << 31

    def resolve(self, memory: GuestMemory, addresses: tuple[int, int, int]) -> None:
        descriptors, device, driver = addresses
        size = DESCRIPTOR_BYTES * self.entries
        self._ring = region, start = memory.of_user(descriptors, size, 16)
        self._words = region.view[start : start + size].cast("H") if region.can_load else None
        self._ours = memory.of_user(device, _EVENT.size, 4)
        self._theirs = memory.of_user(driver, _EVENT.size, 4)
        if self._is_doubtful:
            # A ring at the beginning of an even lap has seen its first descriptor used. Where that is not so, the front
            # end knows of no wrap counters (User Mode Linux), and the ring is fresh.
            if not self._flags(0) & USED:
                self._wrap = self._used_wrap = 1
            self._is_doubtful = False

    def keep_track(self, inflight: Inflight) -> None:
        part = inflight.part(self.queue.index, is_packed=True)
        if part is None:
            return
        if inflight.entries < self.entries:
            raise ProtocolError(f"memory for {inflight.entries} descriptors in flight of {self.entries}")
        self._inflight = PackedInflight(part, self.entries)
        if self._inflight.is_fresh:
            self._inflight.begin((self._used_at, self._used_wrap))
        else:
            self._recover(self._inflight)

    def _recover(self, noted: PackedInflight) -> None:
        """Go on where our predecessor died, whatever SET_VRING_BASE says."""
        shown, wanted = noted.positions
        if shown != wanted and not self._is_available(*shown):
            noted.commit()
            shown = wanted
        else:
            self._take_back(shown, wanted)
            noted.roll_back()
        self._used_at, self._used_wrap = shown
        self._again = noted.recover()
        slots = sum(len(descriptors) for _, descriptors in self._again)
        self._at, self._wrap = self._ahead(*shown, slots)

    def _take_back(self, shown: Position, wanted: Position) -> None:
        """Used descriptors behind one that was not shown: the driver is not to find them there later."""
        region, start = self._ring
        at, wrap = shown
        while (at, wrap) != wanted:
            at, wrap = self._ahead(at, wrap, 1)
            if (at, wrap) != wanted:
                region.write(start + DESCRIPTOR_BYTES * at + _FLAGS_AT, _U16.pack(_IS_AVAILABLE[wrap]))

    def _ahead(self, at: int, wrap: int, slots: int) -> Position:
        at += slots
        return (at, wrap) if at < self.entries else (at - self.entries, wrap ^ 1)

    # What the guest asks --------------------------------------------------------------------------------------------

    def _flags(self, at: int) -> int:
        region, start = self._ring
        return int(region.unpack(_U16, start + DESCRIPTOR_BYTES * at + _FLAGS_AT)[0])

    def _is_available(self, at: int, wrap: int) -> bool:
        return self._flags(at) & _MARKS == _IS_AVAILABLE[wrap]

    def waiting(self) -> int:
        if self._again:
            return len(self._again)
        if self._slots_in_flight == self.entries:
            return 0  # what stands there is under way, and may look as if it were available
        return int(self._is_available(self._at, self._wrap))

    def take(self, memory: GuestMemory, limit: int) -> list[Chain]:
        if self._again:  # noted already, in their order
            found, self._again = self._again[:limit], self._again[limit:]
        elif self.waiting():
            found = [(-1, descriptors) for descriptors in self._available(limit)]
        else:
            return []
        chains = [self._chain(memory, descriptors) for _, descriptors in found]
        for chain, (noted, descriptors) in zip(chains, found, strict=True):
            if noted < 0:
                noted = self._inflight.take(descriptors) if self._inflight is not None else -1
                self._at, self._wrap = self._ahead(self._at, self._wrap, chain.slots)
            chain.noted = noted
            self._slots_in_flight += chain.slots
        self.in_flight += len(chains)
        return chains

    def _available(self, limit: int) -> list[list[Descriptor]]:
        """Copies of the descriptors of at most ``limit`` requests."""
        room = self.entries - self._slots_in_flight  # a driver that knows its ring makes no more available
        slots = self._count_available(limit, min(limit, room)) or self._count_available(limit, room)
        if not slots:
            raise ProtocolError(f"a chain of ring {self.queue.index} that is longer than what the ring has left")
        expected, following = _IS_AVAILABLE[self._wrap], _IS_AVAILABLE[self._wrap ^ 1]
        found: list[list[Descriptor]] = [[]]
        for number, descriptor in enumerate(TABLE.iter_unpack(self._copy(slots))):
            if number == self.entries - self._at:
                expected = following
            flags = descriptor[3]
            if flags & _MARKS != expected:
                raise ProtocolError(f"a part of a request on ring {self.queue.index} is not available")
            if not found[-1] or found[-1][-1][3] & NEXT:
                found[-1].append(descriptor)
            else:
                found.append([descriptor])
        if found[-1][-1][3] & NEXT:
            raise ProtocolError(f"a chain of ring {self.queue.index} without an end")
        return found

    def _count_available(self, limit: int, reach: int) -> int:
        """How many slots the next requests take, as their flags say, of those that end within ``reach``."""
        all_flags = memoryview(self._copy(reach)).cast("H")[_FLAGS_AT // 2 :: DESCRIPTOR_BYTES // 2].tolist()
        expected, straight = _IS_AVAILABLE[self._wrap], self.entries - self._at
        slots = 0
        is_head = True
        for number, flags in enumerate(all_flags):
            if number == straight:
                expected = _IS_AVAILABLE[self._wrap ^ 1]
            if is_head and flags & _MARKS != expected:
                break
            is_head = not flags & NEXT
            if is_head:
                slots, limit = number + 1, limit - 1
                if not limit:
                    break
        return slots

    def _copy(self, slots: int) -> bytes:
        """The next slots of the ring."""
        region, start = self._ring
        straight = min(slots, self.entries - self._at)
        raw = region.read(start + DESCRIPTOR_BYTES * self._at, DESCRIPTOR_BYTES * straight)
        if straight < slots:
            raw += region.read(start, DESCRIPTOR_BYTES * (slots - straight))
        return raw

    def _chain(self, memory: GuestMemory, descriptors: list[Descriptor]) -> Chain:
        chain = Chain(self, descriptors[-1][2])  # "Buffer ID is included in the last descriptor in the list"
        chain.slots = len(descriptors)
        for address, length, _, flags in descriptors:
            if flags & INDIRECT:
                # "each list only contains descriptors of a given type"
                is_allowed = self.queue.has_indirect and chain.slots == 1
                table, begin = indirect_table(memory, address, length, flags, is_allowed=is_allowed)
                for at in range(begin, begin + length, DESCRIPTOR_BYTES):
                    inner_address, inner_length, _, inner_flags = TABLE.unpack_from(table, at)
                    chain.add(memory, inner_address, inner_length, inner_flags)
            else:
                chain.add(memory, address, length, flags)
        return chain

    # What we answer -------------------------------------------------------------------------------------------------

    def put(self, chain: Chain, written_bytes: int) -> None:
        self._pending.append((chain.head, written_bytes, chain.slots, chain.noted))
        self.in_flight -= 1
        self.has_pending = True

    def publish(self) -> None:
        pending, self._pending = self._pending, []
        self.has_pending = False
        region, start = self._ring
        slots = sum([slots for _, _, slots, _ in pending])
        used = self._ahead(self._used_at, self._used_wrap, slots)
        noted = [entry for *_, entry in pending]
        if self._inflight is not None:
            self._inflight.chain(noted, used)  # first: a successor takes back what stands in the ring up to ``used``
        self._write_used(pending)
        if self._words is not None:
            self._words[(DESCRIPTOR_BYTES * self._used_at + _FLAGS_AT) // 2] = _IS_USED[self._used_wrap] | WRITE
            ring.fence()
        else:
            words.add(region.address + start + DESCRIPTOR_BYTES * self._used_at + _WORD_AT, _USED_BIT)
        self._used_at, self._used_wrap = used
        self._slots_in_flight -= slots
        if self._inflight is not None:
            self._inflight.let_go(noted)
        if self._wants_call(slots):
            self.queue.call()

    def _write_used(self, pending: list[_Used]) -> None:
        """All of the batch, the first not yet marked as used."""
        runs: list[tuple[int, list[bytes]]] = []  # where in the ring, and descriptors one behind the other
        at, wrap = self._used_at, self._used_wrap
        marks = _IS_AVAILABLE[wrap] | WRITE  # a status, at least, has been written
        end = -1
        for buffer_id, length, slots, _ in pending:
            used = TABLE.pack(0, length, buffer_id, marks)
            if at == end:
                runs[-1][1].append(used)
            else:
                runs.append((at, [used]))
            end = at + 1
            at, wrap = self._ahead(at, wrap, slots)
            marks = _IS_USED[wrap] | WRITE
        region, start = self._ring
        for at, run in runs:
            region.write(start + DESCRIPTOR_BYTES * at + _LENGTH_AT, b"".join(run)[_LENGTH_AT:])

    def _wants_call(self, slots: int) -> bool:
        """Have the ``slots`` that were used last passed what the driver waits for?"""
        region, start = self._theirs
        position, flags = region.unpack(_EVENT, start)
        if not flags & _EVENT_DESCRIPTOR or not self.queue.has_event_index:
            return not flags & _EVENT_DISABLE
        # Positions on two laps of the ring, that of wrap counter 1 first.
        wished = (position & (_EVENT_WRAP - 1)) + (0 if position & _EVENT_WRAP else self.entries)
        reached = self._used_at + (0 if self._used_wrap else self.entries)
        return bool((reached - wished - 1) % (2 * self.entries) < slots)

    def arm(self) -> bool:
        if self.queue.has_event_index:
            region, start = self._ours
            region.write(start, _EVENT.pack(self._at | self._wrap << 15, _EVENT_DESCRIPTOR))
            ring.fence()
        self.is_active = bool(self.waiting())
        return not self.is_active
