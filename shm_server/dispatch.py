"""One ring entry → one volume call → one completion. Nothing that stands in an entry is believed.

Entries were copied out once; every field is checked before it is used: known? allowed here? well-formed? do it. What is
wrong with one entry costs that entry (EINVAL, EBADF, ENOSYS …) and a log line; an index that can't be is a RingError,
and costs the client. An aligned READ or WRITE of one part, on a store that can do it at once, never leaves the loop of
``serve``: that is the path of nearly every I/O, and its cost is counted in Python calls. Everything else becomes a
``_Task``. Slots are touched by system calls only: a slice of the mapping is made, handed to the kernel and let go
(CONTRACTS 8); a client that shrank its segment gets EFAULT.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence

from shm_server import entries
from shm_server.abi import layout, ring
from shm_server.abi.doorbell import Doorbell
from shm_server.abi.layout import Opcode
from shm_server.entries import Head
from shm_server.operations import OPERATIONS, Operation, Work
from shm_server.runtime import Job, Runtime
from shm_server.stores.base import BadPageError, Look
from shm_server.volumes.handle import Handle

log = logging.getLogger(__name__)

BATCH_ENTRIES = 64  # entries of one client per turn; a request of MAX_PARTS parts fits
BATCH_BYTES = 4 << 20  # bytes moved for one client per turn
PUBLISH_ENTRIES = 16  # completions shown to the client at once, so that it works while we do
PUBLISH_BYTES = 256 << 10
LOGGED_ERRORS = 8  # lines per client and second

assert ring.entries_needed(layout.MAX_PARTS) <= BATCH_ENTRIES

_READ, _WRITE, _FENCE = int(Opcode.READ), int(Opcode.WRITE), int(Opcode.FENCE)
_CONTINUATION = int(Opcode.CONTINUATION)
_SLOT_BYTES = layout.SLOT_BYTES
_ENTRY_BYTES = layout.ENTRY_BYTES

# Errors that are an answer, and nobody's mistake: fenced, other data than expected, being sanitized.
_EXPECTED_ERRORS = frozenset((errno.ECANCELED, errno.EILSEQ, errno.EBUSY))


class Attachment:
    """The data plane of one client: its rings, its slots, its handles, and what is in flight."""

    def __init__(
        self,
        client_words: str,
        rings: mmap.mmap,
        slots: mmap.mmap,
        slots_fd: int,
        entries: tuple[int, int],
        bell: Doorbell,
    ) -> None:
        self.words = client_words
        self._rings_mapping = rings
        self._rings = memoryview(rings)
        self._slots_mapping = slots
        self.slots = memoryview(slots)
        self.slots_fd = slots_fd
        self.slots_bytes = len(slots)
        self.submissions = ring.SubmissionConsumer(self._rings, entries[0])
        self.completions = ring.CompletionProducer(self._rings, entries[0], entries[1])
        self.bell = bell
        self.handles: dict[int, Handle] = {}
        self.in_flight = 0
        self.is_dirty = False  # completions pushed and not published
        self.is_starved = False  # requests wait, but there is no room for their completions
        self.is_gone = False  # the client has died: nothing is pushed any more
        self.on_drained: Callable[[], None] = _nothing
        self._logged = 0
        self._logged_since = 0.0

    def complete(self, tag: int, error: int, done_bytes: int, detail: int = 0) -> None:
        """Push a completion; the dispatcher publishes it."""
        if not self.is_gone:
            self.completions.push(tag, error, done_bytes, detail)

    def publish(self) -> None:
        if self.completions.publish():
            self.bell.ring()

    def complain(self, text: str, *values: object) -> None:
        """Log what a client did wrong, but not faster than anybody can read."""
        now = time.monotonic()
        if now - self._logged_since >= 1.0:
            if self._logged > LOGGED_ERRORS:
                log.warning("%s: %d more bad requests", self.words, self._logged - LOGGED_ERRORS)
            self._logged, self._logged_since = 0, now
        self._logged += 1
        if self._logged <= LOGGED_ERRORS:
            log.warning("%s: " + text, self.words, *values)

    def close(self) -> Callable[[], None]:
        """Let go of the memory, in this order: views, then mappings, then descriptors. Nothing is in flight.

        Returns what gives back the slots: as much memory as there may be of them is nothing for the loop.
        """
        assert self.in_flight == 0
        self.is_gone = True
        self.submissions.release()
        self.completions.release()
        self._rings.release()
        self.slots.release()
        self._rings_mapping.close()
        self.bell.close()
        return self._free_slots

    def _free_slots(self) -> None:
        self._slots_mapping.close()
        os.close(self.slots_fd)


class _Task(Work):
    """An operation that is not done in the loop of ``serve``."""

    __slots__ = ("_dispatcher", "attachment", "handle", "job", "opcode", "source_handle", "tag")

    def __init__(
        self,
        dispatcher: Dispatcher,
        attachment: Attachment,
        handle: Handle,
        head: Head,
        spans: list[entries.Span],
    ) -> None:
        opcode, flags, _, _, _, _, offset, length, tag, *_ = head
        super().__init__(handle.volume, flags, offset, length, attachment.slots, attachment.slots_fd, spans)
        self._dispatcher = dispatcher
        self.attachment = attachment
        self.handle = handle
        self.opcode = opcode
        self.tag = tag
        self.source_handle: Handle | None = None  # another one, whose fence discards us too
        self.job: Job | None = None

    def is_cancelled(self) -> bool:
        return self.job is not None and self.job.cancelled

    def cancel(self) -> None:
        if self.job is not None:
            self.job.cancel(OSError(errno.ECANCELED, "fenced"))

    def copy_from(self, handle: Handle, offset: int) -> None:
        self.source, self.source_offset = handle.volume, offset
        if handle is not self.handle:
            self.source_handle = handle

    def start(self, operation: Operation) -> None:
        self.attachment.in_flight += 1
        self.handle.tasks.add(self)
        if self.source_handle is not None:
            self.source_handle.tasks.add(self)
        self.job = Job(operation.perform(self), self._finished)
        self.job.start()

    def _finished(self, done_bytes: int | None, error: BaseException | None) -> None:
        attachment, handle = self.attachment, self.handle
        number, detail = 0, self.detail
        if error is not None:
            done_bytes = 0
            number = errno_of(error)
            detail = detail or _detail(error, self.offset if self.source is None else self.source_offset)
            if number not in _EXPECTED_ERRORS:
                attachment.complain("%s of volume %s: %s", _name(self.opcode), handle.volume.name, error)
        else:
            assert done_bytes is not None
            if self.opcode == _READ:
                handle.reads += 1
                handle.read_bytes += done_bytes
            elif self.opcode == _WRITE:
                handle.writes += 1
                handle.written_bytes += done_bytes
        attachment.in_flight -= 1
        attachment.complete(self.tag, number, done_bytes or 0, detail)
        self._dispatcher.mark(attachment)
        handle.end_task(self)
        if self.source_handle is not None:
            self.source_handle.end_task(self)
        if attachment.is_gone and not attachment.in_flight:
            attachment.on_drained()


class Dispatcher:
    def __init__(self, runtime: Runtime, looks: Sequence[Look] = ()) -> None:
        """``looks``: to be called behind the arrival of a batch and before its first read."""
        self._runtime = runtime
        self._looks = looks
        self._dirty: list[Attachment] = []

    def mark(self, attachment: Attachment) -> None:
        """It has a completion to publish."""
        if not attachment.is_dirty and not attachment.is_gone:
            attachment.is_dirty = True
            self._dirty.append(attachment)

    def publish(self) -> None:
        """Show every completion to its client."""
        for attachment in self._dirty:
            attachment.is_dirty = False
            if not attachment.is_gone:
                attachment.publish()
        self._dirty.clear()

    def serve(self, attachment: Attachment) -> int:
        """One bounded batch of one client. Returns the entries that waited. Raises RingError for a client that lies."""
        submissions = attachment.submissions
        pending = submissions.pending()
        if not pending:
            attachment.is_starved = False
            return 0
        completions = attachment.completions
        room = completions.free() - attachment.in_flight
        attachment.is_starved = room <= 0
        if room <= 0:
            return 0
        raw = submissions.copy(BATCH_ENTRIES)
        for each in self._looks:
            each.look()
        taken = self._serve_batch(attachment, raw, room, pending)
        submissions.advance(taken)
        if completions.publish():
            attachment.bell.ring()
        return pending

    def _serve_batch(self, attachment: Attachment, raw: bytes, room: int, pending: int) -> int:
        """Serve what stands in ``raw``. Returns the entries taken and not given back to the client yet."""
        completions = attachment.completions
        push = completions.push
        handles, slots, slots_bytes = attachment.handles, attachment.slots, attachment.slots_bytes
        taken = skip = given_back = unpublished = moved = moved_total = 0
        for head in layout.ENTRY_FIRST.iter_unpack(raw):
            if skip:
                skip -= 1
                taken += 1
                continue
            if taken >= room:
                break
            opcode, flags, part_count, number, epoch, reserved, offset, length, tag, slot, start, part_length = head
            handle = handles.get(number)
            if (
                part_count == 1
                and flags == 0
                and handle is not None
                and epoch == handle.epoch
                and part_length == length
                and start < _SLOT_BYTES
                and reserved == 0
                and (begin := slot * _SLOT_BYTES + start) + length <= slots_bytes
                and offset + length <= handle.volume.size_bytes
                and opcode <= _WRITE
                and (now := handle.read_now if opcode == _READ else handle.write_now) is not None
                and opcode
            ):
                try:
                    done = now((slots[begin : begin + length],), offset)
                except OSError as error:
                    push(tag, errno_of(error), 0, _detail(error, offset))
                    attachment.complain("%s of volume %s: %s", _name(opcode), handle.volume.name, error)
                    taken += 1
                    continue
                if done == length:
                    if opcode == _READ:
                        handle.reads += 1
                        handle.read_bytes += length
                    else:
                        handle.writes += 1
                        handle.written_bytes += length
                    push(tag, 0, length, 0)
                    taken += 1
                    unpublished += 1
                    moved += length
                    if unpublished >= PUBLISH_ENTRIES or moved >= PUBLISH_BYTES:
                        # The client may push again as soon as it sees a completion: so give its entries back first.
                        attachment.submissions.advance(taken - given_back)
                        given_back = taken
                        if completions.publish():
                            attachment.bell.ring()
                        moved_total += moved
                        unpublished = moved = 0
                        if moved_total >= BATCH_BYTES:
                            break
                    continue
            # Everything else: with more parts, across an edge, not at once, or wrong.
            extra = ring.entries_needed(part_count) - 1 if part_count <= layout.MAX_PARTS else 0
            if extra:
                if (taken + 1 + extra) * _ENTRY_BYTES > len(raw) and taken and pending > taken + extra:
                    break  # cut by our own limit: it is the first of the next batch
                skip = _continuations(raw, taken, extra)
            self._start(attachment, head, raw, taken, extra, skip)
            taken += 1
        return taken - given_back

    def _start(self, attachment: Attachment, head: Head, raw: bytes, at: int, extra: int, found: int) -> None:
        """Check the entry and begin what it asks for, or complete it with what is wrong with it."""
        opcode, _flags, _count, number, epoch, _reserved, _offset, _length, tag, *_ = head
        if opcode == _CONTINUATION:
            attachment.complain("a continuation entry that continues nothing")
            return  # there is no tag to answer
        try:
            if extra != found:
                raise OSError(errno.EINVAL, f"{extra} continuation entries should follow, {found} do")
            operation = OPERATIONS.get(opcode)
            if operation is None:
                raise OSError(errno.ENOSYS, "not served")
            handle = entries.check(operation.shape, attachment.handles, head)
            if opcode == _FENCE:
                self._fence(attachment, handle, tag, epoch)
                return
            spans = entries.spans(operation.shape, attachment.slots_bytes, head, raw, at)
            task = _Task(self, attachment, handle, head, spans)
            if operation.shape.parts is entries.Parts.SOURCE:
                task.copy_from(*entries.copy_source(attachment.handles, head, raw, at))
        except OSError as error:
            if error.errno != errno.ECANCELED:
                attachment.complain("bad request %s on handle %d: %s", _name(opcode), number, error.strerror)
            attachment.complete(tag, error.errno or errno.EINVAL, 0)
            return
        task.start(operation)

    def _fence(self, attachment: Attachment, handle: Handle, tag: int, epoch: int) -> None:
        attachment.in_flight += 1

        def done() -> None:
            attachment.in_flight -= 1
            attachment.complete(tag, 0, 0)
            self.mark(attachment)
            if attachment.is_gone and not attachment.in_flight:
                attachment.on_drained()

        try:
            handle.fence(epoch, done)
        except OSError:
            attachment.in_flight -= 1
            raise


def _continuations(raw: bytes, at: int, extra: int) -> int:
    """How many of the ``extra`` entries behind entry ``at`` really are continuations."""
    found = 0
    for index in range(at + 1, at + 1 + extra):
        if index * _ENTRY_BYTES >= len(raw) or raw[index * _ENTRY_BYTES] != _CONTINUATION:
            break
        found += 1
    return found


def _nothing() -> None:
    pass


def errno_of(error: BaseException) -> int:
    """The one place where exceptions become errnos. What is not an OSError is a mistake of ours.

    A page that is not what its checksum says is EIO everywhere but on the ring, where a failing medium, of which nobody
    knows the block, must be told from it.
    """
    if isinstance(error, BadPageError):
        return errno.EBADMSG
    if isinstance(error, OSError) and error.errno:
        return error.errno
    log.error("a request failed by a mistake of the server", exc_info=error)
    return errno.EIO


def _detail(error: BaseException, offset: int) -> int:
    """Where in a request at ``offset`` the page begins that can't be read."""
    return max(0, error.offset - offset) if isinstance(error, BadPageError) else 0


def _name(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"
