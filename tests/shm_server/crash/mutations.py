"""Each sync of the server, taken out in turn: the crash test must find every one missing.

``python -m tests.shm_server.crash.mutations`` says for each how soon that is found. A sync that is new must stand in
one of the lists, and so be found.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.shm_server.crash import stories
from tests.shm_server.crash.judge import Judge, first_wrong
from tests.shm_server.crash.lives import Life

CUTS = 2
SEEDS = (7, 8, 9)

FOUND = (
    "SQLite: the database",  # of a checkpoint
    "SQLite: the name of the wal",
    "SQLite: the wal",  # which is synchronous=FULL
    "checksums.py: SumsFile.cover, the file",
    "checksums.py: SumsFile.sync, the file",
    "checksums.py: SumsFile.uncover, the file",
    "descriptor.py: DescriptorStore.resize, the data",
    "descriptor.py: DescriptorStore.sync, the data",
    "file.py: FileStores.create, the directory",
    "file.py: FileStores.create, the file",
    "file.py: FileStores.remove, the directory",
    "layer.py: create_files, the directory",
    "layer.py: create_files, the file",
    "layer.py: remove_files, the directory",
    "layered.py: LayeredStore._sync_layers, the data",
    "layered.py: LayeredStore._sync_layers, the map",
    "layered.py: LayeredStore.sync, the record",
    "maplog.py: MapLog.create, the file",
    "maplog.py: MapLog.open, the file",
    "merging.py: _make_durable, the data",
    "merging.py: _make_durable, the map",
    "promoting.py: promote, the data",
    "redo.py: RedoFile._make_durable, the directory",
    "redo.py: RedoFile._make_durable, the file",
    "redo.py: RedoFile.replay, the data",
    "redo.py: RedoFile.replay, the record",
    "summing.py: complete, the data",
    "table.py: Table.finish, the file",
    "table.py: Table.use, the file",
)
SPARE = {
    "checksums.py: SumsFile.cover, the directory": "a file that is lost is made anew",
    "SQLite: the journal": "only a new catalogue has one, and there is nothing yet that it could bring back",
    "SQLite: the name of the journal": "the same",
    "file.py: FileStores.open, the file": "it hears of losses that the kernel has still to tell; here there are none",
    "redo.py: make_directory, the directory": "SQLite syncs the same directory when it makes its log, right behind it",
}


def tell_all(directory: Path, judge: Judge) -> list[Life]:
    """Every story."""
    return [life for story in stories.STORIES.values() for life in stories.tell(story, directory, judge)]


def sites(lives: Sequence[Life]) -> set[str]:
    """Whoever asked for a sync in these."""
    return {site for life in lives for site in life.recorder.sites()}


def find(lives: Sequence[Life], judge: Judge, site: str) -> str:
    """What is wrong at some moment when the syncs of ``site`` do nothing; "" if that makes no difference."""
    for seed in SEEDS:
        for life in lives:
            if words := first_wrong(life, judge, CUTS, seed, ignored=site):
                return words
    return ""


def main() -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, pytest.MonkeyPatch.context() as patch:
        directory = Path(name)
        place = directory / "judged"
        place.mkdir()
        judge = Judge(place, patch)
        lives = tell_all(directory, judge)
        for site in sorted(sites(lives)):
            judge.states, begun = 0, time.monotonic()
            words = find(lives, judge, site) or f"not found: {SPARE.get(site, 'NOBODY KNOWS WHY')}"
            print(f"{site}\n    {judge.states} states, {time.monotonic() - begun:.1f} s: {words[:200]}", flush=True)


if __name__ == "__main__":
    main()
