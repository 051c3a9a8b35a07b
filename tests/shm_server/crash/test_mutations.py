"""The crash test finds what it is there to find: every sync that is taken out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.shm_server.crash import mutations
from tests.shm_server.crash.judge import Judge
from tests.shm_server.crash.test_crash import SEED

SAMPLE = 3


def test_the_sites_are_those_of_the_server(directory: Path, judge: Judge) -> None:
    """A sync that is new must be in the list, and so be found missing; some are, each time."""
    lives = mutations.tell_all(directory, judge)
    assert sorted(mutations.sites(lives)) == sorted((*mutations.FOUND, *mutations.SPARE))
    print(f"CRASH_SEED={SEED}")
    for site in random.Random(SEED).sample(mutations.FOUND, SAMPLE):
        assert mutations.find(lives, judge, site) != "", site


@pytest.mark.soak
@pytest.mark.parametrize("site", mutations.FOUND)
def test_a_sync_that_is_missing_is_found(directory: Path, judge: Judge, site: str) -> None:
    """Without it something that was promised is lost at some moment."""
    assert mutations.find(mutations.tell_all(directory, judge), judge, site) != ""
