"""What is pinned of libiscsi's suite is all of it, and says what is promised."""

from __future__ import annotations

from collections import Counter

import pytest

from conformance import fleet, pins, runs
from tests.interop.libiscsi_suite import FAILED, PASSED, SKIPPED, Verdict

pytestmark = pytest.mark.interop  # the suite itself lists its tests


def test_every_test_of_every_lun_is_pinned() -> None:
    """… but for those that the fleet gives a reason for."""
    pinned = pins.pinned()
    assert set(pinned) == {each.name for each in fleet.FLEET}
    for each in fleet.FLEET:
        wanted = set(runs.tests(each.families)) - set(each.without)
        assert set(pinned[each.name]) == wanted
        assert all(each.without.values())


def test_nothing_fails_and_what_skips_everywhere_is_named() -> None:
    """At most four tests pass on no LUN, each with its sentence."""
    pinned = pins.pinned()
    counts = Counter(status for tests in pinned.values() for status in tests.values())
    assert counts[FAILED] == 0
    results = {lun: {name: Verdict(status) for name, status in tests.items()} for lun, tests in pinned.items()}
    assert pins.shortcomings(results, runs.tests(None)) == []
    assert all(pins.expected_skips().values())


def test_a_difference_is_told_in_either_direction() -> None:
    """A new skip, a skip that is gone, a test that has no pin."""
    results = {"thin": {"A.a": Verdict(SKIPPED, "why"), "A.b": Verdict(PASSED), "A.c": Verdict(PASSED)}}
    found = pins.differences(results, {"thin": {"A.a": PASSED, "A.b": SKIPPED}})
    assert [line.split(" ")[0] for line in found] == ["A.a", "A.b", "A.c"]
