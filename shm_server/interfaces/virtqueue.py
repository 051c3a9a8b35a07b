"""A split virtqueue, the device's side ("Virtual I/O Device 1.2", 2.7), on guest memory touched by system calls.

The guest is trusted in nothing: an index that jumps, a descriptor that loops, points outside of the table or of memory,
or stands in the wrong order is a ProtocolError, and costs the guest its device. Available entries are taken in batches:
one look at the index, one copy of the ring's new part, one of the table; used ones go back in a batch, with one change
of the index and at most one call. ``take`` silences the guest's kicks (with EVENT_IDX: by leaving avail_event behind),
until ``arm`` asks for the next one and looks once more.

Indices are 16 bits and change while we look. The kernel may copy them byte by byte, so one whose upper byte has changed
is read until it is twice the same (it never goes back); ours is changed by words.add.
"""

from __future__ import annotations

import os
import struct

from shm_server.abi import ring
from shm_server.interfaces import words
from shm_server.interfaces.guest_memory import GuestMemory, Piece, Region
from shm_server.interfaces.inflight import RingInflight
from shm_server.interfaces.messages import ProtocolError

MAX_ENTRIES = 1024  # "Queue Size value is always a power of 2": of ours, at most this
MAX_CHAIN = 1024  # descriptors of one request; preadv takes no more pieces

_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1
_U16 = struct.Struct("<H")
_AVAILABLE_HEAD = struct.Struct("<HH")  # flags, index
_USED = struct.Struct("<II")  # id, length
_CALL = struct.pack("<Q", 1)


class Chain:
    """One request: the guest's buffers, those that we read and those that we write, in their order."""

    __slots__ = ("head", "queue", "readable", "writable")

    def __init__(self, queue: Virtqueue, head: int) -> None:
        self.queue = queue
        self.head = head
        self.readable: list[Piece] = []
        self.writable: list[Piece] = []


class Virtqueue:
    def __init__(self, index: int) -> None:
        self.index = index
        self.entries = 0
        self.is_enabled = False
        self.has_event_index = False
        self.has_indirect = False
        self.kick_fd = self.call_fd = self.error_fd = -1
        self.addresses: tuple[int, int, int] | None = None  # descriptor table, used ring, available ring
        self.in_flight = 0
        self.is_active = False  # the guest's kicks are silenced: look at the ring every turn
        self.last_available = 0
        self._used_index = 0
        self._called_at = 0  # the used index when the guest was last told, or its wish looked at
        self._pending: list[bytes] = []  # used entries to publish
        self._inflight: RingInflight | None = None
        self._again: list[int] = []  # what a server that died has left under way
        self._table: tuple[Region, int] | None = None
        self._available: tuple[Region, int]
        self._used: tuple[Region, int]

    # Setting up -----------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """ "started and enabled": a kick descriptor has come, and SET_VRING_ENABLE."""
        return self._table is not None and self.is_enabled and self.kick_fd >= 0

    def resolve(self, memory: GuestMemory) -> None:
        """Find the rings in memory, again whenever that has changed."""
        self._table = None
        if self.kick_fd < 0:
            return  # it is not started: what stands here may be of before
        if self.addresses is None or not self.entries:
            raise ProtocolError(f"ring {self.index} is started without its size and addresses")
        table, used, available = self.addresses
        self._available = memory.of_user(available, 6 + 2 * self.entries, 2)
        self._used = memory.of_user(used, 6 + 8 * self.entries, 4)
        self._table = memory.of_user(table, 16 * self.entries, 16)
        region, start = self._used
        _, self._used_index = _AVAILABLE_HEAD.unpack(region.read(start, 4))
        self._called_at = self._used_index

    def keep_track(self, track: RingInflight | None) -> None:
        """Note what is under way there; what is noted already is done again, before anything else."""
        self._inflight = track
        self._again = track.recover(self._used_index) if track is not None else []
        if self._again:
            # Used or under way: so many were taken, whatever SET_VRING_BASE says.
            self.last_available = (self._used_index + len(self._again)) & 0xFFFF

    def set_entries(self, count: int) -> None:
        if not 0 < count <= MAX_ENTRIES or count & (count - 1):
            raise ProtocolError(f"a ring of {count} entries: a power of two, at most {MAX_ENTRIES}")
        self.entries = count

    def set_descriptor(self, name: str, fd: int) -> None:
        """kick_fd, call_fd or error_fd; the one before is closed."""
        if (old := getattr(self, name)) >= 0:
            os.close(old)
        setattr(self, name, fd)

    def stop(self) -> None:
        """GET_VRING_BASE: "the back-end must … stop the ring"."""
        self.is_active = False
        self._table = None
        self._pending.clear()
        self._inflight = None
        self._again = []
        self.addresses = None
        for name in ("kick_fd", "call_fd", "error_fd"):
            self.set_descriptor(name, -1)

    # What the guest asks --------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Entries made available and not taken."""
        if self._again:
            return len(self._again)
        region, start = self._available
        while True:
            index = _U16.unpack(region.read(start + 2, 2))[0]
            count = (index - self.last_available) & 0xFFFF
            room = self.entries - self.in_flight  # a guest that knows its ring has no more to offer
            if index >> 8 == self.last_available >> 8 and count <= room:
                return int(count)
            # The upper byte has changed, or it seems that it jumped: were both bytes of one moment?
            if _U16.unpack(region.read(start + 2, 2))[0] == index:
                if count > room:
                    raise ProtocolError(f"the available index of ring {self.index} jumped by {count}")
                return int(count)

    def take(self, memory: GuestMemory, limit: int) -> list[Chain]:
        """At most ``limit`` requests."""
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
        assert self._table is not None
        region, start = self._table
        table = region.read(start, 16 * self.entries)
        chains = [self._walk(memory, head, table) for head in heads]
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

    def _walk(self, memory: GuestMemory, head: int, table: bytes) -> Chain:
        """Follow a chain of descriptors; no more of them than there can be."""
        chain = Chain(self, head)
        size, at, left = self.entries, head, self.entries
        is_indirect = False
        while True:
            if at >= size:
                raise ProtocolError(f"descriptor {at} of a table of {size}")
            if not left:
                raise ProtocolError(f"descriptors from {head} loop, or are more than {size}")
            left -= 1
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, 16 * at)
            if flags & _INDIRECT:
                # "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT"; nor nest them.
                if not self.has_indirect or is_indirect or flags & _NEXT:
                    raise ProtocolError(f"an indirect descriptor with flags {flags:#x} where none may be")
                if length % 16 or not 0 < length <= 16 * MAX_CHAIN:
                    raise ProtocolError(f"an indirect table of {length} bytes")
                table = b"".join(region.read(start, size) for region, start, size in memory.pieces(address, length))
                size = left = length // 16
                is_indirect, at = True, 0
                continue
            pieces = memory.pieces(address, length)
            if flags & _WRITE:
                chain.writable += pieces
            elif chain.writable:
                raise ProtocolError("a descriptor to be read behind one to be written")
            else:
                chain.readable += pieces
            if not flags & _NEXT:
                return chain
            at = following

    # What we answer -------------------------------------------------------------------------------------------------

    def put(self, head: int, written_bytes: int) -> None:
        """``head`` is used; ``publish`` shows it."""
        self._pending.append(_USED.pack(head, written_bytes))
        self.in_flight -= 1

    def publish(self) -> None:
        """Show the guest what is used, and call it where it wants that."""
        pending, self._pending = self._pending, []
        region, start = self._used
        first = self._used_index % self.entries
        straight = self.entries - first
        region.write(start + 4 + 8 * first, b"".join(pending[:straight]))
        if len(pending) > straight:
            region.write(start + 4, b"".join(pending[straight:]))
        left = len(pending)
        while left:
            # flags and index are one word, the index its upper half; it is added to by powers of two.
            bit = left.bit_length() - 1
            step, left = pending[len(pending) - left :][: 1 << bit], left - (1 << bit)
            heads = [_USED.unpack(entry)[0] for entry in step] if self._inflight is not None else []
            if self._inflight is not None:
                self._inflight.chain(heads)
            words.add(region.address + start, 16 + bit)
            self._used_index = (self._used_index + len(step)) & 0xFFFF
            if self._inflight is not None:
                self._inflight.let_go(heads, self._used_index)
        if self._wants_call():
            self.call()
        self._called_at = self._used_index

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def _wants_call(self) -> bool:
        region, start = self._available
        if not self.has_event_index:
            return not _U16.unpack(region.read(start, 2))[0] & _NO_INTERRUPT
        # "used_event": call where the index has passed it since we last looked (2.7.10).
        event = _U16.unpack(region.read(start + 4 + 2 * self.entries, 2))[0]
        passed = (self._used_index - event - 1) & 0xFFFF
        return bool(passed < (self._used_index - self._called_at) & 0xFFFF)

    def call(self) -> None:
        """Interrupt the guest."""
        if self.call_fd < 0:
            return
        try:
            os.write(self.call_fd, _CALL)
        except BlockingIOError:
            pass  # a call that it has not seen yet is there already
        except OSError as error:
            raise ProtocolError(f"ring {self.index} can't be called: {error.strerror}") from None

    def arm(self) -> bool:
        """Ask for a kick at the next entry. False: there is one already."""
        if self.has_event_index:
            region, start = self._used
            region.write(start + 4 + 8 * self.entries, _U16.pack(self.last_available))
            ring.fence()
        self.is_active = bool(self.waiting())
        return not self.is_active
