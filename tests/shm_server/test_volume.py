"""A volume against a bytearray; failures of fdatasync; steps of long work."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm_server.runtime import Job, Runtime
from shm_server.stores import DelayRule, open_stores
from shm_server.volumes.volume import WRITE_STEP_BYTES, Volume

SIZE = 256 << 10


def never() -> bool:
    return False


def make(runtime: Runtime, path: Path, kind: str = "memory", size: int = SIZE, delays: Any = ()) -> Volume:
    stores = open_stores(kind, path, delays)
    stores.create("demo", size)
    return Volume(runtime, stores.open("demo", size, "00" * 16), "demo", "00" * 16, size, 1)


ranges = st.tuples(st.integers(0, SIZE + 5000), st.integers(0, 80_000))
steps = st.one_of(
    st.tuples(st.just("write"), ranges, st.integers(1, 255), st.booleans()),
    st.tuples(st.just("read"), ranges, st.integers(1, 5), st.booleans()),
    st.tuples(st.just("discard"), ranges, st.none(), st.booleans()),
    st.tuples(st.just("zeroes"), ranges, st.booleans(), st.booleans()),
    st.tuples(st.just("same"), ranges, st.integers(1, 4096), st.booleans()),
    st.tuples(st.just("flush"), ranges, st.none(), st.booleans()),
)


@pytest.mark.parametrize("kind", ["memory", "file"])
@given(script=st.lists(steps, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_script_does_what_it_does_to_a_bytearray(
    runtime: Runtime, run: Callable[..., Any], tmp_path_factory: Any, kind: str, script: Any
) -> None:
    """Reads are short at the end; writes, discards, zeroings across the end fail whole; all else is as in memory."""
    volume = make(runtime, tmp_path_factory.mktemp("pool"), kind)
    model = bytearray(SIZE)
    try:
        for operation, (offset, length), value, flag in script:
            fits = offset + length <= SIZE
            if operation == "read":
                buffer = bytearray(length)
                view = memoryview(buffer)
                cut = length // value
                done = run(volume.read([view[:cut], view[cut:]], offset, length))
                assert done == max(0, min(length, SIZE - offset))
                assert buffer[:done] == model[offset : offset + done]
                continue
            if operation == "flush":
                run(volume.flush())
                continue
            if operation == "write":
                data = bytes([value]) * length
                call = volume.write([memoryview(data)], offset, length, is_durable=flag)
            elif operation == "discard":
                data, call = bytes(length), volume.discard(offset, length, never)
            elif operation == "zeroes":
                data = bytes(length)
                call = volume.write_zeroes(offset, length, never, is_durable=flag, may_unmap=value)
            else:
                length = length // value * value
                fits = offset + length <= SIZE
                pattern = os.urandom(value)
                data = pattern * (length // value)
                call = volume.write_same(pattern, offset, length, never, is_durable=flag)
            if fits:
                assert run(call) == length
                model[offset : offset + length] = data
            else:
                with pytest.raises(OSError) as caught:
                    run(call)
                assert caught.value.errno == errno.EFBIG
        whole = bytearray(SIZE)
        run(volume.read([memoryview(whole)], 0, SIZE))
        assert whole == model
    finally:
        volume.close()


def test_a_failed_fdatasync_is_sticky(runtime: Runtime, run: Callable[..., Any], tmp_path: Path) -> None:
    """That flush, later flushes, FUA writes and writes fail with EIO; reads go on (CONTRACTS 1)."""
    volume = make(runtime, tmp_path, delays=[DelayRule(operations=("flush",), error=errno.EIO, count=1)])
    told = []
    volume.on_failure = lambda: told.append(True)
    data = [memoryview(b"x" * 512)]
    run(volume.write(data, 0, 512, is_durable=False))
    calls = [
        volume.flush,
        volume.flush,
        lambda: volume.write(data, 0, 512, is_durable=True),
        lambda: volume.write(data, 0, 512, is_durable=False),
        lambda: volume.discard(0, 512, never),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            run(call())
        assert caught.value.errno == errno.EIO
    assert told == [True]
    buffer = bytearray(512)
    assert run(volume.read([memoryview(buffer)], 0, 512)) == 512
    assert buffer == b"x" * 512
    volume.close()


def test_a_failed_fsync_of_growing_is_sticky(
    runtime: Runtime, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells a lost write once: told to a resize, it is not forgotten for the next flush (CONTRACTS 1)."""
    volume = make(runtime, tmp_path, "file")
    run(volume.write([memoryview(b"x" * 512)], 0, 512, is_durable=False))

    def lost(_: int) -> None:
        raise OSError(errno.EIO, "a write was lost")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lost)
        with pytest.raises(OSError) as caught:
            run(volume.grow(2 * SIZE))
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError) as caught:
        run(volume.flush())
    assert caught.value.errno == errno.EIO
    volume.close()


def test_a_machine_without_another_thread(
    runtime: Runtime, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With none at all the operation fails; later those that there are do what comes."""
    volume = make(runtime, tmp_path, "file")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError) as caught:
            run(volume.flush())
    assert caught.value.errno == errno.EIO
    volume.close()
    volume = make(runtime, tmp_path / "again", "file")
    run(volume.flush())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        ended: list[object] = []
        Job(volume.discard(0, SIZE, never), lambda value, error: ended.append(error)).start()
        run(volume.flush())
        run(volume.discard(0, SIZE, never))
    assert ended == [None]
    volume.close()


def test_flushes_that_wait_share_one_fdatasync(runtime: Runtime, run: Callable[..., Any], tmp_path: Path) -> None:
    """Ten flushes while one runs make one more, not ten."""
    volume = make(runtime, tmp_path, delays=[DelayRule(operations=("flush",), seconds=0.02)])
    calls = []
    sync = volume.store.sync
    volume.store.sync = lambda: (calls.append(True), sync())[1]  # type: ignore[method-assign]
    ended: list[object] = []
    for _ in range(11):
        Job(volume.flush(), lambda value, error: ended.append(error)).start()
    run(volume.flush())
    assert ended == [None] * 11
    assert len(calls) == 2
    volume.close()


def test_long_work_goes_in_steps_and_stops_at_a_fence(runtime: Runtime, tmp_path: Path) -> None:
    """A WRITE SAME of 8 MiB pauses after each MiB; cancelled in between it ends with ECANCELED, the rest untouched."""
    size = 8 << 20
    volume = make(runtime, tmp_path, size=size)
    results: list[BaseException | None] = []
    cancelled = False
    work = volume.write_same(b"ab", 0, size, lambda: cancelled, is_durable=False)
    Job(work, lambda value, error: results.append(error)).start()
    runtime.step()
    assert not results
    cancelled = True
    runtime.step()
    assert isinstance(results[0], OSError)
    assert results[0].errno == errno.ECANCELED
    buffer = bytearray(size)
    assert volume.store.read_now([memoryview(buffer)], 0) == size
    assert buffer == b"ab" * WRITE_STEP_BYTES + bytes(size - 2 * WRITE_STEP_BYTES)
    volume.close()
