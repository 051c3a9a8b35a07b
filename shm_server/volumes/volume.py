"""One open volume: reads, writes, discards and flushes of any byte range, on the store beneath it.

What can be done at once is done on the loop's thread; the rest on the volume's lane of worker threads. Long work goes
in steps with a pause between them, so that other clients' entries come in between (CONTRACTS 7). A failed fdatasync is
sticky (CONTRACTS 1): the kernel may report the loss only once, so nothing is acknowledged as durable ever after, until
the volume is opened anew.

A read across the end is short; a write, discard or zeroing across the end fails whole with EFBIG.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial

from shm_server.runtime import Call, Lane, Runtime, Wait
from shm_server.stores.base import INLINE_BYTES, Store, Views, views_after, views_until
from shm_server.stores.descriptor import DIRTY_BUDGET_BYTES
from shm_server.volumes.extents import Extents

log = logging.getLogger(__name__)

PUNCH_STEP_BYTES = 1 << 30  # on a thread; frees at most so much between two looks at a fence
WRITE_STEP_BYTES = INLINE_BYTES
MAX_WRITE_SAME_BYTES = 32 << 20
MAX_PATTERN_BYTES = 4096
BACKGROUND_SYNC_BYTES = DIRTY_BUDGET_BYTES // 2

_ZEROS = memoryview(bytes(WRITE_STEP_BYTES))

IsCancelled = Callable[[], bool]


class Volume:
    """Shared by all handles on it. Belongs to the loop's thread."""

    def __init__(self, runtime: Runtime, store: Store, name: str, uuid: str, size_bytes: int, generation: int) -> None:
        self.runtime = runtime
        self.store = store
        self.name = name
        self.uuid = uuid
        self.size_bytes = size_bytes
        self.generation = generation
        self.failure = 0  # errno of the fdatasync that failed; sticky
        self.on_failure: Callable[[], None] = lambda: None
        self._lane = Lane()
        self._extents = Extents(runtime, self._lane, store)
        self._sync_lane = Lane(1)
        self._sync_waiters: list[Wait[None]] = []
        self._is_syncing = False

    # Data -----------------------------------------------------------------------------------------------------------

    async def read(self, views: Views, offset: int, length: int) -> int:
        """Bytes read into ``views``: fewer than ``length`` at the end, 0 behind it."""
        length = min(length, max(0, self.size_bytes - offset))
        if not length:
            return 0
        views = views_until(views, length)
        done = self.store.read_now(views, offset)
        if done < length:
            rest, at = views_after(views, done), offset + done
            await Call(self.runtime, self._lane, lambda: self.store.read(rest, at))
        return length

    async def write(self, views: Views, offset: int, length: int, *, is_durable: bool) -> int:
        """Write all of ``views`` (``length`` bytes); ``is_durable``: on the medium before it returns."""
        self._check_write(offset, length)
        if not length:
            return 0
        done = self.store.write_now(views, offset)
        if done < length:
            rest, at = views_after(views, done), offset + done
            await Call(self.runtime, self._lane, lambda: self.store.write(rest, at))
        self._check_failure()
        if is_durable:
            await self.flush()
        elif self.store.dirty_bytes > BACKGROUND_SYNC_BYTES:
            self._start_sync()
        return length

    async def extent(self, offset: int, length: int) -> tuple[bool, int]:
        """Is ``offset`` allocated, and how far that holds (at most ``length``, at most to the end)."""
        length = min(length, max(0, self.size_bytes - offset))
        if not length:
            return False, 0
        return await self._extents.find(offset, length)

    async def flush(self) -> None:
        """Everything completed before is durable when this returns. Flushes that wait share one fdatasync."""
        self._check_failure()
        if self.store.is_sync_instant:
            self.store.sync()
            return
        turn: Wait[None] = Wait()
        self._sync_waiters.append(turn)
        self._start_sync()
        await turn

    async def discard(self, offset: int, length: int, is_cancelled: IsCancelled) -> int:
        """Give the range back to the store; it reads zeros afterwards, its unaligned edges too."""
        self._check_write(offset, length)
        at, end = offset, offset + length
        with self._extents.giving_back():
            if length <= self.store.inline_bytes:
                if length:
                    self.store.punch(offset, length)
                return length
            while at < end:
                self._check_cancelled(is_cancelled)
                start, step = at, min(end - at, PUNCH_STEP_BYTES)
                await Call(self.runtime, self._lane, partial(self.store.punch, start, step))
                at += step
        return length

    async def write_zeroes(
        self, offset: int, length: int, is_cancelled: IsCancelled, *, is_durable: bool, may_unmap: bool
    ) -> int:
        """The range reads zeros afterwards; its space is kept unless ``may_unmap``."""
        if may_unmap and self.store.can_discard:
            await self.discard(offset, length, is_cancelled)
        else:
            self._check_write(offset, length)
            if length and not await self._zero_range(offset, length, is_cancelled):
                await self._fill(_ZEROS, offset, length, is_cancelled)
        if is_durable:
            await self.flush()
        return length

    async def write_same(
        self, pattern: bytes, offset: int, length: int, is_cancelled: IsCancelled, *, is_durable: bool
    ) -> int:
        """``pattern`` over and over; ``length`` is a multiple of its length."""
        self._check_write(offset, length)
        step = min(length, WRITE_STEP_BYTES // len(pattern) * len(pattern))
        if length:
            await self._fill(memoryview(pattern * (step // len(pattern))), offset, length, is_cancelled)
        if is_durable:
            await self.flush()
        return length

    async def _zero_range(self, offset: int, length: int, is_cancelled: IsCancelled) -> bool:
        if self.store.inline_bytes:
            return False  # in memory: zeros are written, in steps
        at, end = offset, offset + length
        with self._extents.giving_back():
            while at < end:
                self._check_cancelled(is_cancelled)
                start, step = at, min(end - at, PUNCH_STEP_BYTES)
                if not await Call(self.runtime, self._lane, partial(self.store.zero, start, step)):
                    return False
                at += step
        return True

    async def _fill(self, block: memoryview, offset: int, length: int, is_cancelled: IsCancelled) -> None:
        at, end = offset, offset + length
        while at < end:
            piece, start = block[: end - at], at
            if self.store.inline_bytes:
                self.store.fill(piece, start)
            else:
                await Call(self.runtime, self._lane, partial(self.store.fill, piece, start))
            at += len(piece)
            if at < end:
                await self.runtime.pause
                self._check_cancelled(is_cancelled)
        self._check_failure()
        if self.store.dirty_bytes > BACKGROUND_SYNC_BYTES:
            self._start_sync()

    # Checks ---------------------------------------------------------------------------------------------------------

    def _check_write(self, offset: int, length: int) -> None:
        self._check_failure()
        if offset + length > self.size_bytes:
            raise OSError(errno.EFBIG, f"bytes {offset} to {offset + length} of {self.name}: it has {self.size_bytes}")

    def _check_failure(self) -> None:
        if self.failure:
            raise OSError(errno.EIO, f"volume {self.name} failed: a flush met errno {self.failure}; open it anew")

    def _check_cancelled(self, is_cancelled: IsCancelled) -> None:
        if is_cancelled():
            raise OSError(errno.ECANCELED, "fenced")

    # fdatasync ------------------------------------------------------------------------------------------------------

    def _start_sync(self) -> None:
        if self._is_syncing:
            return
        self._is_syncing = True
        waiters, self._sync_waiters = self._sync_waiters, []
        Call(self.runtime, self._sync_lane, self.store.sync).start(lambda _, error: self._end_sync(waiters, error))

    def _end_sync(self, waiters: list[Wait[None]], error: BaseException | None) -> None:
        self._is_syncing = False
        if error is not None and not self.failure:
            self.failure = (error.errno if isinstance(error, OSError) else None) or errno.EIO
            log.error("volume %s failed: fdatasync: %s", self.name, error)
            self.on_failure()
        failed = OSError(errno.EIO, f"volume {self.name}: fdatasync failed") if self.failure else None
        if self.failure:
            waiters, self._sync_waiters = waiters + self._sync_waiters, []
        for waiter in waiters:
            waiter.set(None, failed)
        if self._sync_waiters:
            self._start_sync()

    # Size and end ---------------------------------------------------------------------------------------------------

    def grow(self, size_bytes: int) -> Call:
        """Await: the store has the new size, durably. ``size_bytes`` of the volume changes by set_size()."""
        return Call(self.runtime, self._sync_lane, lambda: self.store.resize(size_bytes))

    def set_size(self, size_bytes: int, generation: int) -> None:
        self.size_bytes = size_bytes
        self.generation = generation

    def close(self) -> None:
        """The last handle has gone. A sync that still runs keeps its descriptor until it ends."""
        if self._is_syncing:
            turn: Wait[None] = Wait()
            self._sync_waiters.append(turn)
            turn.start(lambda _value, _error: self.store.close())
        else:
            self.store.close()
