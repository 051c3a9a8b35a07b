"""The data plane, entry by entry: what each operation does, and what a wrong entry is answered."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from shm_server.abi import control, layout
from shm_server.abi.layout import Opcode
from shm_server.dispatch import BATCH_ENTRIES, Dispatcher
from shm_server.operations import OPERATIONS
from shm_server.server import Server
from shm_server.stores import DelayRule
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess

SIZE = 1 << 24
Connect = Callable[..., AbiClient]


def fails(client: AbiClient, number: int, opcode: int, *arguments: object, **more: object) -> None:
    """The entry completes with this errno and no bytes."""
    completion = client.wait(client.push(opcode, *arguments, **more))  # type: ignore[arg-type]
    assert (completion[1], completion[3]) == (number, 0)


def test_any_byte_range_is_read_as_it_was_written(demo: AbiClient) -> None:
    """Any offset, any length, any place in the slots, running on from slot to slot."""
    for offset, length, slot, start in ((0, 1, 0, 0), (511, 513, 1, 7), (4095, 2, 0, 65535), (70_000, 200_001, 2, 5)):
        data = os.urandom(length)
        assert demo.write(offset, data, slot, start) == length
        assert demo.read(offset, length, 8, 3) == data
    assert demo.read(SIZE - 10, 10) == bytes(10)


@pytest.mark.parametrize("count", [2, 7, 8, 17, 18, 64, 512])
def test_a_request_may_have_many_parts(demo: AbiClient, count: int) -> None:
    """Up to 512, gathered and scattered in their order; empty parts among them are fine."""
    data = os.urandom(count * 100)
    parts = []
    for number in range(count):
        at = (count - 1 - number) * 128
        demo.slots[at : at + 100] = data[number * 100 : number * 100 + 100]
        parts.append((0, at, 100))
    if count == 8:
        parts[3:4] = [(0, parts[3][1], 60), (1, 0, 0), (0, parts[3][1] + 60, 40)]
    assert demo.do(Opcode.WRITE, 1000, len(data), parts) == len(data)
    assert demo.read(1000, len(data), 4) == data
    demo.slots[: 512 * 128] = bytes(512 * 128)
    assert demo.do(Opcode.READ, 1000, len(data), parts) == len(data)
    assert b"".join(bytes(demo.slots[start : start + length]) for slot, start, length in parts if length) == data


def test_requests_of_many_parts_come_through_in_batches(demo: AbiClient) -> None:
    """Heads with continuations cut by the server's batch are taken whole in the next one."""
    parts = [(0, 64 * number, 64) for number in range(40)]  # 5 entries each
    tags = []
    for number in range(12):
        tags.append(demo.push(Opcode.READ, 64 * number, 40 * 64, parts))
    tags.append(demo.push(Opcode.FLUSH))
    assert BATCH_ENTRIES < 12 * 5 + 5
    assert [demo.wait(tag)[1] for tag in tags] == [0] * 13


def test_reads_are_short_at_the_end_writes_fail_whole(demo: AbiClient) -> None:
    """READ completes with fewer bytes, behind the end with none; a write across the end changes nothing."""
    demo.write(SIZE - 512, b"e" * 512)
    assert demo.read(SIZE - 512, 4096) == b"e" * 512
    assert demo.read(SIZE, 512) == b""
    assert demo.read(1 << 62, 512) == b""
    for opcode in (Opcode.WRITE, Opcode.WRITE_SAME):
        fails(demo, errno.EFBIG, opcode, SIZE - 512, 1024, [(0, 0, 1024)])
    for opcode in (Opcode.DISCARD, Opcode.WRITE_ZEROES):
        fails(demo, errno.EFBIG, opcode, SIZE - 512, 1024)
    assert demo.read(SIZE - 512, 512) == b"e" * 512


def test_empty_requests_are_fine(demo: AbiClient) -> None:
    """No bytes, no parts: they complete with nothing done."""
    for opcode in (Opcode.READ, Opcode.WRITE, Opcode.DISCARD, Opcode.WRITE_ZEROES):
        assert demo.do(opcode, 100, 0) == 0
    assert demo.do(Opcode.READ, 100, 0, [(0, 0, 0)]) == 0


def test_discarded_and_zeroed_ranges_read_zeros(server: ServerProcess, demo: AbiClient) -> None:
    """To the byte; discarding gives space back, zeroing with NO_UNMAP keeps it."""

    def allocated() -> int:
        return demo.call(control.Stat(demo.id(), "demo")).info.allocated_bytes

    demo.write(0, b"x" * 1_000_000)
    demo.flush()
    full = allocated()
    assert demo.do(Opcode.WRITE_ZEROES, 5, 70_000, flags=layout.FLAG_NO_UNMAP | layout.FLAG_FUA) == 70_000
    assert demo.read(0, 70_010) == b"x" * 5 + bytes(70_000) + b"x" * 5
    demo.flush()
    assert allocated() >= full
    assert demo.do(Opcode.WRITE_ZEROES, 100_001, 300_000) == 300_000
    assert demo.do(Opcode.DISCARD, 500_003, 300_000) == 300_000
    content = demo.read(0, 1_000_000)
    assert content[100_000:400_002] == b"x" + bytes(300_000) + b"x"
    assert content[500_002:800_004] == b"x" + bytes(300_000) + b"x"
    demo.flush()
    assert allocated() < full


def test_write_same_repeats_its_block(demo: AbiClient) -> None:
    """One part of at most 4096 bytes, over at most 32 MiB."""
    pattern = os.urandom(512)
    demo.slots[100:612] = pattern
    assert demo.do(Opcode.WRITE_SAME, 1024, 5 << 20, [(0, 100, 512)], flags=layout.FLAG_FUA) == 5 << 20
    assert demo.read(1024, 1 << 19) == pattern * 1024
    assert demo.read((5 << 20) + 512, 1024) == pattern + bytes(512)
    for length, parts in (
        (1000, [(0, 0, 512)]),
        (8192, [(0, 0, 8192)]),
        (1024, [(0, 0, 512), (0, 512, 512)]),
        (1024, []),
        (1024, [(0, 0, 0)]),
        ((32 << 20) + 512, [(0, 0, 512)]),
    ):
        fails(demo, errno.EINVAL, Opcode.WRITE_SAME, 0, length, parts)


def test_access_is_held(server: ServerProcess, demo: AbiClient, connect: Connect) -> None:
    """No writing through "r", no reading through "w", no other client's handle, none that was closed."""
    reader = connect(server, "demo", "r")
    for opcode, parts in ((Opcode.WRITE, [(0, 0, 512)]), (Opcode.WRITE_SAME, [(0, 0, 512)])):
        fails(reader, errno.EBADF, opcode, 0, 512, parts)
    for opcode in (Opcode.DISCARD, Opcode.WRITE_ZEROES):
        fails(reader, errno.EBADF, opcode, 0, 512)
    assert reader.read(0, 512) == bytes(512)
    for handle in (0, demo.handle + 1, 0xFFFFFFFF):
        fails(demo, errno.EBADF, Opcode.READ, 0, 512, [(0, 0, 512)], handle=handle)
    demo.close_handle(demo.handle)
    fails(demo, errno.EBADF, Opcode.READ, 0, 512, [(0, 0, 512)])
    demo.open("demo", "w")
    fails(demo, errno.EBADF, Opcode.READ, 0, 512, [(0, 0, 512)])
    assert demo.write(0, b"x") == 1


def test_a_fence_moves_the_epoch(demo: AbiClient) -> None:
    """Older entries are ECANCELED, newer ones EINVAL, and a fence that goes nowhere or back is EINVAL."""
    old = demo.epoch
    tag = demo.fence()
    assert demo.wait(tag)[1] == 0
    assert demo.write(0, b"new") == 3
    fails(demo, errno.ECANCELED, Opcode.READ, 0, 512, [(0, 0, 512)], epoch=old)
    fails(demo, errno.EINVAL, Opcode.READ, 0, 512, [(0, 0, 512)], epoch=demo.epoch + 1)
    for epoch in (demo.epoch, old, (demo.epoch + (1 << 31)) & layout.INDEX_MASK):
        fails(demo, errno.EINVAL, Opcode.FENCE, epoch=epoch)
    demo.epoch += 0x7FFFFFFF
    assert demo.do(Opcode.FENCE) == 0
    demo.epoch = (demo.epoch + 0x7FFFFFFF) & layout.INDEX_MASK
    assert demo.do(Opcode.FENCE) == 0
    demo.epoch = (demo.epoch + 5) & layout.INDEX_MASK  # past 2**32
    assert demo.epoch < 10
    assert demo.do(Opcode.FENCE) == 0
    assert demo.read(0, 3) == b"new"


def test_unserved_opcodes_are_enosys(demo: AbiClient) -> None:
    """Those that no version has, too."""
    for opcode in set(range(256)) - set(OPERATIONS) - {Opcode.CONTINUATION}:
        fails(demo, errno.ENOSYS, opcode, 0, 512, [(0, 0, 512)])


def test_more_in_flight_than_completions_have_room_for(demo: AbiClient) -> None:
    """A client that does not reap gets its answers later, and all of them."""
    tags = []
    total = 4 * demo.attached.completion_entries
    while len(tags) < total:
        while not demo.producer.has_room(1):
            if demo.consumer.has_pending() and demo.attached.completion_entries <= demo.consumer_backlog():
                break
            demo.publish()
        if not demo.producer.has_room(1):
            for completion in demo.take():
                demo.done[completion[0]] = completion
            continue
        tags.append(demo.push(Opcode.READ, 0, 512, [(0, 0, 512)]))
    assert all(demo.wait(tag)[1] == 0 for tag in tags)


def test_two_clients_are_served_side_by_side(server: ServerProcess, demo: AbiClient, connect: Connect) -> None:
    """A client with a full ring of 1 MiB reads does not keep another one from its small ones."""
    other = connect(server)
    other.create("small", 1 << 20)
    other.attach()
    other.open("small")
    tags = [demo.push(Opcode.READ, 0, 1 << 20, [(0, 0, 1 << 20)]) for _ in range(60)]
    demo.publish()
    for _ in range(50):
        other.write(0, b"x" * 512)
        assert other.read(0, 512) == b"x" * 512
    assert all(demo.wait(tag)[3] == 1 << 20 for tag in tags)


def test_many_threads_of_clients(server: ServerProcess, connect: Connect) -> None:
    """Eight clients with a volume each write and verify at once."""
    failures: list[BaseException] = []

    def work(number: int, client: AbiClient) -> None:
        try:
            for step in range(100):
                data = bytes([number + 1, step]) * 2048
                client.write(step * 4096, data, slot=step % 4)
                assert client.read(step * 4096, 4096, slot=8) == data
        except BaseException as error:
            failures.append(error)

    threads = []
    for number in range(8):
        client = connect(server)
        client.create(f"v{number}", 1 << 20)
        client.attach()
        client.open(f"v{number}")
        threads.append(threading.Thread(target=work, args=(number, client)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_the_reply_to_close_does_not_overtake_completions(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in the ring when it comes, whenever the turn's own publishing does."""
    rule = DelayRule(operations=("flush",), seconds=0.05)
    server = in_process(delays=[rule])
    connect(server).create()
    client = connect(server, "demo")
    monkeypatch.setattr(Dispatcher, "publish", lambda self: None)
    tag = client.push(Opcode.FLUSH)
    client.publish()
    while client.producer.free() < client.attached.submission_entries:
        os.sched_yield()  # until the server has taken it
    client.close_handle(client.handle)
    assert [completion[:2] for completion in client.consumer.take()] == [(tag, 0)]
