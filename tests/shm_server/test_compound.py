"""COMPARE, COMPARE AND WRITE and OR WRITE of a volume, against a bytearray and against everybody else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm_server.entries import Payload
from shm_server.runtime import Job, Runtime
from shm_server.stores import DelayRule
from shm_server.volumes import compound
from shm_server.volumes.compound import MiscompareError
from shm_server.volumes.copying import copy
from shm_server.volumes.ranges import Claim
from shm_server.volumes.volume import Volume
from tests.shm_server.test_volume import make, never

MIB = 1 << 20
Run = Callable[[Any], Any]


class Bytes:
    """A compound.Payload of ordinary memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.length_bytes = len(data)

    def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


@pytest.fixture(params=["memory", "file"])
def volume(request: pytest.FixtureRequest, runtime: Runtime, tmp_path: Path) -> Any:
    made = make(runtime, tmp_path, request.param, 4 * MIB)
    yield made
    made.close()


def write(run: Run, volume: Volume, offset: int, data: bytes) -> None:
    run(volume.write([memoryview(data)], offset, len(data), is_durable=False))


def content(run: Run, volume: Volume) -> bytes:
    whole = bytearray(volume.size_bytes)
    run(volume.read([memoryview(whole)], 0, len(whole)))
    return bytes(whole)


@pytest.mark.parametrize("at", [0, 1, 511, MIB - 1, MIB, 3 * MIB - 1])
def test_compare_says_where_the_first_difference_is(run: Run, volume: Volume, at: int) -> None:
    """In whatever step it lies; a later difference does not matter."""
    data = os.urandom(3 * MIB)
    write(run, volume, 512, data)
    assert run(compound.compare(volume, Bytes(data), 512, len(data), never)) == len(data)
    for differs in {at, len(data) - 1}:
        write(run, volume, 512 + differs, bytes([data[differs] ^ 1]))
    with pytest.raises(MiscompareError) as caught:
        run(compound.compare(volume, Bytes(data), 512, len(data), never))
    assert (caught.value.errno, caught.value.offset) == (errno.EILSEQ, at)


@pytest.mark.parametrize("length", [1, 3, 512, 4096])
def test_compare_with_a_pattern(run: Run, volume: Volume, length: int) -> None:
    """BYTCHK=3: over and over, whatever its length, across steps."""
    pattern = os.urandom(length)
    times = (2 * MIB + 5000) // length
    run(volume.write_same(pattern, 1000, times * length, never, is_durable=False))
    assert run(compound.compare(volume, Bytes(pattern), 1000, times * length, never)) == times * length
    write(run, volume, 1000 + times * length - 1, bytes([pattern[-1] ^ 1]))
    with pytest.raises(MiscompareError) as caught:
        run(compound.compare(volume, Bytes(pattern), 1000, times * length, never))
    assert caught.value.offset == times * length - 1


def test_compare_with_nothing_reads(run: Run, runtime: Runtime, tmp_path: Path) -> None:
    """BYTCHK=0: whether the medium can be read."""
    rule = DelayRule(operations=("read",), offset=2 * MIB, length=1, error=errno.EIO)
    volume = make(runtime, tmp_path, "memory", 4 * MIB, [rule])
    write(run, volume, MIB, bytes(2 * MIB))
    assert run(compound.verify(volume, 0, 2 * MIB, never)) == 2 * MIB
    with pytest.raises(OSError) as caught:
        run(compound.verify(volume, 0, 4 * MIB, never))
    assert caught.value.errno == errno.EIO
    volume.close()


def test_beyond_the_end(run: Run, volume: Volume) -> None:
    """All of them fail whole with EFBIG, and leave no claim behind."""
    data = Bytes(bytes(2 * MIB))
    calls = [
        compound.compare(volume, data, 3 * MIB, 2 * MIB, never),
        compound.compare_and_write(volume, data, 4 * MIB - 512, MIB, is_durable=False),
        compound.or_write(volume, data, 3 * MIB, 2 * MIB, never, is_durable=False),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            run(call)
        assert caught.value.errno == errno.EFBIG
    assert not volume.ranges.is_guarded


def test_compare_and_write(run: Run, volume: Volume) -> None:
    """The second half is written only where the first half is there; else nothing is."""
    old, new = os.urandom(MIB), os.urandom(MIB)
    write(run, volume, 4096, old)
    assert run(compound.compare_and_write(volume, Bytes(old + new), 4096, MIB, is_durable=True)) == MIB
    assert content(run, volume)[4096 : 4096 + MIB] == new
    wrong = new[:-1] + bytes([new[-1] ^ 0x80])
    with pytest.raises(MiscompareError) as caught:
        run(compound.compare_and_write(volume, Bytes(wrong + old), 4096, MIB, is_durable=False))
    assert caught.value.offset == MIB - 1
    assert content(run, volume) == bytes(4096) + new + bytes(3 * MIB - 4096)


@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_or_write(run: Run, volume: Volume, data: st.DataObject) -> None:
    """Bit by bit, also over several steps; what is beside the range stays."""
    there = content(run, volume)
    offset = data.draw(st.integers(0, MIB))
    mask = os.urandom(data.draw(st.sampled_from([0, 1, 511, 4096, MIB, MIB + 1, 2 * MIB + 7])))
    assert run(compound.or_write(volume, Bytes(mask), offset, len(mask), never, is_durable=False)) == len(mask)
    middle = bytes(old | new for old, new in zip(there[offset:], mask, strict=False))
    assert content(run, volume) == there[:offset] + middle + there[offset + len(mask) :]


def test_nobody_comes_between_compare_and_write(run: Run, runtime: Runtime, tmp_path: Path) -> None:
    """While a slow disk writes, a plain write of the same block waits, one of another block does not."""
    rule = DelayRule(operations=("write",), offset=0, length=512, seconds=0.05, count=1)
    volume = make(runtime, tmp_path, "memory", MIB, [rule])
    ended: list[str] = []

    def start(name: str, call: Any) -> None:
        Job(call, lambda _value, error: ended.append(name if error is None else str(error))).start()

    start("swap", compound.compare_and_write(volume, Bytes(bytes(512) + b"1" * 512), 0, 512, is_durable=False))
    assert volume.ranges.is_guarded
    start("same block", volume.write([memoryview(b"2" * 512)], 0, 512, is_durable=False))
    start("other block", volume.write([memoryview(b"3" * 512)], 512, 512, is_durable=False))
    seen = bytearray(512)
    start("look", volume.read([memoryview(seen)], 0, 512))
    start("a fence", volume.flush())

    async def wait() -> None:
        while len(ended) < 5:
            await runtime.pause

    run(wait())
    assert ended.index("other block") < ended.index("swap") < ended.index("same block")
    assert ended.index("swap") < ended.index("look")
    assert seen in (b"1" * 512, b"2" * 512)
    assert content(run, volume)[:1024] == b"2" * 512 + b"3" * 512
    assert not volume.ranges.is_guarded
    volume.close()


def test_a_plain_write_on_its_way_is_waited_for(run: Run, runtime: Runtime, tmp_path: Path) -> None:
    """A write that a thread is doing when COMPARE AND WRITE comes is over before it compares."""
    rule = DelayRule(operations=("write",), seconds=0.03, count=1)
    volume = make(runtime, tmp_path, "memory", MIB, [rule])
    errors: list[object] = []
    slow = volume.write([memoryview(b"1" * 512)], 0, 512, is_durable=False)
    Job(slow, lambda _value, error: errors.append(error)).start()
    assert errors == []
    run(compound.compare_and_write(volume, Bytes(b"1" * 512 + b"2" * 512), 0, 512, is_durable=False))
    assert errors == [None]
    assert content(run, volume)[:512] == b"2" * 512
    volume.close()


@pytest.mark.parametrize("name", ["compare", "or write"])
def test_a_long_one_pauses_and_stops_at_a_fence(runtime: Runtime, tmp_path: Path, name: str) -> None:
    """After each MiB others have their turn; cancelled in between it ends with ECANCELED and lets go of its range."""
    volume = make(runtime, tmp_path, "memory", 4 * MIB)
    errors: list[Any] = []
    payload = Bytes(bytes(4 * MIB))
    cancelled: list[bool] = []
    if name == "compare":
        work = compound.compare(volume, payload, 0, 4 * MIB, lambda: bool(cancelled))
    else:
        work = compound.or_write(volume, payload, 0, 4 * MIB, lambda: bool(cancelled), is_durable=False)  # type: ignore
    Job(work, lambda _value, error: errors.append(error)).start()
    runtime.step()
    assert errors == []
    assert volume.ranges.is_guarded
    cancelled.append(True)
    runtime.step()
    assert errors[0].errno == errno.ECANCELED
    assert not volume.ranges.is_guarded
    volume.close()


@pytest.mark.parametrize("name", ["compare", "verify"])
def test_a_very_long_compare_keeps_nobody_from_writing(
    run: Run, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """VERIFY of a whole disk: a write of a block that it is not at just now goes on."""
    monkeypatch.setattr(compound, "MAX_STABLE_BYTES", 2 * MIB)
    volume = make(runtime, tmp_path, "memory", 4 * MIB)
    write(run, volume, 0, bytes(4 * MIB))
    errors: list[Any] = []
    if name == "compare":
        work = compound.compare(volume, Bytes(bytes(512)), 0, 4 * MIB, never)
    else:
        work = compound.verify(volume, 0, 4 * MIB, never)
    Job(work, lambda _value, error: errors.append(error)).start()
    written: list[object] = []
    late = volume.write([memoryview(b"x" * 512)], 3 * MIB, 512, is_durable=False)
    Job(late, lambda _value, error: written.append(error)).start()
    assert (errors, written) == ([], [None])

    async def wait() -> None:
        while not errors:
            await runtime.pause

    run(wait())
    assert [getattr(error, "offset", None) for error in errors] == [3 * MIB if name == "compare" else None]
    volume.close()


def test_a_hole_is_verified_at_once(
    run: Run, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a TiB with one page in its middle no more is read than the step that the page is in."""
    volume = make(runtime, tmp_path, "file", 1 << 40)
    write(run, volume, 1 << 39, b"x" * 4096)
    read, lengths = os.preadv, []

    def counted(*arguments: Any) -> int:
        lengths.append(read(*arguments))
        return lengths[-1]

    monkeypatch.setattr(os, "preadv", counted)
    assert run(compound.verify(volume, 0, 1 << 40, never)) == 1 << 40
    assert 4096 <= sum(lengths) <= MIB
    volume.close()


def test_write_same_is_one(runtime: Runtime, tmp_path: Path) -> None:
    """CONTRACTS 6: nobody sees half of a WRITE SAME, a read in the middle of it waits."""
    volume = make(runtime, tmp_path, "memory", 4 * MIB)
    ended: list[str] = []
    seen = bytearray(4 * MIB)
    Job(volume.write_same(b"x", 0, 4 * MIB, never, is_durable=False), lambda _v, _e: ended.append("same")).start()
    Job(volume.read([memoryview(seen)], 0, 4 * MIB), lambda _v, _e: ended.append("read")).start()
    while runtime.ready:
        assert ended in ([], ["same"])
        runtime.step()
    assert ended == ["same", "read"]
    assert seen == b"x" * (4 * MIB)
    volume.close()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_crowd_on_one_range_ends(run: Run, runtime: Runtime, tmp_path: Path, kind: str) -> None:
    """Long and short operations of every kind on ranges that overlap: each waits for those before it, and nobody for
    somebody who waits for him."""
    volume = make(runtime, tmp_path, kind, 4 * MIB)
    ended: list[object] = []
    started = 0
    payload = Bytes(bytes(2 * MIB))
    for number in range(4):
        at = number * 512 * 1024
        for call in (
            volume.write_same(b"x" * 512, at, 2 * MIB, never, is_durable=True),
            volume.write_zeroes(at, 2 * MIB, never, is_durable=False, may_unmap=False),
            volume.discard(at, 2 * MIB, never),
            volume.write([memoryview(bytes(MIB))], at, MIB, is_durable=False),
            volume.read([memoryview(bytearray(MIB))], at, MIB),
            compound.verify(volume, at, 2 * MIB, never),
            compound.or_write(volume, payload, at, 2 * MIB, never, is_durable=False),
            compound.compare(volume, payload, at, 2 * MIB, never),
            compound.compare_and_write(volume, payload, at, MIB, is_durable=True),
            compound.write_atomic(volume, Bytes(bytes(4096)), at, 4096, never),
            copy(volume, 0, volume, at, 2 * MIB, never),
        ):
            started += 1
            Job(call, lambda _value, error: ended.append(error)).start()

    async def wait() -> None:
        while len(ended) < started:
            await runtime.pause

    run(wait())
    assert all(error is None or isinstance(error, MiscompareError) for error in ended)
    assert not volume.ranges.is_guarded
    volume.close()


def test_a_payload_is_read_from_the_segment(tmp_path: Path) -> None:
    """Across its parts, any slice of it; EFAULT where the segment has become shorter."""
    path = tmp_path / "segment"
    data = os.urandom(1000)
    path.write_bytes(data)
    with path.open("rb+") as file:
        payload = Payload(file.fileno(), [(500, 600), (0, 10), (900, 1000)])
        whole = data[500:600] + data[0:10] + data[900:1000]
        assert payload.length_bytes == 210
        for start, stop in [(0, 210), (0, 0), (99, 101), (100, 110), (105, 210), (50, 150)]:
            assert payload.read(start, stop) == whole[start:stop]
        file.truncate(950)
        assert payload.read(0, 110) == whole[:110]
        with pytest.raises(OSError) as caught:
            payload.read(0, 210)
        assert caught.value.errno == errno.EFAULT


def test_claims_are_let_go_after_an_error_of_the_store(run: Run, runtime: Runtime, tmp_path: Path) -> None:
    """A COMPARE AND WRITE that met EIO leaves the range free."""
    rule = DelayRule(operations=("read",), error=errno.EIO, count=1)
    volume = make(runtime, tmp_path, "memory", MIB, [rule])
    with pytest.raises(OSError) as caught:
        run(compound.compare_and_write(volume, Bytes(bytes(1024)), 0, 512, is_durable=False))
    assert caught.value.errno == errno.EIO
    assert volume.ranges.claim(Claim.EXCLUSIVE, 0, MIB).blockers == 0
    volume.close()
