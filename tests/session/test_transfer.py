"""Data of one task, both ways: what is sent is what the headers say it is, and sequences are held to the letter."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.storage.slots import SlotPool
from iscsi_ovs.testing.initiator import Result, encode
from tests.session.conversation import BLOCK, Conversation, read_cdb, write_cdb


def test_a_read_that_waits_for_slots_when_the_server_goes_is_busy_without_data() -> None:
    """BUSY for a read bears no Data-In: a header that announces bytes which never follow would break the stream."""
    talk = Conversation(slots=32)
    talk.executes_at_once = False
    initiator = talk.login()
    session = talk.session
    assert session is not None
    tag = initiator.command(read_cdb(0, 8), read=8 * BLOCK)
    talk.run()
    task = session.tasks.find(tag)
    assert task is not None
    task.waiter = talk.space.wait(lambda: False)
    talk.space.detach()
    session.space_lost()
    talk.run()
    assert initiator.results[tag].status == scsi.BUSY
    assert not initiator.results[tag].data
    assert initiator.results[tag].residual_count == 8 * BLOCK
    ping = initiator.nop_out(b"still in step")
    talk.run()
    assert bytes(initiator.results[ping].data) == b"still in step"


def test_a_read_command_that_moves_nothing_in_sends_no_data_in() -> None:
    """A WRITE that was sent with R instead of W: SCSI says what it wanted to move, but there is nothing to send."""
    talk = Conversation()
    initiator = talk.login()
    tag = initiator.command(write_cdb(0, 4), read=4 * BLOCK)
    talk.run()
    assert not initiator.results[tag].data
    assert initiator.results[tag].underflow
    assert initiator.results[tag].residual_count == 4 * BLOCK
    again = initiator.command(read_cdb(0, 1), read=BLOCK)
    talk.run()
    assert initiator.results[again].status == scsi.GOOD


def unsolicited(talk: Conversation, tag: int, length: int, immediate: int, final: bool) -> None:
    """A WRITE with immediate data that announces unsolicited Data-Out PDUs, and the first of them."""
    initiator = talk.initiator
    header = pdu.ScsiCommand(
        flags=pdu.WRITE,
        initiator_task_tag=tag,
        cmd_sn=initiator.cmd_sn,
        expected_data_transfer_length=length,
        cdb=write_cdb(0, length // BLOCK).ljust(16, b"\0"),
    )
    initiator.results[tag] = Result(tag)
    initiator.cmd_sn += 1
    initiator.raw(encode(header, bytes(immediate)))
    initiator.data_out(tag, bytes(immediate), offset=immediate, final=final)


@pytest.mark.parametrize("returns", [False, True])
def test_a_server_that_goes_in_the_middle_of_a_write_leaves_it_busy(returns: bool) -> None:
    """What had come lies in a segment that is gone: nothing more is asked for, whether there is a new one or not."""
    talk = Conversation(slots=64)
    initiator = talk.login(FirstBurstLength="65536")
    session = talk.session
    assert session is not None
    unsolicited(talk, 0x700, 1 << 20, 4096, final=False)
    talk.run()
    talk.space.detach()
    session.space_lost()
    if returns:
        talk.space.attach(SlotPool(memoryview(bytearray(64 * 65536)), 65536), [session.window])
    initiator.data_out(0x700, bytes(4096), offset=8192, data_sn=1)
    talk.run()
    assert initiator.results[0x700].status == scsi.BUSY
    if not returns:
        talk.space.attach(SlotPool(memoryview(bytearray(64 * 65536)), 65536), [session.window])
    tag = initiator.command(write_cdb(0, 2048), write=bytes(1 << 20))
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD
    talk.happened(talk.connection.lost("cable"))
    session.window.close()
    pool = talk.space.pool
    assert pool is not None
    assert (pool.free_slots, pool.reserved_slots) == (pool.capacity_slots, 0)
