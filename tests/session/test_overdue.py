"""R2Ts that nobody answers hold slots that others wait for: their deadline (CONTRACTS 3)."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.testing.initiator import Initiator, Result, encode
from tests.session.conversation import BLOCK, Conversation, write_cdb

LIMIT_S = 10.0
TIMING = Timing(transfer_s=LIMIT_S, nop_interval_s=5.0)
SIZE = 262144
RESPONSE_TIMEOUT = (0x4B, 0x06)


def solicited(talk: Conversation, **keys: str) -> Initiator:
    """A login whose writes are all solicited, and whose R2Ts the test answers."""
    initiator = talk.login(**{"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "65536", **keys})
    initiator.answer_r2t = False
    return initiator


def write(initiator: Initiator, size: int = SIZE) -> int:
    return initiator.command(write_cdb(0, size // BLOCK), write=bytes(size))


def r2ts(talk: Conversation, tag: int) -> list[pdu.Pdu]:
    headers = [each.header for each in talk.seen]
    return [each for each in headers if isinstance(each, pdu.ReadyToTransfer) and each.initiator_task_tag == tag]


def answer_one(talk: Conversation, tag: int) -> None:
    """Answer the oldest R2T of a task that is not answered yet."""
    oldest = r2ts(talk, tag)[0]
    talk.seen = [each for each in talk.seen if each.header is not oldest]
    talk.initiator.answer(oldest)
    talk.run()


def test_who_answers_pings_but_no_r2t() -> None:
    """Its task ends with INITIATOR RESPONSE TIMEOUT, its session goes on, and the slots are free again."""
    talk = Conversation(timing=TIMING)
    initiator = solicited(talk)
    tag = write(initiator)
    talk.pass_time(LIMIT_S)
    assert not initiator.results[tag].is_complete
    talk.pass_time(3.0)
    result = initiator.results[tag]
    assert (result.status, result.sense_key, result.additional_sense) == (scsi.CHECK_CONDITION, 0x0B, RESPONSE_TIMEOUT)
    assert talk.session is not None
    assert talk.session.held_slots() == 0
    initiator.data_out(tag, bytes(65536), transfer_tag=r2ts(talk, tag)[0].target_transfer_tag)  # late, and drained
    initiator.answer_r2t = True
    again = write(initiator)
    talk.run()
    assert initiator.results[again].status == scsi.GOOD


@pytest.mark.parametrize("in_turn", [True, False])
def test_who_announces_data_and_sends_none(in_turn: bool) -> None:
    """Unsolicited data is due as well; a command that waits for its turn is answered in its turn."""
    talk = Conversation(timing=TIMING)
    initiator = talk.login()
    header = pdu.ScsiCommand(
        flags=pdu.WRITE | pdu.ATTRIBUTE_SIMPLE,
        initiator_task_tag=0x700,
        cmd_sn=initiator.cmd_sn + (not in_turn),
        expected_data_transfer_length=8192,
        cdb=write_cdb(0, 16).ljust(16, b"\0"),
    )
    initiator.raw(encode(header, bytes(4096)))
    initiator.results[0x700] = Result(0x700)
    talk.pass_time(LIMIT_S + 3.0)
    assert initiator.results[0x700].is_complete == in_turn
    if not in_turn:
        initiator.nop_out(b"", immediate=False)
        talk.run()
    assert initiator.results[0x700].additional_sense == RESPONSE_TIMEOUT


def test_a_slow_line_is_not_silent() -> None:
    """One R2T after the other, whichever task it is of: nobody is given up while data comes."""
    talk = Conversation(timing=TIMING)
    initiator = solicited(talk)
    tags = [write(initiator) for _ in range(3)]
    talk.run()
    for tag in tags:
        while not initiator.results[tag].is_complete:
            talk.pass_time(LIMIT_S - 2)
            answer_one(talk, tag)
    assert [initiator.results[tag].status for tag in tags] == [scsi.GOOD] * 3


def test_a_trickle_does_not_keep_other_tasks_for_ever() -> None:
    """Data for one task is a sign of life for all, but not ten times as long."""
    talk = Conversation(timing=TIMING)
    initiator = solicited(talk, MaxBurstLength="512")
    fed, starved = write(initiator), write(initiator)
    talk.run()
    while not initiator.results[starved].is_complete and talk.now < 20 * LIMIT_S:
        talk.pass_time(LIMIT_S / 2)
        answer_one(talk, fed)
    assert initiator.results[starved].additional_sense == RESPONSE_TIMEOUT
    assert 10 * LIMIT_S <= talk.now <= 10 * LIMIT_S + 6
    assert not initiator.results[fed].is_complete


@pytest.mark.parametrize("moves", [True, False])
def test_silence_in_the_middle_of_a_data_segment(moves: bool) -> None:
    """The socket may still write into the buffer, so the connection ends, not the task; bytes that come keep it."""
    talk = Conversation(timing=Timing(transfer_s=LIMIT_S, nop_interval_s=0.0))
    initiator = solicited(talk)
    tag = write(initiator, 65536)
    talk.run()
    initiator.answer(r2ts(talk, tag)[0])
    data = initiator.to_send()
    talk.to_target(data[:1000])
    for at in range(1000, 1030):
        if moves:
            talk.to_target(data[at : at + 1])
        talk.pass_time(LIMIT_S / 10)
    assert talk.connection.is_closed != moves
