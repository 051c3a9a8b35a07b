"""Records of volumes through the control plane: who reads, who replaces, who is told, what a crash leaves."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from shm_server.abi import control
from shm_server.server import Server
from tests.shm_server.abi_client import AbiClient, RefusedError
from tests.shm_server.conftest import ServerProcess

Connect = Callable[..., AbiClient]


def get(client: AbiClient, record: str = "modes", name: str = "demo") -> tuple[int, bytes]:
    reply = client.call(control.GetRecord(client.id(), name, record))
    assert reply.record == record
    return reply.version, reply.data


def put(client: AbiClient, version: int, data: bytes, record: str = "modes", name: str = "demo") -> int:
    reply = client.call(control.PutRecord(client.id(), name, record, version, data))
    assert (reply.record, reply.data) == (record, b"")
    return int(reply.version)


def test_a_record_is_replaced_by_who_knows_its_version(server: ServerProcess, connect: Connect) -> None:
    """Version 0 and nothing at first; ESTALE for who comes second, who then reads what the first has put."""
    first, second = connect(server), connect(server)
    first.create()
    assert get(first) == (0, b"")
    assert put(first, 0, b"one") == 1
    with pytest.raises(RefusedError) as caught:
        put(second, 0, b"two")
    assert caught.value.errno == errno.ESTALE
    assert get(second) == (1, b"one")
    assert put(second, 1, b"two") == 2
    assert get(first) == (2, b"two")


def test_a_record_that_was_acknowledged_survives_a_kill(server: ServerProcess, connect: Connect) -> None:
    """kill -9 right after the reply; it goes with the volume, and its successor of the same name has none."""
    client = connect(server)
    client.create()
    put(client, 0, b"\x00\xff" * 100, "reservations")
    server.kill()
    server.start()
    client = connect(server)
    assert get(client, "reservations") == (1, b"\x00\xff" * 100)
    client.call(control.Remove(client.id(), "demo"))
    client.create()
    assert get(client, "reservations") == (0, b"")


def test_what_can_be_no_record_is_refused(server: ServerProcess, connect: Connect) -> None:
    """Its name, its size, its volume; 64 KiB are allowed."""
    client = connect(server)
    client.create()
    for number, request in (
        (errno.EINVAL, control.GetRecord(client.id(), "demo", "No name")),
        (errno.EINVAL, control.PutRecord(client.id(), "demo", "", 0, b"")),
        (errno.ENOENT, control.GetRecord(client.id(), "other", "modes")),
        (errno.ENOENT, control.PutRecord(client.id(), "other", "modes", 0, b"")),
        (errno.E2BIG, control.PutRecord(client.id(), "demo", "modes", 0, bytes(control.MAX_RECORD_BYTES + 1))),
    ):
        with pytest.raises(RefusedError) as caught:
            client.call(request)
        assert caught.value.errno == number, request
    assert put(client, 0, bytes(control.MAX_RECORD_BYTES)) == 1


def test_holders_and_subscribers_hear_of_it_before_the_reply(server: ServerProcess, connect: Connect) -> None:
    """A holder's Ack is waited for, a subscriber's is not; whoever replaced it is told by its reply alone."""
    writer, holder, subscriber = connect(server), connect(server), connect(server)
    info = writer.create()
    subscriber.call(control.Subscribe(subscriber.id()))
    for client in (writer, holder):
        client.attach()
        client.open(owner="us")
    request = control.PutRecord(writer.id(), "demo", "reservations", 0, b"mine")
    writer.send(request)
    event = holder.event()
    assert event == control.RecordChanged(1, "demo", info.uuid, "reservations", 1, b"mine")
    assert get(holder, "reservations") == (1, b"mine")
    assert subscriber.event() == event
    assert writer.replies == writer.events == []
    holder.send(control.Ack(event.sequence))
    assert writer.reply(request.id).version == 1
    assert writer.events == []


def test_a_holder_that_never_acknowledges_holds_nobody_up(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply comes after the limit."""
    monkeypatch.setattr("shm_server.manager.ACK_LIMIT_S", 0.05)
    server = in_process()
    holder, other = connect(server), connect(server)
    holder.create()
    holder.attach()
    holder.open()
    assert put(other, 0, b"x") == 1
    assert isinstance(holder.event(), control.RecordChanged)


def test_a_record_does_not_wait_for_who_opens_or_resizes(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a resize waits for the Ack of a holder that gives none, records of that volume are read and replaced."""
    monkeypatch.setattr("shm_server.manager.ACK_LIMIT_S", 1000)
    server = in_process()
    holder, other = connect(server), connect(server)
    holder.create()
    holder.attach()
    holder.open()
    resize = control.Resize(other.id(), "demo", 1 << 25)
    other.send(resize)
    event = holder.event()
    assert put(holder, 0, b"x") == 1
    assert get(other) == (1, b"x")
    holder.send(control.Ack(event.sequence))
    assert other.reply(resize.id).info.size_bytes == 1 << 25


def test_a_record_does_not_wait_for_a_store_that_is_slow_to_be_made(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONTRACTS 7: long work never stalls short work. While one volume's store is being made (or removed, which takes
    a file system seconds for terabytes), another one's records are read and replaced."""
    server = in_process()
    client = connect(server)
    client.create()
    is_made = threading.Event()
    real = server._stores.create

    def create(name: str, size: int) -> None:
        assert is_made.wait(30)
        real(name, size)

    monkeypatch.setattr(server._stores, "create", create)
    creating = control.Create(client.id(), "slow", 1 << 20)
    client.send(creating)
    try:
        assert put(client, 0, b"x") == 1
        assert get(client) == (1, b"x")
        assert not client.replies
    finally:
        is_made.set()
    assert client.reply(creating.id).info.name == "slow"


def test_many_records_at_once(server: ServerProcess, connect: Connect) -> None:
    """Of several clients, while volumes come and go: each version is put once, and the last one is there."""
    clients = [connect(server) for _ in range(4)]
    clients[0].create()
    for round_ in range(10):
        requests = [(client, control.PutRecord(client.id(), "demo", "modes", round_, b"x")) for client in clients]
        for client, request in requests:
            client.send(control.Create(client.id(), f"v{round_}", 4096))
            client.send(request)
        outcomes = []
        for client, request in requests:
            try:
                outcomes.append(client.reply(request.id).version)
            except RefusedError as error:
                outcomes.append(error.errno)
        assert sorted(outcomes) == [round_ + 1, *[errno.ESTALE] * 3]
    assert get(clients[1])[0] == 10
