"""The path of every I/O: block.Requests into ring entries, completions back into block.Completions (CONTRACTS 2, 8).

A request takes a tag from a free list (there are as many tags as completion entries, so the server always has room to
answer), stands in a table under it, and goes into the submission ring unseen; ``flush`` publishes all of a turn at
once and rings the doorbell only if the server sleeps. What finds no tag or no ring entry waits in a backlog, in order,
bounded by what the callers' windows can bring and by BACKLOG_LIMIT. Nothing here raises into the loop because of what
the server wrote: an index or a tag that can't be marks the queue ``broken``, and whoever owns the link ends it.
This file knows no sockets and no buffers: slots arrive as ring parts.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from iscsi_ovs import block
from iscsi_ovs.storage.errnos import error_of
from shm_server.abi import layout, ring
from shm_server.abi.doorbell import Doorbell

BACKLOG_LIMIT = 65536  # requests that wait for the ring; beyond it they are refused (a window's arithmetic is wrong)

_FENCE = block.Operation.FENCE
_FUA = layout.FLAG_FUA
_new = tuple.__new__  # a NamedTuple's own __new__ is a Python function: 0.15 µs more a completion

for _operation in block.Operation:
    assert layout.Opcode[_operation.name] == _operation.value, "block.Operation and the ring's opcodes differ"

# What was interrupted in the middle and does no harm when done twice: the initiator may simply try again. A COMPARE AND
# WRITE that was done miscompares at its second try; what a COPY reads may have been written by its first (CONTRACTS 9).
_REPEATABLE = frozenset(block.Operation) - {block.Operation.COMPARE_AND_WRITE, block.Operation.COPY}

Mistake = Callable[[block.Request, Exception], None]
_Waiting = tuple[int, int, block.Request, Sequence[ring.Part]]  # handle, epoch, request, parts


class RingQueue:
    """The client's end of both rings of one attachment. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        mapping: mmap.mmap,
        submission_entries: int,
        completion_entries: int,
        bells: tuple[Doorbell, Doorbell],
        later: deque[Callable[[], None]],
    ) -> None:
        """``bells``: submissions', completions'. ``later``: what must be called from the owner's next collect."""
        self._mapping = mapping
        self._view = memoryview(mapping)
        self._submissions = ring.SubmissionProducer(self._view, submission_entries)
        self._push_run = self._submissions.push_run  # bound once
        self._push_part = self._submissions.push_part
        self._completions = ring.CompletionConsumer(self._view, submission_entries, completion_entries)
        self._submission_bell, self._completion_bell = bells
        self._later = later
        self.submission_entries = submission_entries
        self.in_flight_limit = completion_entries
        self._table: list[block.Request | None] = [None] * completion_entries
        self._tags = list(range(completion_entries - 1, -1, -1))
        self._backlog: deque[_Waiting] = deque()
        self._rest: Iterator[ring.Completion] = iter(())  # taken from the ring, not yet called back
        self.on_mistake: Mistake | None = None  # told of a callback that raised; None: collect() raises it
        self.broken: str | None = None  # what the server did that can't be
        self.is_closed = False

    @property
    def in_flight(self) -> int:
        """Requests that the server owns (or will, at the next flush)."""
        return 0 if self.is_closed else self.in_flight_limit - len(self._tags)

    @property
    def waiting(self) -> int:
        """Requests in the backlog."""
        return len(self._backlog)

    def fileno(self) -> int:
        """The completion doorbell, readable after the server has rung it."""
        return self._completion_bell.fileno()

    # Submitting --------------------------------------------------------------------------------------------------

    def submit(self, handle: int, epoch: int, request: block.Request, parts: Sequence[ring.Part]) -> None:
        """Take a request; the server sees it at the next flush. Never blocks, never raises."""
        if self._backlog or not self._tags or not self._push(handle, epoch, request, parts):
            self._wait(handle, epoch, request, parts)

    def submit_run(self, handle: int, epoch: int, request: block.Request, slot: int) -> None:
        """The same for a request whose whole payload lies in one run of slots, from ``slot`` on: nearly all of them."""
        tags = self._tags
        if tags and not self._backlog and not request.no_unmap:
            tag = tags[-1]
            flags = _FUA if request.fua else 0
            if self._push_run(
                request.operation, flags, handle, epoch, request.offset_bytes, request.length_bytes, tag, slot
            ):
                tags.pop()
                self._table[tag] = request
                return
        self.submit(handle, epoch, request, [(slot, 0, request.length_bytes)])

    def submit_part(self, handle: int, epoch: int, request: block.Request, part: ring.Part) -> None:
        """The same for a payload that lies in one part: the client library's."""
        tags = self._tags
        if tags and not self._backlog and not request.no_unmap:
            tag = tags[-1]
            flags = _FUA if request.fua else 0
            if self._push_part(
                request.operation, flags, handle, epoch, request.offset_bytes, request.length_bytes, tag, part
            ):
                tags.pop()
                self._table[tag] = request
                return
        self.submit(handle, epoch, request, [part])

    def _push(self, handle: int, epoch: int, request: block.Request, parts: Sequence[ring.Part]) -> bool:
        """Write the ring entry; there is a tag. False: the ring is full, or broken."""
        submissions = self._submissions
        count = len(parts)
        try:
            if not submissions.has_room(1 if count < 8 else ring.entries_needed(count)):
                return False
        except ring.RingError as error:
            self.broken = str(error)
            return False
        flags = 0
        if request.fua:
            flags = layout.FLAG_FUA
        if request.no_unmap:
            flags |= layout.FLAG_NO_UNMAP
        tag = self._tags.pop()
        self._table[tag] = request
        submissions.push(
            request.operation, flags, handle, epoch, request.offset_bytes, request.length_bytes, tag, parts
        )
        return True

    def _wait(self, handle: int, epoch: int, request: block.Request, parts: Sequence[ring.Part]) -> None:
        if self.is_closed or len(self._backlog) >= BACKLOG_LIMIT:
            self.refuse(request, block.Error.UNREACHABLE)
        elif ring.entries_needed(len(parts)) > self.submission_entries or len(parts) > layout.MAX_PARTS:
            self.refuse(request, block.Error.INVALID)
        else:
            self._backlog.append((handle, epoch, request, parts))

    def refuse(self, request: block.Request, error: block.Error) -> None:
        """Complete a request that never reached the ring: later, as every completion comes later than its submit."""
        if request.done is not None:
            self._later.append(partial(request.done, block.Completion(request, error, 0)))

    def fence(self, handle: int, epoch: int, done: Callable[[], None]) -> None:
        """Discard what is not started of the handle's epochs before ``epoch``; ``done`` when the rest has ended.

        What still waits in the backlog is discarded here and now: the server has never heard of it.
        """
        kept: deque[_Waiting] = deque()
        for waiting in self._backlog:
            if waiting[0] == handle and waiting[2].operation != _FENCE:
                self.refuse(waiting[2], block.Error.CANCELLED)
            else:
                kept.append(waiting)
        self._backlog = kept
        self.submit(handle, epoch, block.Request(_FENCE, done=lambda _: done()), ())

    def flush(self) -> None:
        """Show the server everything submitted so far; ring its doorbell if it sleeps."""
        if not self.is_closed and self._submissions.publish():
            self._submission_bell.ring()

    # Collecting --------------------------------------------------------------------------------------------------

    def collect(self) -> int:
        """Call ``done`` for every completion that is there; returns how many.

        A callback may submit, and may collect (a library call inside a callback): both see the same iterator, so
        nothing is called twice and nothing is lost, even where a callback raises: ``on_mistake`` is told.
        """
        if self.is_closed:
            return 0
        try:
            taken = self._completions.take()
        except ring.RingError as error:
            self.broken = str(error)
            return 0
        if not taken:
            taken = list(self._rest)
            if not taken:
                if self._backlog:
                    self._drain_backlog()
                return 0
        else:
            taken = [*self._rest, *taken]
        self._rest = rest = iter(taken)
        table, free = self._table, self._tags
        completion_class = block.Completion
        request: block.Request | None = None
        while True:
            try:
                for tag, number, _, done_bytes, detail in rest:
                    try:
                        request = table[tag]
                    except IndexError:
                        request = None
                    if request is None:
                        self.broken = f"a completion bears tag {tag}, which is not in flight"
                        return len(taken)
                    table[tag] = None
                    free.append(tag)
                    done = request.done
                    if done is not None:
                        failure = error_of(number, request.operation, request.fua) if number else None
                        done(_new(completion_class, (request, failure, done_bytes, detail)))
                    if self.is_closed:
                        break
                break
            except Exception as error:
                if self.on_mistake is None or request is None:
                    raise
                self.on_mistake(request, error)
        if self._backlog:
            self._drain_backlog()
        return len(taken)

    def _drain_backlog(self) -> None:
        backlog = self._backlog
        while backlog and self._tags and self._push(*backlog[0]):
            backlog.popleft()

    def has_pending(self) -> bool:
        """True where a completion waits in the ring: for a bounded poll before sleeping."""
        return not self.is_closed and self._completions.has_pending()

    def prepare_sleep(self) -> bool:
        """Publish what is pushed and say that we sleep. False: don't, there is something to collect."""
        if self._backlog:
            self._drain_backlog()
        self.flush()
        if self.broken is not None:
            return False
        if self._backlog and len(self._tags) == self.in_flight_limit:
            return False  # the ring is full of what is done: its head moves within microseconds, and nobody rings
        return self._completions.raise_sleep()

    def wake(self) -> None:
        """We are awake again, whatever woke us."""
        if not self.is_closed:
            self._completions.lower_sleep()
            self._completion_bell.clear()

    def awake(self) -> None:
        """As wake(), where the doorbell is watched edge-triggered: there its counter is never read."""
        if not self.is_closed:
            self._completions.lower_sleep()

    def ring_self(self) -> None:
        """Make our own doorbell readable: there is something to collect."""
        self._completion_bell.ring()

    # The end -----------------------------------------------------------------------------------------------------

    def abandon(self) -> list[block.Completion]:
        """Close the queue and let go of the rings; what was outstanding, as completions for the owner to call back.

        What is submitted from now on is refused as unreachable. A fence is answered without error: with the server
        gone nothing of the handle can be under way in it.
        """
        outstanding = [request for request in self._table if request is not None]
        outstanding += [waiting[2] for waiting in self._backlog]
        self.is_closed = True
        self._table, self._tags, self._rest = [], [], iter(())
        self._backlog.clear()
        self._submissions.release()
        self._completions.release()
        self._view.release()
        self._mapping.close()
        return [block.Completion(request, _lost(request.operation), 0) for request in outstanding]

    def close_bells(self) -> None:
        """Close both doorbells: after the loop has forgotten their descriptors."""
        self._submission_bell.close()
        self._completion_bell.close()


def _lost(operation: block.Operation) -> block.Error | None:
    if operation == _FENCE:
        return None
    return block.Error.UNREACHABLE if operation in _REPEATABLE else block.Error.OUTCOME_UNKNOWN
