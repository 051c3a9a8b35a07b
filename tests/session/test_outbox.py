"""What waits for the kernel: sent in order whatever it takes at a time, each mark called once and not too early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.session.outbox import IOV_MAX, Outbox


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=60), st.booleans()), max_size=60),
    st.lists(st.integers(0, 200), max_size=60),
    st.booleans(),
)
def test_marks_follow_the_bytes(pieces: list[tuple[bytes, bool]], takes: list[int], is_lost: bool) -> None:
    """A mark is called when everything in front of it is taken; on a loss, all at once, and none a second time."""
    outbox = Outbox()
    called: list[int] = []
    due: list[int] = []  # bytes in front of each mark
    total = 0
    for piece, has_mark in pieces:
        total += len(piece)
        if has_mark and len(piece) % 2:
            views = [memoryview(piece)[1:]] if piece[1:] else []
            outbox.put_payload(piece[:1], views, len(piece) - 1, b"", _note(called, due))
            due.append(total)
        else:
            outbox.put(piece)
            if has_mark:
                outbox.mark(_note(called, due))
                due.append(total)
    whole = b"".join(piece for piece, _ in pieces)
    sent = b""
    for take in takes:
        there = b"".join(bytes(piece) for piece in outbox.buffers())
        taken = there[:take]
        if taken:
            outbox.sent(len(taken))
        sent += taken
        assert outbox.pending_bytes == total - len(sent)
        assert called == [number for number, end in enumerate(due) if end <= len(sent)]
    assert whole.startswith(sent)
    if is_lost:
        outbox.discard()
        outbox.discard()
        assert called == list(range(len(due)))
        assert not outbox.buffers()
        assert outbox.pending_bytes == 0


def _note(called: list[int], due: list[int]):  # type: ignore[no-untyped-def]
    number = len(due)
    return lambda: called.append(number)


def test_no_more_pieces_than_the_kernel_takes() -> None:
    """IOV_MAX at a time; the rest follows."""
    outbox = Outbox()
    for _ in range(IOV_MAX + 5):
        outbox.put(b"xy")
    assert len(outbox.buffers()) == IOV_MAX
    outbox.sent(2 * IOV_MAX - 1)
    assert [bytes(piece) for piece in outbox.buffers()] == [b"y"] + [b"xy"] * 5
