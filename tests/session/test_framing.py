"""Bytes to PDUs: the same ones, wherever the stream is cut and whatever their payload is received into."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import pdu
from iscsi_ovs.errors import ConnectionAbortError
from iscsi_ovs.session.framing import Framing, sink
from iscsi_ovs.testing.initiator import encode
from iscsi_ovs.wire import Derived


class Owner:
    """Takes every PDU into memory of its own, in views of odd sizes."""

    max_data_segment_bytes = 100_000

    def __init__(self, parts: int = 1) -> None:
        self.parts = parts
        self.pdus: list[tuple[int, bytes, bytes]] = []
        self.pauses_at: int | None = None
        self.framing = Framing(self)

    def begin(self, header: Derived, additional: bytes) -> Sequence[memoryview]:
        self._header, self._additional = header, additional
        self._data = bytearray(header.data_segment_length)
        view = memoryview(self._data)
        step = -(-len(view) // self.parts) or 1
        return [view[at : at + step] for at in range(0, len(view), step)]

    def take_commands(self, scratch: memoryview, start: int, end: int) -> tuple[int, int]:
        return start, 0

    def finish(self) -> None:
        self.pdus.append((self._header.initiator_task_tag, self._additional, bytes(self._data)))
        if len(self.pdus) == self.pauses_at:
            self.framing.is_paused = True

    def feed(self, data: bytes, cuts: Sequence[int]) -> None:
        """As a socket would: as much as there is room for, or less."""
        turn = 0
        while data:
            buffers = self.framing.buffers()
            room = sum(map(len, buffers))
            assert room > 0
            count = min(room, len(data), cuts[turn % len(cuts)] if cuts else room)
            turn += 1
            at = 0
            for buffer in buffers:
                piece = data[at : min(at + len(buffer), count)]
                buffer[: len(piece)] = piece
                at += len(piece)
            data = data[count:]
            self.framing.received(count)


def stream(shapes: Sequence[tuple[int, int]]) -> tuple[bytes, list[tuple[int, bytes, bytes]]]:
    """PDUs of these (data bytes, AHS words), and what must come out."""
    whole, expected = [], []
    for number, (length, words) in enumerate(shapes):
        data = bytes((number * 7 + at) & 0xFF for at in range(min(length, 300))) * (length // 300 + 1)
        data, ahs = data[:length], bytes([number & 0xFF]) * 4 * words
        whole.append(encode(pdu.NopOut(initiator_task_tag=number), data, ahs))
        expected.append((number, ahs, data))
    return b"".join(whole), expected


lengths = st.one_of(st.integers(0, 9), st.integers(0, 5000), st.sampled_from([16383, 16384, 16385, 65536, 99_999]))


@given(
    st.lists(st.tuples(lengths, st.sampled_from([0, 0, 0, 1, 255])), max_size=12),
    st.lists(st.one_of(st.integers(1, 60), st.integers(1, 70_000)), max_size=12),
    st.integers(1, 5),
)
def test_any_stream_cut_anywhere(shapes: list[tuple[int, int]], cuts: list[int], parts: int) -> None:
    """Padding, additional headers, large segments behind small ones: what was sent is what comes out, in order."""
    data, expected = stream(shapes)
    owner = Owner(parts)
    owner.feed(data, cuts)
    assert owner.pdus == expected
    assert owner.framing.is_between_pdus or (shapes and shapes[-1][0] % 4)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 511, 16384])
def test_a_byte_at_a_time(length: int) -> None:
    """Two PDUs, byte by byte."""
    data, expected = stream([(length, 1), (length, 0)])
    owner = Owner()
    owner.feed(data, [1])
    assert owner.pdus == expected


def test_a_run_of_small_writes_then_large_ones_then_small_ones() -> None:
    """The scratch that is offered changes with the traffic; nothing is lost where it does."""
    shapes = [(4096, 0)] * 40 + [(65536, 0)] * 3 + [(0, 0), (8192, 0)] * 12 + [(99_999, 255)]
    data, expected = stream(shapes)
    for cuts in ([], [70_001], [48], [4144], [65537]):
        owner = Owner(3)
        owner.feed(data, cuts)
        assert owner.pdus == expected


def test_what_came_early_waits_while_the_owner_decides() -> None:
    """Paused in the middle of a batch: the rest is parsed when the owner says so."""
    data, expected = stream([(10, 0), (20, 0), (30, 0)])
    owner = Owner()
    owner.pauses_at = 1
    owner.feed(data, [])
    assert owner.pdus == expected[:1]
    owner.framing.is_paused = False
    owner.framing.parse()
    assert owner.pdus == expected


def test_a_data_segment_beyond_what_was_declared_is_never_begun() -> None:
    """Its length ends the connection, before a byte of it is received."""
    owner = Owner()
    with pytest.raises(ConnectionAbortError, match="DataSegmentLength 100001"):
        owner.feed(pdu.NopOut(data_segment_length=100_001).pack(), [])
    assert not hasattr(owner, "_header")


@given(st.integers(0, 200_000))
def test_the_sink_swallows_just_that(length: int) -> None:
    """Views of so many bytes."""
    assert sum(map(len, sink(length))) == length
