"""Digests under the protocol: the same PDUs wherever the stream is cut, and no flipped bit that gets through."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import pdu
from iscsi_ovs.errors import ConnectionAbortError
from iscsi_ovs.session.digest import DigestFraming, DigestOutbox, digest
from iscsi_ovs.session.framing import Framing, sink
from iscsi_ovs.session.outbox import Outbox
from iscsi_ovs.testing.stream import Stream
from iscsi_ovs.wire import Derived
from tests.session.test_framing import Owner, lengths

DIGESTS = [(True, False), (False, True), (True, True)]
digests = st.sampled_from(DIGESTS)


class DigestOwner(Owner):
    def __init__(self, has_header_digest: bool, has_data_digest: bool, parts: int = 1) -> None:
        super().__init__(parts)
        self.framing: Framing = DigestFraming(self.framing, has_header_digest, has_data_digest)
        self.failed: list[int] = []

    def data_digest_failed(self) -> None:
        self.failed.append(self._header.initiator_task_tag)


def coder(has_header_digest: bool, has_data_digest: bool) -> Stream:
    made = Stream()
    made.header_digest, made.data_digest = has_header_digest, has_data_digest
    return made


def stream(kind: tuple[bool, bool], shapes: Sequence[tuple[int, int]]) -> tuple[bytes, list[tuple[int, bytes, bytes]]]:
    """PDUs of these (data bytes, AHS words), and what must come out."""
    made, whole, expected = coder(*kind), [], []
    for number, (length, words) in enumerate(shapes):
        data = (bytes((number * 7 + at) & 0xFF for at in range(300)) * (length // 300 + 1))[:length]
        ahs = bytes([number & 0xFF]) * 4 * words
        whole.append(made.encode(pdu.NopOut(initiator_task_tag=number), data, ahs))
        expected.append((number, ahs, data))
    return b"".join(whole), expected


def test_the_digest_of_32_zeroes() -> None:
    """RFC 7143's example, as bytes on the wire."""
    assert digest(0x8A9136AA).hex() == "aa36918a"


# Receiving


@given(
    digests,
    st.lists(st.tuples(lengths, st.sampled_from([0, 0, 0, 1, 255])), max_size=12),
    st.lists(st.one_of(st.integers(1, 60), st.integers(1, 70_000)), max_size=12),
    st.integers(1, 5),
)
def test_any_stream_cut_anywhere(
    kind: tuple[bool, bool], shapes: list[tuple[int, int]], cuts: list[int], parts: int
) -> None:
    """Padding, additional headers, large segments behind small ones, in one view or several: all of it is right."""
    data, expected = stream(kind, shapes)
    owner = DigestOwner(*kind, parts)
    owner.feed(data, cuts)
    assert owner.pdus == expected
    assert not owner.failed
    assert owner.framing.is_between_pdus


@pytest.mark.parametrize("kind", DIGESTS)
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 511, 16384])
def test_a_byte_at_a_time(kind: tuple[bool, bool], length: int) -> None:
    data, expected = stream(kind, [(length, 1), (length, 0)])
    owner = DigestOwner(*kind)
    owner.feed(data, [1])
    assert owner.pdus == expected


def test_large_segments_never_fall_into_the_scratch() -> None:
    """Behind a large segment just its trailer and one header are offered: payload goes where it belongs."""
    data, expected = stream((True, True), [(65536, 0)] * 4)
    owner = DigestOwner(True, True)
    owner.feed(data[:65700], [])
    buffers = owner.framing.buffers()
    assert sum(map(len, buffers)) == 65536 + 4 + 48 + 4 - (65700 - 65536 - 2 * 56 + 4)
    owner.feed(data[65700:], [])
    assert owner.pdus == expected


@given(st.data(), st.sampled_from([0, 1, 3, 4, 100]), st.sampled_from([0, 1]))
def test_no_flipped_bit_gets_through(draw: st.DataObject, length: int, words: int) -> None:
    """Any bit of a PDU with both digests: the connection ends, or the data is told to be wrong; never is it taken."""
    wire, expected = stream((True, True), [(length, words)])
    flipped = bytearray(wire)
    bit = draw.draw(st.integers(0, len(wire) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    owner = DigestOwner(True, True)
    try:
        owner.feed(bytes(flipped), [])
    except ConnectionAbortError:
        is_header = bit // 8 < 48 + 4 * words + 4
    else:
        # A header that claims more additional headers than there are is still waited for.
        is_header = bit // 8 == 4
        assert is_header or owner.failed == [0]
    assert not owner.pdus
    assert is_header or bit // 8 >= 48 + 4 * words + 4
    assert expected


def test_what_is_behind_wrong_data_is_right() -> None:
    """A data digest error costs its PDU, not the framing."""
    made = coder(True, True)
    made.spoil = lambda header: "data" if header.initiator_task_tag == 1 else None
    wire = b"".join(made.encode(pdu.NopOut(initiator_task_tag=tag), b"abcde") for tag in range(3))
    for cuts in ([], [1], [57]):
        owner = DigestOwner(True, True)
        owner.feed(wire, cuts)
        assert [tag for tag, _, _ in owner.pdus] == [0, 2]
        assert owner.failed == [1]


def test_a_header_is_not_believed_before_its_digest_is_right() -> None:
    """The owner hears nothing of it, and its lengths are not acted upon."""
    made = coder(True, True)
    made.spoil = lambda header: "header"
    owner = DigestOwner(True, True)
    with pytest.raises(ConnectionAbortError, match="header digest error"):
        owner.feed(made.encode(pdu.NopOut(initiator_task_tag=1), bytes(99_000)), [])
    assert not hasattr(owner, "_header")


def test_a_data_segment_beyond_what_was_declared_is_never_begun() -> None:
    owner = DigestOwner(True, False)
    header = pdu.NopOut(data_segment_length=100_001).pack()
    with pytest.raises(ConnectionAbortError, match="DataSegmentLength 100001"):
        owner.feed(coder(True, False).encode(pdu.NopOut(), bytes(100_001))[:52], [])
    assert header
    assert not hasattr(owner, "_header")


def test_data_that_nobody_wants_needs_no_digest() -> None:
    """What went to the sink can't be read again, and is not looked at."""

    class Uninterested(DigestOwner):
        def begin(self, header: Derived, additional: bytes) -> Sequence[memoryview]:
            super().begin(header, additional)
            return sink(header.data_segment_length)

    made = coder(True, True)
    owner = Uninterested(True, True)
    owner.feed(made.encode(pdu.NopOut(initiator_task_tag=1), bytes(99_999)), [])
    assert [tag for tag, _, _ in owner.pdus] == [1]


# Sending


@given(
    digests,
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 4), st.booleans()), max_size=20),
    st.lists(st.integers(1, 200), max_size=30),
)
def test_what_is_put_piece_by_piece_can_be_read(
    kind: tuple[bool, bool], shapes: list[tuple[int, int, bool]], takes: list[int]
) -> None:
    """Headers, payload in several views, padding, marks: digests stand where they must, and marks behind them."""
    plain = Outbox()
    plain.put(pdu.LoginResponse().pack())  # what was queued before
    outbox = DigestOutbox(plain, *kind)
    due, called, expected = [], [], []
    for number, (length, parts, at_once) in enumerate(shapes):
        data = bytes((number + at) & 0xFF for at in range(length))
        header = pdu.NopIn(initiator_task_tag=number, data_segment_length=length).pack()
        step = -(-length // parts) or 1
        views = [memoryview(data)[at : at + step] for at in range(0, length, step)]
        if at_once:
            outbox.put_payload(header, views, length, bytes(-length & 3), lambda number=number: called.append(number))
            due.append((outbox.pending_bytes, number))
        else:
            outbox.put(header)
            for view in views:
                outbox.put(view)
            if length & 3:
                outbox.put(bytes(-length & 3))
        expected.append((number, data))
    total = outbox.pending_bytes
    sent = b""
    for take in [*takes, total]:
        there = b"".join(map(bytes, outbox.buffers()))[:take]
        if there:
            outbox.sent(len(there))
        sent += there
        assert called == [number for end, number in due if end <= len(sent)]
    while outbox.pending_bytes:
        there = b"".join(map(bytes, outbox.buffers()))
        outbox.sent(len(there))
        sent += there
    assert len(sent) == total
    got = list(coder(*kind).feed(sent[48:]))
    assert [(received.header.initiator_task_tag, received.data) for received in got] == expected


def test_payload_is_not_copied() -> None:
    """The very views that were given are what goes to the kernel."""
    outbox = DigestOutbox(Outbox(), True, True)
    view = memoryview(bytearray(4096))
    outbox.put_payload(pdu.DataIn(data_segment_length=4096).pack(), [view], 4096, b"", lambda: None)
    assert [len(piece) for piece in outbox.buffers()] == [52, 4096, 4]
    assert outbox.buffers()[1] is view
