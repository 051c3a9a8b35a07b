"""The block port: the seam between SCSI (and every other interface) and storage.

A Device takes Requests and gives them back as Completions, later and in any order; payload lies in Buffers that the
device's Pool hands out, because they *are* the memory that the volume server reads and writes. Nothing here blocks.

    buffer = pool.allocate(4096)                      # None: no room now
    device.submit(Request(Operation.READ, offset_bytes=0, length_bytes=4096, buffer=buffer))
    … device's owner flushes its ring once a turn, collects completions, and calls request.done(completion)

From submit to completion a buffer belongs to the server (CONTRACTS 2); whoever aborts waits for the completion before
the buffer is released. This module knows no shared memory, no SCSI and no iSCSI.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Operation(enum.IntEnum):
    """What a request asks for. The numbers are those of the ring's opcodes (asserted in shm_client)."""

    READ = 1
    WRITE = 2
    FLUSH = 3
    DISCARD = 4
    WRITE_ZEROES = 5
    FENCE = 6
    WRITE_SAME = 7
    COMPARE = 8
    COMPARE_AND_WRITE = 9
    EXTENTS = 10
    COPY = 11
    OR_WRITE = 12
    WRITE_ATOMIC = 13


class Error(enum.Enum):
    """Why storage failed. ``commands.sense`` gives each its sense, ``shm_client`` each its errno."""

    OUT_OF_RANGE = "beyond the end of the volume"
    NO_SPACE = "the store is full"
    READ_ONLY = "the volume is open for reading only"
    MEDIUM_READ = "the store could not read"
    BAD_PAGE = "the store read something else than was written"
    MEDIUM_WRITE = "the store could not write"
    WRITE_FAULT = "a flush failed; what it should have kept may be lost"
    UNSUPPORTED = "the store can't do this"
    INVALID = "the server refused the request as malformed"
    CANCELLED = "a fence discarded the request before it was started"
    UNREACHABLE = "the volume server is gone; nothing is known to be lost, try again"
    OUTCOME_UNKNOWN = "the volume server went away in the middle"
    MISCOMPARE = "the volume has other data than the request brought"
    SANITIZING = "the volume is being sanitized, or a sanitize of it failed"


@dataclass(frozen=True, slots=True)
class Geometry:
    """A volume's shape. ``generation`` counts its changes of size."""

    size_bytes: int
    logical_block_bytes: int = 512
    physical_block_bytes: int = 4096
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Features:
    """What a device can do."""

    can_write: bool = True
    can_discard: bool = True
    can_compare: bool = True  # COMPARE, COMPARE_AND_WRITE, OR_WRITE
    can_copy: bool = True
    max_atomic_write_bytes: int = 0  # 0: WRITE_ATOMIC is unsupported


class Buffer(Protocol):
    """A piece of the shared memory, in one part or several."""

    length_bytes: int

    def views(self, start: int, stop: int) -> list[memoryview]:
        """The bytes [start, stop) of the buffer, as writable views in order; no copy."""

    def extend(self, length_bytes: int) -> bool:
        """Grow to ``length_bytes``, all or nothing. False: no room now."""

    def release(self, keep_slots: int = 0) -> None:
        """Give the memory back. Only when no request and no socket holds it. Twice is a mistake (assert).

        ``keep_slots`` of its slots go back to be reserved, as they were before it was allocated.
        """


class Pool(Protocol):
    """Hands out Buffers, and keeps room for what open command windows may still bring (CONTRACTS 3).

    All figures are in slots of ``slot_bytes``; a buffer takes whole slots.
    """

    slot_bytes: int
    capacity_slots: int
    free_slots: int  # neither taken nor reserved
    reserved_slots: int

    def slots_for(self, length_bytes: int) -> int:
        """Slots that a buffer of so many bytes takes."""

    def reserve(self, slots: int) -> bool:
        """Keep ``slots`` free for later. False: there are not so many."""

    def unreserve(self, slots: int) -> None:
        """Give a reservation back."""

    def allocate(self, length_bytes: int, from_reserved_slots: int = 0) -> Buffer | None:
        """A buffer, paid for from a reservation as far as that goes. None: no room, nothing has changed."""


@dataclass(slots=True)
class Request:
    """One operation on a device.

    EXTENTS asks whether ``offset_bytes`` is allocated: its completion's ``done_bytes`` say how far the answer holds,
    its ``detail`` is 1 for data and 0 for a hole.
    READ and WRITE move ``length_bytes`` between the volume at ``offset_bytes`` and the buffer from its start;
    WRITE_SAME repeats the buffer's first ``pattern_bytes``. ``fua``: durable before it completes. ``done`` is called
    with the completion, once, whatever happens. ``context`` belongs to the caller.

    COMPARE holds the volume against the buffer, or against its first ``pattern_bytes`` over and over where that is not
    0; without a buffer it reads the range and compares nothing. COMPARE_AND_WRITE's buffer holds twice
    ``length_bytes``: what must be there, and behind it what is written then. OR_WRITE sets the bits that are set in the
    buffer. Both are atomic against every handle of the volume. Where data differ the error is MISCOMPARE, ``detail``
    the offset of the first byte that does, from the request's start. BAD_PAGE, which whatever has to read may meet,
    brings the offset of the first page that is not what it was the same way. WRITE_ATOMIC is a WRITE that a crash or a
    power cut leaves done or not done, never in part. COPY fills the range from ``source``, a device of the same
    attachment, at ``source_offset_bytes``; inside one volume it is as if all were read before anything is written.
    """

    operation: Operation
    offset_bytes: int = 0
    length_bytes: int = 0
    buffer: Buffer | None = None
    fua: bool = False
    no_unmap: bool = False  # WRITE_ZEROES: keep the space allocated
    pattern_bytes: int = 0
    source: Device | None = None
    source_offset_bytes: int = 0
    done: Callable[[Completion], None] | None = None
    finish: Callable[[Completion], Any] | None = None  # SCSI's next step (scsi.LogicalUnit)
    context: Any = None


class Completion(NamedTuple):
    """What became of a request. ``done_bytes`` may be short for a READ across the end; ``detail`` is the opcode's."""

    request: Request
    error: Error | None
    done_bytes: int
    detail: int = 0


class Device(Protocol):
    """An open volume."""

    geometry: Geometry
    features: Features

    def submit(self, request: Request) -> None:
        """Take a request; never blocks. It is on its way at the latest when the owner next flushes."""

    def fence(self, done: Callable[[], None]) -> None:
        """Discard what is not started, call ``done`` when what is started has ended (CONTRACTS 2)."""
