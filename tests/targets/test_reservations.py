"""Reservations through the whole target: sessions come and go, a volume server dies, tasks are aborted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.commands import transport_id
from iscsi_ovs.net.portal import Address
from tests.commands.sharing import (
    ALL_TG_PT,
    APTPL,
    CLEAR,
    EXCLUSIVE_ACCESS,
    PREEMPT,
    PREEMPT_AND_ABORT,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    RESERVE,
    SPEC_I_PT,
    WERO,
    WRITE_EXCLUSIVE,
    plain_list,
)
from tests.config.files import load
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


def test_a_status_of_many_registrations_comes_whole(house: House) -> None:
    """Longer than a data segment of the initiator may be: it comes in several."""
    client = house.login(name=NAMES[0])
    names = [f"iqn.2016-01.test:{number:03}" for number in range(200)]
    identifiers = b"".join(transport_id.encode(name, bytes(6)) for name in names)
    data = plain_list(0, 7, SPEC_I_PT, len(identifiers).to_bytes(4, "big") + identifiers)
    cdb = bytes((0x5F, REGISTER, 0, 0, 0)) + len(data).to_bytes(4, "big") + b"\0"
    assert client.do(client.initiator.command(cdb, write=data)).status == scsi.GOOD
    cdb = bytes((0x5E, READ_FULL_STATUS, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0))
    result = client.do(client.initiator.command(cdb, read=0xFFFF))
    status = bytes(result.data)
    assert int.from_bytes(status[4:8], "big") + 8 == len(status) > 8192
    assert all(name.encode() + b",i,0x000000000000" in status for name in names)


PORTAL_GROUPS = """\
open = true
[portal-group.inner]
listen = ["127.0.0.1:3260"]
[portal-group.outer]
tag = 7
listen = ["0.0.0.0:3261"]
[lun.demo]
[target.disk]
portal-group = ["inner", "outer"]
lun.0 = "demo"
[target.other]
portal-group = ["inner"]
lun.5 = "demo"
"""


def test_through_all_target_ports(tmp_path: Path) -> None:
    """ALL_TG_PT registers an initiator at every portal group of its target, and at no other target."""
    house = House(configuration=load(tmp_path, PORTAL_GROUPS), volumes="demo")
    inner, outer, elsewhere = Address("127.0.0.1", 3260), Address("0.0.0.0", 3261), Address("127.0.0.1", 3260)
    clients = []
    for target, at in (("disk", inner), ("disk", outer), ("other", elsewhere)):
        client = house.client(at=at, name=NAMES[0])
        client.initiator.login(f"iqn.2016-01.com.openvstorage:{target}")
        house.run()
        assert client.initiator.is_logged_in
        client.attentions(5 if target == "other" else 0)
        clients.append(client)
    reserve_for(clients[0], WERO, flags=ALL_TG_PT)
    assert len(ask(clients[0], READ_KEYS)) == 8 + 2 * 8
    status = ask(clients[1], READ_FULL_STATUS)
    ports = {int.from_bytes(status[at : at + 2], "big") for at in (26, 26 + (len(status) - 8) // 2)}
    assert ports == {1, 7}
    assert clients[1].do(clients[1].write(0, bytes(512))).status == scsi.GOOD
    cdb = bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0))
    refused = clients[2].do(clients[2].initiator.command(cdb, write=bytes(512), lun=5))
    assert refused.status == scsi.RESERVATION_CONFLICT
    for client in clients:
        client.lose()
    house.run()
