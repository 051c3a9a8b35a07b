"""The front end and its guest with a packed ring: the same requests, in the other format."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from tests.shm_server.vhost_front_end import (
    AVAILABLE,
    EVENT_INDEX,
    GUEST_BASE,
    NEXT,
    TABLE,
    USED,
    WRITE,
    Buffer,
    FrontEnd,
)

PACKED = 1 << 34
AVAILABLE_MARK, USED_MARK = 1 << 7, 1 << 15
DISABLE, AT_DESCRIPTOR = 1, 2
DRIVER_AREA, DEVICE_AREA = AVAILABLE, USED  # in the memory

Descriptor = tuple[int, int, int]  # address, length, flags


class PackedFrontEnd(FrontEnd):
    """``available`` and ``used`` count slots from the ring's first lap on; a request's head is its buffer ID."""

    always = PACKED

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]
        self._lists: dict[int, list[Descriptor]] = {}
        self._slots: dict[int, int] = {}  # of those in flight

    def _position(self, count: int) -> tuple[int, int]:
        """Offset and wrap counter; that of the first lap is 1."""
        return count % self.entries, 1 - count // self.entries % 2

    def base(self) -> int:
        """With what SET_VRING_BASE begins."""
        (at, wrap), (used_at, used_wrap) = self._position(self.available), self._position(self.used)
        return at | wrap << 15 | used_at << 16 | used_wrap << 31

    def move(self, available: int) -> None:
        self.available = self.used = available
        at, wrap = self._position(available)
        for slot in range(self.entries):  # each as it was used last
            was = wrap if slot < at else 1 - wrap
            struct.pack_into("<QIHH", self.memory, TABLE + 16 * slot, 0, 0, 0, (AVAILABLE_MARK | USED_MARK) * was)

    def describe(self, at: int, address: int, length: int, flags: int, following: int = 0, table: int = TABLE) -> None:
        if table != TABLE:
            struct.pack_into("<QIHH", self.memory, table + 16 * at, address, length, 0, flags)
        else:
            self._lists[at] = [(address, length, flags)]

    def chain(self, buffers: Sequence[Buffer], head: int = 0, table: int = TABLE) -> None:
        if table != TABLE:
            super().chain(buffers, head, table)
            return
        self._lists[head] = [
            (GUEST_BASE + offset, length, (WRITE if is_written else 0) | (NEXT if number + 1 < len(buffers) else 0))
            for number, (offset, length, is_written) in enumerate(buffers)
        ]

    def write_slot(self, count: int, address: int, length: int, buffer_id: int, flags: int) -> None:
        """A descriptor that is available, unless the marks among ``flags`` turn that."""
        at, wrap = self._position(count)
        flags ^= AVAILABLE_MARK if wrap else USED_MARK
        struct.pack_into("<QIHH", self.memory, TABLE + 16 * at, address, length, buffer_id, flags)

    def place(self, *heads: int) -> None:
        """Make chains available."""
        for head in heads:
            first = self.available
            descriptors = self._lists[head]
            assert self.available + len(descriptors) - self.used <= self.entries, "the ring is full"
            self._slots[head] = len(descriptors)
            for number in reversed(range(len(descriptors))):  # the first one shows them all
                self.write_slot(first + number, *descriptors[number][:2], head, descriptors[number][2])
            self.available += len(descriptors)

    def offer(self, *heads: int) -> None:
        self.place(*heads)
        os.eventfd_write(self.kick, 1)

    def await_used(self, count: int = 1) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while len(found) < count:
            at, wrap = self._position(self.used)
            flags = AT_DESCRIPTOR if self.features & EVENT_INDEX else 0
            struct.pack_into("<HH", self.memory, DRIVER_AREA, at | wrap << 15, flags)
            length, buffer_id, flags = struct.unpack_from("<IHH", self.memory, TABLE + 16 * at + 8)
            if flags & (AVAILABLE_MARK | USED_MARK) != (AVAILABLE_MARK | USED_MARK) * wrap:
                self.await_call()
                continue
            found.append((buffer_id, length))
            self.used += self._slots.pop(buffer_id)
        return found
