"""Lives that are told, not left to chance: each sync that the store makes is needed somewhere in them.

A story has chapters; between two of them the machine stops, all that the kernel had has come to the disk, by chance,
and nobody knows that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.shm_server.crash.disk import Disk, Image
from tests.shm_server.crash.judge import Judge
from tests.shm_server.crash.lives import PAGE_BLOCKS as PAGE
from tests.shm_server.crash.lives import PAGES, Life
from tests.shm_server.crash.model import Found, certain
from tests.shm_server.crash.recorder import Died

Chapter = Callable[[Life], None]


def tell(chapters: Sequence[Chapter], directory: Path, judge: Judge) -> list[Life]:
    """The lives that these are. A chapter may end in a death."""
    lives: list[Life] = []
    begin: Image | None = None
    found: dict[str, Found] = {}
    for number, chapter in enumerate(chapters):
        where = directory / f"chapter{number}"
        where.mkdir()
        life = Life(where, number + 1, begin, certain(found))
        try:
            chapter(life)
        except Died:
            pass
        finally:
            life.end()
            shutil.rmtree(where)
        lives.append(life)
        disk = Disk(life.begin, life.inodes, life.recorder.events)
        while disk.at < len(life.recorder.events):
            disk.step()
        begin = disk.after_death()
        words, found = judge.look(begin, disk.expected, was_cut=True, seed=number)
        assert not words, f"{life}: {words}"
    return lives


def snapshots(life: Life) -> None:
    """Pages of all kinds, a snapshot, a clone, a merge."""
    life.create("v")
    life.write("v", 0, PAGES * PAGE)
    life.flush("v")
    life.write("v", 0, PAGE)
    life.write("v", 3 * PAGE + 2, 4)
    life.flush("v")
    life.write("v", 5 * PAGE, PAGE)
    life.snapshot("v", "s1")
    life.write("v", 0, PAGE)
    life.write("v", 3 * PAGE + 1, 1)
    life.write("v", 0, 2)
    life.flush("v")
    life.write("v", 7 * PAGE, 2 * PAGE)
    life.discard("v", 5 * PAGE, 2 * PAGE)
    life.flush("v")
    life.write("v", 5 * PAGE, 1)
    life.write("v", 8 * PAGE + 1, 2 * PAGE, is_atomic=True)
    life.write("v", 9 * PAGE, 1)
    life.flush("v")
    life.snapshot("v", "s2")
    life.put_record("v")
    life.write("v", 0, PAGE)
    life.write("v", PAGE, 1, is_durable=True)
    life.clone("v", "s2", "c")
    life.write("c", 2 * PAGE, PAGE + 1)
    life.flush("c")
    life.pool.settle()  # checksums are made
    life.remove("v", "s1")
    life.pool.settle()
    life.write("v", 10 * PAGE, PAGE)
    life.flush("v")
    life.write("v", 11 * PAGE, PAGE)
    life.write("c", 11 * PAGE, PAGE)


def after_a_start(life: Life) -> None:
    """Rollback, growth, and a volume that becomes a plain one again."""
    life.write("v", 12 * PAGE, PAGE)
    life.write("v", 11 * PAGE + 1, 1)
    life.flush("v")
    life.snapshot("v", "s3")
    life.write("v", 0, PAGE)
    life.write("v", 13 * PAGE, 1)
    life.resize("v", PAGES + 1)
    life.write("v", PAGES * PAGE, PAGE, is_durable=True)
    life.snapshot("v", "s4")
    life.discard("v", 0, 3 * PAGE)
    life.roll_back("v", "s3")
    life.write("v", 14 * PAGE, PAGE)
    life.flush("v")
    life.pool.settle()
    life.remove("v", "s3")
    life.pool.settle()
    life.write("v", 14 * PAGE, 1)
    life.create("w")
    life.write("w", 0, 2 * PAGE)
    life.snapshot("w", "s5")
    life.write("w", 0, 1)
    life.pool.settle()
    life.remove("w", "s5")
    life.write("w", PAGE, PAGE)
    life.discard("w", 0, PAGE)
    life.write("w", 4 * PAGE, PAGE)
    life.let_go("w")
    life.pool.settle()
    life.pool.snapshots.tidy()
    life.pool.settle()
    assert "w" not in life.pool.manager.layers
    life.write("w", 4 * PAGE, PAGE)
    life.resize("w", PAGES + 2)
    life.write("w", (PAGES + 1) * PAGE, PAGE)
    life.flush("w")
    life.write("w", 0, PAGE)
    life.destroy("c")
    life.destroy("w")
    life.restart()
    life.write("v", 0, PAGE)
    life.flush("v")


def deaths(life: Life) -> None:
    """The process dies behind each event of each thing in turn; what is flushed afterwards is there for good."""
    life.create("v")
    life.write("v", 0, PAGES * PAGE)
    life.snapshot("v", "s0")
    acts: list[Callable[[], None]] = [
        lambda: life.flush("v"),
        lambda: life.write("v", 2 * PAGE + 3, 2 * PAGE, is_atomic=True),
        lambda: life.put_record("v"),
        lambda: life.resize("v", len(life.now["v"].blocks) // PAGE + 1),
    ]
    page = 0
    for act in acts:
        for events in range(1, 30):
            page = (page + 3) % (PAGES - 1)  # at first one that is not its own yet
            life.write("v", page * PAGE, PAGE)
            before = len(life.recorder.events)
            if not life.die(act, events):
                break
            assert len(life.recorder.events) > before
            life.write("v", page * PAGE + 4, 2)  # a page that is its own already
            life.flush("v")
            life.write("v", page * PAGE + 4, PAGE)
            life.flush("v")


def an_atomic_write(life: Life) -> None:
    """It ends when the record is durable, and its place is not written yet."""
    life.create("v")
    life.write("v", 0, PAGES * PAGE)
    life.flush("v")
    life.recorder.dies_at = len(life.recorder.events) + 6
    life.write("v", 3, PAGE, is_atomic=True)


def what_comes_over_it(life: Life) -> None:
    """The record has been written to its place; what comes over it must not be undone by it."""
    life.write("v", 0, 2 * PAGE)
    life.flush("v")
    life.write("v", 2, PAGE)


def templates(life: Life) -> None:
    """A clone that becomes a volume of its own, a template, names that change."""
    life.create("v")
    life.write("v", 0, PAGES * PAGE)
    life.snapshot("v", "s1")
    life.write("v", PAGE, PAGE)
    life.clone("v", "s1", "c")
    life.write("c", 2 * PAGE, PAGE)
    life.flush("c")
    life.promote("c")
    life.write("c", 3 * PAGE, 2 * PAGE)
    life.remove("v", "s1")
    life.pool.settle()
    life.rename("c", "d")
    life.write("d", 0, PAGE)
    life.make_template("d")
    life.clone_template("d", "e")
    life.write("e", 0, PAGE + 1)
    life.flush("e")
    life.destroy("v")
    life.promote("e")
    life.write("e", 5 * PAGE, PAGE)
    life.flush("e")
    life.destroy("d")
    life.pool.settle()
    life.write("e", 5 * PAGE, PAGE)


def a_merge_that_is_given_up(life: Life) -> None:
    """Somebody wants the volume while it becomes a plain one: checksums are made of what was copied by then."""
    life.create("v")
    life.write("v", 0, PAGES * PAGE)
    life.snapshot("v", "s1")
    life.remove("v", "s1")
    life.pool.settle()
    for page in range(1, PAGES, 2):
        life.write("v", page * PAGE, PAGE)
    life.flush("v")
    life.let_go("v")
    base = os.stat(life.directory / "volumes" / "v.raw").st_ino
    life.pool.snapshots.tidy()
    before = len(life.recorder.events)
    while not any(event.inode == base and event.kind == "write" for event in life.recorder.events[before:]):
        life.pool.turn()
    life.write("v", 5 * PAGE, PAGE)
    assert "v" in life.pool.manager.layers, "it was given up"
    life.pool.settle()
    life.flush("v")


STORIES = {
    "templates": (templates,),
    "snapshots": (snapshots, after_a_start),
    "deaths": (deaths,),
    "atomic": (an_atomic_write, what_comes_over_it),
    "given up": (a_merge_that_is_given_up,),
}
