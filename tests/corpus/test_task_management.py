"""Corpus 10, task management: functions that are none, tasks that are none, LUNs that differ, resets without end.

RFC 7143 section 11.5 (request), 11.6.1 (responses); CONTRACTS 2: answered when nothing can happen any more.
"""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.session.management import MANAGEMENT_LIMIT
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import READ, TAG, WRITE, Scene, command, read_cdb, scene, status, write_cdb
from tests.corpus.test_sequence_numbers import held, let_go

TMF = TAG + 0x100


def manage(it: Scene, function: int, *, tag: int = TMF, **fields: Any) -> None:
    header = pdu.TaskManagementRequest(
        opcode=pdu.TaskManagementRequest.OPCODE | pdu.IMMEDIATE, flags=pdu.FINAL | function,
        initiator_task_tag=tag, cmd_sn=it.peer.cmd_sn,
    )  # fmt: skip
    for name, value in fields.items():
        setattr(header, name, value)
    it.send(encode(header))


def responses(it: Scene, tag: int = TMF) -> list[int]:
    return [
        each.header.response
        for each in it.says()
        if isinstance(each.header, pdu.TaskManagementResponse) and each.header.initiator_task_tag == tag
    ]


@pytest.mark.parametrize("function", [0, 13, 14, 64, 126, 127])
def test_a_function_that_is_none(function: int) -> None:
    """Section 11.6.1: response 5, "task management function not supported"."""
    with scene() as it:
        it.login()
        manage(it, function)
        assert responses(it) == [pdu.FUNCTION_NOT_SUPPORTED]
        it.lives()


@pytest.mark.parametrize("tag", [0, TAG + 9, pdu.RESERVED_TAG])
def test_abort_of_a_task_that_is_none(tag: int) -> None:
    """Response 1, "task does not exist": an unknown tag, the reserved one."""
    with scene() as it:
        it.login()
        manage(it, pdu.ABORT_TASK, referenced_task_tag=tag)
        assert responses(it) == [pdu.TASK_DOES_NOT_EXIST]
        it.lives()


def test_abort_of_itself() -> None:
    """Section 11.5.1: ABORT TASK "MUST NOT be executed on a Task Management Request": "function rejected"."""
    with scene() as it:
        it.login()
        manage(it, pdu.ABORT_TASK, referenced_task_tag=TMF)
        assert responses(it) == [pdu.FUNCTION_REJECTED]


def test_the_reserved_tag() -> None:
    """A function answers to a task tag, so it needs one."""
    with scene() as it:
        it.login()
        manage(it, pdu.LOGICAL_UNIT_RESET, tag=pdu.RESERVED_TAG)
        it.rejected(pdu.REJECT_INVALID_PDU_FIELD)


def test_abort_after_completion() -> None:
    """The task was answered: it does not exist any more."""
    with scene() as it:
        peer = it.login()
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        status()(it)
        manage(it, pdu.ABORT_TASK, referenced_task_tag=TAG)
        assert responses(it) == [pdu.TASK_DOES_NOT_EXIST]


def test_abort_with_another_lun() -> None:
    """The LUN does not fit the task: rejected, and the task goes on."""
    with scene() as it:
        peer = it.login()
        held(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        manage(it, pdu.ABORT_TASK, referenced_task_tag=TAG, lun=5 << 48)
        assert responses(it) == [pdu.FUNCTION_REJECTED]
        let_go(it)
        status()(it)


def test_abort_twice() -> None:
    """Two aborts of one task: both are answered when it is dead, and it itself never."""
    with scene() as it:
        peer = it.login()
        held(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        manage(it, pdu.ABORT_TASK, referenced_task_tag=TAG)
        manage(it, pdu.ABORT_TASK, referenced_task_tag=TAG, tag=TMF + 1)
        assert it.says() == []
        let_go(it)
        said = {each.header.initiator_task_tag: each.header for each in it.says()}
        assert set(said) == {TMF, TMF + 1}
        assert said[TMF].response == pdu.FUNCTION_COMPLETE
        assert said[TMF + 1].response in (pdu.FUNCTION_COMPLETE, pdu.TASK_DOES_NOT_EXIST)
        it.lives()


@pytest.mark.parametrize("lun", [5 << 48, 0xC101 << 48, (1 << 64) - 1])
def test_reset_of_a_unit_that_is_none(lun: int) -> None:
    """Response 2, "LUN does not exist"."""
    with scene() as it:
        it.login()
        manage(it, pdu.LOGICAL_UNIT_RESET, lun=lun)
        assert responses(it) == [pdu.LUN_DOES_NOT_EXIST]


def test_reassign_at_error_recovery_level_0() -> None:
    """Section 11.6.1: response 4, "task allegiance reassignment not supported"."""
    with scene() as it:
        it.login()
        manage(it, pdu.TASK_REASSIGN, referenced_task_tag=TAG)
        assert responses(it) == [pdu.REASSIGNMENT_NOT_SUPPORTED]


def test_resets_without_end_during_a_write() -> None:
    """Each is answered once, complete, when the data that was asked for has come (section 4.2.3.3: a target "MUST wait"
    for it); the write that they hit is never answered."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes", ImmediateData="No")
        for number in range(30):
            it.send(command(peer, write_cdb(0, 8), WRITE, 4096, initiator_task_tag=TAG + number))
            r2t = it.answer()
            manage(it, pdu.LOGICAL_UNIT_RESET, tag=TMF + number)
            assert not any(each.header.initiator_task_tag == TMF + number for each in it.says())
            owed = pdu.DataOut(
                flags=pdu.FINAL,
                initiator_task_tag=TAG + number,
                target_transfer_tag=r2t.target_transfer_tag,
            )
            it.send(encode(owed, bytes(4096)))
            answers = [each.header for each in it.says() if each.header.initiator_task_tag != pdu.RESERVED_TAG]
            assert [(each.initiator_task_tag, each.response) for each in answers] == [
                (TMF + number, pdu.FUNCTION_COMPLETE)
            ]
            it.good.attentions()  # it hears of each reset
            it.others_go_on()
        it.lives()


def test_a_reset_whose_write_never_gets_its_data() -> None:
    """The peer owes data and sends none: it is not waited for longer than a function has time; then the write can't
    happen any more, and the reset is complete. Nobody else waited meanwhile."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes", ImmediateData="No")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096))
        it.says()
        manage(it, pdu.LOGICAL_UNIT_RESET)
        it.good.attentions()
        it.others_go_on()
        it.house.pass_time(Timing().management_s + 1)
        assert responses(it) == [pdu.FUNCTION_COMPLETE]
        it.good.attentions()


def test_functions_without_end_on_a_disk_that_is_stuck() -> None:
    """They are taken up to a limit, and rejected beyond it; each has one answer when the disk is quick again."""
    flood = MANAGEMENT_LIMIT + 10
    with scene() as it:
        peer = it.login()
        held(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        for number in range(flood):
            manage(it, pdu.ABORT_TASK, referenced_task_tag=TAG, tag=TMF + number)
        early = [each.header.response for each in it.says()]
        assert early == [pdu.FUNCTION_REJECTED] * (flood - MANAGEMENT_LIMIT)
        let_go(it)
        late = [each.header.initiator_task_tag for each in it.says()]
        assert sorted(late) == [TMF + number for number in range(MANAGEMENT_LIMIT)]
        it.lives()


def test_a_reset_hits_nobody_on_another_unit() -> None:
    """A function reaches the LUNs of its session's own map; the good session hears of a reset of a shared one."""
    with scene() as it:
        it.login()
        manage(it, pdu.LOGICAL_UNIT_RESET)
        assert responses(it) == [pdu.FUNCTION_COMPLETE]
        told = it.good.do(it.good.initiator.command(bytes(6)))
        assert (told.status, told.sense_key, (told.additional_sense or (0,))[0]) == (scsi.CHECK_CONDITION, 6, 0x29)
