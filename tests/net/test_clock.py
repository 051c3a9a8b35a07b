"""Time that is handed in: what is due, in order, and how long a loop may sleep."""

from __future__ import annotations

import pytest

from iscsi_ovs.net.clock import Clock


class Hand:
    """A clock's hand that a test moves."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def clock(hand: Hand) -> Clock:
    return Clock(hand)


def test_calls_in_the_order_of_their_time(clock: Clock, hand: Hand) -> None:
    """By time first, and by the order of asking where that is the same."""
    called: list[str] = []
    for name, delay in (("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.0)):
        clock.call_later(delay, lambda name=name: called.append(name))  # type: ignore[misc]
    clock.run_due()
    assert called == []
    hand.at += 1.0
    clock.run_due()
    assert called == ["a", "b"]
    hand.at += 5.0
    clock.run_due()
    assert called == ["a", "b", "c", "d"]
    clock.run_due()
    assert len(called) == 4


def test_until_next(clock: Clock, hand: Hand) -> None:
    """Never more than the limit, never less than nothing."""
    assert clock.until_next(1.0) == 1.0
    clock.call_later(0.25, lambda: None)
    assert clock.until_next(1.0) == pytest.approx(0.25)
    assert clock.until_next(0.1) == pytest.approx(0.1)
    hand.at += 3.0
    assert clock.until_next(1.0) == 0.0
    clock.run_due()
    assert clock.until_next(1.0) == 1.0


def test_what_a_callback_asks_for(clock: Clock, hand: Hand) -> None:
    """A callback may ask for more, even at once; what is due in the future stays there."""
    called: list[str] = []

    def first() -> None:
        called.append("first")
        clock.call_later(0.0, lambda: called.append("at once"))
        clock.call_later(1.0, lambda: called.append("later"))

    clock.call_later(0.0, first)
    clock.run_due()
    assert called == ["first", "at once"]
    assert clock.until_next(9.0) == pytest.approx(1.0)
    hand.at += 1.0
    clock.run_due()
    assert called[-1] == "later"


def test_a_callback_that_fails_is_not_called_again(clock: Clock, hand: Hand) -> None:
    """Its exception is the caller's; the others are still due."""
    called: list[str] = []
    clock.call_later(0.0, lambda: called.append(str(1 // len(called))))
    clock.call_later(0.0, lambda: called.append("other"))
    with pytest.raises(ZeroDivisionError):
        clock.run_due()
    clock.run_due()
    assert called == ["other"]
