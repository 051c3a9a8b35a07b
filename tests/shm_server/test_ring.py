"""The rings against a naive model, at any place of their indices; what a lying index does."""

from __future__ import annotations

import os
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shm_server.abi import layout, ring

ENTRIES = 16


def make_mapping(start: int) -> tuple[bytearray, memoryview]:
    """A ring mapping whose indices all stand at ``start``."""
    raw = bytearray(layout.ring_mapping_bytes(ENTRIES, ENTRIES))
    mapping = memoryview(raw)
    words = mapping[: layout.HEADER_BYTES].cast("I")
    for word in (
        layout.WORD_SUBMISSION_TAIL,
        layout.WORD_SUBMISSION_HEAD,
        layout.WORD_COMPLETION_TAIL,
        layout.WORD_COMPLETION_HEAD,
    ):
        words[word] = start
    return raw, mapping


class Rings:
    """All four ends over one mapping, as if they had run ``start`` entries already."""

    def __init__(self, start: int = 0) -> None:
        self.raw, self.mapping = make_mapping(start)
        self.words = self.mapping[: layout.HEADER_BYTES].cast("I")
        self.submit = ring.SubmissionProducer(self.mapping, ENTRIES)
        self.serve = ring.SubmissionConsumer(self.mapping, ENTRIES)
        self.complete = ring.CompletionProducer(self.mapping, ENTRIES, ENTRIES)
        self.reap = ring.CompletionConsumer(self.mapping, ENTRIES, ENTRIES)
        self.serve._head = self.reap._head = start
        self.complete._tail = self.complete._published = start


class RingMachine(RuleBasedStateMachine):
    """Submissions and completions come out once, in order, whole, and only after they were published."""

    @initialize(start=st.sampled_from([0, 1, ENTRIES - 1, 0xFFFFFFFF, 0xFFFFFFF0, 0xFFFFFFF9]))
    def begin(self, start: int) -> None:
        self.rings = Rings(start)
        self.pushed: list[tuple[int, ...]] = []
        self.published: deque[tuple[int, ...]] = deque()
        self.completed: list[tuple[int, ...]] = []
        self.shown: deque[tuple[int, ...]] = deque()
        self.server_sleeps = self.client_sleeps = False
        self.tag = 0

    @rule(parts=st.integers(0, 7), offset=st.integers(0, 2**64 - 1), flags=st.integers(0, 255))
    def push(self, parts: int, offset: int, flags: int) -> None:
        room = ENTRIES - len(self.pushed) - len(self.published)
        assert self.rings.submit.has_room(1) == (room > 0)
        if not room:
            return
        self.tag += 1
        chunks = [(number, 7 * number, 512 + number) for number in range(parts)]
        self.rings.submit.push(1, flags, 2, 3, offset, 512, self.tag, chunks)
        words = [word for chunk in chunks for word in chunk]
        self.pushed.append((1, flags, parts, 2, 3, 0, offset, 512, self.tag, *words, *[0] * (21 - len(words))))

    @rule(part=st.tuples(st.integers(0, 9), st.integers(0, 99), st.integers(0, 2**32 - 1)), is_run=st.booleans())
    def push_one(self, part: tuple[int, int, int], is_run: bool) -> None:
        """The quick ways say no where the last look left no room; there may be more by now."""
        slot, start, length = (part[0], 0, part[2]) if is_run else part
        if is_run:
            is_pushed = self.rings.submit.push_run(1, 0, 2, 3, 5, length, self.tag + 1, slot)
        else:
            is_pushed = self.rings.submit.push_part(1, 0, 2, 3, 5, length, self.tag + 1, part)
        if is_pushed:
            assert len(self.pushed) + len(self.published) < ENTRIES
            self.tag += 1
            self.pushed.append((1, 0, 1, 2, 3, 0, 5, length, self.tag, slot, start, length, *[0] * 18))
        elif not self.pushed and not self.published:
            assert self.rings.submit.has_room(1)  # which looks again
            assert self.rings.submit.push_part(1, 0, 2, 3, 5, 1, self.tag + 1, (0, 0, 1))
            self.tag += 1
            self.pushed.append((1, 0, 1, 2, 3, 0, 5, 1, self.tag, 0, 0, 1, *[0] * 18))

    @rule()
    def publish(self) -> None:
        rang = self.rings.submit.publish()
        assert rang == (self.server_sleeps and bool(self.pushed))
        if rang:
            self.server_sleeps = False
        self.published.extend(self.pushed)
        self.pushed.clear()

    @rule(limit=st.integers(0, 20), taken=st.integers(0, 20))
    def serve(self, limit: int, taken: int) -> None:
        entries = self.rings.serve.peek(limit)
        assert entries == list(self.published)[: min(limit, len(self.published))]
        taken = min(taken, len(entries))
        self.rings.serve.advance(taken)
        for _ in range(taken):
            self.published.popleft()

    @rule()
    def server_sleep(self) -> None:
        self.server_sleeps = self.rings.serve.raise_sleep()
        assert self.server_sleeps == (not self.published)

    @rule(error=st.integers(0, 2**32 - 1), done=st.integers(0, 2**64 - 1))
    def complete(self, error: int, done: int) -> None:
        assert self.rings.complete.free() == ENTRIES - len(self.completed) - len(self.shown)
        if self.rings.complete.free():
            self.tag += 1
            self.rings.complete.push(self.tag, error, done, 9)
            self.completed.append((self.tag, error, 0, done, 9))

    @rule()
    def show(self) -> None:
        rang = self.rings.complete.publish()
        assert rang == (self.client_sleeps and bool(self.completed))
        if rang:
            self.client_sleeps = False
        self.shown.extend(self.completed)
        self.completed.clear()

    @rule()
    def reap(self) -> None:
        assert self.rings.reap.has_pending() == bool(self.shown)
        assert self.rings.reap.take() == list(self.shown)
        self.shown.clear()

    @precondition(lambda self: not self.client_sleeps)
    @rule()
    def client_sleep(self) -> None:
        self.client_sleeps = self.rings.reap.raise_sleep()
        assert self.client_sleeps == (not self.shown)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "rings"):
            assert self.rings.serve.pending() == len(self.published)


TestRings = RingMachine.TestCase
TestRings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.integers(0, layout.MAX_PARTS))
def test_entries_needed_is_what_push_takes(parts: int) -> None:
    """A head with 7 parts, then one entry for every 10 more."""
    needed = ring.entries_needed(parts)
    assert needed == 1 + -(-max(0, parts - layout.INLINE_PARTS) // layout.CONTINUATION_PARTS)
    if needed <= ENTRIES:
        rings = Rings()
        rings.submit.push(1, 0, 1, 1, 0, parts, 5, [(1, 2, 3)] * parts)
        rings.submit.publish()
        assert rings.serve.pending() == needed


def test_a_doorbell_is_rung_once_for_a_sleep() -> None:
    """Who has been rung for is awake, or will be: the next publish, before it has said so itself, rings for nobody."""
    rings = Rings()
    assert rings.serve.raise_sleep()
    assert rings.reap.raise_sleep()
    rang = []
    for tag in (1, 2):
        rings.submit.push(1, 0, 1, 1, 0, 512, tag, [(0, 0, 512)])
        rings.complete.push(tag, 0, 512, 0)
        rang.append((rings.submit.publish(), rings.complete.publish()))
    assert rang == [(True, True), (False, False)]


def test_parts_run_on_in_continuations() -> None:
    """The eighth part and later stand in entries of their own, ten in each."""
    rings = Rings(0xFFFFFFFE)
    chunks = [(number, number + 1, number + 2) for number in range(18)]
    rings.submit.push(1, 0, 1, 1, 0, 18, 5, chunks)
    rings.submit.publish()
    raw = rings.serve.copy(16)
    head = layout.ENTRY.unpack_from(raw, 0)
    assert head[2] == 18
    words = list(head[9:])
    for at, count in ((1, 10), (2, 1)):
        opcode, _, found, reserved, *more = layout.CONTINUATION.unpack_from(raw, at * layout.ENTRY_BYTES)
        assert (opcode, found, reserved) == (layout.Opcode.CONTINUATION, count, 0)
        words += more[: 3 * count]
    assert words == [word for chunk in chunks for word in chunk]


@given(st.integers(0, 2**32 - 1))
def test_an_impossible_index_is_a_ring_error(index: int) -> None:
    """At every end: an index further away than the ring is long is refused, any other one is not."""
    for word, look in (
        (layout.WORD_SUBMISSION_TAIL, lambda rings: rings.serve.pending()),
        (layout.WORD_COMPLETION_TAIL, lambda rings: rings.reap.take()),
        (layout.WORD_COMPLETION_HEAD, lambda rings: rings.complete.free()),
        (layout.WORD_SUBMISSION_HEAD, lambda rings: rings.submit.free()),
    ):
        rings = Rings()
        rings.words[word] = index
        behind = word in (layout.WORD_SUBMISSION_TAIL, layout.WORD_COMPLETION_TAIL)
        distance = index if behind else -index & layout.INDEX_MASK
        if distance > ENTRIES:
            with pytest.raises(ring.RingError):
                look(rings)
        else:
            look(rings)


def test_an_entry_is_copied_once() -> None:
    """What the producer scribbles after peek() does not change what was peeked."""
    rings = Rings()
    rings.submit.push(1, 0, 1, 1, 42, 0, 7, [])
    rings.submit.publish()
    entries = rings.serve.peek(1)
    raw = rings.serve.copy(1)
    rings.mapping[layout.submission_offset() : layout.submission_offset() + 128] = os.urandom(128)
    assert entries[0][6] == 42
    assert layout.ENTRY.unpack(raw) == entries[0]
