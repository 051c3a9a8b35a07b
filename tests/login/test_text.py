"""Texts: what section 6.1 of RFC 7143 allows is split, all else is refused, and nothing grows without a limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.login.text import Accumulator, Pager, TextError, TextLimits, join, split

KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=40)
TEXTS = st.lists(st.tuples(KEYS, VALUES), max_size=12, unique_by=lambda pair: pair[0])


@given(TEXTS)
def test_split_undoes_join(pairs: list[tuple[str, str]]) -> None:
    assert split(join(pairs)) == pairs
    assert split(memoryview(join(pairs))) == pairs


@given(st.binary(max_size=200))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    """Nothing but TextError, and what is split joins to the same bytes (but for counted padding)."""
    try:
        pairs = split(data)
    except TextError:
        return
    assert join(pairs) == data.rstrip(b"\0") + (b"\0" if pairs else b"")


def test_empty() -> None:
    assert split(b"") == []


def test_value_may_be_empty_or_hold_an_equals_sign() -> None:
    assert split(b"A=\0B=x=y\0") == [("A", ""), ("B", "x=y")]


@pytest.mark.parametrize("padding", range(4))
def test_counted_padding_is_let_pass(padding: int) -> None:
    assert split(b"A=1\0" + bytes(padding)) == [("A", "1")]


@pytest.mark.parametrize(
    "data",
    [
        b"A=1",  # no NUL
        b"A=1\0B=2",
        b"A",
        b"A\0",  # no '='
        b"A=1\0B\0",
        b"=1\0",  # no key
        b"A=1\0\0B=2\0",  # an empty piece
        b"\0A=1\0",
        b"A=1" + bytes(5),
        b"A" * 64 + b"=1\0",
        b"1A=1\0",
        b"A B=1\0",
        b" A=1\0",
        b"A\xc3\xa9=1\0",
        b"A=\xff\xfe\0",  # not UTF-8
        b"A=\xed\xa0\x80\0",  # a surrogate
        b"A=1\x01\0",
        b"A=1\n\0",
        b"A=\x7f\0",
        b"A=\xc2\x9b2J\0",  # CSI in one character: a terminal obeys it
        b"A=\xe2\x80\xa8\0",  # LINE SEPARATOR
        b"A=1\0A=1\0",  # twice
        b"A=1\0B=1\0A=2\0",
        b"A=" + b"v" * 8193 + b"\0",
        b"".join(b"K%d=1\0" % number for number in range(129)),
        b"".join(b"K%d=1\0" % number for number in range(10000)),
        b"A=" + b"v" * 70000 + b"\0",
    ],
    ids=lambda data: repr(bytes(data[:24])),
)
def test_what_section_6_1_does_not_allow_is_refused(data: bytes) -> None:
    with pytest.raises(TextError) as caught:
        split(data)
    assert len(str(caught.value)) < 300, "the message is for one log line"


def test_the_longest_that_is_allowed() -> None:
    assert split(b"K" * 63 + b"=" + b"v" * 8192 + b"\0") == [("K" * 63, "v" * 8192)]
    assert len(split(b"".join(b"K%d=1\0" % number for number in range(128)))) == 128


@given(TEXTS)
def test_cut_anywhere_a_text_is_shorter_or_refused(pairs: list[tuple[str, str]]) -> None:
    """A cut at any offset is never taken for another value."""
    data = join(pairs)
    for offset in range(len(data)):
        try:
            found = split(data[:offset])
        except TextError:
            continue
        assert found == pairs[: len(found)]


@given(TEXTS, st.data())
def test_pieces_make_the_whole(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    """Whatever the cuts, byte by byte too, the accumulator gives back what was cut."""
    whole = join(pairs)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    accumulator = Accumulator(TextLimits(requests=5000))
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        accumulator.add(memoryview(whole)[start:end])
    assert accumulator
    assert split(accumulator.take()) == pairs
    assert not accumulator
    for byte in range(len(whole)):
        accumulator.add(whole[byte : byte + 1])
    assert accumulator.take() == whole


def test_the_accumulator_is_bounded_in_bytes_and_pieces() -> None:
    accumulator = Accumulator(TextLimits(text_bytes=10, requests=3))
    accumulator.add(b"12345")
    accumulator.add(b"67890")
    with pytest.raises(TextError):
        accumulator.add(b"1")
    with pytest.raises(TextError):
        accumulator.add(b"")
    accumulator.clear()
    accumulator.add(b"1234567890")


@given(st.binary(max_size=300), st.integers(1, 64))
def test_pages_make_the_whole(text: bytes, page_bytes: int) -> None:
    pager = Pager(text)
    pages = []
    while pager or not pages:
        pages.append(pager.page(page_bytes))
    assert b"".join(pages) == text
    assert all(len(page) == page_bytes for page in pages[:-1])
    assert pager.page(page_bytes) == b""
