"""Durable records between the volume server and units: loading, updates one after the other, changes by others."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from shm_server.abi import control
from tests.targets.house import IQN, OTHER_PORT, House, info_of, kept

NOTE = 0xC1  # an operation of this test: takes a byte down in the record "notes"


def take_down(unit: Any, command: scsi.Command) -> scsi.Execution:
    data = unit.notes + command.cdb[1:2]

    def finish(error: OSError | None) -> scsi.Execution:
        if error is not None:
            return scsi.Outcome(scsi.BUSY)
        unit.notes = data
        return scsi.Outcome()

    return scsi.RecordUpdate("notes", data, finish)


def load_notes(unit: Any, data: bytes) -> None:
    if data.startswith(b"?"):
        raise ValueError("it begins with a question mark")
    unit.notes = data


class Notes:
    """What the unit of a house has taken down."""

    def __init__(self, house: House) -> None:
        self.unit: Any = house.target.disks.named("demo").unit  # type: ignore[union-attr]
        self.unit.command_set = replace(self.unit.command_set, records={"notes": load_notes})
        self.unit._by_opcode[NOTE] = scsi.Operation(
            NOTE, None, "TAKE DOWN", scsi.Direction.NONE, bytes((NOTE, 0xFF, 0, 0, 0, 0)), take_down
        )

    def __eq__(self, other: object) -> bool:
        return bool(self.unit.notes == other)

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


@pytest.fixture
def notes(house: House) -> Notes:
    return Notes(house)


def note(client: Any, letter: bytes) -> int:
    return int(client.initiator.command(bytes((NOTE, letter[0], 0, 0, 0, 0))))


def test_a_unit_has_its_records_before_anybody_is_let_in(house: House, notes: Notes) -> None:
    """The login waits for what the volume server keeps; the second one finds it there."""
    house.service.records["demo", "notes"] = (7, b"seven")
    house.service.holds_records = True
    client = house.client()
    client.initiator.login(IQN)
    house.run()
    assert len(house.service.handles) == 1
    assert not client.initiator.is_logged_in
    house.service.holds_records = False
    house.run()
    assert client.initiator.is_logged_in
    assert notes == b"seven"
    house.service.holds_records = True
    house.login(isid=OTHER_PORT)


def test_who_leaves_while_records_are_read_lets_go_of_the_volume(house: House, notes: Notes) -> None:
    """A connection that is lost meanwhile leaves no handle (the house looks at its end)."""
    house.service.holds_records = True
    client = house.client()
    client.initiator.login(IQN)
    house.run()
    client.lose()
    house.service.holds_records = False
    house.run()
    assert house.service.handles == []


def test_records_that_can_not_be_read_let_nobody_in(house: House, notes: Notes) -> None:
    """A record in a form that we don't know could be somebody's reservation: the login is refused."""
    house.service.records["demo", "notes"] = (1, b"?")
    client = house.client()
    client.initiator.login(IQN)
    house.run()
    assert client.initiator.login_status == (3, 1)
    assert house.service.handles == []
    house.service.records["demo", "notes"] = (2, b"!")
    house.login()
    assert notes == b"!"


def test_an_update_is_taken_over_when_it_is_durable(house: House, notes: Notes) -> None:
    """Not before: until then the unit is as it was, and the command has no answer."""
    client = house.login()
    house.service.holds_records = True
    tag = note(client, b"a")
    house.run()
    assert notes == b""
    assert not client.initiator.results[tag].is_complete
    house.service.holds_records = False
    assert client.do(tag).status == scsi.GOOD
    assert notes == b"a"
    assert house.service.records["demo", "notes"] == (1, b"a")


def test_updates_follow_one_another(house: House, notes: Notes) -> None:
    """Each of many at once is made from what the one before has left."""
    first, second = house.login(), house.login(isid=OTHER_PORT)
    tags = [(client, note(client, bytes((letter,)))) for letter in b"abcdef" for client in (first, second)]
    assert [client.do(tag).status for client, tag in tags] == [scsi.GOOD] * 12
    assert sorted(notes.unit.notes) == sorted(b"abcdef" * 2)
    assert house.service.records["demo", "notes"] == (12, notes.unit.notes)


def test_a_command_that_waits_for_another_ones_update_can_be_aborted(house: House, notes: Notes) -> None:
    """LOGICAL UNIT RESET ends both: the one under way is kept all the same, the other never happens."""
    client = house.login()
    house.service.holds_records = True
    note(client, b"a")
    note(client, b"b")
    house.run()
    client.initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    house.run()
    house.service.holds_records = False
    house.run()
    client.attentions()
    assert notes == b"a"
    assert client.do(note(client, b"c")).status == scsi.GOOD
    assert notes == b"ac"


def test_what_another_process_has_put_is_taken_over(house: House, notes: Notes) -> None:
    """By its event, which is acknowledged; an update made from what was before is refused, not applied."""
    client = house.login()
    uuid = info_of().uuid
    house.service.holds_records = True
    tag = note(client, b"a")
    house.run()
    house.service.records["demo", "notes"] = (1, b"theirs")
    event = control.RecordChanged(1, "demo", uuid, "notes", 1, b"theirs")
    house.service.on_event(event)
    assert house.service.acks == [event]
    house.service.holds_records = False
    assert client.do(tag).status == scsi.BUSY
    assert notes == b"theirs"
    assert client.do(note(client, b"!")).status == scsi.GOOD
    assert house.service.records["demo", "notes"] == (2, b"theirs!")
    house.service.on_event(event)
    assert notes == b"theirs!"


def test_an_event_of_a_unit_that_nobody_uses_is_acknowledged(house: House, notes: Notes) -> None:
    """Its record is read at the next login; events of volumes that we don't serve are nobody's."""
    for uuid in (info_of().uuid, "f" * 32):
        event = control.RecordChanged(1, "demo", uuid, "notes", 4, b"four")
        house.service.on_event(event)
        assert house.service.acks.pop() == event
    assert not hasattr(notes.unit, "notes")


def test_an_update_whose_fate_the_dying_server_did_not_tell(house: House, notes: Notes) -> None:
    """BUSY; when the server is back its record says what became of it, before anything else is served."""
    client = house.login()
    house.service.holds_records = True
    tag = note(client, b"a")
    house.run()
    house.service.lose()
    house.service.holds_records = False
    house.service.records["demo", "notes"] = (1, b"a")  # it was kept
    assert client.do(tag).status == scsi.BUSY
    assert notes == b""
    assert client.do(note(client, b"x")).status == scsi.BUSY
    house.restart()
    house.run(storage=False)
    assert client.do(client.read(0, 1)).status in (scsi.BUSY, scsi.GOOD)
    house.run()
    assert notes == b"a"
    assert client.do(note(client, b"b")).status == scsi.GOOD
    assert house.service.records["demo", "notes"] == (2, b"ab")


def test_a_withdrawn_volume_keeps_nothing(house: House, notes: Notes) -> None:
    """An update for a volume that goes away meanwhile ends somehow, and with it the session."""
    client = house.login()
    house.service.holds_records = True
    note(client, b"a")
    house.run()
    house.service.on_event(control.VolumeRemoved(1, "demo", info_of().uuid))
    house.service.recordings.pop()(OSError(errno.ENOENT, "there is no volume demo"))
    house.run()
    assert client.connection.is_closed


def test_a_record_that_was_replaced_behind_our_back_is_read_again(house: House, notes: Notes) -> None:
    """BUSY, because the command was made from what is no more; who tries again adds to what is there."""
    client = house.login()
    house.service.records["demo", "notes"] = (5, b"five")
    assert client.do(note(client, b"a")).status == scsi.BUSY
    assert notes == b"five"
    assert client.do(note(client, b"b")).status == scsi.GOOD
    assert house.service.records["demo", "notes"] == (6, b"fiveb")
