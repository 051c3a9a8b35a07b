"""Connections that threads borrow: their number, and the server's going, coming and changing."""

from __future__ import annotations

import ctypes
import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsi_ovs.interfaces import lanes as rooms
from iscsi_ovs.interfaces.lanes import Lane, Lanes, Volume
from iscsi_ovs.shm_client import Context
from tests.interop import processes
from tests.storage.server_process import ServerProcess

MIB = 1 << 20
MakeLanes = Callable[..., Lanes]


@pytest.fixture
def server(short_dir: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(short_dir, shm_region_size=4 * MIB)
    made.start()
    with Context(made.socket_path) as context:
        context.create_volume("demo", 8 * MIB)
    yield made
    made.stop()


@pytest.fixture
def make_lanes(server: ServerProcess) -> Iterator[MakeLanes]:
    made: list[Lanes] = []

    def make(patience_s: float = 20.0) -> Lanes:
        made.append(Lanes(server.socket_path, "a test", patience_s))
        made[-1].start()
        return made[-1]

    yield make
    for lanes in made:
        lanes.close()


def memory(data: bytes | int) -> ctypes._Pointer[ctypes.c_byte]:
    """As libfuse hands it over."""
    return ctypes.cast(ctypes.create_string_buffer(data), ctypes.POINTER(ctypes.c_byte))


def held(server: ServerProcess) -> str | None:
    with Context(server.socket_path) as context:
        return context.stat_volume("demo").held


def test_a_server_that_stays_away_is_eio(server: ServerProcess, make_lanes: MakeLanes) -> None:
    """… after the patience, and not for ever: it comes back, and what comes then is done."""
    lanes, volume = make_lanes(0.2), Volume("demo")
    assert lanes.perform(Lane.write, volume, memory(b"abcd"), 4, 100, True) == 4
    server.kill()
    with pytest.raises(OSError) as raised:
        lanes.perform(Lane.flush, volume)
    assert raised.value.errno == errno.EIO
    server.start()
    target = memory(4)
    assert lanes.perform(Lane.read, volume, target, 4, 100) == 4
    assert ctypes.string_at(target, 4) == b"abcd"


def test_an_operation_waits_for_the_server(server: ServerProcess, make_lanes: MakeLanes) -> None:
    """What begins while it is away is done when it is there again."""
    lanes, volume = make_lanes(), Volume("demo")
    lanes.perform(Lane.open, volume, True)
    server.kill()
    done: list[int] = []
    thread = threading.Thread(
        target=lambda: done.append(lanes.perform(Lane.write, volume, memory(b"late"), 4, 0, False))
    )
    thread.start()
    thread.join(0.1)
    assert not done
    server.start()
    thread.join(10)
    assert done == [4]


def test_an_idle_lane_comes_back_and_holds_what_is_written(server: ServerProcess, make_lanes: MakeLanes) -> None:
    """The keeper opens for writing again what is held for writing, before anybody asks."""
    lanes, volume = make_lanes(), Volume("demo")
    lanes.perform(Lane.open, volume, True)
    volume.is_written = True
    lanes.written = lambda: [volume]
    server.kill()
    server.start()
    processes.wait_until(lambda: held(server) == "a test", 10.0, "the volume held again")


def test_another_volume_of_the_same_name_is_stale(server: ServerProcess, make_lanes: MakeLanes) -> None:
    """A UUID that is not the one that was opened: ESTALE, and nothing is written to it."""
    lanes, volume = make_lanes(), Volume("demo")
    lanes.perform(Lane.open, volume, True)
    lanes.let_go(volume)
    with Context(server.socket_path) as context:
        context.remove_volume("demo")
        with pytest.raises(OSError) as raised:
            lanes.perform(Lane.open, volume, True)
        assert raised.value.errno == errno.ESTALE
        context.create_volume("demo", MIB)
        with pytest.raises(OSError) as raised:
            lanes.perform(Lane.write, volume, memory(b"x"), 1, 0, False)
        assert raised.value.errno == errno.ESTALE
        assert context.stat_volume("demo").allocated_bytes == 0


def test_a_region_that_is_short_makes_fewer_lanes(server: ServerProcess, make_lanes: MakeLanes) -> None:
    """Where the server has no room for another connection, threads take turns on those that there are."""
    lanes, volume = make_lanes(), Volume("demo")
    inside, failures = threading.Barrier(2), []

    def both(lane: Lane) -> None:  # two lanes there must be
        inside.wait(10)

    def work() -> None:
        try:
            lanes.perform(both)
            for number in range(20):
                assert lanes.perform(Lane.write, volume, memory(bytes([number])), 1, number, False) == 1
        except BaseException as error:
            failures.append(error)

    with Context(server.socket_path, segment_bytes=MIB) as greedy:
        greedy.allocate(MIB)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
        assert len(greedy.list_handles()) <= 3


def test_a_small_segment_moves_large_requests_in_pieces(
    server: ServerProcess, make_lanes: MakeLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer smaller than a request costs turns, not bytes."""
    monkeypatch.setattr(rooms, "_SMALLER", (64 << 10,))
    lanes, volume = make_lanes(), Volume("demo")
    data = bytes(range(256)) * 800
    assert lanes.perform(Lane.write, volume, memory(data), len(data), 4097, False) == len(data)
    target = memory(8 * MIB)
    assert lanes.perform(Lane.read, volume, target, len(data), 4097) == len(data)
    assert ctypes.string_at(target, len(data)) == data
    assert lanes.perform(Lane.read, volume, target, MIB, 8 * MIB - 100_000) == 100_000
