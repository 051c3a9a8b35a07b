"""Bytes between a volume and an image, several requests under way at once: reading ahead, writing behind.

The volume server fills and empties buffers while this process works on others of them, so the slower of the two sets
the pace. What comes out comes in order; what goes in has none. This file knows no format.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from iscsi_ovs import shm_client
from iscsi_ovs.images.image import PAGE_BYTES, STEP_BYTES, runs

BUFFERS = 8
ZEROES_IN_FLIGHT = 64
ZEROES_BYTES = 1 << 30  # at once
PIECES_IN_FLIGHT = 256

Piece = tuple[int, int, bool]  # offset, length, whether there is data


def allocated(volume: shm_client.Volume, granule_bytes: int) -> Iterator[Piece]:
    """The pieces of a volume that may hold data, in order, whole granules."""
    return (piece for piece in _pieces(volume, 0, volume.size, granule_bytes) if piece[2])


def changed(volume: shm_client.Volume, base: shm_client.Volume, granule_bytes: int) -> Iterator[Piece]:
    """The pieces of a volume that ``base``, a snapshot of its past, may have otherwise, in order, whole granules."""
    for offset, length, is_data in widened(volume.changes(base), granule_bytes, volume.size):
        if is_data and length > granule_bytes:
            yield from _pieces(volume, offset, offset + length, granule_bytes)
        else:
            yield offset, length, is_data


def _pieces(volume: shm_client.Volume, at: int, end: int, granule_bytes: int) -> Iterator[Piece]:
    """A range as pieces of data, none across a border of STEP_BYTES, and holes.

    Holes are found by asking, but none within a step: there a read is cheaper than many questions.
    """
    step_bytes = max(STEP_BYTES, granule_bytes)
    data_end = at + (step_bytes if end - at <= step_bytes else 0)
    while at < end:
        if at >= data_end:
            is_data, length = volume.extent(at, end - at)
            data_end = at + length
            if not is_data:
                hole_end = end if data_end >= end else data_end - data_end % granule_bytes
                if hole_end > at:
                    yield at, hole_end - at, False
                    at = hole_end
                    continue
        stop = min(end, at - at % step_bytes + step_bytes)
        yield at, stop - at, True
        at = stop


def widened(changes: Iterable[Piece], granule_bytes: int, end: int) -> Iterator[Piece]:
    """Changes that begin and end anywhere as such of whole granules; one that is not all zeros has data."""
    first = last = 0
    was_data = False
    for offset, length, is_data in changes:
        for start, stop, has_data in _granules(offset, offset + length, is_data, granule_bytes, end):
            if has_data is was_data and first < last >= start:
                last = max(last, stop)
            elif start < stop:
                if first < last:
                    yield first, last - first, was_data
                first, last, was_data = start, stop, has_data
    if first < last:
        yield first, last - first, was_data


def _granules(start: int, stop: int, is_data: bool, granule_bytes: int, end: int) -> Sequence[tuple[int, int, bool]]:
    outer, outer_end = start - start % granule_bytes, min(end, stop + -stop % granule_bytes)
    inner, inner_end = start + -start % granule_bytes, stop if stop >= end else stop - stop % granule_bytes
    if is_data or inner >= inner_end:
        return ((outer, outer_end, True),)
    return (outer, inner, True), (inner, inner_end, False), (inner_end, outer_end, True)


def read(
    context: shm_client.Context, volume: shm_client.Volume, pieces: Iterable[Piece], step_bytes: int
) -> Iterator[tuple[int, int, memoryview | None]]:
    """Offset, length and bytes of each piece (None: it has no data), in order; the bytes until the next one is asked
    for. No piece of data is longer than ``step_bytes``; short ones share a buffer."""
    with buffers(context, step_bytes) as taken:
        yield from _read(context, volume, pieces, step_bytes, [_Place(buffer) for buffer in taken])


def _read(
    context: shm_client.Context,
    volume: shm_client.Volume,
    pieces: Iterable[Piece],
    step_bytes: int,
    free: list[_Place],
) -> Iterator[tuple[int, int, memoryview | None]]:
    under_way: deque[tuple[int, int, _Place | None, int, shm_client.AioCompletion | None]] = deque()
    place = free.pop()

    def oldest() -> Iterator[tuple[int, int, memoryview | None]]:
        offset, length, place, start, completion = under_way.popleft()
        if place is None or completion is None:
            yield offset, length, None
            return
        if context.finish(completion) < length:
            raise OSError(errno.EIO, f"volume {volume.name} ends before byte {offset + length}")
        yield offset, length, place.buffer.data[start : start + length]
        place.pieces -= 1
        if place.is_full and not place.pieces:
            free.append(place)

    for offset, length, is_data in pieces:
        while len(under_way) >= PIECES_IN_FLIGHT:
            yield from oldest()
        if not is_data:
            under_way.append((offset, length, None, 0, None))
            continue
        if place.used + length > step_bytes:
            place.is_full = True
            if not place.pieces:
                free.append(place)
            while not free:
                yield from oldest()
            place = free.pop()
            place.used, place.is_full = 0, False
        completion = volume.aio_read(place.buffer, length, offset, buffer_offset=place.used)
        under_way.append((offset, length, place, place.used, completion))
        place.used += length
        place.pieces += 1
    while under_way:
        yield from oldest()


@dataclass(slots=True)
class _Place:
    """A buffer that pieces are read to, one behind the other."""

    buffer: shm_client.Buffer
    used: int = 0
    pieces: int = 0  # that somebody still wants to see
    is_full: bool = False


@contextlib.contextmanager
def buffers(context: shm_client.Context, size: int) -> Iterator[list[shm_client.Buffer]]:
    """As many as can be had up to BUFFERS, and one at least. ENOMEM."""
    taken = [context.allocate(size)]
    try:
        while len(taken) < BUFFERS:
            try:
                taken.append(context.allocate(size))
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                break
        yield taken
    finally:
        _give_back(context, taken)


def _give_back(context: shm_client.Context, taken: list[shm_client.Buffer]) -> None:
    """Those that the server still has, where somebody ended it half-way, stay until the context is closed."""
    for buffer in taken:
        if not buffer.in_flight:
            context.deallocate(buffer)


class Filler:
    """Writes to a volume, behind its caller. Errors of a request are raised by a later call, at the latest by flush().

    ``is_blank``: the volume reads zeros everywhere, so zeros need not be written.
    """

    def __init__(
        self,
        context: shm_client.Context,
        volume: shm_client.Volume,
        free: Iterable[shm_client.Buffer],
        *,
        is_blank: bool,
    ) -> None:
        self._context = context
        self._volume = volume
        self._is_blank = is_blank
        self._free = list(free)
        self._writing: deque[tuple[shm_client.Buffer, list[shm_client.AioCompletion]]] = deque()
        self._zeroing: deque[shm_client.AioCompletion] = deque()

    def buffer(self) -> shm_client.Buffer:
        """One to fill, and to hand to write()."""
        if not self._free:
            buffer, completions = self._writing.popleft()
            self._free.append(buffer)
            for completion in completions:
                self._context.finish(completion)
        return self._free[-1]

    def write(self, offset: int, length: int) -> None:
        """What the buffer begins with, at ``offset``; pages of zeros become holes."""
        buffer = self._free.pop()
        completions: list[shm_client.AioCompletion] = []
        self._writing.append((buffer, completions))
        with self._context.batch():
            for start, stop, is_zero in runs(buffer.data[:length], PAGE_BYTES):
                if is_zero:
                    self.zero(offset + start, stop - start)
                else:
                    completions.append(
                        self._volume.aio_write(buffer, stop - start, offset + start, buffer_offset=start)
                    )

    def zero(self, offset: int, length: int) -> None:
        if self._is_blank:
            return
        for at in range(0, length, ZEROES_BYTES):
            if len(self._zeroing) >= ZEROES_IN_FLIGHT:
                self._context.finish(self._zeroing.popleft())
            step = min(ZEROES_BYTES, length - at)
            self._zeroing.append(self._volume.aio_write_zeroes(offset + at, step))

    def flush(self) -> None:
        """All of it is in the volume, durably."""
        while self._writing:
            buffer, completions = self._writing.popleft()
            self._free.append(buffer)
            for completion in completions:
                self._context.finish(completion)
        while self._zeroing:
            self._context.finish(self._zeroing.popleft())
        self._volume.flush()
