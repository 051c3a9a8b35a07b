"""The door as a virtual machine finds it: a real server, a front end of our own, a volume seen from both sides."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from tests.interop.processes import wait_until
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.packed_front_end import PackedFrontEnd
from tests.shm_server.vhost_front_end import (
    CONFIG_WCE,
    DISCARD,
    EVENT_INDEX,
    FLUSH,
    FLUSH_KIND,
    GET_ID,
    IN,
    INDIRECT,
    IO_ERROR,
    MEMORY_BYTES,
    OK,
    OUT,
    PROTOCOL,
    READ_ONLY,
    UNSUPPORTED,
    VERSION_1,
    WRITE_ZEROES,
    FrontEnd,
)

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def context(server: ServerProcess) -> Iterator[Context]:
    with Context(server.socket_path) as made:
        made.create_volume("disk", SIZE)
        yield made


class SealedFrontEnd(FrontEnd):
    seals = True


class SealedPackedFrontEnd(PackedFrontEnd):
    seals = True


@pytest.fixture(params=[FrontEnd, SealedFrontEnd, SealedPackedFrontEnd], ids=["split", "sealed", "packed"])
def kind(request: pytest.FixtureRequest) -> type[FrontEnd]:
    """The format of the machine's rings, and whether its memory may be loaded from."""
    assert issubclass(request.param, FrontEnd)
    return request.param


@pytest.fixture
def front_end(context: Context, tmp_path: Path, kind: type[FrontEnd]) -> Iterator[FrontEnd]:
    """A machine that runs on the volume "disk"."""
    context.export_volume("disk", tmp_path / "vm.sock")
    with kind(tmp_path / "vm.sock") as made:
        yield made.setup()


def contents(context: Context, offset: int, length: int) -> bytes:
    with context.open("disk", os.O_RDONLY) as volume:
        buffer = context.allocate(length)
        try:
            assert volume.read(buffer, length, offset) == length
            return bytes(buffer.data[:length])
        finally:
            context.deallocate(buffer)


# What a disk does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "features",
    [
        None,
        VERSION_1 | FLUSH,
        VERSION_1 | FLUSH | PROTOCOL,
        VERSION_1 | FLUSH | EVENT_INDEX,
        VERSION_1 | INDIRECT,
    ],
    ids=["all", "none", "protocol", "event index", "indirect, written through"],
)
def test_what_is_written_is_there(context: Context, tmp_path: Path, kind: type[FrontEnd], features: int | None) -> None:
    """Bytes written by the guest are the volume's, and bytes of the volume the guest's, whatever was negotiated."""
    data = os.urandom(96 << 10)
    context.export_volume("disk", tmp_path / "vm.sock")
    with kind(tmp_path / "vm.sock") as front_end:
        front_end.setup(features)
        assert front_end.request(OUT, 8, data) == (OK, b"")
        assert front_end.request(FLUSH_KIND) == (OK, b"")
        assert front_end.request(IN, 8, read_bytes=len(data)) == (OK, data)
        assert front_end.request(IN, 0, read_bytes=4096) == (OK, bytes(4096))
    assert contents(context, 4096, len(data)) == data


def test_the_ring_goes_round(front_end: FrontEnd) -> None:
    """Requests beyond the ring's size, past the byte's end of its index and past its 16 bits' end are all answered."""
    for number in range(300):
        assert front_end.request(OUT, number, bytes([number & 255]) * 512)[0] == OK
    assert front_end.available == 300
    assert front_end.stop_ring() == front_end.base()
    front_end.move(0xFFF0)
    front_end.start_ring()
    for number in range(40):
        assert front_end.request(IN, number, read_bytes=512) == (OK, bytes([number]) * 512)
    assert front_end.available & 0xFFFF == (0xFFF0 + 40) & 0xFFFF
    assert front_end.stop_ring() == front_end.base()


def test_many_at_once_with_buffers_cut_anywhere(front_end: FrontEnd) -> None:
    """Twenty requests in flight, whose header, data and status lie in the oddest of pieces."""
    memory, heads = front_end.memory, []
    for number in range(10):
        at = 0x30000 + number * 0x2000
        struct.pack_into("<IIQ", memory, at, OUT, 0, number * 2)
        memory[at + 16 : at + 16 + 1024] = bytes([number + 1]) * 1024
        # header and data in one stream, cut at 7, 19 and 600 bytes; the status alone
        cuts = [0, 7, 19, 600, 16 + 1024]
        buffers = [(at + a, b - a, False) for a, b in itertools.pairwise(cuts)] + [(at + 0x1000, 1, True)]
        front_end.chain(buffers, head=6 * number)
        heads.append(6 * number)
    front_end.offer(*heads)
    assert sorted(head for head, written in front_end.await_used(10)) == heads
    assert all(memory[0x30000 + number * 0x2000 + 0x1000] == OK for number in range(10))
    found = front_end.request(IN, 0, read_bytes=20 * 512)[1]
    assert found == b"".join(bytes([number + 1]) * 1024 for number in range(10))


def test_discard_and_write_zeroes(front_end: FrontEnd, context: Context) -> None:
    """Discarded ranges read zeros and give their space back; zeroed ones keep it unless they may be unmapped."""
    data = os.urandom(MIB)
    for at in range(3):
        assert front_end.request(OUT, at * 2048, data)[0] == OK
    full = context.stat_volume("disk").allocated_bytes
    assert full >= 3 * MIB
    assert front_end.request(DISCARD, 0, struct.pack("<QIIQII", 0, 1024, 0, 1024, 1024, 0))[0] == OK
    assert context.stat_volume("disk").allocated_bytes <= full - MIB
    assert front_end.request(WRITE_ZEROES, 0, struct.pack("<QII", 2048, 2048, 1))[0] == OK
    assert context.stat_volume("disk").allocated_bytes <= full - 2 * MIB
    assert front_end.request(WRITE_ZEROES, 0, struct.pack("<QII", 4096, 2048, 0))[0] == OK
    assert context.stat_volume("disk").allocated_bytes >= MIB
    assert contents(context, 0, 3 * MIB) == bytes(3 * MIB)
    # flags that are not known, too many sectors, no whole range: not supported; beyond the end: an error
    for kind, payload, status in (
        (DISCARD, struct.pack("<QII", 0, 8, 1), UNSUPPORTED),
        (WRITE_ZEROES, struct.pack("<QII", 0, 8, 2), UNSUPPORTED),
        (DISCARD, struct.pack("<QII", 0, (1 << 22) + 8, 0), UNSUPPORTED),
        (DISCARD, b"\0" * 15, UNSUPPORTED),
        (DISCARD, struct.pack("<QII", SIZE // 512 - 7, 8, 0), IO_ERROR),
    ):
        assert front_end.request(kind, 0, payload)[0] == status


def test_identity_and_limits(front_end: FrontEnd, context: Context) -> None:
    """GET_ID begins the serial number; the configuration tells size, block sizes, queues and limits as they are."""
    status, serial = front_end.request(GET_ID, read_bytes=20)
    assert (status, serial.decode()) == (OK, context.stat_volume("disk").uuid[:20])
    config = front_end.config()
    assert struct.unpack_from("<Q", config)[0] == SIZE // 512
    assert struct.unpack_from("<II", config, 12)[0] == 126
    assert struct.unpack_from("<I", config, 20)[0] == 512
    assert (config[24], struct.unpack_from("<H", config, 34)[0]) == (3, front_end.ask_u64(17))
    assert struct.unpack_from("<III", config, 36) == (1 << 22, 16, 8)
    assert front_end.config(256)[60:] == bytes(196)


def test_requests_that_go_wrong_cost_themselves_only(front_end: FrontEnd) -> None:
    """Beyond the end, half a sector, an unknown kind: each has its status, and the next request is served."""
    assert front_end.request(IN, SIZE // 512, read_bytes=512)[0] == IO_ERROR
    assert front_end.request(OUT, (1 << 64) - 1, b"x" * 512)[0] == IO_ERROR
    assert front_end.request(IN, 0, read_bytes=511)[0] == IO_ERROR
    assert front_end.request(77)[0] == UNSUPPORTED
    assert front_end.request(OUT, 0, b"y" * 512)[0] == OK


def test_write_through(front_end: FrontEnd) -> None:
    """The guest may switch the write cache off by the configuration, and only that."""
    assert front_end.features & CONFIG_WCE
    assert front_end.config()[32] == 1
    front_end.acknowledged(25, struct.pack("<III", 32, 1, 0) + b"\0")
    assert front_end.config()[32] == 0
    assert front_end.request(OUT, 0, b"z" * 4096)[0] == OK
    front_end.send(25, struct.pack("<III", 0, 8, 0) + bytes(8))
    with pytest.raises(EOFError):
        front_end.ask(1)


# Management ---------------------------------------------------------------------------------------------------------


def test_where_no_socket_can_be(context: Context, tmp_path: Path) -> None:
    """The error says which path; nothing holds the volume afterwards."""
    with pytest.raises(FileNotFoundError, match=f"no socket at {tmp_path}/nowhere/vm.sock"):
        context.export_volume("disk", tmp_path / "nowhere" / "vm.sock")
    context.open("disk").close()


def test_one_writer(server: ServerProcess, context: Context, tmp_path: Path) -> None:
    """An exported volume is held, with words that name the export; a held one is not exported, naming who holds it."""
    path = tmp_path / "vm.sock"
    context.export_volume("disk", path)
    assert context.stat_volume("disk").held == f"vhost-user export {path}"
    with pytest.raises(OSError, match="held by vhost-user export"):
        context.open("disk")
    with pytest.raises(OSError, match="held by vhost-user export"):
        context.remove_volume("disk")
    with pytest.raises(FileExistsError):
        context.export_volume("disk", path)
    context.unexport_volume("disk")
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        context.unexport_volume("disk")
    with context.open("disk"), pytest.raises(OSError, match="held by shm_client"):
        context.export_volume("disk", path)
    assert not path.exists()
    context.export_volume("disk", path)
    context.remove_volume("disk", force=True)
    assert not path.exists()


def test_exports_of_the_configuration(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """An export that stands in vpool.json begins with the server, or when its volume is made, and after each start."""
    rules = [{"volume": name, "vhost_user": str(tmp_path / name)} for name in ("disk", "never")]
    server = start_server(shm_server={"exports": rules})
    with Context(server.socket_path) as context:
        context.create_volume("disk", SIZE)
        wait_until(lambda: context.stat_volume("disk").held, 10, "the export")
        with FrontEnd(tmp_path / "disk") as front_end:
            front_end.setup()
            assert front_end.request(OUT, 0, b"k" * 512)[0] == OK
            server.kill()
    server.start()
    with Context(server.socket_path) as context:
        wait_until(lambda: context.stat_volume("disk").held, 10, "the export")
        with FrontEnd(tmp_path / "disk") as front_end:
            front_end.setup()
            assert front_end.request(IN, 0, read_bytes=512) == (OK, b"k" * 512)
    assert "volume never is not exported" in server.log()
    assert server.stop() == 0
    assert not (tmp_path / "disk").exists()


def test_the_death_of_the_server(
    start_server: Callable[..., ServerProcess], tmp_path: Path, kind: type[FrontEnd]
) -> None:
    """A front end that reconnects to the next server finds every request answered that was under way, in its order.

    The first server has done two of them out of turn, and dies with five open, two of them writes of the same sector.
    """
    path = tmp_path / "vm.sock"
    exports = [{"volume": "disk", "vhost_user": str(path)}]
    delay = [{"volume": "disk", "operations": ["write"], "offset": 0, "length": 4096, "seconds": 60.0}]
    server = start_server(shm_server={"exports": exports, "delay": delay})
    with Context(server.socket_path) as context, ExitStack() as stack:
        context.create_volume("disk", SIZE)
        wait_until(path.exists, 10, "the export")
        front_end = stack.enter_context(kind(path))
        front_end.negotiate()
        front_end.track()
        front_end.share_memory()
        front_end.start_ring()
        memory = front_end.memory
        # heads 0, 3, …: sector and byte; those below sector 8 are slow
        writes = [(0, b"a"), (8, b"b"), (1, b"c"), (2, b"d"), (9, b"e"), (1, b"f"), (3, b"g")]
        for number, (sector, byte) in enumerate(writes):
            at = 0x30000 + number * 0x1000
            struct.pack_into("<IIQ", memory, at, OUT, 0, sector)
            memory[at + 16 : at + 528] = byte * 512
            front_end.chain([(at, 528, False), (at + 0x800, 1, True)], head=3 * number)
        front_end.offer(*(3 * number for number in range(len(writes))))
        assert sorted(head for head, _ in front_end.await_used(2)) == [3, 12]
        wait_until(lambda: context.list_handles()[0].in_flight == 5, 10, "five requests in flight")
        server.kill()
        config = json.loads(server.config.read_text())
        del config["shm_server"]["delay"]
        server.config.write_text(json.dumps(config))
        server.start()
        wait_until(lambda: front_end.reconnect(path), 10, "the next server's export")
        front_end.negotiate()
        front_end.track()
        front_end.share_memory()
        available, front_end.available = front_end.available, front_end.used  # all that QEMU knows then
        front_end.start_ring()
        front_end.available = available
        assert sorted(head for head, _ in front_end.await_used(5)) == [0, 6, 9, 15, 18]
        found = front_end.request(IN, 0, read_bytes=10 * 512)[1]
        assert [found[sector * 512 : sector * 512 + 1] for sector in (0, 1, 2, 3, 8, 9)] == [
            b"a", b"f", b"d", b"g", b"b", b"e",
        ]  # fmt: skip
        assert front_end.stop_ring() == front_end.base()


def test_read_only(context: Context, tmp_path: Path) -> None:
    """A read-only export stands beside a writer, says so, and writes nothing."""
    with context.open("disk") as volume:
        context.export_volume("disk", tmp_path / "vm.sock", read_only=True)
        buffer = context.allocate(512)
        buffer.data[:] = b"w" * 512
        volume.write(buffer, 512, 0)
        with FrontEnd(tmp_path / "vm.sock") as front_end:
            front_end.setup()
            assert front_end.features & READ_ONLY
            assert front_end.request(IN, 0, read_bytes=512) == (OK, b"w" * 512)
            for kind, data in (
                (OUT, b"x" * 512),
                (DISCARD, struct.pack("<QII", 0, 8, 0)),
                (WRITE_ZEROES, struct.pack("<QII", 0, 8, 0)),
            ):
                assert front_end.request(kind, 0, data)[0] == IO_ERROR
    assert contents(context, 0, 512) == b"w" * 512


def test_a_snapshot_as_a_disk(context: Context, tmp_path: Path, kind: type[FrontEnd]) -> None:
    """VOLUME@SNAPSHOT is a read-only disk, with an identity of its own, beside who writes the volume; it stays until
    it is exported no more."""
    with context.open("disk") as volume:
        buffer = context.allocate(512)
        for number, data in enumerate((b"t", b"n")):
            buffer.data[:] = data * 512
            volume.write(buffer, 512, 0)
            if number == 0:
                context.create_snapshot("disk", "s")
                context.truncate_volume("disk", 2 * SIZE)
        context.export_volume("disk@s", tmp_path / "vm.sock")
        with kind(tmp_path / "vm.sock") as front_end:
            front_end.setup()
            assert front_end.features & READ_ONLY
            assert front_end.request(IN, 0, read_bytes=1024) == (OK, b"t" * 512 + bytes(512))
            for request, payload in (
                (OUT, b"x" * 512),
                (DISCARD, struct.pack("<QII", 0, 8, 0)),
                (WRITE_ZEROES, struct.pack("<QII", 0, 8, 0)),
            ):
                assert front_end.request(request, 0, payload)[0] == IO_ERROR
            assert front_end.request(FLUSH_KIND)[0] == OK
            assert struct.unpack_from("<Q", front_end.config()) == (SIZE // 512,)
            with pytest.raises(OSError, match="snapshot disk@s is held by vhost-user export"):
                context.remove_snapshot("disk", "s")
        context.unexport_volume("disk@s")
    context.remove_snapshot("disk", "s")


def test_a_snapshot_under_a_running_machine(front_end: FrontEnd, context: Context, tmp_path: Path) -> None:
    """What was written before is in its clone, what is written after is not; the machine goes on, on the new layer."""
    before, after = os.urandom(64 << 10), os.urandom(4096)
    assert front_end.request(OUT, 0, before)[0] == OK
    context.create_snapshot("disk", "monday")
    assert front_end.request(OUT, 8, after)[0] == OK
    assert front_end.request(DISCARD, 0, struct.pack("<QII", 16, 8, 0))[0] == OK
    expected = before[:4096] + after + bytes(4096) + before[3 * 4096 :]
    assert front_end.request(IN, 0, read_bytes=len(before)) == (OK, expected)
    with pytest.raises(OSError, match="vhost-user export"):
        context.rollback_snapshot("disk", "monday")
    context.clone_volume("disk", "monday", "copy")
    context.export_volume("copy", tmp_path / "copy.sock")
    with FrontEnd(tmp_path / "copy.sock") as other:
        other.setup()
        assert other.request(IN, 0, read_bytes=len(before)) == (OK, before)
        assert other.request(OUT, 0, after)[0] == OK
    assert front_end.request(IN, 0, read_bytes=len(before)) == (OK, expected)


def test_the_next_machine_waits_for_the_one_before(context: Context, front_end: FrontEnd, tmp_path: Path) -> None:
    """A second front end is served when the first has gone, and finds what that wrote."""
    assert front_end.request(OUT, 1, b"1" * 512)[0] == OK
    with FrontEnd(tmp_path / "vm.sock") as second:
        second.send(1)
        front_end.socket.close()
        second.receive()
        second.setup()
        assert second.request(IN, 1, read_bytes=512) == (OK, b"1" * 512)


def test_growth_is_told(front_end: FrontEnd, context: Context) -> None:
    """A resize arrives on the channel to the front end as a change of the configuration, which has the new size."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        front_end.acknowledged(21, b"", [theirs.fileno()])
        context.truncate_volume("disk", 2 * SIZE)
        assert struct.unpack("<III", ours.recv(64)) == (2, 1, 0)
    assert struct.unpack_from("<Q", front_end.config())[0] == 2 * SIZE // 512
    assert front_end.request(OUT, 2 * SIZE // 512 - 1, b"e" * 512)[0] == OK


def test_unexport_waits_for_what_has_started(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """A ring that stops and an export that ends wait for a write in progress: it is on the volume afterwards."""
    slow = {"delay": [{"volume": "disk", "operations": ["write"], "offset": 0, "length": 512, "seconds": 0.5}]}
    server = start_server(shm_server=slow)
    with Context(server.socket_path) as context:
        context.create_volume("disk", SIZE)
        context.export_volume("disk", tmp_path / "vm.sock")
        with FrontEnd(tmp_path / "vm.sock") as front_end:
            front_end.setup(VERSION_1 | FLUSH | PROTOCOL)
            memory = front_end.memory
            for attempt in (b"a", b"b"):
                struct.pack_into("<IIQ", memory, 0x30000, OUT, 0, 0)
                memory[0x30010 : 0x30010 + 512] = attempt * 512
                front_end.chain([(0x30000, 528, False), (0x31000, 1, True)])
                front_end.offer(0)
                wait_until(lambda: context.list_handles()[0].in_flight, 10, "a request in flight")
                if attempt == b"a":
                    assert front_end.stop_ring() == front_end.base()
                    assert front_end.await_used() == [(0, 1)]
                    front_end.start_ring()
            context.unexport_volume("disk")
        assert contents(context, 0, 512) == b"b" * 512


def test_a_ring_stops_although_an_answer_is_lost(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """A request whose status can't be written, for its memory is gone, does not keep its ring from stopping."""
    slow = {"delay": [{"volume": "disk", "operations": ["write"], "offset": 0, "length": 512, "seconds": 0.3}]}
    server = start_server(shm_server=slow)
    with Context(server.socket_path) as context:
        context.create_volume("disk", SIZE)
        context.export_volume("disk", tmp_path / "vm.sock")
        with FrontEnd(tmp_path / "vm.sock") as front_end:
            front_end.setup()
            status = MEMORY_BYTES - 4096
            struct.pack_into("<IIQ", front_end.memory, 0x30000, OUT, 0, 0)
            front_end.chain([(0x30000, 528, False), (status, 1, True)])
            front_end.offer(0)
            wait_until(lambda: context.list_handles()[0].in_flight, 10, "a request in flight")
            os.ftruncate(front_end.memory_fd, status)
            fcntl.fcntl(front_end.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)  # a write beyond its end fails
            assert front_end.stop_ring() == 1
        assert "can't be answered" in server.log()


def test_killed_machine(front_end: FrontEnd, server: ServerProcess, context: Context, tmp_path: Path) -> None:
    """Front ends that come and go leave no descriptor behind."""
    front_end.socket.close()
    with FrontEnd(tmp_path / "vm.sock") as other:
        other.setup()
        before = server.open_files()
    for _ in range(5):
        with FrontEnd(tmp_path / "vm.sock") as other:
            other.setup()
            assert other.request(IN, read_bytes=512)[0] == OK
            assert server.open_files() == before
