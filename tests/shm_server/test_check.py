"""A check through a real server: how far it has come, who leaves in the middle; bad pages by library and by a guest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context, Volume
from shm_server.abi import control
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.vhost_front_end import IN, IO_ERROR, OK, OUT, FrontEnd

SIZE = 16 << 20
PAGE = 4096


def fill(context: Context, volume: Volume) -> None:
    buffer = context.allocate(1 << 20)
    for at in range(0, SIZE, 1 << 20):
        buffer.data[:] = os.urandom(1 << 20)
        volume.write(buffer, 1 << 20, at)
    context.deallocate(buffer)


def corrupt(server: ServerProcess, offset: int) -> None:
    fd = os.open(server.pool / "volumes" / "demo.raw", os.O_RDWR)
    byte = os.pread(fd, 1, offset)
    os.pwrite(fd, bytes((byte[0] ^ 1,)), offset)
    os.close(fd)


def test_a_check_tells_how_far_it_has_come(server: ServerProcess) -> None:
    """Bytes done and in all, growing; the last word is that all is done. Without a volume there is nothing to check."""
    with Context(server.socket_path) as context:
        context.create_volume("demo", SIZE)
        with context.open("demo") as volume:
            fill(context, volume)
            told: list[tuple[int, int]] = []
            context.create_snapshot("demo", "old")
            checked = context.check_volume("demo", on_progress=lambda *state: told.append(state))
        assert (checked.layers, checked.pages, checked.problems) == (1, SIZE // PAGE, 0)
        assert told == sorted(told)
        assert told[-1][0] == told[-1][1] >= SIZE
        with pytest.raises(FileNotFoundError):
            context.check_volume("nothing")


def test_who_leaves_in_the_middle_ends_a_check(
    start_server: Callable[..., ServerProcess], connect: Callable[..., AbiClient]
) -> None:
    """And the next one is served; so is a server's end."""
    server = start_server(shm_server={"checksum_bytes_per_s": 1})  # nothing is done before the check
    with Context(server.socket_path) as context:
        context.create_volume("demo", SIZE)
        with context.open("demo") as volume:
            fill(context, volume)
        context.create_snapshot("demo", "old")
        client = connect(server)
        client.send(control.Check(client.id(), "demo"))
        assert isinstance(client.event(), control.Progressed)
        client.close()
        assert context.check_volume("demo").pages == SIZE // PAGE
        client = connect(server)
        client.send(control.Check(client.id(), "demo"))
        client.event()
        assert server.stop() == 0
    assert "mistake of the server" not in server.log()


def test_the_library_says_eio_and_where(server: ServerProcess) -> None:
    """The completion's detail is the page's offset in the request; the rest of the volume is read as ever."""
    with Context(server.socket_path) as context:
        context.create_volume("demo", SIZE)
        with context.open("demo") as volume:
            fill(context, volume)
            context.create_snapshot("demo", "old")
            assert context.check_volume("demo").problems == 0
            corrupt(server, 5 * PAGE + 9)
            buffer = context.allocate(8 * PAGE)
            for length in (8 * PAGE, 5 * PAGE):
                read = volume.aio_read(buffer, length, PAGE)
                read.wait()
                assert (read.error(), read.detail) == (errno.EIO, 4 * PAGE)
            assert volume.read(buffer, 4 * PAGE, PAGE) == 4 * PAGE
        assert [each.page for each in context.check_volume("demo").told] == [5]


def test_a_guest_gets_an_io_error(server: ServerProcess, tmp_path: Path) -> None:
    """From a page that it has read before as from one that it has not; its other requests are served."""
    with Context(server.socket_path) as context:
        context.create_volume("demo", SIZE)
        with context.open("demo") as volume:
            fill(context, volume)
        context.create_snapshot("demo", "old")
        assert context.check_volume("demo").problems == 0
        context.export_volume("demo", tmp_path / "vm.sock")
        with FrontEnd(tmp_path / "vm.sock") as front_end:
            front_end.setup()
            sector = PAGE // 512
            assert front_end.request(IN, 3 * sector, read_bytes=PAGE)[0] == OK
            for page in (3, 4):
                corrupt(server, page * PAGE)
                assert front_end.request(IN, page * sector, read_bytes=PAGE)[0] == IO_ERROR
                assert front_end.request(OUT, page * sector + 1, b"x" * 512)[0] == IO_ERROR
            assert front_end.request(IN, 5 * sector, read_bytes=PAGE)[0] == OK
            assert front_end.request(OUT, 4 * sector, b"x" * PAGE)[0] == OK
            assert front_end.request(IN, 4 * sector, read_bytes=PAGE) == (OK, b"x" * PAGE)
