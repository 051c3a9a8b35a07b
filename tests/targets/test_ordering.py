"""ORDERED, HEAD OF QUEUE, SIMPLE, and ACA that is none (SAM-5 8.6): who is started when, on one task set for all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iscsi_ovs import pdu, scsi
from tests.targets.house import BLOCK, IQN, OTHER_PORT, Client, House, kept

SIMPLE, ORDERED, HEAD = pdu.ATTRIBUTE_SIMPLE, pdu.ATTRIBUTE_ORDERED, pdu.ATTRIBUTE_HEAD_OF_QUEUE


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House(slots=1024))


def login(house: House, isid: bytes = b"\x80\x12\x34\x56\x00\x01") -> Client:
    client = house.client(isid=isid)
    client.initiator.login(IQN)
    house.run()
    client.attentions()
    return client


def send(client: Client, lba: int, attribute: int = SIMPLE, blocks: int = 1, **fields: int) -> int:
    cdb = bytes((0x2A, 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
    return client.initiator.command(cdb, write=bytes([lba]) * BLOCK * blocks, attribute=attribute, **fields)


def started(house: House) -> list[int]:
    """Which blocks the volume server has been asked to write and has not yet, in order."""
    house.run()
    held = [request for handle in house.service.handles for request in [*handle.held, *handle.pending]]
    return sorted(request.offset_bytes // BLOCK for request in held)


def hold(house: House) -> None:
    for handle in house.service.handles:
        handle.hold()


def finish(house: House, lba: int) -> None:
    """The volume server is done with this block."""
    for handle in house.service.handles:
        for request in handle.held:
            if request.offset_bytes == lba * BLOCK:
                handle.complete(request)


def test_an_ordered_command_waits_for_all_before_it_and_all_behind_it_wait(house: House) -> None:
    """Of whatever session they are."""
    first, second = login(house), login(house, OTHER_PORT)
    hold(house)
    send(first, 1)
    send(second, 2)
    house.run()
    ordered = send(first, 3, ORDERED)
    house.run()
    send(first, 4)
    send(second, 5)
    assert started(house) == [1, 2]
    finish(house, 2)
    assert started(house) == [1]
    finish(house, 1)
    assert started(house) == [3]
    finish(house, 3)
    assert started(house) == [4, 5]
    assert first.initiator.results[ordered].status == scsi.GOOD
    finish(house, 4)
    finish(house, 5)
    house.run()
    assert not house.target.ordering.sets
    send(first, 6)
    send(second, 7)
    assert started(house) == [6, 7], "and nothing is left of it"


def test_ordered_commands_go_one_by_one(house: House) -> None:
    client = login(house)
    hold(house)
    for lba in (1, 2, 3):
        send(client, lba, ORDERED)
    for lba in (1, 2, 3):
        assert started(house) == [lba]
        finish(house, lba)


def test_head_of_queue_goes_first_and_the_rest_waits_for_it(house: House) -> None:
    """It waits for nobody, not even for an ORDERED one that is under way."""
    client = login(house)
    hold(house)
    send(client, 1, ORDERED)
    house.run()
    send(client, 2, HEAD)
    send(client, 3)
    assert started(house) == [1, 2]
    finish(house, 1)
    assert started(house) == [2]
    finish(house, 2)
    assert started(house) == [3]


def test_an_ordered_write_has_its_place_before_its_data_is_there(house: House) -> None:
    """Its turn is that of its CmdSN: what comes behind it waits, what is before it and still receives does not."""
    client = login(house)
    hold(house)
    client.initiator.answer_r2t = False
    early = send(client, 1, immediate_data=0, unsolicited_data=False)
    ordered = send(client, 2, ORDERED, immediate_data=0, unsolicited_data=False)
    send(client, 3)
    assert started(house) == []
    r2ts = {each.header.initiator_task_tag: each.header for each in client.initiator.received
            if isinstance(each.header, pdu.ReadyToTransfer)}  # fmt: skip
    client.initiator.answer(r2ts[ordered])
    assert started(house) == []
    client.initiator.answer(r2ts[early])
    assert started(house) == [1]
    finish(house, 1)
    assert started(house) == [2]
    finish(house, 2)
    assert started(house) == [3]


@pytest.mark.parametrize("by", ["abort", "loss", "reset", "the volume server's death"])
def test_an_ordered_command_that_ends_otherwise_holds_nobody(house: House, by: str) -> None:
    """Those behind it are started, or end with it."""
    first, second = login(house), login(house, OTHER_PORT)
    hold(house)
    send(first, 1)
    house.run()
    ordered = send(first, 2, ORDERED)
    house.run()
    behind = send(second, 3)
    assert started(house) == [1]
    if by == "abort":
        assert first.do(first.initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=ordered)).response == 0
        assert started(house) == [1, 3]
    elif by == "loss":
        first.lose()
        assert started(house) == [1, 3], "only what the volume server had of it is left"
    elif by == "reset":
        second.initiator.tmf(pdu.LOGICAL_UNIT_RESET)
        house.run()
        finish(house, 1)
        assert started(house) == []
        assert not second.initiator.results[behind].is_complete
    else:
        house.service.lose()
        house.run()
        assert second.initiator.results[behind].status == scsi.BUSY
        house.restart()
    house.run()
    assert not house.target.ordering.sets


def test_who_waits_for_order_gives_slots_up_that_others_wait_for(house: House) -> None:
    """TASK SET FULL, or an older command might wait for slots of a younger one that waits for it."""
    client = login(house)
    hold(house)
    send(client, 1)
    house.run()
    ordered = send(client, 2, ORDERED)
    send(client, 3)
    assert started(house) == [1]
    house.target.space.wait(lambda: False)
    house.run()
    assert client.do(ordered).status == scsi.TASK_SET_FULL
    assert started(house) == [1, 3], "it waited for the ORDERED one only"
    house.target.space._queues.clear()


@pytest.mark.parametrize("attribute", [4, 5, 6, 7])
@pytest.mark.parametrize("data", [b"", b"x" * BLOCK])
def test_aca_and_what_is_reserved(house: House, attribute: int, data: bytes) -> None:
    """No ACA condition is ever established: INVALID MESSAGE ERROR, in its turn, and its data goes nowhere."""
    client = login(house)
    cdb = bytes((0x2A, 0, 0, 0, 0, 9, 0, 0, 1, 0)) if data else bytes(6)
    result = client.do(client.initiator.command(cdb, write=data, attribute=attribute))
    assert (result.status, result.sense_key, result.additional_sense) == (scsi.CHECK_CONDITION, 5, (0x49, 0))
    assert bytes(client.do(client.read(9, 1)).data) == bytes(BLOCK)
