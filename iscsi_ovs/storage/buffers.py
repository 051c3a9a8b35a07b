"""The library's buffers: pieces of the segment that one memoryview shows.

A piece of more than 4 KiB is a run of neighbouring slots; smaller ones share a slot, 16 to one, as Open vStorage's
4096-byte class did. A slot whose sixteen pieces are all free goes back to the pool. Buffers count the requests they
are in, because memory that the server may still write must not get a new owner (CONTRACTS 2).
"""

from __future__ import annotations

from iscsi_ovs.storage.slots import SlotBuffer, SlotPool
from shm_server.abi.ring import Part

SMALL_BYTES = 4096


class Buffer:
    """Shared memory. ``data`` is a writable memoryview of its ``size`` bytes: the very bytes the server reads."""

    __slots__ = ("data", "in_flight", "owner", "pool", "run", "size", "start")

    def __init__(self, run: SlotBuffer, start: int, size: int, owner: object) -> None:
        self.owner: object = owner  # None: deallocated
        self.pool = run.pool
        self.run = run
        self.size = size
        self.data = run.pool.memory[start : start + size]
        self.in_flight = 0  # requests that the server may be working on
        self.start = start

    def __len__(self) -> int:
        return self.size

    def part(self, start: int, length: int) -> Part:
        """``length`` bytes from ``start`` as the one part of a ring entry."""
        slot, within = divmod(self.start + start, self.pool.slot_bytes)
        return slot, within, length


class BufferAllocator:
    """Buffers of one attachment's pool."""

    def __init__(self, pool: SlotPool, owner: object) -> None:
        """``owner`` stands on every buffer, also after this attachment's end."""
        self._owner = owner
        self._pool = pool
        self._live: dict[int, Buffer] = {}  # by identity: a buffer can be given back once
        self._small: dict[int, tuple[SlotBuffer, list[int]]] = {}  # slot's start → its run, starts of its free pieces
        self._open: list[int] = []  # slots with a free piece

    def owns(self, buffer: Buffer) -> bool:
        """True for a buffer that was allocated here and not given back."""
        return id(buffer) in self._live

    def allocate(self, size: int) -> Buffer | None:
        """None: no room now."""
        if size <= SMALL_BYTES:
            buffer = self._allocate_small(size)
        else:
            run = self._pool.allocate_run(size)
            buffer = None if run is None else Buffer(run, run.start_bytes, size, self._owner)
        if buffer is not None:
            self._live[id(buffer)] = buffer
        return buffer

    def _allocate_small(self, size: int) -> Buffer | None:
        if not self._open:
            run = self._pool.allocate_run(self._pool.slot_bytes)
            if run is None:
                return None
            start = run.start_bytes
            self._small[start] = run, list(range(start, start + self._pool.slot_bytes, SMALL_BYTES))
            self._open.append(start)
        run, free = self._small[self._open[-1]]
        piece = free.pop()
        if not free:
            self._open.pop()
        return Buffer(run, piece, size, self._owner)

    def deallocate(self, buffer: Buffer) -> None:
        """Give back a buffer that owns() and that nothing has in flight. Its ``data`` is released."""
        del self._live[id(buffer)]
        buffer.owner = None
        try:
            buffer.data.release()
        except BufferError:
            pass  # the caller holds it in some other form; it sees whatever comes there next
        if buffer.size > SMALL_BYTES:
            buffer.run.release()
            return
        start = buffer.run.start_bytes
        run, free = self._small[start]
        if not free:
            self._open.append(start)
        free.append(buffer.start)
        if len(free) * SMALL_BYTES == self._pool.slot_bytes:
            del self._small[start]
            self._open.remove(start)
            run.release()
