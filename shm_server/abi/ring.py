"""The two rings of one client: submissions (client → server) and completions (server → client).

Each ring has one producer and one consumer, each in its own process. Indices run freely modulo 2**32; an entry is
written first and published by its tail afterwards (x86-64 keeps the order of stores). Whoever consumes raises its
sleep word before it sleeps and looks at the ring once more; whoever produces publishes, then looks at that word: the
store and the load behind it must not change places, so a locked instruction stands between (``fence``).

The consumer copies entries out *once* (``bytes(view)``) and works on the copy: the other side may scribble on the
ring at any time. An index that lies raises RingError; the caller refuses that peer.

Tuples, not objects, come out of here: this is the path of every I/O.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence

from shm_server.abi import layout

Entry = tuple[int, ...]  # layout.ENTRY: opcode, flags, part_count, handle, epoch, _, offset, length, tag, 21 part words
Completion = tuple[int, int, int, int, int]  # layout.COMPLETION: tag, errno, _, bytes, detail
Part = tuple[int, int, int]  # slot, offset in slot, length (may run on into the slots that follow it)


class RingError(Exception):
    """The other side published an index that can't be."""


_INDEX_MASK = layout.INDEX_MASK
_ENTRY_BYTES = layout.ENTRY_BYTES
_pack_run = layout.ENTRY_ONE_PART.pack_into

_lock = threading.Lock()
_acquire = _lock.acquire
_release = _lock.release


def fence() -> None:
    """Order our earlier stores before our later loads.

    An uncontended lock and unlock is two locked instructions (about 120 ns), which on x86-64 are full barriers.
    Two threads of one process may meet here; they only wait for each other, nothing is lost.
    """
    _acquire()
    _release()


class _Ring:
    """What every end of a ring has: its words, its entries, its private copy of the indices."""

    def __init__(self, mapping: memoryview, offset: int, entries: int, entry_bytes: int) -> None:
        self._words = mapping[: layout.HEADER_BYTES].cast("I")
        self._entries = mapping[offset : offset + entries * entry_bytes]
        self._count = entries
        self._mask = entries - 1

    def release(self) -> None:
        """Let go of the mapping (it can't be closed while views of it live)."""
        self._words.release()
        self._entries.release()


class SubmissionProducer(_Ring):
    """The client's end of the submission ring."""

    def __init__(self, mapping: memoryview, entries: int) -> None:
        super().__init__(mapping, layout.submission_offset(), entries, layout.ENTRY_BYTES)
        self._tail = self._published = self._words[layout.WORD_SUBMISSION_TAIL]
        self._head_seen = self._words[layout.WORD_SUBMISSION_HEAD]

    def free(self) -> int:
        """Entries that can be pushed now."""
        self._head_seen = self._words[layout.WORD_SUBMISSION_HEAD]
        used = (self._tail - self._head_seen) & layout.INDEX_MASK
        if used > self._count:
            raise RingError(f"submission head {self._head_seen} is beyond our tail {self._tail}")
        return self._count - used

    def has_room(self, entries: int) -> bool:
        """True where ``entries`` more fit; reads the shared index only when the last look was not enough."""
        if self._count - ((self._tail - self._head_seen) & layout.INDEX_MASK) >= entries:
            return True
        return self.free() >= entries

    def push_run(
        self, opcode: int, flags: int, handle: int, epoch: int, offset: int, length: int, tag: int, slot: int
    ) -> bool:
        """push() for one part from the start of ``slot`` on: nearly every request.

        False where the last look at the server's head left no room (there may be more by now): nothing was written.
        """
        tail = self._tail
        if (tail - self._head_seen) & _INDEX_MASK >= self._count:
            return False
        _pack_run(
            self._entries, (tail & self._mask) * _ENTRY_BYTES,
            opcode, flags, 1, handle, epoch, 0, offset, length, tag, slot, 0, length,
        )  # fmt: skip
        self._tail = (tail + 1) & _INDEX_MASK
        return True

    def push_part(
        self, opcode: int, flags: int, handle: int, epoch: int, offset: int, length: int, tag: int, part: Part
    ) -> bool:
        """The same for one part that lies anywhere."""
        tail = self._tail
        if (tail - self._head_seen) & _INDEX_MASK >= self._count:
            return False
        _pack_run(
            self._entries, (tail & self._mask) * _ENTRY_BYTES,
            opcode, flags, 1, handle, epoch, 0, offset, length, tag, *part,
        )  # fmt: skip
        self._tail = (tail + 1) & _INDEX_MASK
        return True

    def push(
        self,
        opcode: int,
        flags: int,
        handle: int,
        epoch: int,
        offset: int,
        length: int,
        tag: int,
        parts: Sequence[Part],
    ) -> None:
        """Write one request; it is seen by the server at the next publish(). The caller has checked has_room()."""
        count = len(parts)
        tail = self._tail
        at = (tail & self._mask) * layout.ENTRY_BYTES
        if count == 1:
            slot, start, part_length = parts[0]
            layout.ENTRY_ONE_PART.pack_into(
                self._entries, at, opcode, flags, 1, handle, epoch, 0, offset, length, tag, slot, start, part_length
            )
        else:
            inline = [word for part in parts[: layout.INLINE_PARTS] for word in part]
            inline.extend([0] * (21 - len(inline)))
            layout.ENTRY.pack_into(
                self._entries, at, opcode, flags, count, handle, epoch, 0, offset, length, tag, *inline
            )
            for first in range(layout.INLINE_PARTS, count, layout.CONTINUATION_PARTS):
                tail = (tail + 1) & layout.INDEX_MASK
                self._push_continuation(tail, parts[first : first + layout.CONTINUATION_PARTS])
        self._tail = (tail + 1) & layout.INDEX_MASK

    def _push_continuation(self, index: int, parts: Sequence[Part]) -> None:
        words = [word for part in parts for word in part]
        words.extend([0] * (30 - len(words)))
        at = (index & self._mask) * layout.ENTRY_BYTES
        layout.CONTINUATION.pack_into(self._entries, at, layout.Opcode.CONTINUATION, 0, len(parts), 0, *words)

    def publish(self) -> bool:
        """Make what was pushed visible. True: the server sleeps, ring its doorbell (once)."""
        if self._tail == self._published:
            return False
        words = self._words
        words[layout.WORD_SUBMISSION_TAIL] = self._published = self._tail
        fence()
        if words[layout.WORD_SERVER_SLEEPS]:
            words[layout.WORD_SERVER_SLEEPS] = 0
            return True
        return False


def entries_needed(part_count: int) -> int:
    """Ring entries that a request with so many parts takes."""
    if part_count <= layout.INLINE_PARTS:
        return 1
    return 1 - (layout.INLINE_PARTS - part_count) // layout.CONTINUATION_PARTS


def copy_source(offset: int, handle: int, epoch: int) -> list[Part]:
    """The words in the place of parts that name what a COPY reads."""
    words = struct.unpack("<6I", layout.COPY_SOURCE.pack(offset, handle, epoch, 0, 0))
    return [words[:3], words[3:]]


class SubmissionConsumer(_Ring):
    """The server's end of the submission ring."""

    def __init__(self, mapping: memoryview, entries: int) -> None:
        super().__init__(mapping, layout.submission_offset(), entries, layout.ENTRY_BYTES)
        self._head = 0

    def pending(self) -> int:
        """Entries published and not yet taken. Raises RingError where the client's tail can't be."""
        count = (self._words[layout.WORD_SUBMISSION_TAIL] - self._head) & layout.INDEX_MASK
        if count > self._count:
            raise RingError(f"submission tail is {count} entries ahead in a ring of {self._count}")
        return count

    def peek(self, limit: int) -> list[Entry]:
        """Up to ``limit`` raw entries, each copied out once; they stay in the ring until advance()."""
        return list(layout.ENTRY.iter_unpack(self.copy(limit)))

    def copy(self, limit: int) -> bytes:
        """As peek(), the bytes themselves: whoever needs only a part of each entry unpacks only that."""
        count = min(self.pending(), limit)
        if count <= 0:
            return b""
        start = self._head & self._mask
        first = min(count, self._count - start)
        size = layout.ENTRY_BYTES
        raw = bytes(self._entries[start * size : (start + first) * size])
        if first < count:
            raw += bytes(self._entries[: (count - first) * size])
        return raw

    def advance(self, count: int) -> None:
        """Give ``count`` entries back to the client."""
        self._head = (self._head + count) & layout.INDEX_MASK
        self._words[layout.WORD_SUBMISSION_HEAD] = self._head

    def raise_sleep(self) -> bool:
        """Say that we are about to sleep. False: something came in meanwhile, don't."""
        self._words[layout.WORD_SERVER_SLEEPS] = 1
        fence()
        if self._words[layout.WORD_SUBMISSION_TAIL] != self._head:
            self._words[layout.WORD_SERVER_SLEEPS] = 0
            return False
        return True

    def lower_sleep(self) -> None:
        """We are awake: no doorbell needed."""
        self._words[layout.WORD_SERVER_SLEEPS] = 0


class CompletionProducer(_Ring):
    """The server's end of the completion ring."""

    def __init__(self, mapping: memoryview, submission_entries: int, entries: int) -> None:
        super().__init__(mapping, layout.completion_offset(submission_entries), entries, layout.COMPLETION_BYTES)
        self._tail = self._published = 0

    def free(self) -> int:
        """Completions that can be pushed now. Raises RingError where the client's head can't be."""
        used = (self._tail - self._words[layout.WORD_COMPLETION_HEAD]) & layout.INDEX_MASK
        if used > self._count:
            raise RingError(f"completion head is beyond our tail by {self._count - used} entries")
        return self._count - used

    def push(self, tag: int, errno: int, done_bytes: int, detail: int) -> None:
        """Write one completion; the caller knows that there is room (it takes no more requests than that)."""
        at = (self._tail & self._mask) * layout.COMPLETION_BYTES
        layout.COMPLETION.pack_into(self._entries, at, tag, errno, 0, done_bytes, detail)
        self._tail = (self._tail + 1) & layout.INDEX_MASK

    def publish(self) -> bool:
        """Make what was pushed visible. True: the client sleeps, ring its doorbell (once)."""
        if self._tail == self._published:
            return False
        words = self._words
        words[layout.WORD_COMPLETION_TAIL] = self._published = self._tail
        fence()
        if words[layout.WORD_CLIENT_SLEEPS]:
            words[layout.WORD_CLIENT_SLEEPS] = 0
            return True
        return False


class CompletionConsumer(_Ring):
    """The client's end of the completion ring."""

    def __init__(self, mapping: memoryview, submission_entries: int, entries: int) -> None:
        super().__init__(mapping, layout.completion_offset(submission_entries), entries, layout.COMPLETION_BYTES)
        self._head = 0

    def has_pending(self) -> bool:
        """True where a completion waits."""
        return self._words[layout.WORD_COMPLETION_TAIL] != self._head

    def take(self) -> list[Completion]:
        """Every completion that is there."""
        tail = self._words[layout.WORD_COMPLETION_TAIL]
        count = (tail - self._head) & layout.INDEX_MASK
        if not count:
            return []
        if count > self._count:
            raise RingError(f"completion tail is {count} entries ahead in a ring of {self._count}")
        start = self._head & self._mask
        first = min(count, self._count - start)
        size = layout.COMPLETION_BYTES
        raw = bytes(self._entries[start * size : (start + first) * size])
        if first < count:
            raw += bytes(self._entries[: (count - first) * size])
        self._head = tail
        self._words[layout.WORD_COMPLETION_HEAD] = tail
        return list(layout.COMPLETION.iter_unpack(raw))

    def raise_sleep(self) -> bool:
        """Say that we are about to sleep. False: something came in meanwhile, don't."""
        self._words[layout.WORD_CLIENT_SLEEPS] = 1
        fence()
        if self._words[layout.WORD_COMPLETION_TAIL] != self._head:
            self._words[layout.WORD_CLIENT_SLEEPS] = 0
            return False
        return True

    def lower_sleep(self) -> None:
        """We are awake: no doorbell needed."""
        self._words[layout.WORD_CLIENT_SLEEPS] = 0
