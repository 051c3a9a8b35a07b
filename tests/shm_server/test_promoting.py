"""Clones that become volumes of their own: what they have then, what goes on meanwhile, what ends it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shm_server import promoting as promoting_server
from shm_server.progress import Progress
from shm_server.stores import promoting
from shm_server.stores.changes import Changes
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.volumes.promotions import Promotions, own_lowest
from shm_server.volumes.sanitizing import Sanitizing
from tests.shm_server.checksummed import corrupt
from tests.shm_server.pool import Pool
from tests.shm_server.test_snapshots import begin, raises

SIZE = 4 << 20
END = SIZE - PAGE


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promoting, "STEP_BYTES", 16 * PAGE)
    monkeypatch.setattr(promoting, "LOOK_BYTES", 64 * PAGE)
    monkeypatch.setattr(promoting, "CHECKPOINT_BYTES", 128 * PAGE)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """ "gold" has a past, and "clone" stands on its snapshot."""
    made = Pool(tmp_path)
    made.run(made.manager.create("gold", SIZE))
    with made.volume("gold") as volume:
        made.write(volume, 0, os.urandom(SIZE // 2))
        made.run(made.snapshots.create("gold", "first"))
        made.write(volume, SIZE // 4, os.urandom(SIZE // 4))
        made.write(volume, END, os.urandom(PAGE))
        made.run(volume.discard(8 * PAGE, 8 * PAGE, lambda: False))
        made.run(made.snapshots.create("gold", "second"))
    made.run(made.snapshots.clone("gold", "second", "clone"))
    yield made
    made.close()


def content(pool: Pool, name: str) -> bytes:
    handle = pool.hold(name, "r")
    found = pool.read(handle.volume, 0, SIZE)
    pool.let_go(handle)
    return found


def promote(pool: Pool, name: str, told: list[tuple[int, int]] | None = None) -> Any:
    seen: list[tuple[int, int]] = [] if told is None else told
    progress = Progress(pool.runtime.clock, lambda done, total: seen.append((done, total)), lambda: True)
    return pool.promoter.promote(name, progress)


def stands_alone(pool: Pool, name: str) -> bool:
    uuid = pool.manager.stat(name).uuid
    return all(layer.uuid == uuid for layer in pool.manager.lineage.chain(uuid))


def test_it_stands_on_nothing_of_others(pool: Pool) -> None:
    """It has what it had, to the byte, holes are holes, and what it was made of can go; over a restart, too."""
    with pool.volume("clone") as volume:
        pool.write(volume, 20 * PAGE + 100, b"mine" * 100)
        pool.run(volume.discard(40 * PAGE, 4 * PAGE, lambda: False))
    before, other = content(pool, "clone"), content(pool, "gold")
    assert not stands_alone(pool, "clone")
    info = pool.run(promote(pool, "clone"))
    assert info.promotion is None
    assert stands_alone(pool, "clone")
    assert content(pool, "clone") == before
    assert content(pool, "gold") == other
    pool.run(pool.manager.remove("gold"))
    pool.restart()
    pool.settle()
    assert content(pool, "clone") == before
    assert pool.manager.stat("clone").allocated_bytes <= SIZE // 2 + PAGE
    assert sorted(os.listdir(pool.directory / "volumes")) == ["clone.raw"], "nobody holds it: a plain file again"


def test_it_is_used_meanwhile(pool: Pool) -> None:
    """Who has it open reads what is there and writes; at the end the same handle finds everything."""
    expected = bytearray(content(pool, "clone"))
    choose = random.Random(1)
    with pool.volume("clone") as volume:
        ended = begin(promote(pool, "clone"))
        while not ended:
            pool.turn()
            at = choose.randrange(SIZE - 700)
            data = choose.randbytes(choose.randrange(1, 700))
            pool.write(volume, at, data)
            expected[at : at + len(data)] = data
            at = choose.randrange(SIZE - PAGE)
            assert pool.read(volume, at, PAGE) == expected[at : at + PAGE]
        assert ended == [None]
        assert stands_alone(pool, "clone")
        assert pool.read(volume, 0, SIZE) == expected
        pool.run(pool.manager.remove("gold"))
        assert pool.read(volume, 0, SIZE) == expected
        pool.run(pool.snapshots.create("clone", "later"))
        pool.write(volume, 0, b"x" * PAGE)
    assert content(pool, "clone@later") == expected
    pool.restart()
    assert content(pool, "clone@later") == expected


def test_nothing_is_merged_into_what_is_being_promoted(pool: Pool) -> None:
    """A merge would write its pages while others are copied there: it comes when that is over."""
    with pool.volume("clone") as volume:
        for letter in "st":
            pool.write(volume, 0, letter.encode() * PAGE)
            pool.run(pool.snapshots.create("clone", letter))
        lineage = pool.manager.lineage
        own = own_lowest(lineage.chain(volume.uuid), volume.uuid)
        assert own is not None
        promotions = Promotions(pool.catalog)
        promotions.begin(volume.uuid, own.number)
        lineage.remove_snapshot(volume.uuid, "s")
        assert lineage.mergeable(own.number) is None
        promotions.end(volume.uuid)
        assert lineage.mergeable(own.number) is not None


def test_its_snapshots_and_clones_are_free_too(pool: Pool) -> None:
    """They stand on what was copied: each has what it had, also where it is open the whole time."""
    with pool.volume("clone") as volume:
        pool.write(volume, 0, b"1" * PAGE)
        pool.run(pool.snapshots.create("clone", "s"))
        pool.write(volume, 0, b"2" * PAGE)
    pool.run(pool.snapshots.clone("clone", "s", "grandchild"))
    names = ("clone", "clone@s", "grandchild")
    before = [content(pool, name) for name in names]
    readers = [pool.hold(name, "r") for name in names]
    pool.run(promote(pool, "clone"))
    pool.run(pool.manager.remove("gold"))
    for _ in range(2):
        assert [pool.read(reader.volume, 0, SIZE) for reader in readers] == before
        pool.settle()
    for reader in readers:
        pool.let_go(reader)
    pool.restart()
    assert [content(pool, name) for name in names] == before
    pool.run(promote(pool, "grandchild"))
    assert stands_alone(pool, "grandchild")
    pool.run(pool.manager.remove("clone"))
    assert content(pool, "grandchild") == before[2]


def test_of_a_template_that_is_removed_then(pool: Pool) -> None:
    pool.run(pool.snapshots.clone("gold", "first", "silver"))
    pool.run(pool.snapshots.make_template("silver"))
    pool.run(pool.snapshots.clone("silver", "", "bronze"))
    before = content(pool, "bronze")
    pool.run(promote(pool, "silver"))  # a template may be promoted: what it is stays
    with raises(errno.ENOTEMPTY):
        pool.run(pool.manager.remove("silver"))
    pool.run(promote(pool, "bronze"))
    pool.run(pool.manager.remove("silver"))
    assert content(pool, "bronze") == before


def test_a_server_that_starts_anew_goes_on(pool: Pool) -> None:
    """From where it was durable; what it was made of can't go until it is done."""
    before = content(pool, "clone")
    told: list[tuple[int, int]] = []
    begin(promote(pool, "clone", told))
    while not any(promotion.done_bytes for promotion in pool.promoter._promotions.all()):
        pool.turn()
    done_bytes = pool.promoter._promotions.all()[0].done_bytes
    pool.runtime.close()
    pool.catalog.close()
    Pool.__init__(pool, pool.directory)
    assert 0 < pool.manager.stat("clone").promotion < 65535
    assert pool.promoter._promotions.all()[0].done_bytes == done_bytes
    with raises(errno.ENOTEMPTY):
        pool.run(pool.manager.remove("gold"))
    pool.run(promote(pool, "clone"))
    assert content(pool, "clone") == before
    assert stands_alone(pool, "clone")


def test_a_merge_waits_for_it(pool: Pool) -> None:
    """A snapshot of the clone that goes meanwhile is merged behind it, and not into what is being copied."""
    with pool.volume("clone") as volume:
        pool.write(volume, 0, b"1" * PAGE)
        pool.run(pool.snapshots.create("clone", "s"))
        pool.write(volume, 0, b"2" * PAGE)
        pool.write(volume, 3 * PAGE, b"3" * PAGE)
        before = pool.read(volume, 0, SIZE)
        ended = begin(promote(pool, "clone"))
        while not pool.manager.stat("clone").promotion:
            pool.turn()
        pool.run(pool.snapshots.remove("clone", "s"))
        pool.run(pool.snapshots.remove("gold", "first"))
        while not ended:
            pool.turn()
        assert ended == [None]
        pool.settle()
        assert pool.read(volume, 0, SIZE) == before
        assert len(pool.manager.lineage.chain(volume.uuid)) == 2
    assert content(pool, "clone") == before


def test_a_bad_page_stops_it_by_name(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """It is not copied as if it were good: the volume stays a clone, what was copied is given back; EIO says why."""
    pool.settle()
    number = pool.manager.lineage.chain(pool.manager.stat("clone").uuid)[1].number
    for file in ("gold.raw", f"{number}.data"):
        path = pool.directory / "volumes" / file
        corrupt(path, path.stat().st_size * 3 // 8)
    pool.restart()
    allocated = pool.manager.stat("clone").allocated_bytes
    with raises(errno.EIO):
        pool.run(promote(pool, "clone"))
    assert not stands_alone(pool, "clone")
    assert "volume clone was not promoted" in caplog.text
    assert f"{number}.data" in caplog.text
    assert pool.manager.stat("clone").promotion is None
    assert pool.promoter._promotions.all() == []
    assert pool.manager.stat("clone").allocated_bytes == allocated


def test_whoever_waits_for_long(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is told how far it has come, it waits until all is done, and hears what it ended by."""
    monkeypatch.setattr(promoting_server, "LOOK_S", 0.001)
    told: list[tuple[int, int]] = []
    pool.run(promote(pool, "clone", told))
    assert stands_alone(pool, "clone")
    assert told
    pool.run(pool.snapshots.clone("gold", "second", "other"))
    ended = begin(promote(pool, "other"))
    while not pool.manager.stat("other").promotion:
        pool.turn()
    pool.run(pool.promoter.cancel("other"))
    while not ended:
        pool.turn()
    assert isinstance(ended[0], OSError)
    assert ended[0].errno == errno.ECANCELED


def test_cancelled(pool: Pool) -> None:
    """By who says so, and not by who only leaves; the clone is as it was, and takes no space."""
    before = content(pool, "clone")
    is_there = True
    progress = Progress(pool.runtime.clock, lambda _done, _total: None, lambda: is_there)
    ended = begin(pool.promoter.promote("clone", progress))
    while not pool.manager.stat("clone").promotion:
        pool.turn()
    info = pool.run(pool.promoter.cancel("clone"))
    assert info.promotion is None
    while not ended:
        pool.turn()
    assert isinstance(ended[0], OSError)
    assert ended[0].errno == errno.ECANCELED
    assert not stands_alone(pool, "clone")
    assert pool.manager.stat("clone").allocated_bytes == 0
    assert pool.run(pool.promoter.cancel("clone")).promotion is None
    assert content(pool, "clone") == before
    pool.run(promote(pool, "clone"))
    assert content(pool, "clone") == before


def test_its_volume_goes_meanwhile(pool: Pool) -> None:
    """Then there is nothing to promote, and no file is left of it."""
    ended = begin(promote(pool, "clone"))
    while not pool.manager.stat("clone").promotion:
        pool.turn()
    pool.run(pool.manager.remove("clone"))
    while not ended:
        pool.turn()
    assert isinstance(ended[0], OSError)
    assert ended[0].errno == errno.ENOENT
    pool.run(pool.manager.remove("gold"))
    pool.settle()
    assert os.listdir(pool.directory / "volumes") == []


def test_what_is_no_clone(pool: Pool) -> None:
    """There is nothing to do; and what can't be."""
    for name in ("gold",):
        assert pool.run(promote(pool, name)).promotion is None
    pool.run(pool.manager.create("plain", SIZE))
    pool.run(promote(pool, "plain"))
    assert "plain" not in pool.manager.layers
    with raises(errno.ENOENT):
        pool.run(promote(pool, "nothing"))
    uuid = pool.manager.stat("clone").uuid
    pool.run(pool.manager.keep_sanitizing("clone", Sanitizing(uuid, "block erase", SIZE, failure=errno.EIO)))
    with raises(errno.EBUSY):
        pool.run(promote(pool, "clone"))
    pool.run(pool.manager.keep_sanitizing("clone", None))


def test_checksums_are_made_of_what_was_copied(pool: Pool) -> None:
    """Afterwards every page of it is held against one again."""
    with pool.volume("clone") as volume:
        pool.write(volume, 0, b"1" * PAGE)
        pool.run(pool.snapshots.create("clone", "s"))
    pool.settle()
    pool.run(promote(pool, "clone"))
    pool.settle()
    checked = pool.check("clone")
    assert checked.problems == 0
    assert checked.pages >= SIZE // 2 // PAGE - 8


def test_asked_for_again_while_it_is_given_back(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was cancelled says so; the other one comes to its end, and nothing is left of either."""
    first = begin(promote(pool, "clone"))
    while not pool.manager.stat("clone").promotion:
        pool.turn()
    asked: list[list[BaseException | None]] = []
    give_up = pool.stores.give_up

    def ask_again(*given: Any) -> Any:
        asked.append(begin(promote(pool, "clone")))
        return give_up(*given)

    monkeypatch.setattr(pool.stores, "give_up", ask_again)
    pool.run(pool.promoter.cancel("clone"))
    while not first or not asked[0]:
        pool.turn()
    assert isinstance(first[0], OSError)
    assert first[0].errno == errno.ECANCELED
    assert asked == [[None]]
    assert stands_alone(pool, "clone")
    assert pool.promoter._promotions.all() == []


def test_differences_are_found_behind_it(pool: Pool) -> None:
    """Between the volume and a snapshot that were open before: they are of one family still."""
    with pool.volume("clone") as volume:
        pool.run(pool.snapshots.create("clone", "s"))
        reader = pool.hold("clone@s", "r")
        pool.write(volume, 5 * PAGE, b"5" * PAGE)
        pool.run(promote(pool, "clone"))
        changes = Changes(volume.store, reader.volume.store, lambda: 0.0)
        assert changes.find(0, SIZE, 9) == ([(5 * PAGE, PAGE, True)], SIZE)
        pool.let_go(reader)


def test_others_that_fail_do_not_stop_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that can't be made plain again, and files that can't be removed, are tried again later."""
    pool.settle()
    pool.run(pool.manager.create("other", SIZE))

    def lost(*_: object) -> None:
        raise OSError(errno.EIO, "the medium")

    monkeypatch.setattr(pool.stores, "adopt", lost)
    monkeypatch.setattr(pool.stores, "remove_layers", lost)
    pool.run(pool.snapshots.create("other", "s"))
    pool.run(pool.snapshots.remove("other", "s"))
    assert len(pool.manager.layers["other"]) >= 1
    pool.run(promote(pool, "clone"))
    assert stands_alone(pool, "clone")
    pool.settle()
