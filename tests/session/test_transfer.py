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


@pytest.mark.parametrize(("segment", "burst", "length"), [(512, 1024, 4096), (1000, 3584, 8192), (4096, 4096, 12288)])
def test_data_in_ends_its_bursts_and_bears_status_once(segment: int, burst: int, length: int) -> None:
    """F at each MaxBurstLength and at the end, DataSN from 0, StatSN with the status only (section 11.7)."""
    talk = Conversation()
    initiator = talk.login(MaxRecvDataSegmentLength=str(segment), MaxBurstLength=str(burst), FirstBurstLength="512")
    tag = initiator.command(read_cdb(0, length // BLOCK), read=length)
    talk.run()
    headers = [seen.header for seen in initiator.received if isinstance(seen.header, pdu.DataIn)]
    offset = 0
    for number, header in enumerate(headers):
        end = offset + header.data_segment_length
        assert (header.data_sn, header.buffer_offset) == (number, offset)
        assert header.data_segment_length <= segment
        assert offset // burst == (end - 1) // burst, "no PDU crosses the end of a burst"
        assert bool(header.flags & pdu.FINAL) == (end % burst == 0 or end == length)
        assert bool(header.flags & pdu.STATUS) == (end == length)
        offset = end
    assert offset == length
    assert initiator.results[tag].status == scsi.GOOD


def test_stat_sn_counts_what_bears_status_and_shows_in_what_does_not() -> None:
    """R2T and a NOP-In of ours carry the next StatSN; Reject, NOP-In answers and responses use one up."""
    talk = Conversation()
    initiator = talk.login(InitialR2T="Yes", ImmediateData="No")
    initiator.command(write_cdb(0, 8), write=bytes(4096))
    talk.run()
    initiator.nop_out(b"x")
    talk.run()
    talk.happened(talk.connection.tick(31.0))
    talk.run()
    initiator.raw(pdu.SnackRequest())
    talk.run()
    initiator.command(read_cdb(0, 1), read=BLOCK)
    talk.run()
    told = [(type(seen.header).__name__, seen.header.stat_sn) for seen in initiator.received]
    first = next(number for name, number in told if name == "ReadyToTransfer")
    after = [(name, number - first) for name, number in told if name != "LoginResponse"]
    assert after == [
        ("ReadyToTransfer", 0),
        ("ScsiResponse", 0),
        ("NopIn", 1),
        ("NopIn", 2),  # our ping
        ("Reject", 2),
        ("DataIn", 3),
    ]


def test_a_check_condition_behind_data_in_counts_it() -> None:
    """ExpDataSN says how many Data-In PDUs there were (section 11.4.8); the residual is the data's."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login(MaxRecvDataSegmentLength="512")
    tag = initiator.command(read_cdb(0, 4), read=4 * BLOCK)
    talk.run()
    sense = bytes((0x70, 0, 1, 0, 0, 0, 0, 10)) + bytes(10)
    talk.complete(talk.commands.pop(), scsi.Outcome(scsi.CHECK_CONDITION, sense, data=bytes(1536), transfer_bytes=1536))
    talk.run()
    result = initiator.results[tag]
    assert result.status == scsi.CHECK_CONDITION
    assert result.sense == sense
    assert result.header is not None
    assert result.header.exp_data_sn == result.data_in_pdus == 3
    assert (result.underflow, result.residual_count) == (True, 512)
