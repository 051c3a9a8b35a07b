"""The client library against the real volume server: buffers, reading and writing, completions."""

from __future__ import annotations

import errno
import os
import random
import select
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi_ovs import shm_client
from iscsi_ovs.shm_client import Context, Volume
from tests.shm_client.calls import SIZE, get, put, raises
from tests.storage.server_process import ServerProcess


def test_what_the_server_compares_and_copies(context: Context, volume: Volume) -> None:
    """COMPARE, COMPARE AND WRITE, OR WRITE and COPY, by their methods."""
    buffer = context.allocate(2048)
    buffer.data[:] = b"a" * 1024 + b"b" * 1024
    assert volume.compare(buffer, 1024, 0) == 0
    assert volume.compare_and_write(buffer, 512, 512, buffer_offset=512) == 0
    put(volume, b"a" * 1000, 0)
    assert volume.compare(buffer, 1024, 0) == 1000
    assert volume.compare(buffer, 1000, 0, pattern=4) is None
    assert volume.compare_and_write(buffer, 512, 0, fua=True, buffer_offset=512) is None
    assert get(volume, 1024, 0) == b"b" * 512 + b"a" * 488 + bytes(24)
    assert volume.or_write(buffer, 512, 0) == 512
    assert get(volume, 1, 0) == b"c"
    assert volume.device.features.max_atomic_write_bytes == volume.stat().max_atomic_write_bytes >= 65536
    assert volume.write_atomic(buffer, 100, 2000) == 100
    assert get(volume, 100, 2000) == b"a" * 100
    context.create_volume("other", SIZE)
    with context.open("other") as other, context.open("other", os.O_RDONLY, owner="x") as reader:
        assert other.copy_from(volume, 1024, 4096, 0) == 1024
        assert get(other, 1024, 4096) == b"c" * 512 + b"a" * 488 + bytes(24)
        with raises(errno.EBADF):
            reader.copy_from(volume, 1024, 4096, 0)
        with raises(errno.EBADF):
            reader.or_write(buffer, 512, 0)
        assert reader.compare(buffer, 512, 0) == 0
        with raises(errno.EFAULT):
            other.compare_and_write(buffer, 1024, 0, buffer_offset=512)
    context.deallocate(buffer)


def test_buffers_are_shared_memory_of_any_size(context: Context) -> None:
    """Small ones share a slot, large ones are one run; everything comes back; ENOMEM when there is no more."""
    with raises(errno.EINVAL):
        context.allocate(0)
    first = context.allocate(13)
    assert (first.size, len(first.data)) == (13, 13)
    pool = context._service.pool
    small = [context.allocate(4096) for _ in range(31)]
    assert pool.capacity_slots - pool.free_slots == 2
    large = context.allocate(3 * 65536 + 1)
    assert pool.capacity_slots - pool.free_slots == 6
    with raises(errno.ENOMEM):
        context.allocate(pool.capacity_slots * pool.slot_bytes)
    for number, buffer in enumerate([first, *small, large]):
        buffer.data[:] = bytes([number]) * buffer.size
    assert all(bytes(buffer.data) == bytes([number + 1]) * 4096 for number, buffer in enumerate(small))
    for buffer in (first, *small, large):
        context.deallocate(buffer)
    assert pool.free_slots == pool.capacity_slots
    with pytest.raises(ValueError, match="released"):
        first.data[0] = 1


def test_wrong_buffers_are_efault(server: ServerProcess, context: Context, volume: Volume) -> None:
    """Another context's, a deallocated one, a range outside; deallocating twice."""
    with Context(server.socket_path) as other:
        foreign = other.allocate(4096)
        with raises(errno.EFAULT):
            volume.write(foreign, 4096, 0)
        with raises(errno.EFAULT):
            context.deallocate(foreign)
    buffer = context.allocate(4096)
    for start, length in ((0, 4097), (1, 4096), (-1, 16)):
        with raises(errno.EFAULT):
            volume.read(buffer, length, 0, buffer_offset=start)
    for length, offset in ((0, 0), (-1, 0), (512, -1), (512, 1 << 63)):
        with raises(errno.EINVAL):
            volume.write(buffer, length, offset)
    context.deallocate(buffer)
    with raises(errno.EFAULT):
        volume.write(buffer, 4096, 0)
    with raises(errno.EFAULT):
        context.deallocate(buffer)


def test_a_buffer_in_flight_cannot_be_deallocated(server: ServerProcess, context: Context, volume: Volume) -> None:
    """EBUSY until its completion."""
    buffer = context.allocate(4096)
    server.signal(signal.SIGSTOP)
    completion = volume.aio_write(buffer, 4096, 0)
    with raises(errno.EBUSY):
        context.deallocate(buffer)
    assert completion.error() == errno.EINPROGRESS
    with raises(errno.EINPROGRESS):
        completion.result()
    with raises(errno.EAGAIN):
        completion.wait(0.01)
    server.signal(signal.SIGCONT)
    completion.wait(30)
    assert completion.result() == 4096
    context.deallocate(buffer)


def test_reads_across_the_end_are_short_writes_are_refused(volume: Volume) -> None:
    """A write across the end changes nothing."""
    assert len(get(volume, 4096, SIZE - 100)) == 100
    assert get(volume, 512, SIZE) == b""
    assert get(volume, 512, 1 << 40) == b""
    with pytest.raises(OSError, match="volume demo: File too large"):
        put(volume, b"x" * 4096, SIZE - 100)
    assert get(volume, 100, SIZE - 100) == bytes(100)


def test_parts_of_buffers_and_large_transfers(context: Context, volume: Volume) -> None:
    """buffer_offset on either side, across slots; 700,001 bytes in one call; FUA."""
    data = random.Random(7).randbytes(700_001)
    buffer = context.allocate(800_000)
    buffer.data[77:700_078] = data
    assert volume.write(buffer, 700_001, 333, buffer_offset=77, fua=True) == 700_001
    buffer.data[:] = bytes(800_000)
    assert volume.read(buffer, 700_001, 333, buffer_offset=65_535) == 700_001
    assert bytes(buffer.data[65_535:765_536]) == data
    volume.flush()


Step = tuple[str, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "discard", "zeroes", "flush", "batch"]),
        st.integers(0, 200_000),
        st.one_of(st.integers(1, 600), st.integers(1, 150_000)),
        st.integers(0, 255),
    ),
    max_size=25,
)


def test_a_volume_is_a_bytearray(context: Context, volume: Volume) -> None:
    """Any sequence of unaligned operations, some in batches, reads back what a bytearray would hold."""
    model = bytearray(200_000)
    volume.discard(0, SIZE)
    buffer = context.allocate(150_000)

    def check(offset: int, length: int, seed: int, operation: str) -> None:
        length = min(length, len(model) - offset)
        if length <= 0:
            return
        if operation == "write":
            data = random.Random(seed).randbytes(length)
            buffer.data[:length] = data
            assert volume.write(buffer, length, offset) == length
            model[offset : offset + length] = data
        elif operation == "read":
            assert volume.read(buffer, length, offset) == length
            assert buffer.data[:length] == model[offset : offset + length]
        elif operation == "flush":
            volume.flush()
        elif operation == "batch":
            check_batch(offset, length, seed)
        else:
            (volume.discard if operation == "discard" else volume.write_zeroes)(offset, length)
            model[offset : offset + length] = bytes(length)

    def check_batch(offset: int, length: int, seed: int) -> None:
        """The range in pieces of 1 KiB and a rest, all in flight at once."""
        data = random.Random(seed).randbytes(length)
        buffer.data[:length] = data
        with context.batch():
            started = [
                volume.aio_write(buffer, min(1024, length - at), offset + at, buffer_offset=at)
                for at in range(0, length, 1024)
            ]
        for completion in started:
            completion.wait(30)
        assert sum(completion.result() for completion in started) == length
        model[offset : offset + length] = data

    @settings(max_examples=60)
    @given(steps)
    def run(sequence: list[Step]) -> None:
        for operation, offset, length, seed in sequence:
            check(offset, length, seed, operation)
        assert volume.read(buffer, 150_000, 0) == 150_000
        assert buffer.data == model[:150_000]

    run()


def test_more_in_flight_than_the_ring_has_entries(context: Context, volume: Volume) -> None:
    """5,000 writes in one batch all end, each callback once; then every byte is there."""
    buffer = context.allocate(5000)
    data = random.Random(3).randbytes(5000)
    buffer.data[:] = data
    seen: list[shm_client.AioCompletion] = []
    with context.batch():
        started = [volume.aio_write(buffer, 1, at, seen.append, buffer_offset=at) for at in range(5000)]
        assert context._service._queue is not None
        assert context._service._queue.waiting
    while not all(completion.done for completion in started):
        context.suspend([completion for completion in started if not completion.done], 30)
    assert len(seen) == len(set(map(id, seen))) == 5000
    assert get(volume, 5000, 0) == data


def test_a_batch_is_shown_before_its_end(context: Context, volume: Volume) -> None:
    """flush_requests() inside it: the doorbell rings for what was submitted before."""
    buffer = context.allocate(4096)
    doorbell = select.poll()
    doorbell.register(context.fileno(), select.POLLIN)
    while doorbell.poll(0):
        context.poll()  # what opening has left
    with context.batch():
        written = volume.aio_write(buffer, 4096, 0)
        assert not doorbell.poll(0)
        context.flush_requests()
        assert doorbell.poll(10_000)
        assert context.poll() == 1
        assert written.result() == 4096


def test_callbacks_may_call_the_library(context: Context, volume: Volume) -> None:
    """A chain of reads, each started by the callback of the one before, and a synchronous write inside."""
    put(volume, bytes(range(100)), 0)
    buffer = context.allocate(100)
    read: list[int] = []

    def next_one(completion: shm_client.AioCompletion) -> None:
        assert completion.result() == 1
        read.append(buffer.data[0])
        if len(read) < 100:
            volume.aio_read(buffer, 1, len(read), next_one)
        else:
            put(volume, b"end", 200)

    volume.aio_read(buffer, 1, 0, next_one)
    while len(read) < 100:
        context.poll()
    assert read == list(range(100))
    assert get(volume, 3, 200) == b"end"


def test_a_short_wait_is_spent_looking(context: Context, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing sleeps while the answer is on its way; behind a look in vain waits sleep at once, for a while."""
    slept: list[float | None] = []

    def prepare_sleep() -> bool:
        slept.append(None)
        return sleep()

    sleep = context._service.prepare_sleep
    monkeypatch.setattr(context._service, "prepare_sleep", prepare_sleep)
    monkeypatch.setattr(shm_client, "SPIN_S", 10.0)
    get(volume, 512, 0)
    assert not slept
    context._vain_spins = shm_client.VAIN_SPINS
    while context._vain_spins:
        get(volume, 512, 0)
    assert slept
    slept.clear()
    get(volume, 512, 0)
    assert not slept
    context.looks_first = False
    while not slept:
        get(volume, 512, 0)


def test_looking_in_vain_is_given_up(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of waits that take longer than a look, one in many looks."""
    looks: list[None] = []
    monkeypatch.setattr(shm_client, "SPIN_S", -1.0)
    monkeypatch.setattr(context._service, "has_pending", lambda: bool(looks.append(None)))
    for _ in range(3 * (shm_client.VAIN_SPINS + 1)):
        context._spin()
    assert len(looks) == 3


def test_a_poll_loop_of_ones_own(context: Context, volume: Volume) -> None:
    """fileno() becomes readable for every completion; nothing is missed between poll() and select."""
    buffer = context.allocate(4096)
    poller = select.poll()
    poller.register(context.fileno(), select.POLLIN)
    for _ in range(500):
        completion = volume.aio_read(buffer, 4096, 0)
        while not completion.done:
            assert poller.poll(10_000), "a completion came and the descriptor did not say so"
            context.poll()
