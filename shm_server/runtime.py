"""The loop's helpers: coroutines without asyncio, worker threads, timers, a lock.

One thread owns every volume, client and ring. What may block goes to a worker thread as a ``Call`` on a ``Lane`` and
comes back through ``Runtime.collect``. Whatever needs more than one step is a coroutine (``async def``) driven by a
``Job``: it awaits the suspensions of this file and nothing else. The loop itself (epoll) is in server.py; this file
knows no socket, no volume, no ring.
"""

from __future__ import annotations

import errno
import heapq
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Resume = Callable[[Any, BaseException | None], None]

MAX_WORKERS = 64  # threads of the whole server
MAX_LANE_CALLS = 8  # of these, what one volume may keep busy
MAX_CLOSINGS = 64  # threads beside them, for what is given back
STEP_S = 0.001  # a MiB of somebody's WRITE SAME in memory takes about so long; four of them side by side are too long


class Suspension:
    """What a coroutine here can await: it is started once and resumes the coroutine once, on the loop's thread."""

    __slots__ = ()

    def start(self, resume: Resume) -> None:
        """Begin; ``resume(value, error)`` is called later, or at once."""
        raise NotImplementedError

    def withdraw(self) -> bool:
        """Give up where nothing has begun yet; True: it will never resume."""
        return False

    def __await__(self) -> Generator[Suspension, Any, Any]:
        return (yield self)


class Job:
    """One coroutine, driven. ``finished(result, error)`` is called exactly once."""

    __slots__ = ("_awaiting", "_coroutine", "_finished", "cancelled")

    def __init__(
        self, coroutine: Coroutine[Suspension, Any, Any], finished: Callable[[Any, BaseException | None], None]
    ) -> None:
        self._coroutine = coroutine
        self._finished = finished
        self._awaiting: Suspension | None = None
        self.cancelled = False

    def start(self) -> None:
        """Run up to the first suspension that does not resume at once."""
        self._resume(None, None)

    def cancel(self, error: BaseException) -> None:
        """Ask it to stop: at once where it waits for something unstarted, else where it looks at ``cancelled``."""
        if self.cancelled:
            return
        self.cancelled = True
        if self._awaiting is not None and self._awaiting.withdraw():
            self._resume(None, error)

    def _resume(self, value: Any, error: BaseException | None) -> None:
        self._awaiting = None
        try:
            suspension = self._coroutine.send(value) if error is None else self._coroutine.throw(error)
        except StopIteration as stop:
            self._finished(stop.value, None)
            return
        except Exception as failure:  # whatever it is, it belongs to this job's answer
            failure.__traceback__ = None if isinstance(failure, OSError) else failure.__traceback__
            self._finished(None, failure)
            return
        self._awaiting = suspension
        suspension.start(self._resume)


class Wait(Suspension, Generic[T]):
    """A one-shot event for one waiter."""

    __slots__ = ("_error", "_resume", "_value", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._resume: Resume | None = None

    def start(self, resume: Resume) -> None:
        if self.is_done:
            resume(self._value, self._error)
        else:
            self._resume = resume

    def set(self, value: T | None = None, error: BaseException | None = None) -> None:
        """Wake the waiter; a second set() changes nothing."""
        if self.is_done:
            return
        self.is_done = True
        self._value, self._error = value, error
        if self._resume is not None:
            resume, self._resume = self._resume, None
            resume(value, error)


class Lock:
    """First come, first served; for ``async with``."""

    def __init__(self) -> None:
        self._held = False
        self._is_passing = False
        self._waiters: deque[Wait[None]] = deque()

    @property
    def is_free(self) -> bool:
        return not self._held

    async def __aenter__(self) -> None:
        if self._held or self._waiters:
            turn: Wait[None] = Wait()
            self._waiters.append(turn)
            await turn  # the lock is handed over, never let go in between
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        if self._is_passing:
            return  # whoever handed it to us hands it on: a long line that a fence ends would be a deep stack
        self._is_passing = True
        try:
            while self._waiters and not self._held:
                self._held = True
                self._waiters.popleft().set()
        finally:
            self._is_passing = False


class NamedLocks:
    """A Lock for each name, for as long as somebody has it or stands in line for it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[Lock, int]] = {}  # and how many that are

    def is_free(self, name: str) -> bool:
        return name not in self._locks or self._locks[name][0].is_free

    def is_awaited(self, name: str) -> bool:
        """By somebody besides who has it."""
        return name in self._locks and self._locks[name][1] > 1

    @asynccontextmanager
    async def have(self, name: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(name) or (Lock(), 0)
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)


class Lane:
    """A queue in front of the worker threads, so that one stuck volume can't take them all.

    ``is_apart``: each of its calls has a thread of its own, which may be stuck for ever.
    """

    __slots__ = ("is_apart", "limit", "running", "waiting")

    def __init__(self, limit: int = MAX_LANE_CALLS, *, is_apart: bool = False) -> None:
        self.limit = limit
        self.is_apart = is_apart
        self.running = 0
        self.waiting: deque[Call] = deque()


class Call(Suspension):
    """``function`` run on a worker thread. It can be withdrawn while it waits in its lane."""

    __slots__ = ("_resume", "error", "function", "lane", "runtime", "value")

    def __init__(self, runtime: Runtime, lane: Lane, function: Callable[[], Any]) -> None:
        self.runtime = runtime
        self.lane = lane
        self.function: Callable[[], Any] | None = function
        self.value: Any = None
        self.error: BaseException | None = None
        self._resume: Resume | None = None

    def start(self, resume: Resume) -> None:
        self._resume = resume
        self.runtime.submit(self)

    def withdraw(self) -> bool:
        try:
            self.lane.waiting.remove(self)
        except ValueError:
            return False
        self.function = None
        return True

    def run(self) -> None:
        """On the worker thread."""
        assert self.function is not None
        try:
            self.value = self.function()
        except BaseException as error:  # carried over to the loop's thread
            error.__traceback__ = None if isinstance(error, OSError) else error.__traceback__
            self.error = error
        self.function = None  # lets go of the views it held

    def finish(self) -> None:
        """On the loop's thread."""
        assert self._resume is not None
        self._resume(self.value, self.error)


class Pause(Suspension):
    """Let the other clients have their turn first."""

    __slots__ = ("_runtime",)

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def start(self, resume: Resume) -> None:
        self._runtime.ready.append(resume)


class Timer:
    """A deadline that can be called off."""

    __slots__ = ("_action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self._action = None

    def fire(self) -> None:
        if self._action is not None:
            action, self._action = self._action, None
            action()


class Runtime:
    """Worker threads, paused jobs and timers of one server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.ready: deque[Resume] = deque()
        self.pause = Pause(self)
        self.finished: deque[Call] = deque()
        self._signalled = False
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._submitted = 0  # calls with the threads
        self._threads: list[threading.Thread] = []
        self.closings = Lane(MAX_CLOSINGS, is_apart=True)
        self._apart: set[threading.Thread] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_number = 0

    # Threads --------------------------------------------------------------------------------------------------------

    def call(self, lane: Lane, function: Callable[[], T]) -> Call:
        """Await this to run ``function`` on a thread."""
        return Call(self, lane, function)

    def submit(self, call: Call) -> None:
        lane = call.lane
        if lane.running >= lane.limit:
            lane.waiting.append(call)
            return
        lane.running += 1
        self._dispatch(call)

    def close_apart(self, close: Callable[[], None], done: Callable[[], None] | None = None) -> None:
        """Give something back on a thread of its own, because that may take long; then call ``done``."""

        def resume(_value: object, error: BaseException | None) -> None:
            if error is not None:
                log.error("something could not be closed", exc_info=error)
            if done is not None:
                done()

        self.call(self.closings, close).start(resume)

    def _dispatch(self, call: Call) -> None:
        if call.lane.is_apart:
            self._start_apart(call)
            return
        self._submitted += 1
        if self._submitted > len(self._threads) < MAX_WORKERS:
            # Daemons: a thread stuck on a dead disk must not keep the process from ending.
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the machine has no more of them: those that there are do it in time
                if not self._threads:
                    call.error = OSError(errno.EAGAIN, str(error))
                    self.finished.append(call)
                    self.wake()
                    return
            else:
                self._threads.append(thread)
        self._queue.put(call)

    def _start_apart(self, call: Call) -> None:
        thread = threading.Thread(target=lambda: self._run_apart(call), name="apart", daemon=True)
        self._apart.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the machine has no more of them
            self._apart.discard(thread)
            call.run()
            self.finished.append(call)
            self.wake()

    def _run_apart(self, call: Call) -> None:
        call.run()
        self.finished.append(call)
        self.wake()
        self._apart.discard(threading.current_thread())

    def _work(self) -> None:
        while True:
            call = self._queue.get()
            if call is None:
                return
            call.run()
            self.finished.append(call)
            del call
            self.wake()

    def wake(self) -> None:
        """From any thread: the loop shall look."""
        if not self._signalled:
            self._signalled = True
            os.eventfd_write(self.wake_fd, 1)

    def collect(self) -> None:
        """Resume whoever waited for the calls that are done."""
        self._signalled = False  # before looking: a thread that comes later signals again
        while self.finished:
            call = self.finished.popleft()
            lane = call.lane
            if not lane.is_apart:
                self._submitted -= 1
            if lane.waiting:
                self._dispatch(lane.waiting.popleft())
            else:
                lane.running -= 1
            call.finish()

    # Paused jobs and timers -----------------------------------------------------------------------------------------

    def step(self) -> None:
        """A step of every paused job, in their order; after STEP_S the others wait until the rings had their turn."""
        ready, clock = self.ready, self.clock
        deadline = clock() + STEP_S
        for _ in range(len(ready)):
            ready.popleft()(None, None)
            if clock() > deadline:
                return

    def after(self, delay_s: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` once, ``delay_s`` seconds from now."""
        timer = Timer(action)
        self._timer_number += 1
        heapq.heappush(self._timers, (self.clock() + delay_s, self._timer_number, timer))
        return timer

    async def wait(self, event: Wait[T], limit_s: float) -> bool:
        """Wait for ``event``, but no longer than ``limit_s``; False: it did not happen in time."""
        expired = False

        def expire() -> None:
            nonlocal expired
            if not event.is_done:
                expired = True
                event.set()

        timer = self.after(limit_s, expire)
        await event
        timer.cancel()
        return not expired

    def fire_timers(self) -> None:
        """Those that are due now. What these begin is for the next turn, however short it is: the rings come before."""
        timers, now, last = self._timers, self.clock(), self._timer_number
        while timers and timers[0][0] <= now and timers[0][1] <= last:
            heapq.heappop(timers)[2].fire()

    def timeout_s(self) -> float | None:
        """How long the loop may sleep; None: until something happens."""
        if self.ready or self.finished:
            return 0.0
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - self.clock())

    def close(self, wait_s: float = 1.0) -> None:
        """End the threads (those that are stuck are left behind)."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + wait_s
        threads = [*self._threads, *self._apart]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in threads):
            os.close(self.wake_fd)
