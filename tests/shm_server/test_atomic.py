"""What is atomic against every handle, through the rings: races, rights, fences, wrong entries."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from shm_server.abi import control, layout
from shm_server.abi.layout import Opcode
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess

Connect = Callable[..., AbiClient]
Start = Callable[..., ServerProcess]


def put(client: AbiClient, data: bytes, slot: int = 0) -> list[tuple[int, int, int]]:
    at = slot * layout.SLOT_BYTES
    client.slots[at : at + len(data)] = data
    return [(slot, 0, len(data))]


def swap(client: AbiClient, offset: int, old: bytes, new: bytes, **more: int) -> tuple[int, int]:
    """COMPARE AND WRITE: errno and detail."""
    completion = client.wait(client.push(Opcode.COMPARE_AND_WRITE, offset, len(old), put(client, old + new), **more))
    return completion[1], completion[4]


@pytest.mark.parametrize("store", ["file", "memory"])
def test_no_increment_is_lost(start_server: Start, connect: Connect, store: str) -> None:
    """Two clients with handles of one owner increment a counter by COMPARE AND WRITE, 300 times each, while two others
    write and read beside it: the counter ends at 600."""
    server = start_server(shm_server={"store": store})
    clients = []
    for number in range(3):
        client = connect(server)
        if not number:
            client.create()
        client.attach()
        client.open("demo", "rw", "one owner")
        clients.append(client)
    failures: list[BaseException] = []

    def increment(number: int) -> None:
        client = clients[number]
        try:
            for _ in range(300):
                while True:
                    old = client.read(4096, 512, slot=4)
                    count = int.from_bytes(old[:8], "little") + 1
                    new = count.to_bytes(8, "little") + os.urandom(504)
                    error, _ = swap(client, 4096, old, new)
                    if not error:
                        break
                    assert error == errno.EILSEQ
        except BaseException as error:
            failures.append(error)

    is_over = threading.Event()

    def disturb() -> None:
        client = clients[2]
        try:
            while not is_over.is_set():
                client.write(0, os.urandom(4096))
                client.do(Opcode.COMPARE, 8192, 65536, [(1, 0, 512)])
                client.write(1 << 20, os.urandom(512), flags=layout.FLAG_FUA)
        except BaseException as error:
            failures.append(error)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    threads = [threading.Thread(target=increment, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    is_over.set()
    disturber.join(60)
    assert failures == []
    assert int.from_bytes(clients[0].read(4096, 8), "little") == 600


def test_a_difference_is_an_answer(demo: AbiClient) -> None:
    """EILSEQ with the offset in detail, no complaint in the log; without a difference detail is 0."""
    demo.write(0, b"a" * 1024)
    assert swap(demo, 0, b"a" * 512, b"b" * 512) == (0, 0)
    assert swap(demo, 0, b"b" * 100 + b"a" * 412, b"c" * 512) == (errno.EILSEQ, 100)
    completion = demo.wait(demo.push(Opcode.COMPARE, 0, 1024, put(demo, b"b" * 512 + b"a" * 511 + b"x")))
    assert completion[1:] == (errno.EILSEQ, 0, 0, 1023)
    completion = demo.wait(demo.push(Opcode.COMPARE, 0, 1024, put(demo, b"b" * 512)))
    assert completion[1:] == (errno.EILSEQ, 0, 0, 512)
    assert demo.do(Opcode.COMPARE, 0, 512, put(demo, b"b")) == 512
    assert demo.do(Opcode.COMPARE, 0, 1024) == 1024


def test_or_write_with_many_parts(demo: AbiClient) -> None:
    """Parts in any order, with continuations."""
    demo.write(0, b"\x01" * 9000)
    for slot in range(9):
        put(demo, bytes([0x10 + slot]) * 1000, slot)
    parts = [(slot, 0, 1000) for slot in reversed(range(9))]
    assert demo.do(Opcode.OR_WRITE, 0, 9000, parts, flags=layout.FLAG_FUA) == 9000
    assert demo.read(0, 9000) == b"".join(bytes([0x10 + slot | 1]) * 1000 for slot in reversed(range(9)))


def test_rights(server: ServerProcess, demo: AbiClient, connect: Connect) -> None:
    """A reader may compare and not change; who may only write may do neither of what reads."""
    reader = connect(server, "demo", "r")
    assert reader.do(Opcode.COMPARE, 0, 512) == 512
    for opcode in (Opcode.COMPARE_AND_WRITE, Opcode.OR_WRITE):
        with pytest.raises(OSError) as caught:
            reader.do(opcode, 0, 512, [(0, 0, 1024 if opcode == Opcode.COMPARE_AND_WRITE else 512)])
        assert caught.value.errno == errno.EBADF
    demo.close_handle(demo.handle)
    demo.open("demo", "w")
    for opcode in (Opcode.COMPARE, Opcode.COMPARE_AND_WRITE, Opcode.OR_WRITE):
        with pytest.raises(OSError) as caught:
            demo.do(opcode, 0, 512, [(0, 0, 1024 if opcode == Opcode.COMPARE_AND_WRITE else 512)])
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(
    ("opcode", "length", "parts", "number"),
    [
        (Opcode.COMPARE, 1024, [(0, 0, 100)], errno.EINVAL),  # no multiple of its pattern
        (Opcode.COMPARE, 16384, [(0, 0, 8192)], errno.EINVAL),  # too long a pattern
        (Opcode.COMPARE, 1024, [(0, 0, 256), (1, 0, 256)], errno.EINVAL),
        (Opcode.COMPARE, 512, [(0, 0, 1024)], errno.EINVAL),
        (Opcode.COMPARE, 1 << 25, [], errno.EFBIG),
        (Opcode.COMPARE_AND_WRITE, 512, [(0, 0, 512)], errno.EINVAL),
        (Opcode.COMPARE_AND_WRITE, 512, [], errno.EINVAL),
        (Opcode.COMPARE_AND_WRITE, (1 << 20) + 512, [(0, 0, 1 << 20), (0, 0, (1 << 20) - 512)], errno.EINVAL),
        (Opcode.COMPARE_AND_WRITE, 512, [(0, 0, 512), (16, 0, 512)], errno.EINVAL),
        (Opcode.OR_WRITE, 512, [(0, 0, 256)], errno.EINVAL),
        (Opcode.OR_WRITE, 512, [], errno.EINVAL),
        (Opcode.OR_WRITE, 1 << 20, [(0, 0, 1 << 20)], 0),
    ],
)
def test_wrong_entries(
    demo: AbiClient, opcode: int, length: int, parts: list[tuple[int, int, int]], number: int
) -> None:
    """Each is refused with its errno, and the server goes on."""
    assert demo.wait(demo.push(opcode, 0, length, parts))[1] == number
    assert demo.read(0, 512) == bytes(512)


def test_a_fence_stops_what_waits_for_its_range(start_server: Start, connect: Connect) -> None:
    """A COMPARE AND WRITE behind a stuck write of the same block is discarded by a fence: at once, and not done."""
    delay = [{"volume": "demo", "operations": ["write"], "offset": 0, "length": 512, "seconds": 0.4, "count": 1}]
    server = start_server(shm_server={"delay": delay})
    stuck = connect(server)
    stuck.create()
    stuck.attach()
    stuck.open("demo", "rw", "one owner")
    client = connect(server)
    client.attach()
    client.open("demo", "rw", "one owner")
    write = stuck.push(Opcode.WRITE, 0, 512, put(stuck, b"1" * 512))
    stuck.publish()
    while not any(info.in_flight for info in client.call(control.ListHandles(client.id())).infos):
        pass
    waiting = client.push(Opcode.COMPARE_AND_WRITE, 0, 512, put(client, bytes(512) + b"2" * 512))
    client.publish()
    fence = client.fence()
    assert client.wait(waiting)[1] == errno.ECANCELED
    assert client.wait(fence)[1] == 0
    assert write not in stuck.done
    assert stuck.wait(write)[1] == 0
    assert client.read(0, 512) == b"1" * 512


def test_a_client_that_dies_lets_go_of_its_ranges(start_server: Start, connect: Connect) -> None:
    """A long COMPARE of a client that goes does not keep the range."""
    server = start_server()
    client = connect(server)
    client.create("demo", 1 << 30)
    client.attach()
    client.open("demo", "rw", "one owner")
    other = connect(server)
    other.attach()
    other.open("demo", "rw", "one owner")
    for _ in range(8):
        client.push(Opcode.COMPARE, 0, 32 << 20, [(0, 0, 512)])
    client.publish()
    client.close()
    assert swap(other, 0, bytes(512), b"x" * 512) == (0, 0)
