"""COPY between volumes and inside one: bytes, holes, overlaps, steps, rights, fences."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm_server.abi import layout, ring
from shm_server.abi.layout import Opcode
from shm_server.runtime import Job, Runtime
from shm_server.stores import DelayRule, open_stores
from shm_server.volumes.copying import MAX_COPY_BYTES, copy
from shm_server.volumes.volume import Volume
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.test_volume import never

MIB = 1 << 20
SIZE = 6 * MIB
Run = Callable[[Any], Any]
Connect = Callable[..., AbiClient]


def make(runtime: Runtime, path: Path, kind: str, name: str, delays: Any = ()) -> Volume:
    stores = open_stores(kind, path / kind, delays)
    stores.create(name, SIZE)
    return Volume(runtime, stores.open(name, SIZE, "00" * 16), name, "00" * 16, SIZE, 1)


@pytest.fixture(params=["memory to memory", "file to file", "memory to file", "delayed to memory"])
def pair(request: pytest.FixtureRequest, runtime: Runtime, tmp_path: Path) -> Iterator[tuple[Volume, Volume]]:
    """Two volumes; what is delayed has no descriptor that the kernel could copy from."""
    kinds = request.param.split(" to ")
    rule = [DelayRule(operations=("read",), offset=SIZE)]
    one, two = (
        make(runtime, tmp_path, kind.replace("delayed", "memory"), name, rule if kind == "delayed" else ())
        for kind, name in zip(kinds, ("one", "two"), strict=True)
    )
    yield one, two
    one.close()
    two.close()


def content(run: Run, volume: Volume) -> bytearray:
    whole = bytearray(SIZE)
    run(volume.read([memoryview(whole)], 0, SIZE))
    return whole


def write(run: Run, volume: Volume, offset: int, data: bytes) -> None:
    run(volume.write([memoryview(data)], offset, len(data), is_durable=False))


def fill(run: Run, volume: Volume) -> None:
    """Data, a hole of 2 MiB, data, a hole to the end."""
    write(run, volume, 0, os.urandom(MIB + 4096))
    write(run, volume, 3 * MIB + 8192, os.urandom(2 * MIB))


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_copy_is_a_slice_assignment(run: Run, pair: tuple[Volume, Volume], data: st.DataObject) -> None:
    """Between two volumes and inside one, overlapping or not, byte by byte."""
    one, two = pair
    fill(run, one)
    source, target = data.draw(st.sampled_from([(one, two), (one, one)]))
    length = data.draw(st.one_of(st.integers(0, 3 * MIB), st.sampled_from([512, MIB, 2 * MIB])))
    start = data.draw(st.integers(0, SIZE - length))
    near = st.integers(max(0, start - 3 * MIB), min(SIZE - length, start + 3 * MIB))
    offset = data.draw(st.one_of(near, st.just(start), st.just(min(start + 512, SIZE - length))))
    expected, there = content(run, target), content(run, source)
    assert run(copy(source, start, target, offset, length, never)) == length
    expected[offset : offset + length] = there[start : start + length]
    assert content(run, target) == expected
    assert not one.ranges.is_guarded
    assert not two.ranges.is_guarded


def test_holes_stay_holes(run: Run, pair: tuple[Volume, Volume]) -> None:
    """What was data in the target becomes a hole where the source has one."""
    one, two = pair
    fill(run, one)
    write(run, two, 0, b"x" * SIZE)
    run(copy(one, 0, two, 0, SIZE, never))
    assert content(run, two) == content(run, one)
    run(two.flush())  # ext4 allocates late
    run(one.flush())
    assert two.store.allocated_bytes() <= 3 * MIB + 65536
    assert run(two.extent(2 * MIB, MIB)) == (False, MIB)


def test_ranges_beyond_an_end(run: Run, pair: tuple[Volume, Volume]) -> None:
    """Of the source or of the target: EFBIG, nothing done."""
    for start, offset in [(SIZE - 512, 0), (0, SIZE - 512)]:
        with pytest.raises(OSError) as caught:
            run(copy(pair[0], start, pair[1], offset, 1024, never))
        assert caught.value.errno == errno.EFBIG


def test_two_copies_in_opposite_directions(runtime: Runtime, pair: tuple[Volume, Volume]) -> None:
    """Many of them at once end, as if one after the other."""
    ended: list[object] = []
    one, two = pair
    for _ in range(4):
        for source, target in ((one, two), (two, one)):
            Job(copy(source, 0, target, MIB, 3 * MIB, never), lambda _value, error: ended.append(error)).start()
            Job(copy(source, MIB, source, 0, 3 * MIB, never), lambda _value, error: ended.append(error)).start()
    os.set_blocking(runtime.wake_fd, True)
    while len(ended) < 16:
        if not runtime.ready and not runtime.finished:
            os.eventfd_read(runtime.wake_fd)
        runtime.collect()
        runtime.step()
    assert ended == [None] * 16


def test_it_pauses_and_stops_at_a_fence(run: Run, runtime: Runtime, tmp_path: Path) -> None:
    """Between steps; its claims go with it."""
    one, two = make(runtime, tmp_path, "memory", "one"), make(runtime, tmp_path, "memory", "two")
    write(run, one, 0, b"x" * SIZE)
    looks = 0

    def is_cancelled() -> bool:
        nonlocal looks
        looks += 1
        return looks > 2

    with pytest.raises(OSError) as caught:
        run(copy(one, 0, two, 0, SIZE, is_cancelled))
    assert caught.value.errno == errno.ECANCELED
    assert content(run, two) == b"x" * 2 * MIB + bytes(SIZE - 2 * MIB)
    assert not one.ranges.is_guarded
    assert not two.ranges.is_guarded
    one.close()
    two.close()


# Through the rings ------------------------------------------------------------------------------------------------


@pytest.fixture
def client(server: ServerProcess, connect: Connect) -> AbiClient:
    """Holds "one" by ``source`` and "two" by its own handle."""
    made = connect(server)
    made.create("one")
    made.create("two")
    made.attach()
    made.source = made.open("one").handle
    made.open("two")
    return made


def source(client: AbiClient, offset: int, *, handle: int | None = None, epoch: int = 1) -> list[ring.Part]:
    return ring.copy_source(offset, client.source if handle is None else handle, epoch)


def test_copy_through_the_ring(client: AbiClient) -> None:
    """Source and target are handles of one client; its slots are not touched."""
    data = os.urandom(8192)
    client.write(4096, data, handle=client.source)
    client.slots[: 1 << 16] = b"S" * (1 << 16)
    assert client.do(Opcode.COPY, 512, 8192, source(client, 4096)) == 8192
    assert bytes(client.slots[: 1 << 16]) == b"S" * (1 << 16)
    assert client.read(512, 8192) == data
    assert client.do(Opcode.COPY, 0, MAX_COPY_BYTES, source(client, 0)) == MAX_COPY_BYTES


def test_wrong_sources(client: AbiClient) -> None:
    """Handle, epoch, offset, length, and the words that must be zero are all checked; so are rights."""
    ok = source(client, 0)
    stale = client.source
    wrong: list[tuple[int, list[ring.Part], int, int]] = [
        (512, ok[:1], errno.EINVAL, 0),
        (512, [*ok, (0, 0, 0)], errno.EINVAL, 0),
        (512, [ok[0], (1, 1, 0)], errno.EINVAL, 0),
        (512, [], errno.EINVAL, 0),
        (MAX_COPY_BYTES + 512, ok, errno.EINVAL, 0),
        (512, source(client, 0, handle=77), errno.EBADF, 0),
        (512, source(client, 0, epoch=2), errno.EINVAL, 0),
        (512, source(client, 0, epoch=0), errno.ECANCELED, 0),
        (512, source(client, (1 << 63) - 100), errno.EINVAL, 0),
        (512, source(client, 1 << 30), errno.EFBIG, 0),
        (512, ok, errno.EINVAL, layout.FLAG_FUA),
    ]
    for length, parts, number, flags in wrong:
        assert client.wait(client.push(Opcode.COPY, 0, length, parts, flags=flags))[1] == number
    assert client.wait(client.push(Opcode.COPY, 1 << 24, 512, ok))[1] == errno.EFBIG
    client.close_handle(stale)
    assert client.wait(client.push(Opcode.COPY, 0, 512, ok))[1] == errno.EBADF
    two = client.handle
    blind = client.open("one", "w").handle
    parts = source(client, 0, handle=blind)
    assert client.wait(client.push(Opcode.COPY, 0, 512, parts, handle=two))[1] == errno.EBADF


def test_a_fence_of_the_source_stops_it(start_server: Callable[..., ServerProcess], connect: Connect) -> None:
    """A COPY that waits is discarded by a fence of the handle it reads from, and that fence waits for one at work."""
    delay = [{"volume": "two", "operations": ["write"], "offset": 0, "length": 512, "seconds": 0.3, "count": 1}]
    client = connect(start_server(shm_server={"delay": delay}))
    client.create("one")
    client.create("two")
    client.attach()
    one = client.open("one").handle
    client.open("two")
    client.write(0, b"1" * 512, handle=one)
    working = client.push(Opcode.COPY, 0, 512, ring.copy_source(0, one, 1))
    waiting = client.push(Opcode.COPY, 0, 512, ring.copy_source(0, one, 1))
    fence = client.push(Opcode.FENCE, handle=one, epoch=2)
    assert client.wait(waiting)[1] == errno.ECANCELED
    assert client.wait(fence)[1] == 0
    assert client.done[working][1] == 0  # it was told before the fence was
    assert client.read(0, 512) == b"1" * 512
    late = client.push(Opcode.COPY, 0, 512, ring.copy_source(0, one, 1))
    assert client.wait(late)[1] == errno.ECANCELED
    assert client.do(Opcode.COPY, 0, 512, ring.copy_source(0, one, 2)) == 512
