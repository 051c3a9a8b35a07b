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
from collections.abc import Callable, Coroutine
from typing import Any

from shm_server.abi import layout, ring
from shm_server.abi.doorbell import Doorbell
from shm_server.abi.layout import Opcode
from shm_server.runtime import Job, Runtime, Suspension
from shm_server.volumes.handle import Handle
from shm_server.volumes.volume import MAX_PATTERN_BYTES, MAX_WRITE_SAME_BYTES

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

# opcode → the flags that may stand with it. What is not here is ENOSYS.
_FLAGS = {
    Opcode.READ: 0,
    Opcode.WRITE: layout.FLAG_FUA,
    Opcode.FLUSH: 0,
    Opcode.DISCARD: 0,
    Opcode.WRITE_ZEROES: layout.FLAG_FUA | layout.FLAG_NO_UNMAP,
    Opcode.FENCE: 0,
    Opcode.WRITE_SAME: layout.FLAG_FUA,
    Opcode.EXTENTS: 0,
}
_WITHOUT_PARTS = frozenset((Opcode.FLUSH, Opcode.DISCARD, Opcode.WRITE_ZEROES, Opcode.FENCE, Opcode.EXTENTS))
_CHANGES = frozenset((Opcode.WRITE, Opcode.DISCARD, Opcode.WRITE_ZEROES, Opcode.WRITE_SAME))

Head = tuple[int, int, int, int, int, int, int, int, int, int, int, int]  # layout.ENTRY_FIRST


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

    def close(self) -> None:
        """Let go of the memory, in this order: views, then mappings, then descriptors. Nothing is in flight."""
        assert self.in_flight == 0
        self.is_gone = True
        self.submissions.release()
        self.completions.release()
        self._rings.release()
        self.slots.release()
        self._rings_mapping.close()
        self._slots_mapping.close()
        os.close(self.slots_fd)
        self.bell.close()


class _Task:
    """An operation that did not end in one step."""

    __slots__ = ("_dispatcher", "attachment", "detail", "handle", "job", "opcode", "tag")

    def __init__(
        self,
        dispatcher: Dispatcher,
        attachment: Attachment,
        handle: Handle,
        opcode: int,
        tag: int,
    ) -> None:
        self._dispatcher = dispatcher
        self.attachment = attachment
        self.handle = handle
        self.opcode = opcode
        self.tag = tag
        self.detail = 0  # of the completion
        self.job: Job | None = None

    def is_cancelled(self) -> bool:
        return self.job is not None and self.job.cancelled

    def cancel(self) -> None:
        if self.job is not None:
            self.job.cancel(OSError(errno.ECANCELED, "fenced"))

    def start(self, coroutine: Coroutine[Suspension, Any, int]) -> None:
        self.attachment.in_flight += 1
        self.handle.tasks.add(self)
        self.job = Job(coroutine, self._finished)
        self.job.start()

    def _finished(self, done_bytes: int | None, error: BaseException | None) -> None:
        attachment, handle = self.attachment, self.handle
        number = 0
        if error is not None:
            done_bytes = 0
            number = errno_of(error)
            if number != errno.ECANCELED:
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
        attachment.complete(self.tag, number, done_bytes or 0, self.detail)
        self._dispatcher.mark(attachment)
        handle.end_task(self)
        if attachment.is_gone and not attachment.in_flight:
            attachment.on_drained()


class Dispatcher:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
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
        taken = self._serve_batch(attachment, submissions.copy(BATCH_ENTRIES), room, pending)
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
                    push(tag, error.errno or errno.EIO, 0, 0)
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
            handle = _check(attachment, head)
            if opcode == _FENCE:
                self._fence(attachment, handle, tag, epoch)
                return
            views = _views(attachment, head, raw, at)
        except OSError as error:
            if error.errno != errno.ECANCELED:
                attachment.complain("bad request %s on handle %d: %s", _name(opcode), number, error.strerror)
            attachment.complete(tag, error.errno or errno.EINVAL, 0)
            return
        task = _Task(self, attachment, handle, opcode, tag)
        task.start(_operate(task, head, views))

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


async def _operate(task: _Task, head: Head, views: list[memoryview]) -> int:
    """The volume call of one checked entry; returns the bytes done."""
    opcode, flags, _count, _handle, _epoch, _reserved, offset, length, *_ = head
    volume = task.handle.volume
    is_durable = bool(flags & layout.FLAG_FUA)
    try:
        if opcode == Opcode.READ:
            return await volume.read(views, offset, length)
        if opcode == Opcode.WRITE:
            return await volume.write(views, offset, length, is_durable=is_durable)
        if opcode == Opcode.FLUSH:
            await volume.flush()
            return 0
        if opcode == Opcode.EXTENTS:
            is_data, run = await volume.extent(offset, length)
            task.detail = int(is_data)
            return run
        if opcode == Opcode.DISCARD:
            return await volume.discard(offset, length, task.is_cancelled)
        if opcode == Opcode.WRITE_ZEROES:
            may_unmap = not flags & layout.FLAG_NO_UNMAP
            return await volume.write_zeroes(
                offset, length, task.is_cancelled, is_durable=is_durable, may_unmap=may_unmap
            )
        assert opcode == Opcode.WRITE_SAME
        pattern = _pattern(task.attachment, head)
        return await volume.write_same(pattern, offset, length, task.is_cancelled, is_durable=is_durable)
    finally:
        for view in views:
            view.release()


def _check(attachment: Attachment, head: Head) -> Handle:
    """Everything but the parts. Returns the handle; raises OSError with the errno of the completion."""
    opcode, flags, part_count, number, epoch, reserved, offset, length, *_ = head
    if opcode not in _FLAGS:
        raise OSError(errno.ENOSYS, "not served")
    handle = attachment.handles.get(number)
    if handle is None:
        raise OSError(errno.EBADF, "no such handle")
    if opcode in _CHANGES and not handle.can_write:
        raise OSError(errno.EBADF, f"the handle on {handle.volume.name} was opened without writing")
    if opcode == Opcode.READ and not handle.can_read:
        raise OSError(errno.EBADF, f"the handle on {handle.volume.name} was opened without reading")
    if opcode != Opcode.FENCE and epoch != handle.epoch:
        if (handle.epoch - epoch) & layout.INDEX_MASK < 1 << 31:
            raise OSError(errno.ECANCELED, "fenced")
        raise OSError(errno.EINVAL, f"epoch {epoch}, the handle is at {handle.epoch}")
    if flags & ~_FLAGS[Opcode(opcode)] or reserved:
        raise OSError(errno.EINVAL, f"flags {flags:#x}, reserved {reserved:#x}")
    if offset + length >= 1 << 63:
        raise OSError(errno.EINVAL, f"bytes {offset} + {length} overflow")
    if opcode in _WITHOUT_PARTS and part_count:
        raise OSError(errno.EINVAL, f"{part_count} parts, it takes none")
    if part_count > layout.MAX_PARTS:
        raise OSError(errno.EINVAL, f"{part_count} parts, at most {layout.MAX_PARTS}")
    if opcode == Opcode.WRITE_SAME:
        _check_write_same(head)
    return handle


def _check_write_same(head: Head) -> None:
    part_count, length, part_length = head[2], head[7], head[11]
    if part_count != 1 or not 0 < part_length <= MAX_PATTERN_BYTES:
        raise OSError(errno.EINVAL, f"a pattern is one part of 1 to {MAX_PATTERN_BYTES} bytes")
    if length % part_length or length > MAX_WRITE_SAME_BYTES:
        raise OSError(errno.EINVAL, f"{length} bytes of a pattern of {part_length}, at most {MAX_WRITE_SAME_BYTES}")


def _views(attachment: Attachment, head: Head, raw: bytes, at: int) -> list[memoryview]:
    """The slots of the entry's parts, each checked against the segment, their sum against the length."""
    opcode, part_count, length = head[0], head[2], head[7]
    if opcode in _WITHOUT_PARTS:
        return []
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
    spans = []
    total = 0
    for index in range(0, len(words), 3):
        slot, start, part_length = words[index : index + 3]
        begin = slot * _SLOT_BYTES + start
        if start >= _SLOT_BYTES or begin + part_length > attachment.slots_bytes:
            raise OSError(errno.EINVAL, f"slot {slot} + {start}, {part_length} bytes: outside of the segment")
        spans.append((begin, begin + part_length))
        total += part_length
    if opcode == Opcode.WRITE_SAME:
        return []  # its pattern is read by the segment's descriptor
    if total != length:
        raise OSError(errno.EINVAL, f"parts of {total} bytes for a length of {length}")
    return [attachment.slots[begin:end] for begin, end in spans if end > begin]


def _continuations(raw: bytes, at: int, extra: int) -> int:
    """How many of the ``extra`` entries behind entry ``at`` really are continuations."""
    found = 0
    for index in range(at + 1, at + 1 + extra):
        if index * _ENTRY_BYTES >= len(raw) or raw[index * _ENTRY_BYTES] != _CONTINUATION:
            break
        found += 1
    return found


def _pattern(attachment: Attachment, head: Head) -> bytes:
    """The block that a WRITE SAME repeats, by pread: the segment may have been shrunk under us."""
    slot, start, part_length = head[9:12]
    pattern = os.pread(attachment.slots_fd, part_length, slot * _SLOT_BYTES + start)
    if len(pattern) < part_length:
        raise OSError(errno.EFAULT, "the pattern is not in the segment any more")
    return pattern


def _nothing() -> None:
    pass


def errno_of(error: BaseException) -> int:
    """The one place where exceptions become errnos. What is not an OSError is a mistake of ours."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    log.error("a request failed by a mistake of the server", exc_info=error)
    return errno.EIO


def _name(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"
