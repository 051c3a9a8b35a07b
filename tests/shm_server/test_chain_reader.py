"""Short ways of reading a chain of layers give what the long ones give: nothing old, nothing bad, no other file's."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shm_server.stores import chain_reader
from shm_server.stores.chain_reader import ChainReader
from shm_server.stores.lanes import LANE_BYTES, LANE_PAGES
from shm_server.stores.layer import Layer
from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.volumes.volume import Volume
from tests.shm_server.checksummed import bad, base, corrupt, forget, read
from tests.shm_server.pool import Pool

LANES = 2
SIZE = LANES * LANE_BYTES
PAGES = SIZE // PAGE


@pytest.fixture(params=["disk", "memory"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        made = Pool(tmp_path if request.param == "disk" else Path(directory))
        made.run(made.manager.create("demo", SIZE))
        yield made
        made.close()


@pytest.fixture
def memory() -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        made = Pool(Path(directory))
        made.run(made.manager.create("demo", SIZE))
        yield made
        made.close()


def content(page: int, salt: int) -> bytes:
    return (page << 16 | salt).to_bytes(8, "little") * (PAGE // 8)


def everything(salt: int) -> bytearray:
    return bytearray().join(content(page, salt) for page in range(PAGES))


def snapshot(pool: Pool, name: str) -> None:
    pool.run(pool.snapshots.create("demo", name))
    pool.settle()


def scatter(pool: Pool, volume: Volume, snapshots: int = 4) -> bytearray:
    """Each page in another layer than the one before it; two of the pages in the one that is written."""
    model = everything(0)
    pool.write(volume, 0, bytes(model))
    for salt in range(1, snapshots + 1):
        snapshot(pool, f"s{salt}")
        for page in range(salt, 2 if salt == snapshots else PAGES, snapshots):
            put(pool, volume, model, page, salt)
    for page in (70, 300):
        put(pool, volume, model, page, 9)
    return model


def put(pool: Pool, volume: Volume, model: bytearray, page: int, salt: int) -> None:
    model[page * PAGE : (page + 1) * PAGE] = content(page, salt)
    pool.write(volume, page * PAGE, content(page, salt))


def chain(volume: Volume) -> LayeredStore:
    assert isinstance(volume.store, LayeredStore)
    return volume.store


def now(volume: Volume, offset: int, *lengths: int) -> bytes | None:
    """What the loop's thread reads at once; None: not all of it."""
    buffers = [bytearray(length) for length in lengths]
    done = volume.store.read_now([memoryview(buffer) for buffer in buffers], offset)
    return b"".join(buffers) if done == sum(lengths) else None


def learn(volume: Volume) -> None:
    """Read page by page, so that there is a lane wherever there can be one."""
    for _ in range(2):
        for page in range(PAGES):
            assert now(volume, page * PAGE, PAGE) is not None


def lanes(volume: Volume) -> list[int]:
    return sorted(chain(volume)._lanes.found)


# Many owners --------------------------------------------------------------------------------------------------------


RANGES = ((0, SIZE), (512, SIZE - 1024), (5 * PAGE + 512, LANE_BYTES), (LANE_BYTES - 512, 1024), (68 * PAGE, 5 * PAGE))


def test_where_every_page_has_another_owner_all_is_read(pool: Pool) -> None:
    """Verified or not, from a page's middle to another's, into one view or several; in the volume and in snapshots."""
    with pool.volume("demo") as volume:
        model = scatter(pool, volume)
        for is_checked in (False, True):
            for offset, length in RANGES * 2:
                assert pool.read(volume, offset, length) == model[offset : offset + length]
                assert now(volume, offset, length) in (None, model[offset : offset + length])
                assert now(volume, offset, 700, length - 700) in (None, model[offset : offset + length])
            if not is_checked:
                assert pool.check("demo").problems == 0
        with pool.volume("demo@s1", "r") as before:
            assert pool.read(before, 0, SIZE) == everything(0)


def test_files_are_open_as_long_as_they_are_read(memory: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go out of the cache in the middle of a request, and their descriptors' numbers are others' at once."""
    with memory.volume("demo") as volume:
        model = scatter(memory, volume)
        memory.read(volume, 0, SIZE)
        memory.read(volume, 0, SIZE)
        others: list[int] = []
        preadv = os.preadv

        def gone(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
            if not others:
                for layer in chain(volume).stack.all_layers():
                    if not layer.is_writable:
                        layer.throw_away()
                others.extend(os.open("/dev/zero", os.O_RDONLY) for _ in range(8))
            return preadv(descriptor, views, offset)

        monkeypatch.setattr("shm_server.stores.chain_reader.os.preadv", gone)
        found = now(volume, 0, LANE_BYTES)
        monkeypatch.undo()
        assert others
        for each in others:
            os.close(each)
        assert found == model[:LANE_BYTES]


def test_few_files_are_open_whatever_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request over many layers opens one file after the other, not all."""
    monkeypatch.setattr("shm_server.stores.file.MAX_OPEN_LAYERS", 2)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        pool = Pool(Path(directory))
        pool.run(pool.manager.create("demo", SIZE))
        with pool.volume("demo") as volume:
            model = scatter(pool, volume, 12)
            most = 0
            count = chain_reader.ChainReader._read_each_now

            def counted(self: ChainReader, *arguments: object) -> int:
                nonlocal most
                done = count(self, *arguments)  # type: ignore[arg-type]
                links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
                most = max(most, sum(link.startswith(directory) and link.endswith(".data") for link in links))
                return done

            monkeypatch.setattr(chain_reader.ChainReader, "_read_each_now", counted)
            for _ in range(3):
                assert now(volume, 0, SIZE) == model
            assert 0 < most <= 5  # two, the top, and what is in use at that moment
        pool.close()


@pytest.mark.parametrize("is_learned", [False, True])
def test_a_bad_page_among_many_owners_is_named(memory: Pool, *, is_learned: bool) -> None:
    """Also where all had been verified; its neighbours are read as ever."""
    with memory.volume("demo") as volume:
        model = scatter(memory, volume)
        memory.settle()
        if is_learned:
            learn(volume)
        corrupt(base(memory), 40 * PAGE + 9)
        for _ in range(2):
            with bad(40):
                read(memory, volume, 0, SIZE)
            with bad(40):
                read(memory, volume, 40 * PAGE, 512)
        assert read(memory, volume, 41 * PAGE, 20 * PAGE) == model[41 * PAGE : 61 * PAGE]


@pytest.mark.parametrize("failure", ["short", "error"])
def test_what_goes_wrong_at_one_page_is_done_again(memory: Pool, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    """One by one: nothing is taken for read that is not."""
    with memory.volume("demo") as volume:
        model = scatter(memory, volume)
        memory.read(volume, 0, SIZE)
        memory.read(volume, 0, SIZE)
        calls = 0
        preadv = os.preadv

        def fail(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
            nonlocal calls
            calls += 1
            if calls != 100:
                return preadv(descriptor, views, offset)
            if failure == "error":
                raise OSError(5, "once")
            return preadv(descriptor, (views[0][:512],), offset)

        monkeypatch.setattr("shm_server.stores.chain_reader.os.preadv", fail)
        assert now(volume, 0, LANE_BYTES) == model[:LANE_BYTES]
        assert calls >= 100
        monkeypatch.undo()


def test_behind_the_end_of_the_base_there_are_zeros(pool: Pool) -> None:
    """The volume has grown since; also where a request begins in the base, and where the base has a lane."""
    with pool.volume("demo") as volume:
        pool.run(pool.manager.resize("demo", SIZE + 512))
        pool.write(volume, 0, bytes(everything(0)) + b"x" * 512)
        snapshot(pool, "s")
        pool.run(pool.manager.resize("demo", 2 * SIZE))
        pool.write(volume, SIZE + LANE_BYTES, content(0, 1))
        learn(volume)
        model = everything(0) + (b"x" * 512).ljust(LANE_BYTES, b"\0") + content(0, 1)
        model += bytes(2 * SIZE - len(model))
        for offset, length in ((SIZE, 512), (SIZE - PAGE, 8 * PAGE), (SIZE, PAGE), (SIZE + PAGE, PAGE), (0, 2 * SIZE)):
            for _ in range(2):
                assert pool.read(volume, offset, length) == model[offset : offset + length]
        assert now(volume, SIZE, 512) == b"x" * 512
        assert now(volume, SIZE + PAGE, PAGE) == bytes(PAGE)


# Lanes --------------------------------------------------------------------------------------------------------------


def test_a_lane_is_as_long_as_all_of_it_has_one_owner(memory: Pool) -> None:
    """A page that is written, or given back, ends it; what is written all over has one again. A request that goes
    beyond it does not go by it."""
    with memory.volume("demo") as volume:
        model = everything(0)
        memory.write(volume, 0, bytes(model))
        snapshot(memory, "s")
        learn(volume)
        assert lanes(volume) == [0, 1]
        put(memory, volume, model, 7, 1)
        assert lanes(volume) == [1]
        memory.run(volume.discard(LANE_BYTES + 9 * PAGE, PAGE, lambda: False))
        model[LANE_BYTES + 9 * PAGE : LANE_BYTES + 10 * PAGE] = bytes(PAGE)
        assert lanes(volume) == []
        learn(volume)
        assert lanes(volume) == []
        for page in range(LANE_PAGES):
            put(memory, volume, model, page, 2)
        learn(volume)
        assert lanes(volume) == [0]
        assert now(volume, 0, LANE_BYTES) == model[:LANE_BYTES]
        assert now(volume, LANE_BYTES - 512, 1024) == model[LANE_BYTES - 512 : LANE_BYTES + 512]
        assert now(volume, 0, SIZE) == model
        put(memory, volume, model, 0, 3)  # in place
        assert now(volume, 0, PAGE) == content(0, 3)


def test_a_lane_ends_with_what_was_verified(memory: Pool) -> None:
    """A layer is sealed, merged or promoted, a file was written by somebody else: nothing is read unasked."""
    with memory.volume("demo") as volume:
        memory.write(volume, 0, bytes(everything(0)))
        snapshot(memory, "one")
        memory.write(volume, 0, bytes(everything(1)))
        learn(volume)
        assert lanes(volume) == [0, 1]
        snapshot(memory, "two")
        assert lanes(volume) == []
        learn(volume)
        assert lanes(volume) == [0, 1]
        assert memory.check("demo").problems == 0
        learn(volume)
        layer = chain(volume)._lanes.found[0].layer
        assert isinstance(layer, Layer)
        path = memory.directory / "volumes" / layer.file.name
        corrupt(path, 5 * PAGE)
        with bad(5):
            read(memory, volume, 5 * PAGE, PAGE)
        corrupt(path, 5 * PAGE)
        assert read(memory, volume, 5 * PAGE, PAGE) == content(5, 1)
        learn(volume)
        memory.run(memory.snapshots.remove("demo", "one"))
        memory.settle()
        assert all(lane.layer is not layer for lane in chain(volume)._lanes.found.values())
        assert now(volume, 0, SIZE) == everything(1)


def test_no_lane_is_noted_behind_a_change(memory: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten while somebody looks whether a lane can be is not noted a moment later."""
    with memory.volume("demo") as volume:
        memory.write(volume, 0, bytes(everything(0)))
        snapshot(memory, "s")
        forget(memory)  # that all of it was verified: each page is to be, when it is read
        learn(volume)
        assert lanes(volume) == [0, 1]
        verified = chain(volume)._verified
        chain(volume)._lanes.found.clear()
        has = verified.has

        def slow(first: int, last: int) -> bool:
            known = has(first, last)
            verified.forget(3, 1)
            return known

        monkeypatch.setattr(verified, "has", slow)
        chain(volume)._lanes.note(1, chain(volume).stack.base, SIZE)
        assert lanes(volume) == []
        monkeypatch.undo()
        chain(volume)._lanes.note(1, chain(volume).stack.base, SIZE)
        assert lanes(volume) == [1]


def test_lanes_are_bounded(memory: Pool) -> None:
    """Over all volumes."""
    with memory.volume("demo") as volume:
        memory.write(volume, 0, bytes(everything(0)))
        snapshot(memory, "s")
        checks = chain(volume).stack.base.checking.checks
        checks.lanes._limit = 1
        for _ in range(3):
            learn(volume)
            assert len(lanes(volume)) == 1
        memory.run(memory.manager.create("other", SIZE))
        with memory.volume("other") as other:
            memory.run(memory.snapshots.create("other", "s"))
            learn(other)
            assert (lanes(volume), len(lanes(other))) == ([], 1)
        memory.settle()
        assert not checks.lanes._things  # nothing is kept of a volume that is closed


def test_all_ways_of_reading_agree_whatever_happens(pool: Pool) -> None:
    """Writes, discards, snapshots, merges and checks by chance; READER_SEED repeats a run."""
    seed = os.environ.get("READER_SEED") or str(random.randrange(1 << 32))
    print(f"READER_SEED={seed}")
    choose = random.Random(seed)
    model = everything(0)
    names: list[str] = []
    seen = 0
    with pool.volume("demo") as volume:
        pool.write(volume, 0, bytes(model))
        snapshot(pool, "first")
        for step in range(120):
            act = choose.randrange(12)
            first = choose.randrange(PAGES)
            if act < 5:
                lane = first // LANE_PAGES * LANE_PAGES
                first, count = choose.choice(((first, 1), (first, 2), (first, 300), (lane, LANE_PAGES)))
                for page in range(first, min(PAGES, first + count)):
                    put(pool, volume, model, page, step)
            elif act == 5:
                count = min(3, PAGES - first)
                pool.run(volume.discard(first * PAGE, count * PAGE, lambda: False))
                model[first * PAGE : (first + count) * PAGE] = bytes(count * PAGE)
            elif act in (6, 7):
                names.append(f"n{step}")
                pool.run(pool.snapshots.create("demo", names[-1]))
            elif act == 8 and names:
                pool.run(pool.snapshots.remove("demo", names.pop(choose.randrange(len(names)))))
            elif act == 9:
                pool.settle()
            for offset in range(choose.choice((0, 0, choose.randrange(16))) * PAGE, SIZE, 16 * PAGE):
                assert now(volume, offset, PAGE) in (None, model[offset : offset + PAGE])
            seen += len(lanes(volume))
            offset = choose.randrange(SIZE - 1)
            for begin, length in ((0, SIZE), (offset, choose.randint(1, SIZE - offset))):
                assert pool.read(volume, begin, length) == model[begin : begin + length], f"step {step}"
    is_memory = str(pool.directory).startswith("/dev/shm")
    assert seen or not is_memory
