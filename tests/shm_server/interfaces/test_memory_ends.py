"""What a machine or a client leaves behind, gigabytes maybe, is given back while the server goes on."""

from __future__ import annotations

import gc
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from shm_server.dispatch import Attachment
from shm_server.interfaces.guest_memory import Region
from shm_server.server import Server
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.vhost_front_end import GUEST_BASE, IN, MEMORY_BYTES, OK, USER_BASE, FrontEnd

MIB = 1 << 20


class Gate:
    """Whoever comes by waits until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def before(self, action: Callable[..., None]) -> Callable[..., None]:
        def wait(*arguments: object) -> None:
            self.reached.set()
            assert self.opened.wait(20)
            action(*arguments)

        return wait


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


@pytest.fixture
def server(in_process: Callable[..., Server]) -> Server:
    return in_process()


@pytest.fixture
def context(server: Server) -> Iterator[Context]:
    with Context(server._settings.socket_path, segment_bytes=MIB) as context:
        context.create_volume("disk", 16 * MIB)
        yield context


def test_a_guest_that_goes(context: Context, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its memory is freed others are served; the next front end of its export, when it is."""
    monkeypatch.setattr(Region, "close", gate.before(Region.close))
    context.export_volume("disk", tmp_path / "vm.sock")
    FrontEnd(tmp_path / "vm.sock").setup().close()
    assert gate.reached.wait(20)
    assert context.stat_volume("disk").size_bytes == 16 * MIB
    with FrontEnd(tmp_path / "vm.sock") as following:
        following.send(1)
        assert context.stat_volume("disk").size_bytes == 16 * MIB
        gate.opened.set()
        following.receive()


def test_memory_that_is_taken_away(
    context: Context, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest whose memory changes hears of it when what it had is freed, and others do not wait for that."""
    monkeypatch.setattr(Region, "close", gate.before(Region.close))
    context.export_volume("disk", tmp_path / "vm.sock")
    with FrontEnd(tmp_path / "vm.sock") as guest:
        guest.setup()
        table = struct.pack("<IIQQQQ", 1, 0, GUEST_BASE, MEMORY_BYTES, USER_BASE, 0)
        guest.send(5, table, [guest.memory_fd], flags=1 | 8)
        assert gate.reached.wait(20)
        assert context.stat_volume("disk").size_bytes == 16 * MIB
        gate.opened.set()
        assert guest.receive() == bytes(8)
        assert guest.request(IN, read_bytes=512)[0] == OK


def test_a_client_that_goes(server: Server, context: Context, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its segment is freed others are served; the next one has all the space that it had."""
    share = server._settings.region_bytes * 3 // 4
    monkeypatch.setattr(Attachment, "_free_slots", gate.before(Attachment._free_slots))
    with AbiClient(server._settings.socket_path) as client:
        slots = client.attach(share).slot_count
    assert gate.reached.wait(20)
    assert context.stat_volume("disk").size_bytes == 16 * MIB
    gate.opened.set()
    with AbiClient(server._settings.socket_path) as client:
        assert client.attach(share).slot_count == slots


def test_what_was_in_flight_is_let_go(context: Context, tmp_path: Path) -> None:
    """The memory in which it is noted goes with its front end, and does not wait for a garbage collection."""

    def noted() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum("vhost-user-inflight" in os.readlink(link) for link in links if os.path.lexists(link))

    context.export_volume("disk", tmp_path / "vm.sock")
    gc.disable()
    try:
        for _ in range(3):
            with FrontEnd(tmp_path / "vm.sock") as guest:
                guest.negotiate()
                guest.track()
                guest.share_memory()
                guest.start_ring()
                assert guest.request(IN, read_bytes=512)[0] == OK
        with FrontEnd(tmp_path / "vm.sock") as following:
            following.ask(1)  # the others have gone
            assert not noted()
    finally:
        gc.enable()
