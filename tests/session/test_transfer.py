"""Data of one task, both ways: what is sent is what the headers say it is, and sequences are held to the letter."""

from __future__ import annotations

from iscsi_ovs import scsi
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
