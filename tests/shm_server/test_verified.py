"""Which pages are verified: against a set of page numbers, within a budget, and not what was read before a change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shm_server.stores.clock import Clock
from shm_server.stores.verified import CHUNK_PAGES, Verified

PAGES = 2 * CHUNK_PAGES + 100
RANGES = st.tuples(st.integers(0, PAGES - 1), st.integers(1, CHUNK_PAGES + 50) | st.integers(1, 20))


@given(st.lists(st.tuples(st.sampled_from(["add", "forget"]), RANGES), max_size=20), st.lists(RANGES, min_size=1))
def test_it_is_a_set_of_pages(acts: list[tuple[str, tuple[int, int]]], asked: list[tuple[int, int]]) -> None:
    """Whatever is added and forgotten, across chunks and in parts of bytes."""
    verified, model = Verified(Clock(100)), set[int]()
    for act, (first, count) in acts:
        pages = range(first, first + count)
        if act == "add":
            verified.add(first, count, verified.epoch)
            model.update(pages)
        else:
            verified.forget(first, count)
            model.difference_update(pages)
    for first, count in asked:
        assert verified.has(first, first + count - 1) == model.issuperset(range(first, first + count))
    verified.forget()
    assert not any(verified.has(first, first) for first, _ in asked)


def test_what_was_read_before_a_change_is_not_added() -> None:
    """The epoch that was taken before the reading says so."""
    verified = Verified(Clock(100))
    epoch = verified.epoch
    verified.forget(5, 1)
    verified.add(0, 10, epoch)
    assert not verified.has(0, 0)
    verified.add(0, 10, verified.epoch)
    assert verified.has(0, 9)


def test_what_all_stores_remember_is_bounded() -> None:
    """The longest unused goes, and is verified anew."""
    cache = Clock(2)
    first, second = Verified(cache), Verified(cache)
    for verified in (first, second):
        verified.add(0, 1, verified.epoch)
    for chunk in (*first.chunks.values(), *second.chunks.values()):
        chunk.was_used = False
    assert second.has(0, 0)
    second.add(CHUNK_PAGES, 1, second.epoch)
    assert not first.has(0, 0)
    assert second.has(0, 0)
    assert second.has(CHUNK_PAGES, CHUNK_PAGES)
