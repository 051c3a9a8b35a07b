"""SANITIZE from an initiator to the volume server and back: who waits, who is kept away meanwhile, what ends it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from iscsi_ovs import pdu, scsi
from shm_server.abi import control
from tests.targets.house import IQN, OTHER_PORT, Client, House, kept

TEST_UNIT_READY = bytes(6)
BLOCK_ERASE = bytes.fromhex("48020000000000000000")
IMMEDIATE = bytes.fromhex("48820000000000000000")
IN_PROGRESS = (0x04, 0x1B)
FAILED = (0x31, 0x03)


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


def begin(house: House, client: Client, cdb: bytes = BLOCK_ERASE) -> int:
    """Ask for it; the volume server says that it has begun."""
    tag = client.initiator.command(cdb)
    house.run()
    ((message, callback),) = house.service.sanitizes
    house.service.sanitizes.clear()
    assert (message.name, message.kind) == ("demo", "block erase")
    house.service.change(sanitize=0)
    callback(house.service.infos["demo"])
    house.run()
    return tag


def test_a_command_waits_for_the_end(house: House) -> None:
    """Meanwhile everybody hears how far it has come; then GOOD, and the unit is ready."""
    client, other = house.login(), house.login(isid=OTHER_PORT)
    tag = begin(house, client)
    assert not client.initiator.results[tag].is_complete
    house.service.change(sanitize=0x4000)
    for each in (client, other):
        result = each.do(each.initiator.command(TEST_UNIT_READY))
        assert result.additional_sense == IN_PROGRESS
        assert result.sense[15:18].hex() == "804000"
        assert each.do(each.read(0, 1)).additional_sense == IN_PROGRESS
    house.service.change(sanitize=None)
    assert client.do(tag).status == scsi.GOOD
    assert other.do(other.read(0, 1)).status == scsi.GOOD
    assert len(house.service.acks) == 3


def test_immediate(house: House) -> None:
    """Answered when it has begun for good."""
    client = house.login()
    tag = begin(house, client, IMMEDIATE)
    assert client.initiator.results[tag].status == scsi.GOOD
    assert client.do(client.initiator.command(TEST_UNIT_READY)).additional_sense == IN_PROGRESS
    house.service.change(sanitize=None)
    assert client.do(client.initiator.command(TEST_UNIT_READY)).status == scsi.GOOD


def test_over_before_it_was_said_to_have_begun(house: House) -> None:
    """A small volume: the answer says that nothing runs any more."""
    client = house.login()
    tag = client.initiator.command(BLOCK_ERASE)
    house.run()
    ((_, callback),) = house.service.sanitizes
    callback(house.service.infos["demo"])
    assert client.do(tag).status == scsi.GOOD


def test_a_failure(house: House) -> None:
    """03/31/03 to who waited, and to everybody who wants the medium, before another one succeeds."""
    client = house.login()
    tag = begin(house, client)
    house.service.change(sanitize=None, sanitize_failed=True)
    assert client.do(tag).additional_sense == FAILED
    assert client.do(client.read(0, 1)).additional_sense == FAILED
    tag = begin(house, client)
    house.service.change(sanitize=None, sanitize_failed=False)
    assert client.do(tag).status == scsi.GOOD
    assert client.do(client.read(0, 1)).status == scsi.GOOD


def test_what_the_server_refuses(house: House) -> None:
    """A second writer's volume is not wiped under it: BUSY."""
    client = house.login()
    tag = client.initiator.command(BLOCK_ERASE)
    house.run()
    ((_, callback),) = house.service.sanitizes
    callback(OSError(errno.EBUSY, "held by somebody"))
    assert client.do(tag).status == scsi.BUSY
    assert client.do(client.read(0, 1)).status == scsi.GOOD


@pytest.mark.parametrize("function", [pdu.ABORT_TASK_SET, pdu.LOGICAL_UNIT_RESET])
def test_resets_do_not_end_it(house: House, function: int) -> None:
    """SBC-3 4.11: it goes on. The command is gone at once, and task management is answered so."""
    client = house.login()
    tag = begin(house, client)
    management = client.initiator.tmf(function)
    house.run()
    assert client.initiator.results[management].response == pdu.FUNCTION_COMPLETE
    while (result := client.do(client.initiator.command(TEST_UNIT_READY))).sense[2] & 0xF == 0x6:
        pass  # of the reset
    assert result.additional_sense == IN_PROGRESS
    house.service.change(sanitize=None)
    house.run()
    assert not client.initiator.results[tag].is_complete
    assert client.do(client.read(0, 1)).status == scsi.GOOD


def test_aborted_before_it_has_begun(house: House) -> None:
    """The volume server may begin it still: task management waits for that, so that nobody writes before it."""
    client = house.login()
    client.initiator.command(BLOCK_ERASE)
    house.run()
    management = client.initiator.tmf(pdu.ABORT_TASK_SET)
    house.run()
    assert not client.initiator.results[management].is_complete
    ((_, callback),) = house.service.sanitizes
    house.service.change(sanitize=0)
    callback(house.service.infos["demo"])
    house.run()
    assert client.initiator.results[management].response == pdu.FUNCTION_COMPLETE
    assert client.do(client.initiator.command(TEST_UNIT_READY)).additional_sense == IN_PROGRESS


def test_its_session_ends(house: House) -> None:
    """Neither the session's end nor the next login wait for it."""
    begin(house, client := house.login())
    client.lose()
    house.run()
    again = house.client()
    again.initiator.login(IQN)
    house.run()
    assert again.initiator.is_logged_in
    again.do(again.initiator.command(TEST_UNIT_READY))  # power on
    assert again.do(again.initiator.command(TEST_UNIT_READY)).additional_sense == IN_PROGRESS
    house.service.change(sanitize=None)
    assert again.do(again.read(0, 1)).status == scsi.GOOD


def test_the_volume_server_dies(house: House) -> None:
    """BUSY; its successor goes on with it, and says so at once."""
    client = house.login()
    tag = begin(house, client)
    house.service.lose()
    house.run()
    assert client.initiator.results[tag].status == scsi.BUSY
    house.service.infos["demo"] = control.VolumeInfo("demo", "a" * 32, 1 << 20, 0, 0, True, sanitize=0x8000)
    house.restart()
    house.run()
    result = client.do(client.initiator.command(TEST_UNIT_READY))
    assert result.sense[15:18].hex() == "808000"
    house.service.change(sanitize=None)
    assert client.do(client.read(0, 1)).status == scsi.GOOD
