"""Changes in pages become pieces of whole granules: never less than what changed, zeros only where all is zero."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.images.transfer import Piece, widened

PAGE = 4096


@st.composite
def changes(draw: st.DrawFn) -> tuple[list[Piece], int]:
    """In order, none over another, and the size of the disk."""
    found: list[Piece] = []
    at = 0
    for gap, pages, is_data in draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40), st.booleans()))):
        if found and found[-1][2] is is_data:
            gap += 1  # neighbours of one kind are one change
        at += gap * PAGE
        found.append((at, pages * PAGE, is_data))
        at += pages * PAGE
    return found, at + draw(st.integers(1, 40)) * PAGE


@given(changes(), st.sampled_from([1, 2, 16]))
def test_widened(drawn: tuple[list[Piece], int], pages: int) -> None:
    """Against a table of pages."""
    found, end = drawn
    granule = pages * PAGE
    table: dict[int, bool] = {}
    for offset, length, is_data in found:
        table.update(dict.fromkeys(range(offset, offset + length, PAGE), is_data))
    expected: dict[int, bool] = {}
    for start in range(0, end, granule):
        inside = range(start, min(end, start + granule), PAGE)
        if any(page in table for page in inside):
            has_data = any(table.get(page, True) for page in inside)
            expected.update(dict.fromkeys(inside, has_data))
    got: dict[int, bool] = {}
    last = 0
    for offset, length, is_data in widened(found, granule, end):
        assert offset % granule == 0
        assert (offset + length) % granule == 0 or offset + length == end
        assert length > 0
        assert offset >= last, "in order, none over another"
        last = offset + length
        got.update(dict.fromkeys(range(offset, last, PAGE), is_data))
    assert got == expected
