"""What each opcode of the ring does: its shape, and the volume call behind it. One row a line, nothing else to add.

An entry arrives here checked (entries.py); what a row's function raises becomes the completion's errno in dispatch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from shm_server.abi import layout
from shm_server.abi.layout import Opcode
from shm_server.entries import Parts, Payload, Shape, Span
from shm_server.runtime import Suspension
from shm_server.volumes import compound, copying
from shm_server.volumes.volume import MAX_WRITE_SAME_BYTES, Volume

_FUA = layout.FLAG_FUA
_NO_UNMAP = layout.FLAG_NO_UNMAP


class Work:
    """One checked request. ``detail`` is the completion's, set by whoever has something to say."""

    __slots__ = (
        "detail", "flags", "length", "offset", "slots", "slots_fd", "source", "source_offset", "spans", "volume",
    )  # fmt: skip

    def __init__(
        self, volume: Volume, flags: int, offset: int, length: int, slots: memoryview, slots_fd: int, spans: list[Span]
    ) -> None:
        self.volume = volume
        self.flags = flags
        self.offset = offset
        self.length = length
        self.slots = slots
        self.slots_fd = slots_fd
        self.spans = spans
        self.detail = 0
        self.source: Volume | None = None  # of a COPY
        self.source_offset = 0

    def is_cancelled(self) -> bool:
        """A fence has come."""
        raise NotImplementedError

    @property
    def is_durable(self) -> bool:
        return bool(self.flags & _FUA)

    @property
    def payload(self) -> Payload:
        return Payload(self.slots_fd, self.spans)


async def _read(work: Work) -> int:
    views = [work.slots[begin:end] for begin, end in work.spans]
    try:
        return await work.volume.read(views, work.offset, work.length)
    finally:
        _release(views)


async def _write(work: Work) -> int:
    views = [work.slots[begin:end] for begin, end in work.spans]
    try:
        return await work.volume.write(views, work.offset, work.length, is_durable=work.is_durable)
    finally:
        _release(views)


def _release(views: list[memoryview]) -> None:
    """The mapping can't be closed while they live."""
    for view in views:
        view.release()


async def _flush(work: Work) -> int:
    await work.volume.flush()
    return 0


async def _extents(work: Work) -> int:
    is_data, run = await work.volume.extent(work.offset, work.length)
    work.detail = int(is_data)
    return run


async def _discard(work: Work) -> int:
    return await work.volume.discard(work.offset, work.length, work.is_cancelled)


async def _write_zeroes(work: Work) -> int:
    return await work.volume.write_zeroes(
        work.offset,
        work.length,
        work.is_cancelled,
        is_durable=work.is_durable,
        may_unmap=not work.flags & _NO_UNMAP,
    )


async def _write_same(work: Work) -> int:
    payload = work.payload
    pattern = payload.read(0, payload.length_bytes)
    return await work.volume.write_same(
        pattern, work.offset, work.length, work.is_cancelled, is_durable=work.is_durable
    )


async def _compare(work: Work) -> int:
    if not work.spans:
        return await compound.verify(work.volume, work.offset, work.length, work.is_cancelled)
    try:
        return await compound.compare(work.volume, work.payload, work.offset, work.length, work.is_cancelled)
    except compound.MiscompareError as error:
        work.detail = error.offset
        raise


async def _compare_and_write(work: Work) -> int:
    try:
        return await compound.compare_and_write(
            work.volume, work.payload, work.offset, work.length, is_durable=work.is_durable
        )
    except compound.MiscompareError as error:
        work.detail = error.offset
        raise


async def _or_write(work: Work) -> int:
    return await compound.or_write(
        work.volume, work.payload, work.offset, work.length, work.is_cancelled, is_durable=work.is_durable
    )


async def _write_atomic(work: Work) -> int:
    return await compound.write_atomic(work.volume, work.payload, work.offset, work.length, work.is_cancelled)


async def _copy(work: Work) -> int:
    assert work.source is not None
    return await copying.copy(work.source, work.source_offset, work.volume, work.offset, work.length, work.is_cancelled)


async def _nothing(work: Work) -> int:
    raise AssertionError("a fence is the dispatcher's")


@dataclass(frozen=True, slots=True)
class Operation:
    shape: Shape
    perform: Callable[[Work], Coroutine[Suspension, Any, int]]  # returns the bytes done


_MAX_CAW = compound.MAX_COMPARE_AND_WRITE_BYTES

# fmt: off
OPERATIONS: dict[int, Operation] = {
    Opcode.READ:              Operation(Shape(Parts.DATA, reads=True), _read),
    Opcode.WRITE:             Operation(Shape(Parts.DATA, _FUA, writes=True), _write),
    Opcode.FLUSH:             Operation(Shape(Parts.NONE), _flush),
    Opcode.DISCARD:           Operation(Shape(Parts.NONE, writes=True), _discard),
    Opcode.WRITE_ZEROES:      Operation(Shape(Parts.NONE, _FUA | _NO_UNMAP, writes=True), _write_zeroes),
    Opcode.FENCE:             Operation(Shape(Parts.NONE), _nothing),
    Opcode.WRITE_SAME:        Operation(Shape(Parts.PATTERN, _FUA, False, True, MAX_WRITE_SAME_BYTES), _write_same),
    Opcode.COMPARE:           Operation(Shape(Parts.DATA_OR_PATTERN, reads=True), _compare),
    Opcode.COMPARE_AND_WRITE: Operation(Shape(Parts.TWICE, _FUA, True, True, _MAX_CAW), _compare_and_write),
    Opcode.EXTENTS:           Operation(Shape(Parts.NONE), _extents),
    Opcode.COPY:              Operation(Shape(Parts.SOURCE, 0, False, True, copying.MAX_COPY_BYTES), _copy),
    Opcode.OR_WRITE:          Operation(Shape(Parts.DATA, _FUA, True, True), _or_write),
    Opcode.WRITE_ATOMIC:      Operation(Shape(Parts.DATA, _FUA, False, True), _write_atomic),
}
# fmt: on

assert list(OPERATIONS) == sorted(OPERATIONS), "one row a line, in order"
