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

from shm_server.runtime import Call, Lane, Lock, Runtime, Wait
from shm_server.stores.base import INLINE_BYTES, Store, StoreFailedError, Views, views_after, views_until
from shm_server.stores.descriptor import DIRTY_BUDGET_BYTES
from shm_server.volumes.extents import Extents
from shm_server.volumes.ranges import Claim, RangeClaim, Ranges

log = logging.getLogger(__name__)

# Discards and zeroings: so much on a thread between two looks at a fence, aiming at so long.
FIRST_STEP_BYTES = 64 << 20
MIN_STEP_BYTES = 1 << 20
MAX_STEP_BYTES = 64 << 30
STEP_S = 0.004
WRITE_STEP_BYTES = INLINE_BYTES
MAX_WRITE_SAME_BYTES = 32 << 20
MAX_PATTERN_BYTES = 4096
BACKGROUND_SYNC_BYTES = DIRTY_BUDGET_BYTES // 2

# The store is looked up at each step: a snapshot may come in between.
Act = Callable[[Store, int, int], bool | None]
PUNCH: Act = lambda store, offset, length: store.punch(offset, length)  # noqa: E731 - two of a kind
ZERO: Act = lambda store, offset, length: store.zero(offset, length)  # noqa: E731

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
        self.is_read_only = False  # it is a snapshot, or a template
        self.failure = 0  # errno of the fdatasync that failed; sticky
        self.on_failure: Callable[[], None] = lambda: None
        self.ranges = Ranges(runtime)
        self._lane = Lane()
        self.atomic_lock = Lock()  # the store takes one atomic write at a time
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
        store = self.store
        done = 0 if self.ranges.is_guarded else store.read_now(views, offset)
        if done < length:
            await self._move(Claim.READ, views_after(views, done), offset + done)
        return length

    async def write(self, views: Views, offset: int, length: int, *, is_durable: bool) -> int:
        """Write all of ``views`` (``length`` bytes); ``is_durable``: on the medium before it returns."""
        self.check_write(offset, length)
        if not length:
            return 0
        store = self.store
        done = 0 if self.ranges.is_guarded else store.write_now(views, offset)
        if done < length:
            await self._move(Claim.WRITE, views_after(views, done), offset + done)
        await self.end_write(is_durable=is_durable)
        return length

    async def _move(self, kind: Claim, views: Views, offset: int) -> None:
        """What could not be done at once: on a thread, behind whoever guards the range."""
        with self.ranges.claim(kind, offset, sum(map(len, views))) as claim:
            done = 0
            is_guarded = self.ranges.is_guarded
            if is_guarded:
                await claim
            store = self.store  # who guarded may have changed it
            now, whole = (store.read_now, store.read) if kind is Claim.READ else (store.write_now, store.write)
            if is_guarded:
                done = now(views, offset)
            if rest := views_after(views, done):
                await Call(self.runtime, self._lane, partial(whole, rest, offset + done))

    async def fetch(self, view: memoryview, offset: int) -> None:
        """Fill ``view``; the caller has a claim and has checked the range."""
        done = self.store.read_now((view,), offset)
        if done < len(view):
            await Call(self.runtime, self._lane, partial(self.store.read, (view[done:],), offset + done))

    async def put(self, view: memoryview, offset: int) -> None:
        """Write ``view``; as fetch(), and end_write() comes after it."""
        done = self.store.write_now((view,), offset)
        if done < len(view):
            await Call(self.runtime, self._lane, partial(self.store.write, (view[done:],), offset + done))

    async def write_atomic(self, data: bytes, offset: int) -> None:
        """Write all or nothing, durably; the caller has an exclusive claim, and ``atomic_lock``."""
        try:
            await Call(self.runtime, self._lane, partial(self.store.write_atomic, data, offset))
        except StoreFailedError as error:
            self._fail(str(error), error)
            raise

    async def end_write(self, *, is_durable: bool) -> None:
        """After every write: durable where it is to be, else a sync in the background where much is dirty."""
        self._check_failure()
        if is_durable:
            await self.flush()
        elif self.store.dirty_bytes > BACKGROUND_SYNC_BYTES:
            self._start_sync()

    async def extent(self, offset: int, length: int) -> tuple[bool, int]:
        """Is ``offset`` allocated, and how far that holds (at most ``length``, at most to the end)."""
        length = min(length, max(0, self.size_bytes - offset))
        if not length:
            return False, 0
        if self.ranges.is_guarded:
            with self.ranges.claim(Claim.READ, offset, length) as claim:
                await claim
        return await self.find_extent(offset, length)

    async def find_extent(self, offset: int, length: int) -> tuple[bool, int]:
        """The same for whoever has a claim, and has checked the range."""
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
        self.check_write(offset, length)
        if length <= self.store.inline_bytes and not self.ranges.is_guarded:
            if length:
                self.punch(offset, length)
        else:
            await self.in_steps(PUNCH, offset, length, is_cancelled)
        return length

    def punch(self, offset: int, length: int) -> None:
        """Give ``store.inline_bytes`` or less back, at once; the caller has a claim, or nobody guards."""
        with self._extents.giving_back():
            self.store.punch(offset, length)

    async def write_zeroes(
        self, offset: int, length: int, is_cancelled: IsCancelled, *, is_durable: bool, may_unmap: bool
    ) -> int:
        """The range reads zeros afterwards; its space is kept unless ``may_unmap``."""
        if may_unmap and self.store.can_discard:
            await self.discard(offset, length, is_cancelled)
        else:
            self.check_write(offset, length)
            # In memory zeros are written: no file system there can zero a range and keep it allocated.
            if self.store.inline_bytes or not await self.in_steps(ZERO, offset, length, is_cancelled):
                await self.fill_steps(_ZEROS, offset, length, is_cancelled)
        if is_durable:
            await self.flush()
        return length

    async def write_same(
        self, pattern: bytes, offset: int, length: int, is_cancelled: IsCancelled, *, is_durable: bool
    ) -> int:
        """``pattern`` over and over, as one (CONTRACTS 6); ``length`` is a multiple of its length."""
        self.check_write(offset, length)
        if length:
            step = min(length, WRITE_STEP_BYTES // len(pattern) * len(pattern))
            block = memoryview(pattern * (step // len(pattern)))
            with self.ranges.claim(Claim.EXCLUSIVE, offset, length) as claim:
                await claim
                await self.fill_steps(block, offset, length, is_cancelled, is_claimed=True)
        if is_durable:
            await self.flush()
        return length

    # Steps of long work (CONTRACTS 7) -------------------------------------------------------------------------------

    async def in_steps(
        self,
        act: Act,
        offset: int,
        length: int,
        is_cancelled: IsCancelled,
        *,
        is_claimed: bool = False,
    ) -> bool:
        """``act(store, offset, length)`` on a thread, step by step. False: it can't (which the first step says).

        ``is_claimed``: the caller has the range to itself; else each step has a claim of its own.

        A step's length follows the time that the last one took: the file system locks the file for the whole of it,
        and a write on the loop's thread waits for that lock. A TiB of hole goes in a moment, a GiB of data does not.
        """
        step, end = FIRST_STEP_BYTES, offset + length
        with self._extents.giving_back():
            while offset < end:
                step = min(step, end - offset)
                with self._step_claim(offset, step, is_claimed) as claim:
                    await claim
                    check_cancelled(is_cancelled)
                    call = Call(
                        self.runtime,
                        self._lane,
                        partial(_timed, self.runtime.clock, partial(act, self.store), offset, step),
                    )
                    took_s, did = await call
                if did is False:
                    return False
                offset += step
                if took_s > STEP_S:
                    step = max(step // 2, MIN_STEP_BYTES)
                elif took_s < STEP_S / 4:
                    step = min(step * 2, MAX_STEP_BYTES)
        return True

    async def fill_steps(
        self, block: memoryview, offset: int, length: int, is_cancelled: IsCancelled, *, is_claimed: bool = False
    ) -> None:
        """Write ``block`` over and over; ``is_claimed`` as in_steps()."""
        at, end = offset, offset + length
        while at < end:
            piece = block[: end - at]
            with self._step_claim(at, len(piece), is_claimed) as claim:
                await claim
                check_cancelled(is_cancelled)
                await self.fill(piece, at)
            at += len(piece)
            if at < end:
                await self.runtime.pause
        await self.end_write(is_durable=False)

    def _step_claim(self, offset: int, length: int, is_claimed: bool) -> RangeClaim:
        return self.ranges.no_claim() if is_claimed else self.ranges.claim(Claim.WRITE, offset, length)

    async def fill(self, piece: memoryview, offset: int) -> None:
        """Write ordinary memory, at most a step of it; the caller has a claim and has checked the range."""
        if self.store.inline_bytes:
            self.store.fill(piece, offset)
        else:
            await Call(self.runtime, self._lane, partial(self.store.fill, piece, offset))

    async def clear(self, offset: int, length: int) -> None:
        """Make a range of moderate length read zeros, its space given back where that can be; as fill()."""
        if not self.store.can_discard:
            for at in range(0, length, WRITE_STEP_BYTES):
                await self.fill(_ZEROS[: length - at], offset + at)
        elif length <= self.store.inline_bytes:
            self.punch(offset, length)
        else:
            with self._extents.giving_back():
                await Call(self.runtime, self._lane, partial(self.store.punch, offset, length))

    async def copy_from(self, source: Volume, source_offset: int, offset: int, length: int) -> None:
        """A step of a COPY; the caller has claims on both ranges, which share no byte."""
        copy = partial(self.store.copy_from, source.store, source_offset, offset, length)
        if min(self.store.inline_bytes, source.store.inline_bytes) >= length:
            copy()
        else:
            await Call(self.runtime, self._lane, copy)

    # Checks ---------------------------------------------------------------------------------------------------------

    def check_range(self, offset: int, length: int) -> None:
        """EFBIG where not all of the range is in the volume."""
        if offset + length > self.size_bytes:
            raise OSError(errno.EFBIG, f"bytes {offset} to {offset + length} of {self.name}: it has {self.size_bytes}")

    def check_write(self, offset: int, length: int) -> None:
        """EIO where the volume failed; EFBIG as check_range()."""
        self._check_failure()
        self.check_range(offset, length)

    def _check_failure(self) -> None:
        if self.failure:
            raise OSError(errno.EIO, f"volume {self.name} failed: it met errno {self.failure}; open it anew")

    # fdatasync ------------------------------------------------------------------------------------------------------

    def _start_sync(self) -> None:
        if self._is_syncing:
            return
        self._is_syncing = True
        waiters, self._sync_waiters = self._sync_waiters, []
        Call(self.runtime, self._sync_lane, self.store.sync).start(lambda _, error: self._end_sync(waiters, error))

    def _end_sync(self, waiters: list[Wait[None]], error: BaseException | None) -> None:
        self._is_syncing = False
        if error is not None:
            self._fail(f"fdatasync: {error}", error)
        failed = OSError(errno.EIO, f"volume {self.name}: fdatasync failed") if self.failure else None
        if self.failure:
            waiters, self._sync_waiters = waiters + self._sync_waiters, []
        for waiter in waiters:
            waiter.set(None, failed)
        if self._sync_waiters:
            self._start_sync()

    def _fail(self, words: str, error: BaseException) -> None:
        """Nothing is promised any more, until the volume is opened anew."""
        if not self.failure:
            self.failure = (error.errno if isinstance(error, OSError) else None) or errno.EIO
            log.error("volume %s failed: %s", self.name, words)
            self.on_failure()

    # Another store --------------------------------------------------------------------------------------------------

    async def change_store(self, change: Callable[[Store], Store]) -> None:
        """``change`` the store, on a thread, into one with the same bytes while nobody reads or writes; a sync() of the
        old one may be under way. Where it raises, nothing is different."""
        with self.ranges.claim(Claim.EXCLUSIVE, 0, 1 << 63) as claim:
            await claim
            self.store = await Call(self.runtime, self._lane, partial(change, self.store))
            self._extents.change_store(self.store)

    # Size and end ---------------------------------------------------------------------------------------------------

    async def grow(self, size_bytes: int) -> None:
        """The store has the new size, durably. ``size_bytes`` of the volume changes by set_size()."""
        try:
            await Call(self.runtime, self._sync_lane, lambda: self.store.resize(size_bytes))
        except StoreFailedError as error:
            self._fail(str(error), error)
            raise

    def set_size(self, size_bytes: int, generation: int) -> None:
        self.size_bytes = size_bytes
        self.generation = generation

    def close(self) -> Wait[None]:
        """The last handle has gone. The store keeps its descriptors until a sync that still runs, and its last one,
        have ended; then the result is set, and it may be opened again."""
        closed: Wait[None] = Wait()

        def close(_value: None, error: BaseException | None) -> None:
            if error is not None:
                self._fail(f"fdatasync: {error}", error)
            self.store.close()
            closed.set()

        if self.store.must_settle and not self.failure:
            Call(self.runtime, self._sync_lane, self.store.settle).start(close)
        elif self._is_syncing:
            Call(self.runtime, self._sync_lane, lambda: None).start(close)  # behind it
        else:
            close(None, None)
        return closed


def check_cancelled(is_cancelled: IsCancelled) -> None:
    """Between two steps: ECANCELED where a fence has come."""
    if is_cancelled():
        raise OSError(errno.ECANCELED, "fenced")


def _timed(
    clock: Callable[[], float], act: Callable[[int, int], bool | None], offset: int, length: int
) -> tuple[float, bool | None]:
    """On a worker thread: how long it took, and what it says."""
    begun = clock()
    did = act(offset, length)
    return clock() - begun, did
