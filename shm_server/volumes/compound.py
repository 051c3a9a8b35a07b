"""COMPARE, COMPARE AND WRITE, OR WRITE and WRITE ATOMIC: as one against every handle of the volume (CONTRACTS 6).

The range is claimed for the whole operation; a long one goes in steps of a MiB with a pause between them, so that
other ranges and other volumes are served meanwhile (CONTRACTS 7). Where what is there is not what was brought, the
error carries the offset of the first byte that differs, from the start of the request.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from shm_server.volumes.ranges import Claim
from shm_server.volumes.volume import IsCancelled, Volume, check_cancelled

STEP_BYTES = 1 << 20
MAX_COMPARE_AND_WRITE_BYTES = 1 << 20  # in one step
MAX_STABLE_BYTES = 32 << 20


class Payload(Protocol):
    """What the request brought."""

    length_bytes: int

    def read(self, start: int, stop: int) -> bytes:
        """A copy of the bytes [start, stop). Raises OSError."""


class MiscompareError(OSError):
    """``offset`` is that of the first byte that differs, from the request's start."""

    def __init__(self, offset: int) -> None:
        super().__init__(errno.EILSEQ, f"byte {offset} differs")
        self.offset = offset


async def compare(volume: Volume, payload: Payload, offset: int, length: int, is_cancelled: IsCancelled) -> int:
    """Hold the volume against the payload; against a payload that is shorter, over and over.

    As one, up to MAX_STABLE_BYTES: nobody may write for longer than that takes. A longer one is as one in each step.
    """
    volume.check_range(offset, length)
    ranges = volume.ranges
    is_whole = length <= MAX_STABLE_BYTES
    step_bytes = STEP_BYTES
    pattern = b""
    if payload.length_bytes < length:
        step_bytes -= STEP_BYTES % payload.length_bytes
        pattern = payload.read(0, payload.length_bytes) * (min(step_bytes, length) // payload.length_bytes)
    there = memoryview(bytearray(min(step_bytes, length)))
    with ranges.claim(Claim.STABLE, offset, length) if is_whole else ranges.no_claim() as claim:
        await claim
        for at in range(0, length, step_bytes):
            step = min(step_bytes, length - at)
            with ranges.no_claim() if is_whole else ranges.claim(Claim.STABLE, offset + at, step) as step_claim:
                await step_claim
                check_cancelled(is_cancelled)
                await volume.fetch(there[:step], offset + at)
            expected = pattern or payload.read(at, at + step)
            check_same(there[:step], memoryview(expected)[:step], at)
            if at + step < length:
                await volume.runtime.pause
    return length


async def verify(volume: Volume, offset: int, length: int, is_cancelled: IsCancelled) -> int:
    """Can it be read? A hole can, without looking at each of its zeros."""
    volume.check_range(offset, length)
    buffer = memoryview(bytearray(min(STEP_BYTES, length)))
    at, end = offset, offset + length
    while at < end:
        with volume.ranges.claim(Claim.READ, at, min(STEP_BYTES, end - at)) as claim:
            await claim
            check_cancelled(is_cancelled)
            is_data, run = await volume.find_extent(at, end - at)
            if is_data:
                run = min(run, len(buffer))
                await volume.fetch(buffer[:run], at)
        at += run
        if at < end:
            await volume.runtime.pause
    return length


async def compare_and_write(volume: Volume, payload: Payload, offset: int, length: int, *, is_durable: bool) -> int:
    """The payload's first half must be there, then its second half is written."""

    def change(there: memoryview, _at: int) -> bytes:
        check_same(there, memoryview(payload.read(0, length)), 0)
        return payload.read(length, 2 * length)

    return await _change(volume, change, offset, length, lambda: False, is_durable=is_durable)


async def or_write(
    volume: Volume, payload: Payload, offset: int, length: int, is_cancelled: IsCancelled, *, is_durable: bool
) -> int:
    """Set the bits that are set in the payload."""

    def change(there: memoryview, at: int) -> bytes:
        mask = payload.read(at, at + len(there))
        return (int.from_bytes(there, "little") | int.from_bytes(mask, "little")).to_bytes(len(there), "little")

    return await _change(volume, change, offset, length, is_cancelled, is_durable=is_durable)


async def write_atomic(volume: Volume, payload: Payload, offset: int, length: int, is_cancelled: IsCancelled) -> int:
    """All or nothing, whenever the process dies or the power fails; durable at its end."""
    limit = volume.store.max_atomic_write_bytes
    if length > limit:
        number = errno.EINVAL if limit else errno.EOPNOTSUPP
        raise OSError(number, f"an atomic write of {length} bytes, the store can do {limit}")
    volume.check_write(offset, length)
    with volume.ranges.claim(Claim.EXCLUSIVE, offset, length) as claim:
        await claim
        async with volume.atomic_lock:
            check_cancelled(is_cancelled)
            volume.check_write(offset, length)  # who was before us may have failed
            if length:
                await volume.write_atomic(payload.read(0, length), offset)
    return length


async def _change(
    volume: Volume,
    change: Callable[[memoryview, int], bytes],
    offset: int,
    length: int,
    is_cancelled: IsCancelled,
    *,
    is_durable: bool,
) -> int:
    """Read, let ``change(what is there, its offset in the request)`` say what shall be there, write that."""
    volume.check_write(offset, length)
    there = memoryview(bytearray(min(STEP_BYTES, length)))
    with volume.ranges.claim(Claim.EXCLUSIVE, offset, length) as claim:
        await claim
        for at in range(0, length, STEP_BYTES):
            check_cancelled(is_cancelled)
            step = min(STEP_BYTES, length - at)
            await volume.fetch(there[:step], offset + at)
            await volume.put(memoryview(change(there[:step], at)), offset + at)
            if at + step < length:
                await volume.runtime.pause
    await volume.end_write(is_durable=is_durable)
    return length


def check_same(there: memoryview, expected: memoryview, at: int) -> None:
    """MiscompareError where they differ; ``at`` is the offset of both in the request."""
    if there == expected:
        return
    while len(there) > 1:
        half = len(there) // 2
        if there[:half] == expected[:half]:
            there, expected, at = there[half:], expected[half:], at + half
        else:
            there, expected = there[:half], expected[:half]
    raise MiscompareError(at)
