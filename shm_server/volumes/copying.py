"""COPY: bytes from one volume to another, or inside one, without passing through a client.

Both ranges are claimed in one step, so that two copies in opposite directions wait one for the other and not both
(ranges.py). It goes in steps of a MiB; a hole stays a hole where the store can punch one. Inside one volume, where the
ranges overlap, it is as if all had been read first: the direction sees to that, and a buffer where they nearly meet.
"""

from __future__ import annotations

from shm_server.volumes.ranges import Claim
from shm_server.volumes.volume import IsCancelled, Volume, check_cancelled

STEP_BYTES = 1 << 20
MAX_COPY_BYTES = 16 << 20


async def copy(
    source: Volume, source_offset: int, target: Volume, offset: int, length: int, is_cancelled: IsCancelled
) -> int:
    """Fill ``length`` bytes of ``target`` at ``offset`` from ``source``."""
    source.check_range(source_offset, length)
    target.check_write(offset, length)
    owner = object()
    with (
        source.ranges.claim(Claim.STABLE, source_offset, length, owner) as reading,
        target.ranges.claim(Claim.EXCLUSIVE, offset, length, owner) as writing,
    ):
        await reading
        await writing
        distance = abs(offset - source_offset) if source is target else length
        is_backward = distance < length and source_offset < offset
        done = 0
        while done < length:
            check_cancelled(is_cancelled)
            step = length - done if distance >= length else min(STEP_BYTES, length - done)
            at = length - done - step if is_backward else done
            is_data, run = await source.find_extent(source_offset + at, step)
            if distance >= length:
                step = min(run, STEP_BYTES) if is_data else run
            if is_data or run < step:
                await _move(source, source_offset + at, target, offset + at, step, distance < step)
            else:
                await target.clear(offset + at, step)
            done += step
            if done < length:
                await target.runtime.pause
    await target.end_write(is_durable=False)
    return length


async def _move(source: Volume, source_offset: int, target: Volume, offset: int, step: int, must_buffer: bool) -> None:
    if must_buffer:  # what is read and what is written share bytes
        buffer = memoryview(bytearray(step))
        await source.fetch(buffer, source_offset)
        await target.fill(buffer, offset)
    else:
        await target.copy_from(source, source_offset, offset, step)
