"""What a split ring has under way, as a successor finds it, wherever its predecessor died."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shm_server.interfaces import inflight
from shm_server.interfaces.inflight import Inflight, RingInflight

ENTRIES = 64


@pytest.fixture
def memory() -> Iterator[Inflight]:
    size = 2 * inflight.ring_bytes(ENTRIES)
    fd = inflight.create(2, ENTRIES)
    yield Inflight(fd, size, 0, 2, ENTRIES)
    os.close(fd)


def ring(memory: Inflight, index: int = 0) -> RingInflight:
    part = memory.part(index)
    assert part is not None
    return RingInflight(part, memory.entries)


def test_nothing_is_under_way_at_first(memory: Inflight) -> None:
    """Fresh memory has nothing, whatever the guest's used index says; a third ring is not there."""
    assert ring(memory).recover(7) == []
    assert ring(memory, 1).recover(0) == []
    assert memory.part(2) is None


def test_in_the_order_in_which_they_were_taken(memory: Inflight) -> None:
    """Not in that of their heads; what was let go is not among them; once more after a second death."""
    first = ring(memory)
    first.recover(0)
    first.take([9, 3, 5])
    first.take([1])
    first.chain([3])
    first.let_go([3], 1)
    assert ring(memory).recover(1) == [9, 5, 1]
    second = ring(memory)
    assert second.recover(1) == [9, 5, 1]
    second.take([0])
    assert ring(memory).recover(1) == [9, 5, 1, 0]


@pytest.mark.parametrize("let_go", [0, 1, 2, 3])
@pytest.mark.parametrize("used", [0, 0xFFFE])
def test_death_in_the_middle_of_a_batch(memory: Inflight, used: int, let_go: int) -> None:
    """A batch that the used index shows is over, however many of it were let go; one that it does not show is not."""
    first = ring(memory)
    first.recover(used)
    first.take([4, 2, 8, 6])
    first.chain([8, 4, 6])
    assert ring(memory).recover(used) == [4, 2, 8, 6]  # died before the index changed
    again = ring(memory)
    again.recover(used)
    again.chain([8, 4, 6])
    shown = (used + 3) & 0xFFFF
    for head in [8, 4, 6][:let_go]:
        again._view[again._at(head)] = 0  # died before used_idx was written
    assert ring(memory).recover(shown) == [2]
    assert ring(memory).recover(shown) == [2]


def test_two_rings_share_nothing(memory: Inflight) -> None:
    """Each has its own."""
    one, two = ring(memory), ring(memory, 1)
    one.recover(0)
    two.recover(0)
    one.take(range(ENTRIES))
    assert ring(memory, 1).recover(0) == []
    assert ring(memory).recover(0) == list(range(ENTRIES))
