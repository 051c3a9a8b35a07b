"""What stands in a ring entry, checked: nothing in it is believed before it has passed through here.

A request is one entry, followed by continuations where it has more than seven parts. ``check`` looks at everything but
the parts, ``spans`` at these; both raise OSError with the errno of the completion. Slots are touched by system calls
only (CONTRACTS 8): ``Payload`` reads them by the segment's descriptor, so that a client which shrank its segment gets
EFAULT and the server no SIGBUS. Which fields an operation has stands in its ``Shape``; what it does is operations.py's.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from shm_server.abi import layout
from shm_server.volumes.handle import Handle
from shm_server.volumes.volume import MAX_PATTERN_BYTES, MAX_WRITE_SAME_BYTES

_ENTRY_BYTES = layout.ENTRY_BYTES
_SLOT_BYTES = layout.SLOT_BYTES

Head = tuple[int, int, int, int, int, int, int, int, int, int, int, int]  # layout.ENTRY_FIRST
Span = tuple[int, int]  # bytes [begin, end) of the segment


class Parts(enum.Enum):
    """What the parts of a request are."""

    NONE = "there are none"
    DATA = "length bytes"
    TWICE = "twice length bytes"
    PATTERN = "one part, of which length is a multiple"
    DATA_OR_PATTERN = "length bytes, or a pattern, or none"
    SOURCE = "no slots: what to copy (layout.COPY_SOURCE)"


@dataclass(frozen=True, slots=True)
class Shape:
    """What may and must stand in an operation's entry. ``limit_bytes`` 0: no limit of its own."""

    parts: Parts
    flags: int = 0
    reads: bool = False
    writes: bool = False
    limit_bytes: int = 0


def check(shape: Shape, handles: Mapping[int, Handle], head: Head) -> Handle:
    """Everything but the parts and FENCE's epoch. Returns the handle."""
    opcode, flags, part_count, number, epoch, reserved, offset, length, *_ = head
    handle = find_handle(handles, number, reads=shape.reads, writes=shape.writes)
    if opcode != layout.Opcode.FENCE:
        check_epoch(handle, epoch)
    if flags & ~shape.flags or reserved:
        raise OSError(errno.EINVAL, f"flags {flags:#x}, reserved {reserved:#x}")
    if offset + length >= 1 << 63:
        raise OSError(errno.EINVAL, f"bytes {offset} + {length} overflow")
    if shape.parts is Parts.NONE and part_count:
        raise OSError(errno.EINVAL, f"{part_count} parts, it takes none")
    if part_count > layout.MAX_PARTS:
        raise OSError(errno.EINVAL, f"{part_count} parts, at most {layout.MAX_PARTS}")
    if shape.limit_bytes and length > shape.limit_bytes:
        raise OSError(errno.EINVAL, f"{length} bytes, at most {shape.limit_bytes}")
    return handle


def find_handle(handles: Mapping[int, Handle], number: int, *, reads: bool, writes: bool) -> Handle:
    """The handle, if it is there and was opened for that."""
    handle = handles.get(number)
    if handle is None:
        raise OSError(errno.EBADF, "no such handle")
    if writes and not handle.can_write:
        if handle.volume.is_read_only:
            raise OSError(errno.EROFS, f"{handle.volume.name} is a snapshot")
        raise OSError(errno.EBADF, f"the handle on {handle.volume.name} was opened without writing")
    if reads and not handle.can_read:
        raise OSError(errno.EBADF, f"the handle on {handle.volume.name} was opened without reading")
    return handle


def check_epoch(handle: Handle, epoch: int) -> None:
    """A request of before a fence is discarded; one of an epoch that never was is wrong."""
    if epoch != handle.epoch:
        if (handle.epoch - epoch) & layout.INDEX_MASK < 1 << 31:
            raise OSError(errno.ECANCELED, "fenced")
        raise OSError(errno.EINVAL, f"epoch {epoch}, the handle is at {handle.epoch}")


def spans(shape: Shape, segment_bytes: int, head: Head, raw: bytes, at: int) -> list[Span]:
    """Where the parts of entry ``at`` of ``raw`` lie, each checked against the segment, together against the length."""
    part_count, length = head[2], head[7]
    if shape.parts is Parts.NONE or shape.parts is Parts.SOURCE:
        return []
    found = []
    total = 0
    words = _words(part_count, raw, at)
    for index in range(0, len(words), 3):
        slot, start, part_length = words[index : index + 3]
        begin = slot * _SLOT_BYTES + start
        if start >= _SLOT_BYTES or begin + part_length > segment_bytes:
            raise OSError(errno.EINVAL, f"slot {slot} + {start}, {part_length} bytes: outside of the segment")
        if part_length:
            found.append((begin, begin + part_length))
        total += part_length
    _check_total(shape, part_count, total, length)
    return found


def _words(part_count: int, raw: bytes, at: int) -> list[int]:
    """The three words of each part, from the entry and its continuations (that they are there is checked)."""
    words: list[int] = list(layout.ENTRY_PARTS.unpack_from(raw, at * _ENTRY_BYTES + layout.PARTS_OFFSET))
    words = words[: 3 * min(part_count, layout.INLINE_PARTS)]
    left = part_count - layout.INLINE_PARTS
    while left > 0:
        at += 1
        _, _, count, reserved, *more = layout.CONTINUATION.unpack_from(raw, at * _ENTRY_BYTES)
        if count != min(left, layout.CONTINUATION_PARTS) or reserved:
            raise OSError(errno.EINVAL, f"a continuation of {count} parts, {left} are missing")
        words += more[: 3 * count]
        left -= count
    return words


def _check_total(shape: Shape, part_count: int, total: int, length: int) -> None:
    parts = shape.parts
    if parts is Parts.DATA_OR_PATTERN:
        if not part_count or total == length:
            return
        parts = Parts.PATTERN
    if parts is Parts.PATTERN:
        if part_count != 1 or not 0 < total <= MAX_PATTERN_BYTES:
            raise OSError(errno.EINVAL, f"a pattern is one part of 1 to {MAX_PATTERN_BYTES} bytes")
        if length % total:
            raise OSError(errno.EINVAL, f"{length} bytes of a pattern of {total}")
        return
    wanted = 2 * length if parts is Parts.TWICE else length
    if total != wanted:
        raise OSError(errno.EINVAL, f"parts of {total} bytes where {wanted} belong")


def copy_source(handles: Mapping[int, Handle], head: Head, raw: bytes, at: int) -> tuple[Handle, int]:
    """The handle and offset that a COPY reads from, checked as its own."""
    part_count, length = head[2], head[7]
    if part_count != layout.COPY_SOURCE_PARTS:
        raise OSError(errno.EINVAL, f"{part_count} parts where a source is named by {layout.COPY_SOURCE_PARTS}")
    offset, number, epoch, *zeros = layout.COPY_SOURCE.unpack_from(raw, at * _ENTRY_BYTES + layout.PARTS_OFFSET)
    handle = find_handle(handles, number, reads=True, writes=False)
    check_epoch(handle, epoch)
    if any(zeros) or offset + length >= 1 << 63:
        raise OSError(errno.EINVAL, f"a source of {length} bytes at {offset}, {zeros}")
    return handle, offset


class Payload:
    """The bytes in the slots of a request, read by pread and never by a slice of the mapping."""

    __slots__ = ("_fd", "_spans", "length_bytes")

    def __init__(self, fd: int, pieces: list[Span]) -> None:
        self._fd = fd
        self._spans = pieces
        self.length_bytes = sum(end - begin for begin, end in pieces)

    def read(self, start: int, stop: int) -> bytes:
        """A copy of the bytes [start, stop). EFAULT where the segment was shrunk under us."""
        data = b""
        for begin, end in self._spans:
            size = end - begin
            if start < size and stop > 0:
                first, last = begin + max(start, 0), begin + min(stop, size)
                piece = os.pread(self._fd, last - first, first)
                if len(piece) < last - first:
                    raise OSError(errno.EFAULT, "the payload is not in the segment any more")
                data += piece
            start -= size
            stop -= size
        return data


assert MAX_WRITE_SAME_BYTES % MAX_PATTERN_BYTES == 0
