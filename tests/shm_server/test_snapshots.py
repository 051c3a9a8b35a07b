"""Snapshots of volumes in use: what is in one, what goes on meanwhile, what is refused, what kill -9 leaves."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest

from shm_server.abi import control
from shm_server.runtime import Job
from shm_server.stores import DelayRule, checked, file, layer, maplog
from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.stores.owners import CHUNK_BYTES, CHUNK_PAGES
from shm_server.volumes.catalog import Catalog
from shm_server.volumes.volume import Volume
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.pool import Pool

SIZE = 1 << 20
Connect = Callable[..., AbiClient]


def never() -> bool:
    return False


def snapshot(pool: Pool, name: str) -> None:
    pool.run(pool.snapshots.create("demo", name))


def begin(coroutine: Any) -> list[BaseException | None]:
    """Start it; the list has its end, when that has come."""
    ended: list[BaseException | None] = []
    Job(coroutine, lambda _value, error: ended.append(error)).start()
    return ended


def raises(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def test_a_volume_without_snapshots_has_no_layers(pool: Pool, volume: Volume) -> None:
    """Its store is the plain file as ever, and the first snapshot takes that over where it lies."""
    assert not isinstance(volume.store, LayeredStore)
    before = os.stat(pool.directory / "volumes" / "demo.raw").st_ino
    pool.write(volume, 0, b"x" * PAGE)
    snapshot(pool, "s")
    pool.write(volume, 0, b"y" * PAGE)
    assert isinstance(volume.store, LayeredStore)
    assert os.stat(pool.directory / "volumes" / "demo.raw").st_ino == before
    assert (pool.directory / "volumes" / "demo.raw").read_bytes()[:PAGE] == b"x" * PAGE


def test_io_goes_on_while_the_layer_below_is_synced(tmp_path: Path) -> None:
    """Reads and writes end while the snapshot's sync takes its time; then it is there, without those writes."""
    pool = Pool(tmp_path, delays=[DelayRule(operations=("flush",), seconds=0.2, count=1)])
    pool.run(pool.manager.create("demo", SIZE))
    with pool.volume("demo") as volume:
        pool.write(volume, 0, b"a" * PAGE)
        ended = begin(pool.snapshots.create("demo", "s"))
        while not volume._is_syncing:
            pool.turn()
        pool.write(volume, 0, b"b" * PAGE)
        assert pool.read(volume, 0, PAGE) == b"b" * PAGE
        assert not ended
        while not ended:
            pool.turn()
        assert ended == [None]
    pool.run(pool.snapshots.rollback("demo", "s"))
    with pool.volume("demo") as volume:
        assert pool.read(volume, 0, PAGE) == b"a" * PAGE
    pool.close()


def test_a_write_under_way_is_waited_for(tmp_path: Path) -> None:
    """What began before the new layer ends in the old one; what comes behind it goes to the new one."""
    pool = Pool(tmp_path, delays=[DelayRule(operations=("write",), offset=0, length=PAGE, seconds=0.1, count=1)])
    pool.run(pool.manager.create("demo", SIZE))
    with pool.volume("demo") as volume:
        first = begin(volume.write([memoryview(b"a" * 512)], 0, 512, is_durable=False))
        kept = begin(pool.snapshots.create("demo", "s"))
        while not volume.ranges.is_guarded:
            pool.turn()
        second = begin(volume.write([memoryview(b"b" * 512)], 512, 512, is_durable=False))
        while not (first and kept and second):
            pool.turn()
        assert (first, kept, second) == ([None], [None], [None])
        assert pool.read(volume, 0, 1024) == b"a" * 512 + b"b" * 512
    pool.run(pool.snapshots.rollback("demo", "s"))
    with pool.volume("demo") as volume:
        assert pool.read(volume, 0, 1024) == b"a" * 512 + bytes(512)
    pool.close()


def test_a_discard_that_a_snapshot_comes_between_spares_it(pool: Pool, volume: Volume) -> None:
    """Long work looks for the store at each of its steps."""
    size = 256 << 20
    pool.run(pool.manager.resize("demo", size))
    pool.write(volume, size - PAGE, b"z" * PAGE)
    cleared = begin(volume.discard(0, size, never))
    snapshot(pool, "s")
    while not cleared:
        pool.turn()
    assert pool.read(volume, size - PAGE, PAGE) == bytes(PAGE)
    pool.run(pool.snapshots.clone("demo", "s", "look"))
    with pool.volume("look") as look:
        assert pool.read(look, size - PAGE, PAGE) in (b"z" * PAGE, bytes(PAGE))


def test_what_runs_on_the_loop_waits_for_nobody(pool: Pool, volume: Volume) -> None:
    """Where a worker claims pages, or has the map, a write declines, unless its pages are the top's already."""
    pool.write(volume, 0, b"a" * PAGE)
    snapshot(pool, "s")
    store = volume.store
    assert isinstance(store, LayeredStore)
    data, there = [memoryview(b"b" * PAGE)], memoryview(bytearray(PAGE))
    for lock in (store._lock, store._owners.lock):
        with lock:
            assert store.write_now(data, 0) == 0
            assert store.read_now([there], 0) in (0, PAGE)
    pool.write(volume, 0, b"b" * PAGE)
    for lock in (store._lock, store._owners.lock):
        with lock:
            assert store.write_now(data, 0) == PAGE


def test_a_full_disk_tears_nothing(pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first write to a page that finds no room, for its data or for its record, fails, and the page is as it was;
    then there is room again, and the volume has not failed."""
    pool.write(volume, 0, b"a" * PAGE)
    snapshot(pool, "s")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    for call, length in (("pwritev", PAGE), ("pwrite", PAGE), ("pwritev", 512), ("pwrite", 512)):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with raises(errno.ENOSPC):
                pool.write(volume, 0, b"b" * length)
        assert pool.read(volume, 0, PAGE) == b"a" * PAGE
    pool.write(volume, 0, b"b" * 512, is_durable=True)
    assert pool.read(volume, 0, 1024) == b"b" * 512 + b"a" * 512


@pytest.mark.parametrize("what", ["record", "owner", "page below"])
def test_an_atomic_write_fails_before_its_redo_record(
    pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Where a claim would find no room, or an edge can't be completed: the volume has not failed, and opens again."""
    pool.write(volume, 0, b"a" * PAGE)
    snapshot(pool, "s")
    pool.run(volume.write_atomic(b"z" * PAGE, 8 * PAGE))

    def fail(number: int) -> None:
        raise OSError(number, "as the test wants it")

    store = volume.store
    assert isinstance(store, LayeredStore)
    with monkeypatch.context() as patch:
        if what == "record":
            patch.setattr(store._log, "_room", 0)
            patch.setattr(maplog.linux, "fallocate", lambda _fd, mode, at, length: fail(errno.ENOSPC) if at else None)
        elif what == "owner":
            patch.setattr(store._owners, "make_room", lambda first, count: fail(errno.ENOSPC))
        else:
            patch.setattr(store, "_read_piece", lambda owner, views, at: fail(errno.EIO))
        with raises(errno.EIO if what == "page below" else errno.ENOSPC):
            pool.run(volume.write_atomic(b"b" * 512, 512))
    assert not volume.failure
    assert pool.read(volume, 0, PAGE) == b"a" * PAGE
    pool.run(volume.write_atomic(b"b" * 512, 512))
    assert pool.read(volume, 0, PAGE) == b"a" * 512 + b"b" * 512 + b"a" * (PAGE - 1024)


def test_the_map_in_memory_is_bounded(tmp_path: Path) -> None:
    """By the cache's size, over all volumes; what is not there is read again."""
    pool = Pool(tmp_path, map_cache_bytes=2 * CHUNK_BYTES)
    places = range(0, 10 * CHUNK_PAGES * PAGE, CHUNK_PAGES * PAGE)
    for name in ("a", "b"):
        pool.run(pool.manager.create(name, 10 * CHUNK_PAGES * PAGE))
        pool.run(pool.snapshots.create(name, "s"))
    with pool.volume("a") as first, pool.volume("b") as second:
        for place in places:
            for volume in (first, second):
                pool.write(volume, place, volume.name.encode() * PAGE)
                stores = [each.store for each in (first, second)]
                assert sum(len(store._owners.chunks) for store in stores if isinstance(store, LayeredStore)) <= 2
        for place in places:
            for volume in (first, second):
                assert pool.read(volume, place, PAGE) == volume.name.encode() * PAGE
    pool.close()


def test_few_files_of_many_layers_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tmpfs, too, where a file is read without a Python frame that would keep it open."""
    monkeypatch.setattr("shm_server.stores.file.MAX_OPEN_LAYERS", 1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        pool = Pool(Path(directory))
        pool.run(pool.manager.create("demo", SIZE))
        with pool.volume("demo") as volume:
            for number in range(4):
                pool.write(volume, number * PAGE, bytes([number + 1]) * PAGE)
                snapshot(pool, f"s{number}")
            pool.settle()  # who makes checksums has a file open, too
            for number in (1, 2, 3) * 3:
                assert pool.read(volume, number * PAGE, PAGE) == bytes([number + 1]) * PAGE
            opened = [Path(f"/proc/self/fd/{fd}").resolve() for fd in os.listdir("/proc/self/fd")]
            assert sum(path.suffix == ".data" and path.is_relative_to(directory) for path in opened) <= 2
        pool.close()


def test_what_can_not_be(pool: Pool, volume: Volume, tmp_path: Path) -> None:
    """Names, twice, held, clones, sanitized, other stores; and nothing has changed."""
    for name in ("", "-", "a/b", "x" * 128):
        with raises(errno.EINVAL):
            snapshot(pool, name)
    snapshot(pool, "s")
    with raises(errno.EEXIST):
        snapshot(pool, "s")
    with raises(errno.EBUSY):
        pool.run(pool.snapshots.rollback("demo", "s"))
    for coroutine in (
        pool.snapshots.find("demo", "t"),
        pool.snapshots.remove("demo", "t"),
        pool.snapshots.clone("demo", "t", "new"),
        pool.snapshots.clone("other", "s", "new"),
        pool.snapshots.create("other", "s"),
    ):
        with raises(errno.ENOENT):
            pool.run(coroutine)
    pool.run(pool.snapshots.clone("demo", "s", "new"))
    with raises(errno.EEXIST):
        pool.run(pool.snapshots.clone("demo", "s", "new"))
    with raises(errno.EINVAL):
        pool.run(pool.snapshots.clone("demo", "s", "New"))
    with raises(errno.ENOTEMPTY):
        pool.run(pool.snapshots.remove("demo", "s"))
    for kind in ("memory", "null"):
        directory = tmp_path / kind
        directory.mkdir()
        other = Pool(directory, kind)
        other.run(other.manager.create("demo", SIZE))
        with raises(errno.EOPNOTSUPP):
            other.run(other.snapshots.create("demo", "s"))
        other.close()


def test_a_snapshot_keeps_its_size(pool: Pool) -> None:
    """The volume grows; its snapshot, and clones of that, do not; a rollback makes it small again."""
    snapshot(pool, "small")
    pool.run(pool.manager.resize("demo", 2 * SIZE))
    snapshot(pool, "big")
    assert [each.size_bytes for each in pool.run(pool.snapshots.find_all("demo", "", 9))] == [2 * SIZE, SIZE]
    assert pool.run(pool.snapshots.clone("demo", "small", "new")).size_bytes == SIZE
    generation = pool.manager.stat("demo").generation
    info = pool.run(pool.snapshots.rollback("demo", "small"))
    assert (info.size_bytes, info.generation) == (SIZE, generation + 1)
    assert pool.watcher.rolled_back == [info]


def test_space_comes_back(pool: Pool) -> None:
    """Of a snapshot that is removed, of a discard, of a volume that goes; and no file is left."""
    volumes = pool.directory / "volumes"
    with pool.volume("demo") as volume:
        pool.write(volume, 0, os.urandom(SIZE))
        snapshot(pool, "s")
        pool.write(volume, 0, os.urandom(SIZE))
        pool.run(volume.flush())
        both = pool.manager.stat("demo").allocated_bytes
        assert both >= 2 * SIZE
        pool.run(pool.snapshots.remove("demo", "s"))
        pool.settle()
        assert pool.manager.stat("demo").allocated_bytes <= both - SIZE + (64 << 10)
        pool.write(volume, 0, os.urandom(SIZE))
        pool.run(volume.flush())
        before = pool.manager.stat("demo").allocated_bytes
        pool.run(volume.discard(0, SIZE, never))
        assert pool.manager.stat("demo").allocated_bytes <= before - SIZE
    pool.run(pool.manager.remove("demo"))
    assert list(volumes.iterdir()) == []


def test_what_is_stored_and_what_that_takes(pool: Pool) -> None:
    """Stored are the data, those of snapshots too, each page once for each layer that has it; a clone stores nothing of
    what it has of others. The footprint is all that is on the disk for the volume, but the checksums of its base."""
    plain = pool.manager.stat("demo")
    assert (plain.size_bytes, plain.allocated_bytes, plain.footprint_bytes) == (SIZE, 0, 0)
    with pool.volume("demo") as volume:
        pool.write(volume, 0, os.urandom(SIZE))
        snapshot(pool, "s")
        pool.write(volume, 0, os.urandom(2 * PAGE))
        pool.run(volume.write_atomic(os.urandom(PAGE), 0))
    pool.settle()
    pool.run(pool.snapshots.clone("demo", "s", "clone"))
    with pool.volume("clone") as volume:
        pool.write(volume, 0, os.urandom(3 * PAGE))
    pool.settle()
    sizes = {info.name: (info.size_bytes, info.allocated_bytes) for info in pool.manager.stat_all()}
    assert sizes == {"demo": (SIZE, SIZE + 2 * PAGE), "clone": (SIZE, 3 * PAGE)}
    files = {path.name: path.stat().st_blocks * 512 for path in (pool.directory / "volumes").iterdir()}
    footprints = {info.name: info.footprint_bytes for info in pool.manager.stat_all()}
    base = pool.manager.lineage.chain(plain.uuid)[0].number
    assert sum(footprints.values()) == sum(files.values()) - files[f"{base}.sums"]
    pool.run(pool.manager.remove("clone"))
    pool.settle()
    left = sum(path.stat().st_blocks * 512 for path in (pool.directory / "volumes").iterdir())
    assert sum(files.values()) - left == footprints["clone"]


def test_the_footprint_is_true_whenever_it_is_asked_for(pool: Pool) -> None:
    """Also where it was asked for before checksums were made, before a merge, and behind it."""

    def check() -> None:
        pool.run(pool.manager.look("demo"))  # while something of it is under way
        pool.settle()
        info = pool.run(pool.manager.look("demo"))
        files = {path.name: path.stat().st_blocks * 512 for path in (pool.directory / "volumes").iterdir()}
        base = pool.manager.lineage.chain(info.uuid)[0].number
        assert info.footprint_bytes == sum(files.values()) - files[f"{base}.sums"]

    with pool.volume("demo") as volume:
        for number in range(3):
            pool.write(volume, number * PAGE, os.urandom((3 - number) * PAGE))
            pool.run(pool.snapshots.create("demo", f"s{number}"))
            check()
        pool.run(pool.snapshots.remove("demo", "s1"))
        check()


def test_nobody_waits_for_who_asks_what_many_layers_take(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread asks for each sealed layer's files, once; who asks again asks for the others alone."""
    asked: list[int] = []
    for module in (file, checked):
        real = module.allocated_bytes
        monkeypatch.setattr(module, "allocated_bytes", lambda path, real=real: asked.append(get_ident()) or real(path))
    with pool.volume("demo"):
        for number in range(10):
            pool.run(pool.snapshots.create("demo", f"s{number}"))
        pool.settle()
        assert isinstance(pool.stores, file.FileStores)
        pool.stores._sealed_bytes.clear()  # as a server that was started anew
        pool.stores._checks._sums_bytes.clear()
        asked.clear()
        pool.run(pool.manager.look_all())
        by_thread = sum(ident != get_ident() for ident in asked)
        assert by_thread >= 30
        assert len(asked) - by_thread < 10


def test_without_snapshots_it_is_a_plain_store_again(pool: Pool) -> None:
    """Once nobody holds it; with its bytes, and what was discarded, in its own file and nowhere else."""
    data = os.urandom(SIZE)
    with pool.volume("demo") as volume:
        pool.write(volume, 0, data)
        snapshot(pool, "s")
        pool.write(volume, 8 * PAGE, b"x" * PAGE)
        pool.run(volume.discard(2 * PAGE, PAGE, never))
        pool.run(pool.snapshots.remove("demo", "s"))
        pool.settle()
        assert isinstance(volume.store, LayeredStore)
    pool.snapshots.tidy()
    pool.settle()
    assert [path.name for path in (pool.directory / "volumes").iterdir()] == ["demo.raw"]
    assert pool.manager.layers == {}
    with pool.volume("demo") as volume:
        assert not isinstance(volume.store, LayeredStore)
        expected = data[: 2 * PAGE] + bytes(PAGE) + data[3 * PAGE : 8 * PAGE] + b"x" * PAGE + data[9 * PAGE :]
        assert pool.read(volume, 0, SIZE) == expected
        snapshot(pool, "again")
    pool.run(pool.snapshots.rollback("demo", "again"))


def test_a_measurement_without_io_leaves_layers_alone(tmp_path: Path) -> None:
    """A pool that is opened with the null store merges nothing: it could not know what of it is durable."""
    pool = Pool(tmp_path)
    pool.run(pool.manager.create("demo", SIZE))
    snapshot(pool, "s")
    pool.snapshots._lineage.remove_snapshot(pool.manager.record("demo").uuid, "s")
    pool.close()
    before = sorted(path.name for path in (pool.directory / "volumes").iterdir())
    other = Pool(pool.directory, "null")
    other.settle()
    assert sorted(path.name for path in (pool.directory / "volumes").iterdir()) == before
    other.close()
    again = Pool(pool.directory)
    again.settle()
    assert [path.name for path in (pool.directory / "volumes").iterdir()] == ["demo.raw"]
    again.close()


def test_who_wants_a_volume_does_not_wait_for_its_past(pool: Pool) -> None:
    """An open between two steps ends the copying, and nothing has happened."""
    with pool.volume("demo") as volume:
        pool.write(volume, 0, os.urandom(SIZE))
        snapshot(pool, "s")
        for page in range(0, SIZE // PAGE, 2):
            pool.write(volume, page * PAGE, b"y" * PAGE)
        pool.run(pool.snapshots.remove("demo", "s"))
        pool.settle()
        for page in range(1, SIZE // PAGE, 2):
            pool.write(volume, page * PAGE, b"z" * PAGE)
    pool.snapshots.tidy()
    while pool.manager._locks.is_free("demo"):
        pool.turn()
    with pool.volume("demo") as volume:
        assert pool.read(volume, 0, 2 * PAGE) == b"y" * PAGE + b"z" * PAGE
        pool.settle()
        assert isinstance(volume.store, LayeredStore)


@pytest.mark.parametrize("is_chain", [False, True])
def test_a_snapshot_that_fails_half_way_costs_nothing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, is_chain: bool
) -> None:
    """The new layer is in the catalogue, and the open store can't get it: what is written is there, the volume grows,
    the next snapshot is whole, layers are merged, and it opens again."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pool.volume("demo") as volume:
        pool.write(volume, 0, b"a" * PAGE)
        if is_chain:
            snapshot(pool, "first")
        with monkeypatch.context() as patch:
            patch.setattr(pool.stores, "push", full)
            with raises(errno.ENOSPC):
                snapshot(pool, "s")
        assert pool.manager.layers["demo"]
        pool.write(volume, PAGE, b"b" * PAGE)
        pool.run(pool.manager.resize("demo", 2 * SIZE))
    with pool.volume("demo") as volume:  # opened anew
        assert pool.read(volume, 0, 3 * PAGE) == b"a" * PAGE + b"b" * PAGE + bytes(PAGE)
        with monkeypatch.context() as patch:
            patch.setattr(pool.stores, "push", full)
            with raises(errno.ENOSPC):
                snapshot(pool, "s")
        snapshot(pool, "s")
        pool.write(volume, 2 * SIZE - PAGE, b"c" * PAGE)
        snapshot(pool, "t")
        pool.run(pool.snapshots.remove("demo", "s"))
        pool.settle()
        assert isinstance(volume.store, LayeredStore)
        for layer in volume.store.stack.all_layers()[:-1]:
            layer.throw_away()  # nothing is read from files that are gone
        assert pool.read(volume, 0, 2 * PAGE) == b"a" * PAGE + b"b" * PAGE
        assert pool.read(volume, 2 * SIZE - PAGE, PAGE) == b"c" * PAGE


def test_a_layer_that_can_not_be_opened_is_not_written(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a store is of the new layer where its file can't be had: what is written goes where it is found."""

    def none_left(*_: object, **_more: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor is left")

    with pool.volume("demo") as volume:
        pool.write(volume, 0, b"a" * PAGE)
        snapshot(pool, "first")
        with monkeypatch.context() as patch:
            patch.setattr(layer, "open_data", none_left)
            with raises(errno.EMFILE):
                snapshot(pool, "second")
        pool.write(volume, 0, b"b" * 2 * PAGE)
        assert pool.read(volume, 0, 3 * PAGE) == b"b" * 2 * PAGE + bytes(PAGE)
    with pool.volume("demo") as volume:  # opened anew
        assert pool.read(volume, 0, 3 * PAGE) == b"b" * 2 * PAGE + bytes(PAGE)


def test_a_newer_map_is_refused(pool: Pool) -> None:
    """By name and number, and nothing is written."""
    snapshot(pool, "s")
    (path,) = (pool.directory / "volumes").glob("*.map")
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"\.map has format 2, this server knows up to 1"):
        pool.hold("demo")
    assert path.read_bytes() == content


def test_kill_9_loses_nothing(start_server: Callable[..., ServerProcess], connect: Connect) -> None:
    """Rounds of writes with snapshots in between, the server killed at random: every acknowledged write is there, and
    every snapshot that replied is what it was."""
    server = start_server()
    client = connect(server)
    client.create("demo", SIZE)
    choose = random.Random(20)
    model = bytearray(SIZE)
    kept: dict[str, bytes] = {}
    for number in range(5):
        client = connect(server, "demo")
        for step in range(choose.randrange(20, 60)):
            offset = choose.randrange(0, SIZE - 9000)
            data = bytes([choose.randrange(1, 256)]) * choose.choice((512, PAGE, 9000))
            if choose.random() < 0.5:
                offset -= offset % PAGE
            client.write(offset, data)
            model[offset : offset + len(data)] = data
            if step % 17 == 11:
                client.call(control.CreateSnapshot(1, "demo", f"s{number}.{step}"))
                kept[f"s{number}.{step}"] = bytes(model)
                if len(kept) % 3 == 0:
                    gone = choose.choice(sorted(kept))
                    client.call(control.RemoveSnapshot(1, "demo", gone))
                    del kept[gone]
        server.kill()
        server.start()
        client = connect(server, "demo", "r")
        assert b"".join(client.read(at, 1 << 16) for at in range(0, SIZE, 1 << 16)) == model
        client.close()
    client = connect(server)
    for name, content in kept.items():
        client.call(control.Clone(1, "demo", name, f"look{name}"))
        look = connect(server, f"look{name}", "r")
        assert b"".join(look.read(at, 1 << 16) for at in range(0, SIZE, 1 << 16)) == content
        look.close()


def test_the_hundredth_costs_no_more_than_the_third(
    pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking a snapshot, and removing one from the middle with its merge: as many rows of the catalogue are read."""
    rows = [0]
    select = Catalog.select

    def counted(catalog: Catalog, query: str, values: Any) -> Any:
        found = select(catalog, query, values)
        rows[0] += len(found)
        return found

    monkeypatch.setattr(Catalog, "select", counted)

    def cost(act: Callable[[], None]) -> int:
        rows[0] = 0
        act()
        pool.settle()
        return rows[0]

    def remove(number: int) -> None:
        pool.run(pool.snapshots.remove("demo", f"s{number}"))

    taken, removed = {}, {}
    for number in range(100):
        pool.write(volume, number * PAGE, b"x" * PAGE)
        taken[number] = cost(lambda: snapshot(pool, f"s{number}"))  # noqa: B023 - called at once
        if number in (10, 99):
            removed[number] = cost(lambda: remove(number - 5))  # noqa: B023 - called at once
    assert taken[3] == taken[99]
    assert removed[10] == removed[99]
    assert pool.read(volume, 0, 100 * PAGE) == b"x" * 100 * PAGE
