"""The path is real: payload goes from the socket into shared memory and back, and only the volume server completes it.

The socket methods are wrapped, and each view that is handed to the kernel is looked up by its address: in the segment,
in a connection's receive scratch, or elsewhere.
"""

from __future__ import annotations

import ctypes
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.net import driver
from tests.faults.targets import BLOCK, Bench, Disk, ThreadTarget, read_16, write_16

SMALL = 4096  # what is smaller may be a header, sense, or text
KIB = 1024


def address(view: Any) -> int | None:
    """Where a writable buffer lies; None for bytes, which are never shared memory."""
    view = memoryview(view)
    return None if view.readonly else ctypes.addressof(ctypes.c_char.from_buffer(view))


class Spy:
    """What the target's sockets are given, by where it lies."""

    def __init__(self, target: ThreadTarget, monkeypatch: pytest.MonkeyPatch) -> None:
        self._target = target
        self._port = target.address[1]
        memory = target.server.space.pool.memory  # type: ignore[union-attr]
        self._start = address(memory) or 0
        self._end = self._start + len(memory)
        self.received: Counter[str] = Counter()  # bytes, by place
        self.sent: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()  # the largest view that was offered to receive, by place
        self.strays: list[str] = []
        for name in ("recv_into", "recvmsg_into", "sendmsg"):
            monkeypatch.setattr(socket.socket, name, self._wrapper(name, getattr(socket.socket, name)))

    def _wrapper(self, name: str, original: Any) -> Any:
        def call(sock: socket.socket, what: Any, *more: Any) -> Any:
            if sock.family != socket.AF_INET or sock.getsockname()[1] != self._port:
                return original(sock, what, *more)
            views = [what] if name == "recv_into" else list(what)
            places = [self._place(view) for view in views]
            result = original(sock, what, *more)
            if name == "sendmsg":
                self._note(views, places, result, self.sent)
            else:
                for view, place in zip(views, places, strict=True):
                    self.largest[place] = max(self.largest[place], len(view))
                self._note(views, places, result if name == "recv_into" else result[0], self.received)
            strays = [f"{name}: {len(v)} bytes" for v, p in zip(views, places, strict=True) if p == "elsewhere"]
            self.strays += [stray for stray, v in zip(strays, views, strict=False) if len(v) >= SMALL]
            return result

        return call

    def _place(self, view: Any) -> str:
        at = address(view) if len(view) else None
        if at is None:
            return "bytes" if len(view) < SMALL else "elsewhere"
        if self._start <= at and at + len(view) <= self._end:
            return "segment"
        for connection in list(self._target.server.core.driver._by_connection):
            scratch = connection._framing._scratch
            start = address(scratch)
            assert start is not None
            if start <= at and at + len(view) <= start + len(scratch):
                return "scratch"
        return "elsewhere"

    @staticmethod
    def _note(views: Sequence[Any], places: Sequence[str], count: int, counter: Counter[str]) -> None:
        for view, place in zip(views, places, strict=True):
            piece = min(len(view), count)
            counter[place] += piece
            count -= piece

    def forget(self) -> None:
        for counter in (self.received, self.sent, self.largest):
            counter.clear()


@pytest.fixture
def spy(target: ThreadTarget, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    made = Spy(target, monkeypatch)
    yield made
    monkeypatch.undo()
    assert made.strays == []


SIZES = [4 * KIB, 8 * KIB, 12 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 64 * KIB + 512, 256 * KIB, 400 * KIB, 1024 * KIB]
WAYS: list[dict[str, Any]] = [
    {},  # immediate as far as it goes, then unsolicited, then R2Ts
    {"immediate_data": 0},  # unsolicited Data-Out, then R2Ts
    {"immediate_data": 0, "unsolicited_data": False},  # R2Ts for all of it
    {"unsolicited_data": False},  # immediate data, then R2Ts
]


def test_payload_lies_in_the_segment(disk: Disk, spy: Spy) -> None:
    """Mixed traffic of 4 KiB to 1 MiB, every way that data can come: each view of 4 KiB and more is shared memory."""
    chance = random.Random(2)
    written = read = 0
    for _ in range(12):
        jobs = []
        for place in range(8):
            size, way, lba = chance.choice(SIZES), chance.choice(WAYS), place * 2 * KIB
            data = chance.randbytes(size)
            tag = disk.initiator.command(write_16(lba, size // BLOCK), write=data, **way)
            jobs.append((tag, lba, data))
            written += size
        for tag, _, _ in jobs:
            assert disk.wait(tag).status == 0
        reads = [(disk.initiator.command(read_16(lba, len(d) // BLOCK), read=len(d)), d) for _, lba, d in jobs]
        for tag, data in reads:
            assert disk.wait(tag).data == data
            read += len(data)
    disk.nop_out()  # the target's thread has noted what it sent before
    assert spy.sent["segment"] == read, "every byte of data-in left from the segment"
    assert spy.received["segment"] > written * 0.8
    assert spy.received["segment"] + spy.received["scratch"] >= written
    assert set(spy.received) <= {"segment", "scratch"}
    assert set(spy.sent) <= {"segment", "bytes"}


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_large_payload_is_never_copied(disk: Disk, spy: Spy, way: int) -> None:
    """In a run of writes of 64 KiB and more nothing but headers is offered any other place than the segment."""
    data = random.Random(way).randbytes(1024 * KIB)
    disk.command(write_16(0, 128), write=data[: 64 * KIB], **WAYS[way])  # the first one may share the scratch
    spy.forget()
    total = 0
    for size in (64, 128, 256, 320, 1024) * 4:
        result = disk.command(write_16(total // BLOCK % 8192, size * 2), write=data[: size * KIB], **WAYS[way])
        assert result.status == 0
        total += size * KIB
    # A command without data opens the small scratch again: then less than 16 KiB of the next payload may come there.
    header_only = way in (0, 3)
    assert spy.largest["scratch"] <= (pdu.BHS_BYTES if header_only else 16 * KIB)
    assert spy.received["segment"] >= (total if header_only else total - 20 * 16 * KIB)


def test_immediate_data_of_4_kib(disk: Disk, spy: Spy) -> None:
    """Small immediate data may come out of the scratch, and is whole; nothing else is offered."""
    data = random.Random(7).randbytes(64 * 4 * KIB)
    tags = [
        disk.initiator.command(write_16(8 * number, 8), write=data[4096 * number : 4096 * (number + 1)])
        for number in range(64)
    ]
    assert [disk.wait(tag).status for tag in tags] == [0] * 64
    assert disk.read(0, 512) == data
    assert set(spy.received) <= {"segment", "scratch"}


def test_counters(bench: Bench, disk: Disk) -> None:
    """What the server says that a handle has moved is what its initiator has moved, to the byte."""
    chance = random.Random(3)
    written = read = writes = reads = 0
    for _ in range(30):
        size = chance.choice([512, *SIZES])
        disk.write(0, bytes(size))
        disk.read(0, size // BLOCK)
        written, read, writes, reads = written + size, read + size, writes + 1, reads + 1
    with bench.context() as context:
        (handle,) = context.list_handles()
    assert (handle.volume, handle.access) == ("demo", "rw")
    assert (handle.read_bytes, handle.written_bytes) == (read, written)
    assert (handle.reads, handle.writes, handle.in_flight) == (reads, writes, 0)


def test_nothing_completes_without_the_server(bench: Bench, disk: Disk) -> None:
    """While it is stopped (SIGSTOP) no READ or WRITE completes, and pings are answered; afterwards all complete."""
    data = random.Random(4).randbytes(64 * KIB)
    disk.write(0, data)
    bench.server.signal(signal.SIGSTOP)
    try:
        # As many as the first window has places.
        tags = [disk.initiator.command(write_16(1024 + 128 * n, 128), write=data) for n in range(2)]
        tags += [disk.initiator.command(write_16(4096 + n, 1), write=data[:512]) for n in range(2)]
        tags += [disk.initiator.command(read_16(64 * n, 64), read=32 * KIB) for n in range(2)]
        for number in range(50):
            assert disk.nop_out(b"%d" % number).data == b"%d" % number
        assert not any(disk.initiator.results[tag].is_complete for tag in tags)
    finally:
        bench.server.signal(signal.SIGCONT)
    assert [disk.wait(tag).status for tag in tags] == [0] * 6
    assert disk.initiator.results[tags[4]].data + disk.initiator.results[tags[5]].data == data
    assert disk.read(1024, 256) == data * 2


def test_slots_that_were_sent_serve_who_waits_for_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that each need all the space there is follow one another; not by the loop's tick."""
    monkeypatch.setattr(driver, "TICK_S", 1000.0)
    bench.serve()
    target = bench.target(segment_bytes=16 << 20)
    disk = bench.login(target)
    blocks = target.server.space.largest_bytes // BLOCK
    tags = [disk.initiator.command(read_16(0, blocks), read=blocks * BLOCK) for _ in range(6)]
    for tag in tags:
        assert disk.wait(tag).status == 0
