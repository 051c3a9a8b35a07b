"""The client library against the real volume server: what closing, death and nonsense end."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

from iscsi_ovs.shm_client import Context
from tests.shm_client.calls import get, put, raises
from tests.storage.fake_server import FakeServer
from tests.storage.server_process import ServerProcess


def test_closing_a_volume_ends_what_is_in_flight(context: Context) -> None:
    """Every completion ends: done or ECANCELED."""
    volume = context.open("demo")
    buffer = context.allocate(1 << 20)
    with context.batch():
        started = [volume.aio_write(buffer, 1 << 20, 0) for _ in range(50)]
    volume.close()
    assert {completion.error() for completion in started} <= {0, errno.ECANCELED}
    assert buffer.in_flight == 0


def test_a_context_that_goes_frees_its_volumes(server: ServerProcess, context: Context) -> None:
    """Without closing anything: the end of its socket is enough."""
    other = Context(server.socket_path)
    other.open("demo")
    other._service.close()
    context.open("demo").close()
    other.close()


def test_the_servers_death_ends_everything_and_reconnect_begins_anew(server: ServerProcess, context: Context) -> None:
    """kill -9 with requests in flight: ECONNRESET for them and for later calls; acknowledged data is there again."""
    volume = context.open("demo")
    put(volume, b"kept", 4096)
    buffer = context.allocate(4096)
    server.signal(signal.SIGSTOP)
    with context.batch():
        started = [volume.aio_read(buffer, 4096, 0) for _ in range(2000)]
    server.kill()
    started[0].wait(10)
    assert {completion.error() for completion in started} == {errno.ECONNRESET}
    for call in (
        lambda: volume.read(buffer, 1, 0),
        lambda: context.stat_volume("demo"),
        lambda: context.open("demo"),
        lambda: context.allocate(1),
    ):
        with raises(errno.ECONNRESET):
            call()
    with raises(errno.ECONNREFUSED):
        context.reconnect()
    server.start()
    context.reconnect()
    with raises(errno.ECONNRESET):
        volume.flush()
    with context.open("demo") as again:
        assert get(again, 4, 4096) == b"kept"
        with raises(errno.EFAULT):
            again.read(buffer, 1, 0)
        buffer.data[0] = 1
        context.deallocate(buffer)
    volume.close()


def test_a_server_that_answers_nonsense_is_an_oserror(short_dir: Path) -> None:
    """EPROTO where it speaks garbage, and not a hang where a reply has the wrong kind."""
    fake = FakeServer(short_dir / "fake.sock")
    fake.volumes["demo"] = bytearray(4096)
    with fake.running():
        context = Context(fake.path)
        volume = context.open("demo")
        buffer = context.allocate(512)
        fake.answer_entry = lambda entry: fake.complete(entry[8] + 17, 0, 0)  # type: ignore[method-assign]
        with raises(errno.ECONNRESET):
            volume.read(buffer, 512, 0)
        with raises(errno.EPROTO):
            context.list_volumes()
        context.close()
        fake.answer_control = lambda request: fake.send_raw(b"\x01\x00\x00\x00\xc1")  # type: ignore[method-assign]
        with raises(errno.EPROTO):
            Context(fake.path)
    fake.close()


def test_a_closed_context_says_ebadf(context: Context) -> None:
    context.close()
    context.close()
    for call in (context.list_volumes, context.poll, context.fileno, lambda: context.allocate(1)):
        with raises(errno.EBADF):
            call()
