"""The power fails, or the process dies, at every moment of a pool's life, and CONTRACTS 1 holds.

Lives of a pool are recorded, the catalogue's files with the volumes' in one order (recorder.py, database.py): some are
told (stories.py), others are left to chance (lives.py); in some of them the process dies and goes on, and lives begin
where the power failed in others. Behind their events the disk is built as it may be (disk.py), a pool opened on it
with the server's own code, and everything read (judge.py): what was acknowledged is there after the death of the
process, what was flushed and what replied is there after a power cut, nothing is there that was not written, and no
file is left that nobody knows.

CRASH_SEED is printed with each run and repeats it. `make soak` looks at a million states, a shard at a time:
``pytest -m soak tests/shm_server/crash -k 'million and 37'`` does shard 37 again.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.shm_server.crash import stories
from tests.shm_server.crash.judge import Judge, first_wrong, walk

SEED = int(os.environ.get("CRASH_SEED", str(random.randrange(1 << 32))))
SHARDS = 4
STATES = 250  # of each of them; the told lives have more than 4,000
SOAK_SHARDS = 100
SOAK_STATES = 10_000


@pytest.mark.parametrize("story", stories.STORIES)
def test_any_moment(directory: Path, judge: Judge, story: str) -> None:
    """Behind every event of a told life: a death, and a power cut."""
    for life in stories.tell(stories.STORIES[story], directory, judge):
        assert first_wrong(life, judge, 1) == ""


def wander(directory: Path, judge: Judge, seed: int, states: int) -> None:
    """Lives of chance until so many states have been looked at."""
    print(f"CRASH_SEED={seed}")
    choose = random.Random(seed)
    begun = time.monotonic()
    while judge.states < states:
        number = choose.randrange(1 << 32)
        where = directory / "lives"
        where.mkdir()
        assert walk(number, where, judge) == "", f"walk({number}, …)"
        shutil.rmtree(where)
    print(f"{judge.states} states in {time.monotonic() - begun:.0f} s")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_lives_of_chance(directory: Path, judge: Judge, shard: int) -> None:
    """New ones each time."""
    wander(directory, judge, SEED + shard, STATES)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("shard", range(SOAK_SHARDS))
def test_a_million_states(directory: Path, judge: Judge, shard: int) -> None:
    """The same ones each time, unless CRASH_SEED says another beginning."""
    wander(directory, judge, int(os.environ.get("CRASH_SEED", "0")) + shard, SOAK_STATES)
