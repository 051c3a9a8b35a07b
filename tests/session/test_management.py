"""Task management of one session: which function is answered how, for a task in each state that it can be in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session import events
from iscsi_ovs.session.management import DATA_GRACE_S, FUNCTIONS
from iscsi_ovs.session.session import Session
from iscsi_ovs.testing.initiator import Result, encode
from tests.session.conversation import BLOCK, Conversation, read_cdb, write_cdb

LEVEL_2: dict[str, Any] = {"iSCSIProtocolLevel": "2"}
TARGETS_OWN = sorted(code for code, row in FUNCTIONS.items() if row.handler is None and row.refusal is None)


def talk_at_level_2(**keys: Any) -> Conversation:
    talk = Conversation()
    talk.login(**{**LEVEL_2, **keys})
    return talk


def session_of(talk: Conversation) -> Session:
    assert talk.session is not None
    return talk.session


def do(talk: Conversation, function: int, **fields: Any) -> Result:
    tag = talk.initiator.tmf(function, **fields)
    talk.run()
    return talk.initiator.results[tag]


def requested(talk: Conversation) -> list[events.TaskManagementRequested]:
    return [event for event in talk.told if isinstance(event, events.TaskManagementRequested)]


# Which function is whose ------------------------------------------------------------------------------------------


def test_level_2_is_negotiated_and_no_more() -> None:
    """RFC 7144 section 7.1: the smaller of both numbers."""
    for asked, answered in [("1", "1"), ("2", "2"), ("5", "2")]:
        talk = Conversation()
        talk.login(iSCSIProtocolLevel=asked)
        assert talk.initiator.answers["iSCSIProtocolLevel"] == answered
        assert session_of(talk).parameters.protocol_level == int(answered)


@pytest.mark.parametrize("function", range(128))
def test_functions_at_level_1(function: int) -> None:
    """Without iSCSIProtocolLevel only RFC 7143's functions exist, whatever their number."""
    talk = Conversation()
    talk.login()
    result = do(talk, function)
    if function == pdu.ABORT_TASK:
        assert result.response == pdu.TASK_DOES_NOT_EXIST
    elif function == pdu.TASK_REASSIGN:
        assert result.response == pdu.REASSIGNMENT_NOT_SUPPORTED
    elif function in TARGETS_OWN and function < pdu.QUERY_TASK:
        assert not result.is_complete, "it waits for the owner"
        assert [event.function for event in requested(talk)] == [function]
    else:
        assert result.response == pdu.FUNCTION_NOT_SUPPORTED
        assert not requested(talk)


@pytest.mark.parametrize("function", TARGETS_OWN)
def test_the_owner_is_asked_and_its_answer_is_sent(function: int) -> None:
    """… with the additional response information that it gives."""
    talk = talk_at_level_2()
    result = do(talk, function, lun=3)
    (event,) = requested(talk)
    assert (event.function, event.request.lun) == (function, 3 << 48)
    event.session.management.answer(event.request, pdu.FUNCTION_SUCCEEDED, b"\x16\x29\x00")
    talk.run()
    assert result.response == pdu.FUNCTION_SUCCEEDED
    assert isinstance(result.header, pdu.TaskManagementResponse)
    assert result.header.additional_response_information == b"\x16\x29\x00"
    assert session_of(talk).management.under_way == []


def test_a_request_with_data_or_without_a_tag_or_with_one_that_is_in_use_is_rejected() -> None:
    """Sections 11.5 and 11.2.1.8; the session goes on."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    task = initiator.command(write_cdb(0, 1), write=b"w" * BLOCK)
    talk.run()
    reset = initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    talk.run()
    reasons = []
    for tag, data in [(9, b"data"), (pdu.RESERVED_TAG, b""), (task, b""), (reset, b"")]:
        header = pdu.TaskManagementRequest(
            opcode=pdu.TaskManagementRequest.OPCODE | pdu.IMMEDIATE,
            flags=pdu.FINAL | pdu.LOGICAL_UNIT_RESET,
            initiator_task_tag=tag,
            cmd_sn=initiator.cmd_sn,
        )
        seen = len(talk.seen)
        talk.to_target(encode(header, data))
        raw = b"".join(bytes(piece) for piece in talk.connection.data_to_send())
        talk.connection.sent(len(raw))
        reject = pdu.decode(raw)
        assert isinstance(reject, pdu.Reject)
        initiator.exp_stat_sn += 1
        reasons.append(reject.reason)
        assert len(talk.seen) == seen
    assert reasons == [
        pdu.REJECT_INVALID_PDU_FIELD,
        pdu.REJECT_INVALID_PDU_FIELD,
        pdu.REJECT_TASK_IN_PROGRESS,
        pdu.REJECT_TASK_IN_PROGRESS,
    ]
    assert len(requested(talk)) == 1


# ABORT TASK and QUERY TASK, by what the task is doing ---------------------------------------------------------------


def executing(talk: Conversation) -> int:
    """The volume server has it."""
    talk.executes_at_once = False
    tag = talk.initiator.command(write_cdb(0, 1), write=b"b" * BLOCK)
    talk.run()
    return tag


def receiving(talk: Conversation) -> int:
    """It waits for Data-Out."""
    talk.initiator.answer_r2t = False
    tag = talk.initiator.command(write_cdb(0, 2048), write=b"b" * (1 << 20))
    talk.run()
    return tag


def waiting_for_slots(talk: Conversation) -> int:
    """It waits in the queue for slots."""
    pool = talk.space.pool
    assert pool is not None
    while pool.allocate(65536) is not None:
        pass
    tag = talk.initiator.command(write_cdb(0, 2048), write=b"b" * (1 << 20))
    talk.run()
    assert talk.space.has_waiters
    return tag


def out_of_turn(talk: Conversation) -> int:
    """A command in front of it has not come."""
    initiator = talk.initiator
    header = pdu.ScsiCommand(
        flags=pdu.FINAL | pdu.READ,
        initiator_task_tag=0x700,
        cmd_sn=initiator.cmd_sn + 1,
        expected_data_transfer_length=BLOCK,
        cdb=read_cdb(0, 1).ljust(16, b"\0"),
    )
    initiator.raw(header)
    talk.run()
    return 0x700


STATES = [executing, receiving, waiting_for_slots, out_of_turn]


@pytest.mark.parametrize("prepare", STATES)
def test_a_task_is_aborted_in_each_state(prepare: Callable[[Conversation], int]) -> None:
    """Complete: at once where nothing can happen any more, with its completion where the volume server has it."""
    talk = talk_at_level_2()
    tag = prepare(talk)
    assert do(talk, pdu.QUERY_TASK, referenced_task_tag=tag).response == pdu.FUNCTION_SUCCEEDED
    result = do(talk, pdu.ABORT_TASK, referenced_task_tag=tag)
    if prepare is executing:
        assert not result.is_complete
        assert do(talk, pdu.QUERY_TASK, referenced_task_tag=tag).response == pdu.FUNCTION_COMPLETE, "it is aborted"
        talk.execute()
        talk.run()
    assert result.response == pdu.FUNCTION_COMPLETE
    assert tag not in talk.initiator.results or not talk.initiator.results[tag].is_complete
    assert do(talk, pdu.QUERY_TASK, referenced_task_tag=tag).response == pdu.FUNCTION_COMPLETE


@pytest.mark.parametrize("prepare", STATES)
def test_another_lun_is_another_task(prepare: Callable[[Conversation], int]) -> None:
    """The task must be addressed as it was sent: nothing happens to it."""
    talk = talk_at_level_2()
    tag = prepare(talk)
    assert do(talk, pdu.ABORT_TASK, referenced_task_tag=tag, lun=1).response == pdu.FUNCTION_REJECTED
    assert do(talk, pdu.QUERY_TASK, referenced_task_tag=tag, lun=1).response == pdu.FUNCTION_COMPLETE
    task = session_of(talk).tasks.find(tag)
    assert task is not None
    assert not task.is_aborted


def test_an_answered_task_does_not_exist() -> None:
    """Section 11.6.1 c): its CmdSN is behind the window."""
    talk = Conversation()
    tag = talk.login().command(write_cdb(0, 1), write=b"b" * BLOCK)
    talk.run()
    assert do(talk, pdu.ABORT_TASK, referenced_task_tag=tag).response == pdu.TASK_DOES_NOT_EXIST
    assert do(talk, pdu.ABORT_TASK, referenced_task_tag=0x1234, ref_cmd_sn=5000).response == pdu.TASK_DOES_NOT_EXIST


@pytest.mark.parametrize("of", ["itself", "another"])
def test_task_management_is_not_aborted(of: str) -> None:
    """Section 11.5.1: "such a request MUST result in Task Management Response of "Function rejected""."""
    talk = Conversation()
    initiator = talk.login()
    reset = initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    talk.run()
    referenced = reset if of == "another" else initiator._itt + 1
    assert do(talk, pdu.ABORT_TASK, referenced_task_tag=referenced).response == pdu.FUNCTION_REJECTED
    assert not initiator.results[reset].is_complete


def test_an_abort_of_a_command_that_never_came_counts_it_as_received() -> None:
    """Section 11.6.1 b): the commands behind it have their turn, and it is ignored should it still come."""
    talk = Conversation()
    initiator = talk.login()
    lost = initiator.cmd_sn
    initiator.cmd_sn += 1
    behind = initiator.command(read_cdb(0, 1), read=BLOCK)
    talk.run()
    assert not initiator.results[behind].is_complete
    assert do(talk, pdu.ABORT_TASK, referenced_task_tag=0x700, ref_cmd_sn=lost).response == pdu.FUNCTION_COMPLETE
    assert initiator.results[behind].status == scsi.GOOD
    late = pdu.ScsiCommand(
        flags=pdu.FINAL | pdu.READ,
        initiator_task_tag=0x700,
        cmd_sn=lost,
        expected_data_transfer_length=BLOCK,
        cdb=read_cdb(0, 1).ljust(16, b"\0"),
    )
    initiator.raw(late)
    talk.run()  # an answer would be one to a tag that the initiator does not know
    window = session_of(talk).window
    assert window.exp_cmd_sn == initiator.cmd_sn
    assert window.taken == 0


def test_a_number_that_another_command_has_is_not_counted_twice() -> None:
    """RefCmdSN of a command that is here, under another tag."""
    talk = Conversation()
    talk.login()
    out_of_turn(talk)
    ahead = talk.initiator.cmd_sn + 1
    talk.initiator.cmd_sn += 2
    assert do(talk, pdu.ABORT_TASK, referenced_task_tag=0x1, ref_cmd_sn=ahead).response == pdu.TASK_DOES_NOT_EXIST


def test_a_number_that_is_not_before_the_function_is_not_counted() -> None:
    """ "… and less than the CmdSN of the Task Management Function Request itself"."""
    talk = Conversation()
    talk.login()
    number = talk.initiator.cmd_sn
    assert do(talk, pdu.ABORT_TASK, referenced_task_tag=1, ref_cmd_sn=number).response == pdu.TASK_DOES_NOT_EXIST
    assert session_of(talk).window.exp_cmd_sn == number


# Functions over many tasks ------------------------------------------------------------------------------------------


def abort_all(talk: Conversation, event: events.TaskManagementRequested) -> None:
    """What an owner does."""
    left = 1

    def one_done() -> None:
        nonlocal left
        left -= 1
        if not left:
            event.session.management.answer(event.request, pdu.FUNCTION_COMPLETE)

    for task in session_of(talk).tasks:
        left += 1
        event.session.management.abort(task, one_done, is_own=True)
    one_done()


@pytest.mark.parametrize("function", [pdu.ABORT_TASK_SET, pdu.CLEAR_TASK_SET, pdu.LOGICAL_UNIT_RESET])
def test_a_function_waits_for_the_commands_numbered_before_it(function: int) -> None:
    """Section 4.2.3.3 b): they are of the set that it ends. They may come in the meantime, or never."""
    talk = Conversation()
    initiator = talk.login()
    initiator.cmd_sn += 1
    first = do(talk, function)
    second = do(talk, function)
    assert not requested(talk)
    initiator.cmd_sn -= 1
    initiator.nop_out(b"", immediate=False)
    talk.run()
    talk.pass_time(1.0)
    assert len(requested(talk)) == 2
    for event in requested(talk):
        abort_all(talk, event)
    talk.run()
    assert (first.response, second.response) == (pdu.FUNCTION_COMPLETE, pdu.FUNCTION_COMPLETE)
    initiator.cmd_sn += 1
    never = do(talk, function)
    talk.pass_time(11.0)
    assert never.response == pdu.FUNCTION_REJECTED
    assert session_of(talk).management.under_way == []


@pytest.mark.parametrize("function", [pdu.TARGET_WARM_RESET, pdu.TARGET_COLD_RESET])
def test_a_target_reset_counts_the_commands_before_it_as_received(function: int) -> None:
    """Section 4.2.3.3: "the entire CmdSN space up to the CmdSN of the task management function can be "plugged""."""
    talk = Conversation(slots=2048)
    talk.executes_at_once = False
    initiator = talk.login()
    out_of_turn(talk)
    initiator.cmd_sn += 4  # of which the second is here
    do(talk, function)
    (event,) = requested(talk)
    assert session_of(talk).window.exp_cmd_sn == initiator.cmd_sn
    assert event.function == function
    assert talk.commands[0].context.initiator_task_tag == 0x700, "it had its turn, in front of the reset"


def test_data_that_was_asked_for_is_waited_for() -> None:
    """Section 4.2.3.3 a): ABORT TASK SET is complete when each R2T of the set is answered; the data goes nowhere."""
    talk = Conversation()
    initiator = talk.login(MaxBurstLength="262144")
    tag = receiving(talk)
    r2ts = [seen.header for seen in initiator.received if isinstance(seen.header, pdu.ReadyToTransfer)]
    assert len(r2ts) == 3
    initiator.nop_out(b"", immediate=False)
    result = do(talk, pdu.ABORT_TASK_SET)
    abort_all(talk, requested(talk)[0])
    for r2t in r2ts:
        talk.run()
        assert not result.is_complete
        initiator.answer(r2t)
    talk.run()
    assert result.response == pdu.FUNCTION_COMPLETE
    assert session_of(talk).tasks.find(tag) is None
    assert not any(talk.disk)


@pytest.mark.parametrize("reporting", ["RFC3720", "ResponseFence", "FastAbort"])
def test_data_that_does_not_come_is_not_waited_for_long(reporting: str) -> None:
    """Linux stops to answer R2Ts without saying so; who has negotiated FastAbort is not waited for at all."""
    talk = Conversation()
    talk.login(TaskReporting=reporting)
    assert talk.initiator.answers["TaskReporting"] == reporting
    receiving(talk)
    result = do(talk, pdu.LOGICAL_UNIT_RESET)
    abort_all(talk, requested(talk)[0])
    talk.run()
    assert result.is_complete == (reporting == "FastAbort")
    talk.pass_time(DATA_GRACE_S + 0.1)
    assert result.response == pdu.FUNCTION_COMPLETE
    assert len(session_of(talk).tasks) == 0


def test_an_aborted_task_is_dead_once_whoever_waits_for_its_data() -> None:
    """ABORT TASK overtakes ABORT TASK SET, and a lost connection overtakes both."""
    for ends_by in ("abort", "loss"):
        talk = Conversation()
        talk.login()
        tag = receiving(talk)
        result = do(talk, pdu.ABORT_TASK_SET)
        abort_all(talk, requested(talk)[0])
        if ends_by == "abort":
            assert do(talk, pdu.ABORT_TASK, referenced_task_tag=tag).response == pdu.FUNCTION_COMPLETE
            assert result.response == pdu.FUNCTION_COMPLETE
        else:
            talk.happened(talk.connection.lost("cable"))
        talk.pass_time(DATA_GRACE_S + 1)
        assert len(session_of(talk).tasks) == 0
        assert session_of(talk).management.under_way == []


def test_tasks_that_another_session_ended_are_told_where_fast_abort_holds() -> None:
    """Section 11.9.1: AsyncEvent 5 "MUST NOT be used … unless" FastAbort was negotiated."""
    for reporting in ("RFC3720", "FastAbort"):
        talk = Conversation()
        talk.login(TaskReporting=reporting)
        session_of(talk).management.tell_termination(3 << 48)
        talk.run()
        told = [seen.header for seen in talk.seen if isinstance(seen.header, pdu.AsynchronousMessage)]
        assert [(header.async_event, header.lun) for header in told] == (
            [(pdu.ASYNC_TASK_TERMINATION, 3 << 48)] if reporting == "FastAbort" else []
        )
        tag = talk.initiator.nop_out(b"in step")
        talk.run()
        assert bytes(talk.initiator.results[tag].data) == b"in step"
