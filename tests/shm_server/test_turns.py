"""What a turn of the loop may take of the others: bytes for one machine or client, time until sockets are looked at."""

from __future__ import annotations

import mmap
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shm_server import dispatch
from shm_server import server as server_module
from shm_server.abi import layout
from shm_server.abi.ring import SubmissionProducer
from shm_server.dispatch import BATCH_ENTRIES, Attachment, Dispatcher
from shm_server.interfaces.front_end import BATCH_BYTES, BATCH_REQUESTS, LARGE_BATCH_REQUESTS, FrontEnd
from shm_server.manager import LOOKED_AT_ONCE, Manager
from shm_server.runtime import Job, Runtime
from shm_server.server import POLL_S, Server, Settings


def test_sockets_are_looked_at_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind every turn that is long, and not behind each of many that are short."""
    server: Any = Server(Settings(tmp_path / "pool", tmp_path / "shm.sock"))
    now, turns, looks = 100.0, 0, []
    durations = iter([2 * POLL_S] * 5 + [POLL_S / 100] * 50)

    def serve() -> bool:
        nonlocal now, turns
        duration = next(durations, None)
        if duration is None:
            return False
        now, turns = now + duration, turns + 1
        return True

    monkeypatch.setattr(server_module.time, "monotonic", lambda: now)
    server._serve, server._may_sleep = serve, lambda: True
    server._poll = lambda timeout_s: looks.append((turns, timeout_s))
    server._runtime = SimpleNamespace(timeout_s=lambda: 1.0)
    server._turn()
    assert looks == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (55, 1.0)]


def test_a_list_of_many_volumes_gives_way(runtime: Runtime) -> None:
    """What a volume takes is asked of its files: between some of them others have their turn. One may go meanwhile."""
    asked: list[str] = []

    async def measure(_names: object) -> None: ...

    def stat(name: str) -> str:
        asked.append(name)
        return name

    names = [f"volume{number:03}" for number in range(3 * LOOKED_AT_ONCE)]
    records = dict.fromkeys(names)
    manager: Any = SimpleNamespace(_measure=measure, _records=records, _runtime=runtime, layers={}, stat=stat)
    answers: list[Any] = []
    Job(Manager.look_all(manager), lambda found, _error: answers.append(found)).start()
    assert asked == names[:LOOKED_AT_ONCE]
    del records[names[-1]]
    while not answers:
        runtime.step()
    assert answers == [names[:-1]]


class Ring:
    """It always has requests, each of ``size`` bytes."""

    is_active, has_pending = True, False

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken: list[int] = []

    def take(self, _memory: object, limit: int) -> list[int]:
        self.taken.append(limit)
        return [self.size] * limit


@pytest.fixture
def machine() -> Iterator[Any]:
    """A front end whose device does nothing but count."""
    handle = SimpleNamespace(words="", read_bytes=0, written_bytes=0, volume=SimpleNamespace(runtime=None))
    watching: Any = SimpleNamespace(watch=lambda *_: None, unwatch=lambda *_: None)
    ours, theirs = socket.socketpair()
    front_end: Any = FrontEnd(watching, ours, handle, (1, 0), lambda: None)  # type: ignore[arg-type]

    def start(size: int) -> None:
        handle.read_bytes += size

    front_end._device = SimpleNamespace(start=start)
    with ours, theirs:
        yield front_end


def test_rings_with_much_to_move_take_turns(machine: Any) -> None:
    """A machine has 4 MiB in a turn, from its second on, and goes on with the ring that had none."""
    rings = [Ring(1 << 20) for _ in range(3)]
    machine._running = rings
    for _ in range(6):
        assert machine.serve()
    assert [ring.taken for ring in rings] == [[BATCH_REQUESTS, LARGE_BATCH_REQUESTS]] + [[LARGE_BATCH_REQUESTS] * 2] * 2
    assert LARGE_BATCH_REQUESTS << 20 == BATCH_BYTES


def test_rings_with_little_to_move_are_all_served(machine: Any) -> None:
    """Each in every turn, in whole batches, as soon as its requests are small again."""
    rings = [Ring(4096) for _ in range(8)]
    machine._running, machine._batch = rings, LARGE_BATCH_REQUESTS
    for _ in range(3):
        assert machine.serve()
    assert [ring.taken for ring in rings] == [[LARGE_BATCH_REQUESTS, BATCH_REQUESTS, BATCH_REQUESTS]] * 8


@pytest.mark.parametrize(("length", "served"), [(512, BATCH_ENTRIES), (1 << 20, dispatch.BATCH_BYTES >> 20)])
def test_a_client_with_a_full_ring_leaves_turns_to_others(length: int, served: int) -> None:
    """As many entries, or as many bytes, and then it is somebody else's turn; the rest stands in the ring."""
    count = 2 * BATCH_ENTRIES
    rings = mmap.mmap(-1, layout.ring_mapping_bytes(count, count))
    bell: Any = SimpleNamespace(ring=lambda: None)
    attachment = Attachment("", rings, mmap.mmap(-1, 1 << 20), -1, (count, count), bell)
    volume = SimpleNamespace(size_bytes=1 << 30, name="demo")
    read: Any = SimpleNamespace(epoch=1, volume=volume, reads=0, read_bytes=0, read_now=lambda views, _: len(views[0]))
    attachment.handles[1] = read
    client = SubmissionProducer(memoryview(rings), count)
    for tag in range(count):
        client.push_run(int(layout.Opcode.READ), 0, 1, 1, 0, length, tag, 0)
    client.publish()
    dispatcher = Dispatcher(Runtime())
    for turn in (1, 2):
        assert dispatcher.serve(attachment) == count - (turn - 1) * served
        assert (read.reads, read.read_bytes) == (turn * served, turn * served * length)
