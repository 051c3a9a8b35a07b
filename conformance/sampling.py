"""A sample of libiscsi's suite by chance, for where the whole of it would take too long."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from conformance import pins, runs
from conformance.runs import Lun

SLOW = ("Sanitize",)  # the suite waits there in steps of a minute: left to whole runs


def differences(luns: Sequence[Lun], count: int, seed: int, tell: Callable[[str], None]) -> list[str]:
    """``count`` pairs of family and LUN; what differs from the pins. The same seed takes the same ones."""
    pairs = [(lun, family) for lun in luns for family in (lun.families or runs.suite()) if family not in SLOW]
    found: list[str] = []
    for lun, family in random.Random(seed).sample(pairs, count):
        found += pins.differences({lun.name: runs.run_lun(lun, [family], tell)}, pins.pinned())
    return found
