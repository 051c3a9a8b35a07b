"""Corpus 6, Data-Out: for nobody, beyond everything, without F, where none was allowed.

RFC 7143 section 11.7 (Data-Out), 11.4.7.2 (the sense for data errors), 13.10 to 13.14 (what may come unsolicited).
Data that nobody wants is drained, never stored: it may be late, for a task that has ended.
"""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import READ, TAG, WRITE, command, read_cdb, scene, sense, status, write_cdb
from tests.corpus.test_sequence_numbers import held, let_go, solicited

UNEXPECTED = (0x0B, 0x0C, 0x0C)  # UNEXPECTED UNSOLICITED DATA
INCORRECT = (0x0B, 0x0C, 0x0D)  # INCORRECT AMOUNT OF DATA


def out(length: int = 512, **fields: Any) -> bytes:
    header = pdu.DataOut(flags=pdu.FINAL, initiator_task_tag=TAG)
    for name, value in fields.items():
        setattr(header, name, value)
    return encode(header, bytes(length))


@pytest.mark.parametrize("tag", [0, 0x7777, pdu.RESERVED_TAG])
@pytest.mark.parametrize("transfer_tag", [0, 0x4444, pdu.RESERVED_TAG])
def test_for_no_task(tag: int, transfer_tag: int) -> None:
    """It may be late: silence, and it is drained."""
    with scene() as it:
        it.login()
        it.send(out(8192, initiator_task_tag=tag, target_transfer_tag=transfer_tag))
        it.silent()


# Wrong answers to an R2T for 4096 bytes at 0.
WRONG: dict[str, dict[str, Any]] = {
    "a transfer tag that was never given": {"target_transfer_tag": 0x4444, "length": 4096},
    "unsolicited, after an R2T": {"target_transfer_tag": pdu.RESERVED_TAG, "length": 4096},
    "beyond what was asked for": {"length": 4608},
    "beyond Expected Data Transfer Length": {"buffer_offset": 4096},
    "an offset near 2^32": {"buffer_offset": 0xFFFFFE00},
    "an offset that is not next": {"buffer_offset": 512},
    "a DataSN that is not next": {"length": 4096, "data_sn": 1},
    "F before the end": {"length": 512},
    "the end without F": {"flags": 0, "length": 4096},
    "no data, and F": {"length": 0},
}


@pytest.mark.parametrize("name", WRONG)
def test_not_what_the_r2t_asked_for(name: str) -> None:
    """The task ends with 0B/0C/0D, and its disk is as it was."""
    with scene() as it:
        before = bytes(it.good.do(it.good.read(0, 16)).data)
        r2t = solicited(it)
        it.send(out(**{"target_transfer_tag": r2t.target_transfer_tag, **WRONG[name]}))
        sense(*INCORRECT)(it)
        it.send(out(4096, target_transfer_tag=r2t.target_transfer_tag))  # what still comes is drained
        it.silent()
        assert bytes(it.good.do(it.good.read(0, 16)).data) == before


def test_the_same_range_twice() -> None:
    """An offset that goes back overlaps what is there already."""
    with scene() as it:
        r2t = solicited(it)
        tag = r2t.target_transfer_tag
        it.send(out(512, flags=0, target_transfer_tag=tag))
        it.send(out(512, flags=0, target_transfer_tag=tag, data_sn=1))
        sense(*INCORRECT)(it)


def test_unsolicited_data_beyond_first_burst_length() -> None:
    """Section 13.14: FirstBurstLength bounds immediate and unsolicited data together."""
    with scene() as it:
        peer = it.login(FirstBurstLength="1024")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096, bytes(512), flags=pdu.WRITE))
        it.send(out(1024, target_transfer_tag=pdu.RESERVED_TAG, buffer_offset=512))
        sense(*INCORRECT)(it)


@pytest.mark.parametrize("wrong", [{"data_sn": 1}, {"buffer_offset": 0}, {"buffer_offset": 1024}], ids=str)
def test_unsolicited_data_out_of_turn(wrong: dict[str, int]) -> None:
    """DataSN begins at 0 behind immediate data, and the offset goes on where that ended."""
    with scene() as it:
        peer = it.login(FirstBurstLength="4096")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096, bytes(512), flags=pdu.WRITE))
        it.send(out(512, flags=0, target_transfer_tag=pdu.RESERVED_TAG, **{"buffer_offset": 512, **wrong}))
        sense(*INCORRECT)(it)


def test_immediate_data_beyond_first_burst_length() -> None:
    with scene() as it:
        peer = it.login(FirstBurstLength="1024")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096, bytes(2048)))
        sense(*UNEXPECTED)(it)


def test_immediate_data_beyond_the_expected_length() -> None:
    with scene() as it:
        peer = it.login()
        it.send(command(peer, write_cdb(0, 1), WRITE, 512, bytes(1024)))
        sense(*UNEXPECTED)(it)


def test_immediate_data_where_none_was_agreed() -> None:
    """ImmediateData=No: the command ends, and what it brought is dropped."""
    with scene() as it:
        peer = it.login(ImmediateData="No")
        it.send(command(peer, write_cdb(0, 1), WRITE, 512, bytes(512)))
        sense(*UNEXPECTED)(it)


def test_unsolicited_data_where_none_was_agreed() -> None:
    """InitialR2T=Yes: a command without F announces data that may not come."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096, bytes(512), flags=pdu.WRITE))
        sense(*UNEXPECTED)(it)


def test_nothing_more_to_come_within_first_burst_length() -> None:
    """F=0 and immediate data that fills FirstBurstLength already: what was announced can't come."""
    with scene() as it:
        peer = it.login(FirstBurstLength="1024")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096, bytes(1024), flags=pdu.WRITE))
        sense(*INCORRECT)(it)


def test_immediate_data_of_a_read() -> None:
    """A READ sends nothing out."""
    with scene() as it:
        peer = it.login()
        it.send(command(peer, read_cdb(0, 1), READ, 512, bytes(512)))
        sense(*UNEXPECTED)(it)


def test_data_out_for_a_read() -> None:
    """A READ takes no Data-Out: it is drained, and the READ goes its way."""
    with scene() as it:
        peer = it.login()
        held(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        it.send(out(512))
        it.silent()
        let_go(it)
        status(scsi.GOOD)(it)


def test_unsolicited_data_that_ends_early() -> None:
    """Less than FirstBurstLength is right: F ends it, and the rest is asked for. A PDU without data may bear that F."""
    with scene() as it:
        peer = it.login(FirstBurstLength="4096")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096, bytes(512), flags=pdu.WRITE))
        it.send(out(0, target_transfer_tag=pdu.RESERVED_TAG, buffer_offset=512))
        r2t = it.answer()
        assert (r2t.buffer_offset, r2t.desired_data_transfer_length) == (512, 3584)
        it.send(out(3584, target_transfer_tag=r2t.target_transfer_tag, buffer_offset=512))
        status(scsi.GOOD)(it)


def test_data_for_a_task_that_was_aborted() -> None:
    """Section 11.5.1 after an ABORT TASK: its data still comes, is drained, and never lands on what others have."""
    with scene() as it:
        r2t = solicited(it)
        peer = it.peer
        abort = pdu.TaskManagementRequest(
            opcode=pdu.TaskManagementRequest.OPCODE | pdu.IMMEDIATE, flags=pdu.FINAL | pdu.ABORT_TASK,
            initiator_task_tag=TAG + 1, referenced_task_tag=TAG, cmd_sn=peer.cmd_sn,
        )  # fmt: skip
        it.send(encode(abort))
        answers = [each.header for each in it.says()]
        assert [each.response for each in answers if each.initiator_task_tag == TAG + 1] == [pdu.FUNCTION_COMPLETE]
        it.others_go_on()
        it.send(out(4096, target_transfer_tag=r2t.target_transfer_tag))
        it.silent()
