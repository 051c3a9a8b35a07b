"""Renaming a volume: what stays, what follows, who is in the way, and what a new one of the old name is."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_server.abi import control
from shm_server.renaming import rename
from shm_server.volumes.sanitizing import Sanitizing
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.pool import Pool
from tests.shm_server.test_snapshots import Connect, begin, raises

SIZE = 1 << 20


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    made = Pool(tmp_path)
    made.run(made.manager.create("old", SIZE))
    put(made, "old", b"old")
    yield made
    made.close()


def put(pool: Pool, name: str, data: bytes) -> None:
    with pool.volume(name) as volume:
        pool.write(volume, 0, data)


def get(pool: Pool, name: str) -> bytes:
    handle = pool.hold(name, "r")
    found = pool.read(handle.volume, 0, 5).rstrip(b"\0")
    pool.let_go(handle)
    return found


def test_who_can_not_go_keeps_its_files(pool: Pool) -> None:
    """A new volume that gets the old name while the removal is refused has files of other names."""
    pool.run(pool.snapshots.create("old", "s"))
    pool.run(pool.snapshots.clone("old", "s", "clone"))
    pool.run(rename(pool.manager, "old", "new"))
    pool.run(pool.manager.create("template", SIZE))
    pool.run(pool.snapshots.make_template("template"))
    removed = begin(pool.manager.remove("new"))
    made = begin(pool.snapshots.clone("template", "", "old"))
    while not (removed and made):
        pool.turn()
    assert made == [None]
    assert isinstance(removed[0], OSError)
    assert removed[0].errno == errno.ENOTEMPTY
    pool.run(pool.manager.remove("old"))
    assert get(pool, "new") == b"old"


def test_all_but_the_name_stays(pool: Pool) -> None:
    """UUID, size, records, snapshots, clones, what it has; over a restart, too."""
    before = pool.manager.stat("old")
    pool.run(pool.records.put("old", "modes", 0, b"kept"))
    pool.run(pool.snapshots.create("old", "s"))
    pool.run(pool.snapshots.clone("old", "s", "clone"))
    put(pool, "old", b"newer")
    info = pool.run(rename(pool.manager, "old", "new"))
    assert (info.name, info.uuid, info.generation) == ("new", before.uuid, before.generation)
    for again in (False, True):
        if again:
            pool.restart()
        assert [each.name for each in pool.manager.stat_all()] == ["clone", "new"]
        with raises(errno.ENOENT):
            pool.manager.stat("old")
        assert pool.run(pool.records.get("new", "modes")).data == b"kept"
        assert (get(pool, "new"), get(pool, "new@s"), get(pool, "clone")) == (b"newer", b"old", b"old")
        assert pool.manager.stat("new").allocated_bytes > 0
    with raises(errno.ENOTEMPTY):
        pool.run(pool.manager.remove("new"))
    pool.run(pool.manager.remove("clone"))
    pool.run(pool.manager.remove("new"))
    pool.settle()
    assert os.listdir(pool.directory / "volumes") == []


def test_the_old_name_is_free(pool: Pool) -> None:
    """A new volume of that name is another one, with files of its own, though those of the first keep theirs; and the
    names can be changed round in a circle."""
    pool.run(rename(pool.manager, "old", "first"))
    pool.run(pool.manager.create("old", SIZE))
    put(pool, "old", b"other")
    pool.run(pool.snapshots.create("old", "s"))
    put(pool, "old", b"later")
    pool.run(rename(pool.manager, "old", "second"))
    pool.run(rename(pool.manager, "first", "old"))
    pool.run(pool.manager.create("first", SIZE))
    pool.restart()
    assert [get(pool, name) for name in ("old", "second", "second@s", "first")] == [b"old", b"later", b"other", b""]
    assert (pool.directory / "volumes" / "old.raw").read_bytes().startswith(b"old\0")
    for name in ("old", "second", "first"):
        pool.run(pool.manager.remove(name))
    pool.settle()
    assert os.listdir(pool.directory / "volumes") == []


def test_an_atomic_write_under_way_is_found_again(pool: Pool) -> None:
    """The record of it is the volume's by another name, too."""
    with pool.volume("old") as volume:
        pool.run(volume.write_atomic(b"whole" * 1000, 0))
    pool.run(rename(pool.manager, "old", "new"))
    pool.run(pool.manager.create("old", SIZE))
    with pool.volume("old") as volume:
        pool.run(volume.write_atomic(b"other" * 1000, 0))
    pool.restart()
    assert (get(pool, "new"), get(pool, "old")) == (b"whole", b"other")


def test_readers_go_on(pool: Pool) -> None:
    """Of the volume and of its snapshots; what they hold has the new name, and holds it."""
    pool.run(pool.snapshots.create("old", "s"))
    readers = [pool.hold("old", "r"), pool.hold("old@s", "r")]
    pool.run(rename(pool.manager, "old", "new"))
    assert [reader.volume.name for reader in readers] == ["new", "new@s"]
    assert [pool.read(reader.volume, 0, 3) for reader in readers] == [b"old"] * 2
    with raises(errno.EBUSY):
        pool.run(pool.manager.remove("new"))
    for reader in readers:
        pool.let_go(reader)
    pool.settle()
    assert not pool.manager.handles()
    pool.run(pool.manager.remove("new"))


def test_what_can_not_be(pool: Pool) -> None:
    """A writer, a sanitize operation, a name that is taken, or none; and nothing has changed."""
    pool.run(pool.manager.create("other", SIZE))
    for new, number in (("other", errno.EEXIST), ("Old", errno.EINVAL), ("", errno.EINVAL), ("old@s", errno.EINVAL)):
        with raises(number):
            pool.run(rename(pool.manager, "old", new))
    for name in ("nothing", "old@s"):
        with raises(errno.ENOENT):
            pool.run(rename(pool.manager, name, "new"))
    writer = pool.hold("old", "w")
    with raises(errno.EBUSY):
        pool.run(rename(pool.manager, "old", "new"))
    pool.let_go(writer)
    uuid = pool.manager.stat("old").uuid
    pool.run(pool.manager.keep_sanitizing("old", Sanitizing(uuid, "block erase", SIZE, failure=errno.EIO)))
    with raises(errno.EBUSY):
        pool.run(rename(pool.manager, "old", "new"))
    pool.run(pool.manager.keep_sanitizing("old", None))
    assert pool.run(rename(pool.manager, "old", "old")).name == "old"
    assert [info.name for info in pool.manager.stat_all()] == ["old", "other"]


def test_who_watches_is_told(server: ServerProcess, connect: Connect) -> None:
    """Subscribers and readers hear both names, once, with the volume as it is."""
    client, reader, other = (connect(server) for _ in range(3))
    client.create("old", SIZE)
    reader.attach()
    reader.open("old", "r")
    other.call(control.Subscribe(other.id()))
    info = client.call(control.Rename(client.id(), "old", "new")).info
    for told in (reader, other):
        event = told.event()
        assert isinstance(event, control.VolumeRenamed)
        assert (event.old_name, event.info.name, event.info.uuid) == ("old", "new", info.uuid)
    assert client.call(control.Rename(client.id(), "new", "new")).info.name == "new"
