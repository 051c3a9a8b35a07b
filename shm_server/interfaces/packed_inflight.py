"""What is under way on a packed ring, in memory that outlives us: "Inflight I/O tracking", for packed virtqueues.

A used descriptor may overwrite one of a request that is still under way, so the descriptors themselves are kept here:
an entry for each, in a list for each request, taken from a list of free ones. What is used goes back to that list, and
the used position moves on, before the ring shows it; the *old* head of the list and position follow after that, and
make it final. So a successor finds either of two states, and the ring's own flags say which of them holds.

The memory is the front end's to scribble on: every index that is read here is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from shm_server.interfaces.messages import ProtocolError

# features; version, entries, free_head, old_free_head, used_idx, old_used_idx; used_wrap_counter, old_used_wrap_counter
_HEAD = struct.Struct("<QHHHHHHBB")
_VERSION = 1
_FREE_HEAD, _OLD_FREE_HEAD, _USED, _OLD_USED, _WRAP, _OLD_WRAP = 12, 14, 16, 18, 20, 21
_STATES_OFFSET = _STATE_BYTES = 32
# inflight, padding, next, last, num, counter; id, flags, length, address
_IN_FLIGHT, _NEXT, _LAST, _COUNT, _COUNTER, _DESCRIPTOR_AT = 0, 2, 4, 6, 8, 16
_U16, _U64 = struct.Struct("<H"), struct.Struct("<Q")
_DESCRIPTOR = struct.Struct("<HHIQ")

Descriptor = tuple[int, int, int, int]  # address, length, ID, flags: as they stand in the ring
Position = tuple[int, int]  # in the ring, and the wrap counter there


class PackedInflight:
    """One ring's part. ``take``, and then for what is used ``chain``, show it, ``let_go``."""

    def __init__(self, view: memoryview, entries: int) -> None:
        self._view = view
        self._entries = entries
        self._counter = 0
        _, version, *_ = _HEAD.unpack_from(view)
        self.is_fresh = version != _VERSION

    def begin(self, used: Position) -> None:
        """Nothing is under way yet."""
        _HEAD.pack_into(self._view, 0, 0, _VERSION, self._entries, 0, 0, used[0], used[0], used[1], used[1])
        for entry in range(self._entries):
            self._set(entry, _NEXT, entry + 1)
        self.is_fresh = False

    # After a death ----------------------------------------------------------------------------------------------------

    @property
    def positions(self) -> tuple[Position, Position]:
        """What our predecessor had shown for certain, and what it was about to show."""
        *_, used, old, wrap, old_wrap = _HEAD.unpack_from(self._view)
        for at in (used, old):
            if at >= self._entries:
                raise ProtocolError(f"a used position in flight of {at} in a ring of {self._entries}")
        return (old, old_wrap & 1), (used, wrap & 1)

    def commit(self) -> None:
        """What was about to be shown is."""
        self._copy(_FREE_HEAD, _OLD_FREE_HEAD, 2)
        self._copy(_USED, _OLD_USED, 2)
        self._copy(_WRAP, _OLD_WRAP, 1)

    def roll_back(self) -> None:
        """It was not."""
        self._copy(_OLD_FREE_HEAD, _FREE_HEAD, 2)
        self._copy(_OLD_USED, _USED, 2)
        self._copy(_OLD_WRAP, _WRAP, 1)

    def recover(self) -> list[tuple[int, list[Descriptor]]]:
        """What is under way, in the order in which it was taken: the entry that notes it, and its descriptors."""
        entry, left = self._head(_FREE_HEAD), self._entries
        while entry < self._entries and left:  # "Set the inflight field of each … entry in free list to 0"
            self._view[self._at(entry)] = 0
            entry, left = self._get(entry, _NEXT), left - 1
        found = [
            (_U64.unpack_from(self._view, self._at(entry) + _COUNTER)[0], entry)
            for entry in range(self._entries)
            if self._view[self._at(entry)]
        ]
        found.sort()
        self._counter = (found[-1][0] + 1) & 0xFFFF_FFFF_FFFF_FFFF if found else 0
        again: list[tuple[int, list[Descriptor]]] = []
        left = self._entries
        for _, entry in found:
            descriptors = self._descriptors(entry, left)
            left -= len(descriptors)
            again.append((entry, descriptors))
        return again

    def _descriptors(self, entry: int, most: int) -> list[Descriptor]:
        found: list[Descriptor] = []
        count = self._get(entry, _COUNT)
        if count > most:  # before they are looked at: a list may loop
            raise ProtocolError("more descriptors in flight than there are in the ring")
        for _ in range(count):
            self._check(entry)
            buffer_id, flags, length, address = _DESCRIPTOR.unpack_from(self._view, self._at(entry) + _DESCRIPTOR_AT)
            found.append((address, length, buffer_id, flags))
            entry = self._get(entry, _NEXT)
        if not found:
            raise ProtocolError("a request in flight without descriptors")
        return found

    # On the way -------------------------------------------------------------------------------------------------------

    def take(self, descriptors: Sequence[Descriptor]) -> int:
        """They are one request and under way from now on; the entry that notes it."""
        first = last = entry = self._head(_FREE_HEAD)
        for address, length, buffer_id, flags in descriptors:
            self._check(entry)
            _DESCRIPTOR.pack_into(self._view, self._at(entry) + _DESCRIPTOR_AT, buffer_id, flags, length, address)
            last, entry = entry, self._get(entry, _NEXT)
        self._set(first, _LAST, last)
        self._set(first, _COUNT, len(descriptors))
        _U64.pack_into(self._view, self._at(first) + _COUNTER, self._counter)
        self._counter = (self._counter + 1) & 0xFFFF_FFFF_FFFF_FFFF
        self._view[self._at(first)] = 1
        _U16.pack_into(self._view, _FREE_HEAD, entry)
        _U16.pack_into(self._view, _OLD_FREE_HEAD, entry)  # until here, a successor finds it in the free list
        return first

    def chain(self, entries: Sequence[int], used: Position) -> None:
        """They are free when the ring shows them, which ends at ``used`` then."""
        free = self._head(_FREE_HEAD)
        for entry in entries:
            last = self._get(entry, _LAST)
            self._check(last)
            self._set(last, _NEXT, free)
            free = entry
        _U16.pack_into(self._view, _FREE_HEAD, free)
        _U16.pack_into(self._view, _USED, used[0])
        self._view[_WRAP] = used[1]

    def let_go(self, entries: Sequence[int]) -> None:
        """The ring shows them."""
        for entry in entries:
            self._view[self._at(entry)] = 0
        self.commit()

    # Words ------------------------------------------------------------------------------------------------------------

    def _at(self, entry: int) -> int:
        return _STATES_OFFSET + _STATE_BYTES * entry

    def _check(self, entry: int) -> None:
        if entry >= self._entries:
            raise ProtocolError(f"descriptor {entry} in flight of {self._entries}")

    def _get(self, entry: int, field: int) -> int:
        return int(_U16.unpack_from(self._view, self._at(entry) + field)[0])

    def _set(self, entry: int, field: int, value: int) -> None:
        _U16.pack_into(self._view, self._at(entry) + field, value)

    def _head(self, field: int) -> int:
        return int(_U16.unpack_from(self._view, field)[0])

    def _copy(self, source: int, target: int, size: int) -> None:
        self._view[target : target + size] = self._view[source : source + size]
