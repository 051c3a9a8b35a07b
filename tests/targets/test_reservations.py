"""Reservations through the whole target: sessions come and go, a volume server dies, tasks are aborted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iscsi_ovs import scsi
from tests.commands.sharing import (
    APTPL,
    CLEAR,
    EXCLUSIVE_ACCESS,
    PREEMPT,
    PREEMPT_AND_ABORT,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    RESERVE,
    WERO,
    WRITE_EXCLUSIVE,
    plain_list,
)
from tests.targets.house import Client, House, kept

NAMES = tuple(f"iqn.2016-01.test:{letter}" for letter in "abc")


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


@pytest.fixture
def clients(house: House) -> tuple[Client, ...]:
    return tuple(house.login(name=name) for name in NAMES)


def out(client: Client, action: int, key: int, action_key: int = 0, kind: int = 0, flags: int = 0) -> int:
    """Start a PERSISTENT RESERVE OUT; its tag."""
    cdb = bytes((0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0))
    return client.initiator.command(cdb, write=plain_list(key, action_key, flags))


def status(client: Client, action: int, key: int, action_key: int = 0, kind: int = 0, flags: int = 0) -> int | None:
    return client.do(out(client, action, key, action_key, kind, flags)).status


def ask(client: Client, action: int) -> bytes:
    return bytes(client.do(client.initiator.command(bytes((0x5E, action, 0, 0, 0, 0, 0, 0, 255, 0)), read=255)).data)


def heard(client: Client) -> list[tuple[int, int]]:
    """Unit attentions that wait, one TEST UNIT READY each."""
    codes = []
    while (result := client.do(client.initiator.command(bytes(6)))).status == scsi.CHECK_CONDITION:
        assert result.additional_sense is not None
        codes.append(result.additional_sense)
    return codes


def reserve_for(client: Client, kind: int = EXCLUSIVE_ACCESS, flags: int = 0) -> None:
    assert status(client, REGISTER, 0, 0xA, flags=flags) == scsi.GOOD
    assert status(client, RESERVE, 0xA, kind=kind) == scsi.GOOD


def test_a_reservation_holds_against_the_others(house: House, clients: tuple[Client, ...]) -> None:
    """READ and WRITE of who has no access, and only those."""
    first, second, _ = clients
    reserve_for(first, WRITE_EXCLUSIVE)
    assert second.do(second.write(0, bytes(512))).status == scsi.RESERVATION_CONFLICT
    assert second.do(second.read(0, 1)).status == scsi.GOOD
    assert first.do(first.write(0, bytes(512))).status == scsi.GOOD


def test_registrations_outlive_sessions(house: House, clients: tuple[Client, ...]) -> None:
    """Who comes back through the same port is the same nexus; another ISID is another one."""
    first, second, _ = clients
    reserve_for(first)
    first.lose()
    house.run()
    assert second.do(second.read(0, 1)).status == scsi.RESERVATION_CONFLICT
    again = house.login(name=NAMES[0])
    assert again.do(again.read(0, 1)).status == scsi.GOOD
    other_port = house.login(name=NAMES[0], isid=bytes.fromhex("80000000aaaa"))
    assert other_port.do(other_port.read(0, 1)).status == scsi.RESERVATION_CONFLICT


def test_reserve_ends_with_its_session(house: House, clients: tuple[Client, ...]) -> None:
    """At the latest when its logout is answered: the next one needs not wait, and none of its writes comes late."""
    first, second, _ = clients
    assert first.do(first.initiator.command(bytes((0x16, 0, 0, 0, 0, 0)))).status == scsi.GOOD
    handle = house.service.handles[0]
    handle.hold()
    first.write(0, b"x" * 512)
    house.run()
    first.initiator.logout()
    assert second.do(second.read(0, 1)).status == scsi.RESERVATION_CONFLICT
    handle.let_go()
    house.run(storage=False)
    house.service.run()
    assert second.do(second.initiator.command(bytes((0x16, 0, 0, 0, 0, 0)))).status == scsi.GOOD


def test_two_that_register_at_once_are_both_registered(house: House, clients: tuple[Client, ...]) -> None:
    """While one waits for the record, the other one waits for it; nobody's registration is lost."""
    house.service.holds_records = True
    tags = [(client, out(client, REGISTER, 0, number)) for number, client in enumerate(clients, 1)]
    house.run()
    house.service.holds_records = False
    assert [client.do(tag).status for client, tag in tags] == [scsi.GOOD] * 3
    assert ask(clients[0], READ_KEYS)[8:] == b"".join(key.to_bytes(8, "big") for key in (1, 2, 3))


def test_who_is_preempted_while_it_waits_is_refused(house: House, clients: tuple[Client, ...]) -> None:
    """A waiting action is looked at again when it is its turn: its key is not registered any more, and it hears why."""
    first, second, _ = clients
    reserve_for(first)
    assert status(second, REGISTER, 0, 0xB) == scsi.GOOD
    house.service.holds_records = True
    preempting = out(second, PREEMPT, 0xB, 0xA, WERO)
    house.run()
    clearing = out(first, CLEAR, 0xA)
    house.run()
    house.service.holds_records = False
    assert second.do(preempting).status == scsi.GOOD
    result = first.do(clearing)
    assert (result.status, result.additional_sense) == (scsi.CHECK_CONDITION, (0x2A, 0x05))
    assert status(first, CLEAR, 0xA) == scsi.RESERVATION_CONFLICT


def test_preempt_and_abort_waits_for_the_last_write(house: House, clients: tuple[Client, ...]) -> None:
    """The answer comes when no write of the preempted one can come any more; that one hears both unit attentions."""
    first, second, third = clients
    reserve_for(first)
    assert status(second, REGISTER, 0, 0xB) == scsi.GOOD
    handle = house.service.handles[0]
    handle.hold()
    late = first.write(0, b"x" * 512)
    house.run()
    preempting = out(second, PREEMPT_AND_ABORT, 0xB, 0xA, EXCLUSIVE_ACCESS)
    house.run()
    assert not second.initiator.results[preempting].is_complete
    assert third.do(third.read(0, 1)).status == scsi.RESERVATION_CONFLICT, "it holds already"
    handle.let_go()
    assert second.do(preempting).status == scsi.GOOD
    assert not first.initiator.results[late].is_complete
    assert heard(first) == [(0x2A, 0x05), (0x2F, 0x00)]
    assert heard(second) == heard(third) == []
    assert first.do(first.write(0, bytes(512))).status == scsi.RESERVATION_CONFLICT


def test_reservations_outlive_the_volume_server(house: House, clients: tuple[Client, ...]) -> None:
    """Without APTPL too: it is the target that remembers; what it can't make durable meanwhile is BUSY."""
    first, second, _ = clients
    reserve_for(first)
    house.service.lose()
    house.run()
    assert status(second, REGISTER, 0, 0xB) == scsi.BUSY
    house.restart()
    house.run()
    assert second.do(second.read(0, 1)).status == scsi.RESERVATION_CONFLICT
    assert status(second, REGISTER, 0, 0xB) == scsi.GOOD
    assert first.do(first.read(0, 1)).status == scsi.GOOD


@pytest.mark.parametrize("flags", [0, APTPL])
def test_what_a_new_target_process_finds(house: House, clients: tuple[Client, ...], flags: int) -> None:
    """Reservations that were to persist through power loss, and no others."""
    reserve_for(clients[0], flags=flags)
    successor = House()
    successor.service.records = house.service.records
    first, second = (successor.login(name=name) for name in NAMES[:2])
    assert first.do(first.read(0, 1)).status == scsi.GOOD
    assert second.do(second.read(0, 1)).status == (scsi.RESERVATION_CONFLICT if flags else scsi.GOOD)
    assert ask(second, READ_RESERVATION)[7:16] == (b"\x10" + (0xA).to_bytes(8, "big") if flags else b"\0")
    assert status(second, REGISTER_AND_IGNORE, 0, 0xB) == scsi.GOOD
