"""Snapshots that are open: what is read of them whatever becomes of the volume, what can't go meanwhile."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_server.abi import control, ring
from shm_server.abi.layout import Opcode
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.stores.owners import CHUNK_BYTES
from shm_server.volumes.volume import Volume
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.pool import Pool

PAGES = 64
SIZE = PAGES * PAGE
Connect = Callable[..., AbiClient]


@pytest.fixture
def demo_bytes() -> int:
    return SIZE


def raises(number: int, words: str = "") -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, match=words or None, check=lambda error: error.errno == number)


def scribble(pool: Pool, volume: Volume, seed: random.Random, model: bytearray) -> None:
    """A few writes and a discard."""
    for _ in range(8):
        first = seed.randrange(PAGES)
        data = seed.randbytes(PAGE * seed.randint(1, min(4, PAGES - first)))
        pool.write(volume, first * PAGE, data)
        model[first * PAGE : first * PAGE + len(data)] = data
    first = seed.randrange(PAGES - 3) * PAGE
    pool.run(volume.discard(first, 3 * PAGE, lambda: False))
    model[first : first + 3 * PAGE] = bytes(3 * PAGE)


def test_a_snapshot_is_read_while_its_volume_is_written(pool: Pool) -> None:
    """Also the first of a volume, which is a base and nothing else; by several at once; with the size of then."""
    with pool.volume("demo") as volume:
        pool.write(volume, PAGE, b"then" * 1024)
        pool.run(pool.snapshots.create("demo", "s"))
        readers = [pool.hold("demo@s", "r") for _ in range(2)]
        assert readers[0].volume is readers[1].volume
        pool.run(pool.manager.resize("demo", 2 * SIZE))
        for data in (b"now!", b"then", b"soon"):
            pool.write(volume, PAGE, data * 1024)
            assert [pool.read(reader.volume, 0, 3 * SIZE) for reader in readers] == [
                bytes(PAGE) + b"then" * 1024 + bytes(SIZE - 2 * PAGE)
            ] * 2
        assert pool.run(readers[0].volume.extent(0, SIZE)) == (False, PAGE)
        assert pool.run(readers[0].volume.extent(PAGE, SIZE)) == (True, PAGE)
        for reader in readers:
            pool.let_go(reader)
    assert not pool.manager.open_volumes()


def test_identity(tmp_path: Path, pool: Pool) -> None:
    """Its own, not its volume's, not another's of the same name; the same after a restart and after merges."""
    for name in ("a", "b"):
        with pool.volume("demo") as volume:
            pool.write(volume, 0, name.encode() * PAGE)
        pool.run(pool.snapshots.create("demo", name))
    before = pool.run(pool.manager.look("demo@b"))
    pool.run(pool.snapshots.remove("demo", "a"))
    pool.settle()
    again = Pool(tmp_path, catalog=pool.catalog)
    assert again.run(again.manager.look("demo@b")).uuid == before.uuid
    again.close()
    assert before.uuid != pool.manager.stat("demo").uuid
    pool.run(pool.snapshots.remove("demo", "b"))
    pool.run(pool.snapshots.create("demo", "b"))
    assert pool.run(pool.manager.look("demo@b")).uuid != before.uuid
    assert (before.is_read_only, before.size_bytes, before.can_discard) == (True, SIZE, False)


def test_records_of_a_snapshot(pool: Pool) -> None:
    """It has its own, as a disk: kept by its identity, gone with it, whichever way it goes."""
    manager = pool.manager
    for name in ("a", "b", "c"):
        pool.run(pool.snapshots.create("demo", name))
        pool.run(pool.records.put(f"demo@{name}", "reservations", 0, name.encode()))
    pool.run(pool.records.put("demo", "reservations", 0, b"volume"))
    identity = pool.run(manager.look("demo@c")).uuid
    assert pool.run(pool.records.get("demo@b", "reservations")) == (1, b"b")
    assert pool.run(pool.records.get("demo", "reservations")) == (1, b"volume")
    pool.run(pool.snapshots.rollback("demo", "b"))
    with raises(errno.ENOENT):
        pool.run(pool.records.put("demo@c", "reservations", 0, b""))
    assert pool.catalog.get_record(identity, "reservations").version == 0
    pool.run(pool.snapshots.remove("demo", "b"))
    pool.run(pool.snapshots.create("demo", "b"))
    assert pool.run(pool.records.get("demo@b", "reservations")).version == 0
    identity = pool.run(manager.look("demo@a")).uuid
    pool.run(manager.remove("demo"))
    assert pool.catalog.get_record(identity, "reservations").version == 0


def test_subscribers_hear_of_snapshots(start_server: Callable[..., ServerProcess], connect: Connect) -> None:
    """That one is made, removed, or dropped by a rollback; of a removed volume's they hear with that."""
    server = start_server()
    subscriber, client = connect(server), connect(server)
    client.create("demo", SIZE)
    subscriber.call(control.Subscribe(subscriber.id()))
    for name in ("a", "b", "c"):
        client.call(control.CreateSnapshot(client.id(), "demo", name))
    made = [subscriber.event() for _ in range(3)]
    infos = [client.call(control.Stat(client.id(), f"demo@{name}")).info for name in ("a", "b", "c")]
    assert made == [control.VolumeCreated(number, info) for number, info in enumerate(infos, 1)]
    client.call(control.RemoveSnapshot(client.id(), "demo", "b"))
    client.call(control.RollBack(client.id(), "demo", "a"))
    client.call(control.Remove(client.id(), "demo"))
    gone = [subscriber.event() for _ in range(4)]
    removed = [(event.name, event.uuid) for event in gone if isinstance(event, control.VolumeRemoved)]
    assert removed[:2] == [("demo@b", infos[1].uuid), ("demo@c", infos[2].uuid)]
    assert [name for name, _ in removed[2:]] == ["demo"]


def test_what_is_held_stays(pool: Pool) -> None:
    """An open snapshot, its volume, and whatever a rollback would drop it with: EBUSY, naming the holder."""
    for name in ("a", "b", "c"):
        pool.run(pool.snapshots.create("demo", name))
    held = pool.hold("demo@b", "r")
    words = "snapshot demo@b is held by a test"
    with raises(errno.EBUSY, words):
        pool.run(pool.snapshots.remove("demo", "b"))
    with raises(errno.EBUSY, words):
        pool.run(pool.snapshots.rollback("demo", "a"))
    with raises(errno.EBUSY, words):
        pool.run(pool.manager.remove("demo"))
    with raises(errno.EROFS):
        pool.hold("demo@b", "rw")
    with raises(errno.ENOENT):
        pool.hold("demo@d", "r")
    with raises(errno.ENOENT):
        pool.hold("nobody@d", "r")
    pool.run(pool.snapshots.remove("demo", "c"))
    pool.run(pool.snapshots.rollback("demo", "b"))
    pool.run(pool.snapshots.remove("demo", "a"))
    pool.settle()
    assert pool.read(held.volume, 0, SIZE) == bytes(SIZE)
    pool.let_go(held)
    pool.run(pool.manager.remove("demo"))


@pytest.mark.parametrize("seed", [1, 2])
def test_layers_are_merged_under_who_reads(tmp_path: Path, seed: int) -> None:
    """Whichever snapshots go, and in whatever order: those that are open stay what they are. Other volumes too."""
    chance = random.Random(seed)
    pool = Pool(tmp_path, map_cache_bytes=CHUNK_BYTES)
    pool.run(pool.manager.create("demo", SIZE))
    pool.run(pool.manager.create("plain", SIZE))
    plain = pool.hold("plain")
    kept: dict[str, bytes] = {}
    model = bytearray(SIZE)
    with pool.volume("demo") as volume:
        for number in range(10):
            scribble(pool, volume, chance, model)
            pool.run(pool.snapshots.create("demo", f"s{number}"))
            kept[f"s{number}"] = bytes(model)
        scribble(pool, volume, chance, model)
        names = chance.sample(list(kept), 10)
        held = {name: pool.hold(f"demo@{name}", "r") for name in names[:3]}
        for name in names[3:]:
            pool.run(pool.snapshots.remove("demo", name))
            while pool.snapshots._is_tidying:
                pool.turn()
                for other, handle in held.items():  # in the midst of it
                    buffer = bytearray(4 * PAGE)
                    page = chance.randrange(PAGES - 3) * PAGE
                    handle.volume.store.read([memoryview(buffer)], page)
                    assert buffer == kept[other][page : page + len(buffer)]
            for other, handle in held.items():
                assert pool.read(handle.volume, 0, SIZE) == kept[other]
        assert pool.read(volume, 0, SIZE) == bytes(model)
        for handle in held.values():
            pool.let_go(handle)
    pool.let_go(plain)
    pool.close()


def test_no_operation_writes(start_server: Callable[..., ServerProcess], connect: Connect) -> None:
    """Whatever of the ring would change a snapshot is EROFS; reading, comparing, flushing and looking go."""
    client = connect(start_server())
    client.create("demo", SIZE)
    client.attach()
    writer = client.open()
    client.write(0, b"a" * PAGE)
    client.call(control.CreateSnapshot(client.id(), "demo", "s"))
    client.write(0, b"b" * PAGE)
    snapshot = client.open("demo@s", "r")
    assert client.read(0, PAGE) == b"a" * PAGE
    part = [(0, 0, PAGE)]
    for opcode, parts in (
        (Opcode.WRITE, part),
        (Opcode.DISCARD, ()),
        (Opcode.WRITE_ZEROES, ()),
        (Opcode.WRITE_SAME, part),
        (Opcode.COMPARE_AND_WRITE, [(0, 0, 2 * PAGE)]),
        (Opcode.OR_WRITE, part),
        (Opcode.WRITE_ATOMIC, part),
        (Opcode.COPY, ring.copy_source(0, writer.handle, writer.epoch)),
    ):
        with raises(errno.EROFS):
            client.do(opcode, 0, PAGE, parts)
    assert client.do(Opcode.EXTENTS, 0, SIZE) == PAGE
    assert client.do(Opcode.COMPARE, 0, PAGE, part) == PAGE
    client.flush()
    assert client.read(0, PAGE) == b"a" * PAGE
    assert snapshot.info.uuid != writer.info.uuid


def test_a_rollback_by_force(start_server: Callable[..., ServerProcess], connect: Connect) -> None:
    """Whoever writes the volume, or reads a snapshot that goes, is asked to let go, and waited for; where clones stand
    on one nobody is asked."""
    server = start_server()
    client, other = connect(server), connect(server)
    client.create("demo", SIZE)
    client.attach()
    opened = {"demo": client.open()}
    client.write(0, b"then" * 1024)
    for name in ("a", "b"):
        client.call(control.CreateSnapshot(client.id(), "demo", name))
    client.write(0, b"now!" * 1024)
    opened["demo@b"] = client.open("demo@b", "r")
    client.open("demo@a", "r")  # which stays
    client.call(control.Clone(client.id(), "demo", "b", "clone"))
    with raises(errno.ENOTEMPTY):
        other.call(control.RollBack(other.id(), "demo", "a", force=True))
    client.call(control.Remove(client.id(), "clone"))
    assert not client.events
    request = control.RollBack(other.id(), "demo", "a", force=True)
    other.send(request)
    for event in [client.event(), client.event()]:
        assert isinstance(event, control.ReleaseRequested)
        client.close_handle(opened.pop(event.name).handle)
        client.send(control.Ack(event.sequence))
    reply = other.reply(request.id)
    assert isinstance(reply, control.Volume)
    assert not opened
    assert client.read(0, 4096) == b"then" * 1024
    client.open()
    assert client.read(0, 4096) == b"then" * 1024


def test_force_asks_readers_too(start_server: Callable[..., ServerProcess], connect: Connect) -> None:
    """Removing a volume by force asks who reads a snapshot of it to let go, and waits for that."""
    server = start_server()
    client, other = connect(server), connect(server)
    client.create("demo", SIZE)
    client.call(control.CreateSnapshot(client.id(), "demo", "s"))
    client.attach()
    opened = client.open("demo@s", "r")
    request = control.Remove(other.id(), "demo", force=True)
    other.send(request)
    event = client.event()
    assert isinstance(event, control.ReleaseRequested)
    assert (event.name, event.uuid) == ("demo@s", opened.info.uuid)
    client.close_handle(opened.handle)
    client.send(control.Ack(event.sequence))
    assert isinstance(other.reply(request.id), control.Done)
