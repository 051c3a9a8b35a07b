"""Opens a pool on what a crash left, with the server's own code, and says what is wrong with it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.shm_server.crash.disk import Disk, Image
from tests.shm_server.crash.lives import Life, live
from tests.shm_server.crash.model import Expected, Found, none_of
from tests.shm_server.crash.pools import QuietPool, boot

AFTER_CUT = 0xFFFF_FFFF  # a boot that no life has


class Verdict(NamedTuple):
    words: str  # what is wrong; "" if nothing is
    found: dict[str, Found]


class Judge:
    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        """``patch``: until it is undone every pool is on a disk."""
        self._directory = directory
        self._boot = 0
        self.states = 0
        boot(patch, lambda: self._boot)

    def look(self, image: Image, expected: Expected, *, was_cut: bool, seed: int) -> Verdict:
        self.states += 1
        self._boot = AFTER_CUT if was_cut else expected.boot
        _clear(self._directory)
        image.write(self._directory, {})
        found: dict[str, Found] = {}
        try:
            pool = QuietPool(self._directory, seed)
            try:
                if seed % 2:
                    pool.settle()
                found = pool.look()
                words = none_of(expected.after_cut if was_cut else expected.after_death, found)
                pool.settle()
                words = words or pool.damage()
                if not words and (unknown := pool.unknown_files()):
                    words = f"files that nobody knows: {sorted(unknown)}"
            finally:
                pool.close()
        except OSError as error:
            words = f"{error}"
        return Verdict(words, found)


def _clear(directory: Path) -> None:
    for entry in os.scandir(directory):
        if entry.is_dir():
            _clear(Path(entry.path))
        else:
            os.unlink(entry.path)


NEAR_EVENTS = 80


def first_wrong(life: Life, judge: Judge, cuts: int, seed: int = 0, share: float = 1.0, ignored: str = "") -> str:
    """Play a life, look behind its events, or a share of them; "" if nothing was wrong. Where the syncs of a site are
    ignored it looks behind these, and for a while."""
    for words, *_ in play(life, judge, cuts, seed, share, ignored):
        if words:
            return words
    return ""


def play(
    life: Life, judge: Judge, cuts: int, seed: int, share: float, ignored: str = ""
) -> Iterator[tuple[str, Image, dict[str, Found]]]:
    """What is wrong behind each event, or a share of them; what the power left there; and what was found there."""
    choose = random.Random(seed)
    disk = Disk(life.begin, life.inodes, life.recorder.events, ignored)
    ignored_at = -NEAR_EVENTS
    while disk.at < len(life.recorder.events):
        event = disk.step()
        if ignored and event.site == ignored:
            ignored_at = disk.at
        if event.kind == "expect" or choose.random() > share:
            continue
        if ignored and disk.at - ignored_at > NEAR_EVENTS:
            continue
        if not ignored:
            image = disk.after_death()
            words, found = judge.look(image, disk.expected, was_cut=False, seed=seed)
            yield words and f"{life}: killed behind event {disk.at}: {words}", image, found
        for _ in range(cuts):
            number = choose.randrange(1 << 32)
            image = disk.after_cut(number)
            words, found = judge.look(image, disk.expected, was_cut=True, seed=number)
            yield words and f"{life}: power cut {number} behind event {disk.at}: {words}", image, found


STEPS = 60
CHILD_STEPS = 12
SHARE = 0.12


def walk(seed: int, directory: Path, judge: Judge) -> str:
    """A life of chance, and others that begin where the power failed in it, each in the one before; what was wrong."""
    choose = random.Random(seed)
    life = live(directory / "0", seed, STEPS)
    for generation in range(1, 4):
        begin: tuple[Image, dict[str, Found]] | None = None
        states = play(life, judge, 1, choose.randrange(1 << 32), SHARE)
        for seen, (words, image, found) in enumerate(states, 1):
            if words:
                return words
            if seen % 2 == 0 and choose.random() < 2 / seen:  # any of the power cuts, as likely as any other
                begin = image, found
        if begin is None:
            return ""
        life = live(directory / f"{generation}", life.seed * 8 + generation, CHILD_STEPS, *begin)
    return ""
