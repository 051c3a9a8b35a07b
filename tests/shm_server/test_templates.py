"""Templates: what a volume is for ever, and the volumes that begin as it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.volumes.sanitizing import Sanitizing
from tests.shm_server.pool import Pool
from tests.shm_server.test_snapshots import raises

SIZE = 1 << 20


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    made = Pool(tmp_path)
    made.run(made.manager.create("gold", SIZE))
    with made.volume("gold") as volume:
        made.write(volume, 0, b"gold" * (PAGE // 4))
    yield made
    made.close()


def content(pool: Pool, name: str, access: str = "r") -> bytes:
    """Of its first page."""
    handle = pool.hold(name, access)
    found = pool.read(handle.volume, 0, PAGE)
    pool.let_go(handle)
    return found


def test_it_is_read_and_never_written(pool: Pool) -> None:
    """Opening it for writing, growing it, snapshots and sanitize operations are EROFS; that outlives a restart."""
    info = pool.run(pool.snapshots.make_template("gold"))
    assert info.is_template
    assert pool.watcher.rolled_back == [info]
    for again in (False, True):
        if again:
            pool.restart()
        assert pool.manager.stat("gold").is_template
        assert content(pool, "gold") == b"gold" * (PAGE // 4)
        for access in ("w", "rw"):
            with raises(errno.EROFS):
                pool.hold("gold", access)
        for refused in (
            pool.manager.resize("gold", 2 * SIZE),
            pool.snapshots.create("gold", "s"),
            pool.snapshots.remove("gold", "s"),
            pool.snapshots.rollback("gold", "s"),
        ):
            with raises(errno.EROFS):
                pool.run(refused)
        assert pool.run(pool.manager.resize("gold", SIZE)).size_bytes == SIZE
        with raises(errno.EROFS):
            pool.run(pool.sanitizer.start("gold", Sanitizing("", "block erase", SIZE), lambda _: True))


def test_what_a_clone_merges_stops_above_the_template(pool: Pool) -> None:
    """A layer of its own, sealed, lies right on the template's, which has no name: others stand on that one, too."""
    pool.run(pool.snapshots.make_template("gold"))
    for name in ("one", "two"):
        pool.run(pool.snapshots.clone("gold", "", name))
    with pool.volume("one") as volume:
        for letter in "st":
            pool.write(volume, 0, letter.encode() * PAGE)
            pool.run(pool.snapshots.create("one", letter))
    pool.run(pool.snapshots.remove("one", "s"))
    pool.snapshots.tidy()
    pool.settle()
    assert [content(pool, name) for name in ("gold", "two", "one")] == [b"gold" * (PAGE // 4)] * 2 + [b"t" * PAGE]


def test_once_is_enough(pool: Pool) -> None:
    """To make a template of a template changes nothing, and is no error (as in Open vStorage)."""
    info = pool.run(pool.snapshots.make_template("gold"))
    layers = pool.manager.lineage.chain(info.uuid)
    assert pool.run(pool.snapshots.make_template("gold")) == info
    assert pool.manager.lineage.chain(info.uuid) == layers
    assert len(pool.watcher.rolled_back) == 1


def test_clones_begin_as_it_is_and_keep_it(pool: Pool) -> None:
    """Two of them go their own ways, a third comes later; while there is one the template can't be removed."""
    pool.run(pool.snapshots.make_template("gold"))
    pool.settle()
    for name in ("one", "two"):
        info = pool.run(pool.snapshots.clone("gold", "", name))
        assert (info.size_bytes, info.is_template) == (SIZE, False)
        with pool.volume(name) as volume:
            pool.write(volume, 512, name.encode() * 512)
    pool.run(pool.snapshots.clone("gold", "", "three"))
    assert content(pool, "three") == content(pool, "gold") == b"gold" * (PAGE // 4)
    assert content(pool, "one")[512:2048] == b"one" * 512
    assert content(pool, "two")[512:2048] == b"two" * 512
    for name in ("one", "two", "three"):
        with raises(errno.ENOTEMPTY):
            pool.run(pool.manager.remove("gold"))
        pool.run(pool.manager.remove(name))
    pool.run(pool.manager.remove("gold"))
    pool.settle()
    assert os.listdir(pool.directory / "volumes") == []


def test_who_lists_beside_a_clone_hears_of_all_others(pool: Pool) -> None:
    """The layers of one that is being made are known a moment before the volume is."""
    pool.run(pool.snapshots.create("gold", "s"))
    pool.manager.layers["new"] = dict(pool.manager.layers["gold"])
    assert [info.name for info in pool.run(pool.manager.look_all())] == ["gold"]
    del pool.manager.layers["new"]


def test_a_clone_takes_no_space(pool: Pool) -> None:
    """Whatever the template has, its clone has nothing of its own to begin with."""
    with pool.volume("gold") as volume:
        pool.write(volume, 0, os.urandom(SIZE))
    pool.run(pool.snapshots.make_template("gold"))
    assert pool.run(pool.snapshots.clone("gold", "", "one")).allocated_bytes == 0
    assert pool.manager.stat("gold").allocated_bytes == SIZE


def test_its_snapshots_go(pool: Pool) -> None:
    """What it is last is what stays, and the layers of before are merged, so that clones stand on two at most."""
    for value in (b"a", b"b", b"c"):
        pool.run(pool.snapshots.create("gold", value.decode()))
        with pool.volume("gold") as volume:
            pool.write(volume, 0, value * PAGE)
    info = pool.run(pool.snapshots.make_template("gold"))
    assert pool.run(pool.snapshots.find_all("gold", "", 9)) == []
    pool.settle()
    assert len(pool.manager.lineage.chain(info.uuid)) == 2
    assert content(pool, "gold") == b"c" * PAGE
    pool.run(pool.snapshots.clone("gold", "", "one"))
    assert content(pool, "one") == b"c" * PAGE


def test_it_does_not_become_a_plain_file_again(pool: Pool) -> None:
    """Without clones nobody needs its layers, but the next clone will."""
    pool.run(pool.snapshots.make_template("gold"))
    pool.snapshots.tidy()
    pool.settle()
    handle = pool.hold("gold", "r")
    assert isinstance(handle.volume.store, LayeredStore)
    pool.let_go(handle)


def test_a_clone_becomes_a_template(pool: Pool) -> None:
    """Here it may (in Open vStorage it may not): templates stand on templates."""
    pool.run(pool.snapshots.make_template("gold"))
    pool.run(pool.snapshots.clone("gold", "", "silver"))
    with pool.volume("silver") as volume:
        pool.write(volume, 0, b"silver")
    pool.run(pool.snapshots.make_template("silver"))
    pool.run(pool.snapshots.clone("silver", "", "bronze"))
    assert content(pool, "bronze", "rw") == b"silver" + (b"gold" * (PAGE // 4))[6:]


def test_what_can_not_be(pool: Pool, tmp_path: Path) -> None:
    """Held, missing, with clones on snapshots, in another store; a clone without a snapshot of what is no template."""
    for access in ("r", "rw"):
        handle = pool.hold("gold", access)
        with raises(errno.EBUSY):
            pool.run(pool.snapshots.make_template("gold"))
        pool.let_go(handle)
    with raises(errno.ENOENT):
        pool.run(pool.snapshots.make_template("lead"))
    with raises(errno.EINVAL):
        pool.run(pool.snapshots.clone("gold", "", "one"))
    pool.run(pool.snapshots.create("gold", "s"))
    pool.run(pool.snapshots.clone("gold", "s", "one"))
    layers = pool.manager.lineage.chain(pool.manager.stat("gold").uuid)
    with raises(errno.ENOTEMPTY):
        pool.run(pool.snapshots.make_template("gold"))
    assert pool.manager.lineage.chain(pool.manager.stat("gold").uuid) == layers
    assert not pool.manager.stat("gold").is_template
    pool.run(pool.manager.remove("one"))
    pool.run(pool.snapshots.make_template("gold"))
    for kind in ("memory", "null"):
        directory = tmp_path / kind
        directory.mkdir()
        other = Pool(directory, kind)
        other.run(other.manager.create("gold", SIZE))
        with raises(errno.EOPNOTSUPP):
            other.run(other.snapshots.make_template("gold"))
        other.close()
