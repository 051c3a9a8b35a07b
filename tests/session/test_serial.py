"""Serial numbers of 32 bits (RFC 1982)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.session import serial

numbers = st.integers(0, 0xFFFFFFFF)


@given(numbers, st.integers(-(2**31) + 1, 2**31 - 1))
def test_distance_undoes_add(number: int, step: int) -> None:
    """However far, short of half the circle."""
    there = serial.add(number, step)
    assert 0 <= there <= serial.MASK
    assert serial.distance(number, there) == step
    assert serial.is_before(number, there) == (step > 0)


@given(numbers, numbers)
def test_of_two_numbers_at_most_one_is_before_the_other(first: int, second: int) -> None:
    """Exactly one, but for equals and opposites."""
    befores = serial.is_before(first, second) + serial.is_before(second, first)
    assert befores == (0 if (first - second) % 2**31 == 0 else 1)
