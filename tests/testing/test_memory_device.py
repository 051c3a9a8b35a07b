"""The device that tests are built on does what a volume does, when it is told to."""

from __future__ import annotations

import pytest

from iscsi_ovs import block
from iscsi_ovs.block import Error, Operation, Request
from iscsi_ovs.testing.memory_device import MemoryDevice, MemoryPool


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(1 << 16)


@pytest.fixture
def pool() -> MemoryPool:
    return MemoryPool(slots=4)


def filled(pool: MemoryPool, data: bytes) -> block.Buffer:
    buffer = pool.allocate(len(data))
    assert buffer is not None
    buffer.views(0, len(data))[0][:] = data
    return buffer


def run_one(device: MemoryDevice, request: Request) -> tuple[Error | None, int]:
    device.submit(request)
    (completion,) = device.run()
    assert completion.request is request
    return completion.error, completion.done_bytes


def test_it_is_a_device_and_a_pool() -> None:
    """The types of the port, for mypy and for readers."""
    device: block.Device = MemoryDevice(512)
    pool: block.Pool = MemoryPool()
    assert (device.geometry.size_bytes, pool.capacity_slots) == (512, 64)


def test_operations(device: MemoryDevice, pool: MemoryPool) -> None:
    """WRITE, READ, DISCARD, WRITE ZEROES, WRITE SAME move the bytes they should."""
    buffer = filled(pool, b"ab" * 256)
    assert run_one(device, Request(Operation.WRITE, 512, 512, buffer)) == (None, 512)
    assert device.data[:1536] == bytes(512) + b"ab" * 256 + bytes(512)
    assert run_one(device, Request(Operation.WRITE_SAME, 1024, 6, buffer, pattern_bytes=2)) == (None, 6)
    assert device.data[1020:1032] == b"abab" + b"ababab" + bytes(2)
    assert run_one(device, Request(Operation.DISCARD, 512, 256)) == (None, 256)
    assert run_one(device, Request(Operation.WRITE_ZEROES, 1024, 2)) == (None, 2)
    assert device.data[:1032] == bytes(768) + b"ab" * 128 + bytes(2) + b"abab" + bytes(2)
    assert run_one(device, Request(Operation.READ, 766, 4, buffer)) == (None, 4)
    assert bytes(buffer.views(0, 4)[0]) == b"\0\0ab"
    assert [request.operation.name for request in device.log] == [
        "WRITE", "WRITE_SAME", "DISCARD", "WRITE_ZEROES", "READ",
    ]  # fmt: skip
    buffer.release()
    assert pool.is_whole


def test_comparing(device: MemoryDevice, pool: MemoryPool) -> None:
    """COMPARE with data, a pattern, nothing; COMPARE AND WRITE writes its second half only where the first is there."""
    device.data[512:1024] = b"ab" * 256
    buffer = filled(pool, b"ab" * 256 + b"cd" * 256)
    assert run_one(device, Request(Operation.COMPARE, 512, 512, buffer)) == (None, 512)
    assert run_one(device, Request(Operation.COMPARE, 512, 1024, buffer, pattern_bytes=2)) == (Error.MISCOMPARE, 0)
    assert run_one(device, Request(Operation.COMPARE, 0, 1 << 16)) == (None, 1 << 16)
    assert run_one(device, Request(Operation.COMPARE, 1, 1 << 16)) == (Error.OUT_OF_RANGE, 0)
    swap = Request(Operation.COMPARE_AND_WRITE, 512, 512, buffer, fua=True)
    assert run_one(device, swap) == (None, 512)
    assert device.data[512:1024] == device.flushed[512:1024] == b"cd" * 256
    device.data[513:515] = b"db"
    device.submit(swap)
    (completion,) = device.run()
    assert (completion.error, completion.detail) == (Error.MISCOMPARE, 0)
    buffer.views(0, 2)[0][:] = b"cd"
    device.submit(swap)
    (completion,) = device.run()
    assert (completion.error, completion.detail) == (Error.MISCOMPARE, 2)
    buffer.release()


def test_or_write_and_copy(device: MemoryDevice, pool: MemoryPool) -> None:
    """OR WRITE sets bits; COPY takes from another device, or from this one where the ranges overlap."""
    device.data[0:3] = b"\x01\x02\xf0"
    buffer = filled(pool, b"\x10\x02\x0f")
    assert run_one(device, Request(Operation.OR_WRITE, 0, 3, buffer)) == (None, 3)
    assert device.data[0:4] == b"\x11\x02\xff\x00"
    assert run_one(device, Request(Operation.COPY, 1, 3, source=device)) == (None, 3)
    assert device.data[0:4] == b"\x11\x11\x02\xff"
    other = MemoryDevice(4)
    assert run_one(other, Request(Operation.COPY, 0, 4, source=device, source_offset_bytes=1)) == (None, 4)
    assert other.data == b"\x11\x02\xff\x00"
    assert run_one(device, Request(Operation.COPY, 0, 8, source=other)) == (Error.OUT_OF_RANGE, 0)
    buffer.release()


def test_what_features_leave_out(pool: MemoryPool) -> None:
    """WRITE ATOMIC up to the stated size, none where that is 0; COMPARE and COPY where they can."""
    buffer = filled(pool, b"new" * 2)
    write = Request(Operation.WRITE_ATOMIC, 0, 6, buffer)
    assert run_one(MemoryDevice(512), write) == (Error.UNSUPPORTED, 0)
    device = MemoryDevice(512, features=block.Features(max_atomic_write_bytes=6, can_compare=False, can_copy=False))
    assert run_one(device, write) == (None, 6)
    assert device.data[:6] == b"newnew"
    for operation in (Operation.COMPARE, Operation.OR_WRITE, Operation.COPY):
        assert run_one(device, Request(operation, 0, 6, buffer, source=device)) == (Error.UNSUPPORTED, 0)
    buffer.release()


def test_ends(device: MemoryDevice, pool: MemoryPool) -> None:
    """A read across the end is short, a write across it fails whole."""
    buffer = filled(pool, b"x" * 1024)
    assert run_one(device, Request(Operation.WRITE, (1 << 16) - 512, 1024, buffer)) == (Error.OUT_OF_RANGE, 0)
    assert not any(device.data)
    assert run_one(device, Request(Operation.READ, (1 << 16) - 512, 1024, buffer)) == (None, 512)
    assert run_one(device, Request(Operation.READ, 1 << 17, 1024, buffer)) == (None, 0)
    assert device.resize(1 << 17).generation == 1
    assert run_one(device, Request(Operation.WRITE, (1 << 16) - 512, 1024, buffer)) == (None, 1024)


def test_what_a_power_cut_leaves(device: MemoryDevice, pool: MemoryPool) -> None:
    """``flushed`` has FUA writes, and all others after a FLUSH."""
    buffer = filled(pool, b"x" * 512)
    run_one(device, Request(Operation.WRITE, 0, 512, buffer))
    run_one(device, Request(Operation.WRITE, 1024, 512, buffer, fua=True))
    assert device.flushed[:1536] == bytes(1024) + b"x" * 512
    run_one(device, Request(Operation.FLUSH))
    assert device.flushed == device.data


def test_faults(device: MemoryDevice) -> None:
    """Each counts once, in order; one for an operation waits for it."""
    device.fail_next(Error.WRITE_FAULT, Operation.FLUSH)
    device.fail_next(Error.NO_SPACE)
    assert run_one(device, Request(Operation.DISCARD, 0, 512)) == (Error.NO_SPACE, 0)
    assert run_one(device, Request(Operation.DISCARD, 0, 512)) == (None, 512)
    assert run_one(device, Request(Operation.FLUSH)) == (Error.WRITE_FAULT, 0)
    assert run_one(device, Request(Operation.FLUSH)) == (None, 0)


def test_read_only() -> None:
    """Features are obeyed."""
    device = MemoryDevice(512, features=block.Features(can_write=False))
    assert run_one(device, Request(Operation.DISCARD, 0, 512)) == (Error.READ_ONLY, 0)
    assert run_one(device, Request(Operation.FLUSH)) == (None, 0)


def test_order_is_the_tests(device: MemoryDevice) -> None:
    """``complete`` picks; ``run`` goes on in order, and takes along what completions submit."""
    told: list[int] = []

    def done(completion: block.Completion) -> None:
        told.append(completion.request.offset_bytes)
        if completion.request.offset_bytes == 1:
            device.submit(Request(Operation.DISCARD, 9, 1, done=done))

    requests = [Request(Operation.DISCARD, number, 1, done=done) for number in range(4)]
    for request in requests:
        device.submit(request)
    assert told == []
    device.complete(requests[2])
    assert told == [2]
    assert device.pending == [requests[0], requests[1], requests[3]]
    device.run()
    assert told == [2, 0, 1, 3, 9]


def test_hold_and_fence(device: MemoryDevice) -> None:
    """A fence cancels what is not started and waits for what is; held requests work when they are let go."""
    told: list[object] = []

    def submit(name: str) -> Request:
        request = Request(Operation.DISCARD, 0, 1, done=lambda completion: told.append((name, completion.error)))
        device.submit(request)
        return request

    device.hold()
    started = submit("started")
    stuck = submit("stuck")
    assert device.run() == []
    assert device.held == [started, stuck]
    submit("waiting")
    device.fence(lambda: told.append("fenced"))
    device.run()
    assert told == [("waiting", Error.CANCELLED)]
    device.complete(started)
    assert told[1:] == [("started", None)]
    device.let_go()
    device.run()
    assert told[2:] == [("stuck", None), "fenced"]
    device.fence(lambda: told.append("nothing to wait for"))
    device.run()
    assert told[-1] == "nothing to wait for"
