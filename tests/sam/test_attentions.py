"""Unit attentions: which come first, which cover others, and what who comes back hears."""

from __future__ import annotations

import itertools

import pytest

from iscsi_ovs.sam import attentions
from iscsi_ovs.sam.attentions import (
    CAPACITY_DATA_HAS_CHANGED,
    I_T_NEXUS_LOSS_OCCURRED,
    MEDIUM_MAY_HAVE_CHANGED,
    MODE_PARAMETERS_CHANGED,
    POWER_ON_OCCURRED,
    Code,
    Departed,
    Reset,
)

RESETS = (
    POWER_ON_OCCURRED,
    Reset.POWER_ON.value,
    Reset.HARD.value,
    Reset.LOGICAL_UNIT.value,
    I_T_NEXUS_LOSS_OCCURRED,
)


def established(*codes: Code) -> list[Code]:
    pending: list[Code] = []
    for code in codes:
        attentions.establish(pending, code)
    return pending


def test_each_is_pending_once_in_its_order() -> None:
    """What is told first is what happened first."""
    codes = (CAPACITY_DATA_HAS_CHANGED, MODE_PARAMETERS_CHANGED, CAPACITY_DATA_HAS_CHANGED)
    assert established(*codes) == [CAPACITY_DATA_HAS_CHANGED, MODE_PARAMETERS_CHANGED]


@pytest.mark.parametrize("codes", list(itertools.product(RESETS, repeat=3)))
def test_of_resets_the_strongest_is_told_and_first(codes: tuple[Code, ...]) -> None:
    """In whatever order they came; what is no reset waits behind it."""
    strongest = min(codes, key=RESETS.index)
    first, second, third = codes
    pending = established(first, CAPACITY_DATA_HAS_CHANGED, second, MODE_PARAMETERS_CHANGED, third)
    assert pending == [strongest, CAPACITY_DATA_HAS_CHANGED, MODE_PARAMETERS_CHANGED]


def test_who_comes_back_hears_of_the_loss_once() -> None:
    """Or of the reset that it did not hear of before it went; after a reset everybody is new."""
    departed = Departed()
    assert departed.came("a") == [POWER_ON_OCCURRED]
    departed.went("a", [CAPACITY_DATA_HAS_CHANGED])
    departed.went("b", [Reset.HARD.value])
    departed.went("c", [])
    assert departed.came("a") == [I_T_NEXUS_LOSS_OCCURRED]
    assert departed.came("a") == [POWER_ON_OCCURRED]
    assert departed.came("b") == [Reset.HARD.value]
    departed.reset()
    assert departed.came("c") == [POWER_ON_OCCURRED]


def test_who_comes_back_hears_what_came_of_the_medium() -> None:
    """Each of it once, behind the loss; whoever was never here has nothing to forget."""
    departed = Departed()
    departed.went("a", [])
    for code in (MEDIUM_MAY_HAVE_CHANGED, CAPACITY_DATA_HAS_CHANGED, MEDIUM_MAY_HAVE_CHANGED):
        departed.missed(code)
    departed.went("b", [])
    assert departed.came("a") == [I_T_NEXUS_LOSS_OCCURRED, MEDIUM_MAY_HAVE_CHANGED, CAPACITY_DATA_HAS_CHANGED]
    assert departed.came("b") == [I_T_NEXUS_LOSS_OCCURRED]
    assert departed.came("c") == [POWER_ON_OCCURRED]


def test_so_many_are_remembered() -> None:
    """The longest gone is new again: a power on covers a loss."""
    departed = Departed()
    for number in range(Departed.LIMIT + 1):
        departed.went(number, [])
    assert departed.came(0) == [POWER_ON_OCCURRED]
    assert departed.came(1) == departed.came(Departed.LIMIT) == [I_T_NEXUS_LOSS_OCCURRED]
