"""Ends of tasks: aborted in every state they can be in, closed with their session, never twice, never forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.management import MANAGEMENT_LIMIT
from iscsi_ovs.session.session import Session
from iscsi_ovs.session.states import State
from iscsi_ovs.testing.initiator import Initiator, encode
from tests.session.conversation import BLOCK, Conversation, write_cdb


def write_header(initiator: Initiator, tag: int, length: int, **fields: int) -> pdu.ScsiCommand:
    """A WRITE whose CmdSN, flags and the like are the test's business."""
    header = pdu.ScsiCommand(
        flags=pdu.FINAL | pdu.WRITE,
        initiator_task_tag=tag,
        cmd_sn=initiator.cmd_sn,
        expected_data_transfer_length=length,
        cdb=write_cdb(0, length // BLOCK).ljust(16, b"\0"),
    )
    for name, value in fields.items():
        setattr(header, name, value)
    return header


def session_of(talk: Conversation) -> Session:
    assert talk.session is not None
    return talk.session


def check_all_is_free(talk: Conversation) -> None:
    """The session is gone and so is everything that it held."""
    session = session_of(talk)
    idle: list[bool] = []
    session.when_idle(lambda: idle.append(True))
    assert idle == [True]
    session.window.close()
    pool = talk.space.pool
    assert pool is not None
    assert (pool.free_slots, pool.reserved_slots) == (pool.capacity_slots, 0)


def half_a_data_out(talk: Conversation) -> int:
    """A write whose first Data-Out is half received; returns its tag."""
    initiator = talk.login(InitialR2T="Yes", ImmediateData="No")
    initiator.answer_r2t = False
    tag = initiator.command(write_cdb(0, 256), write=b"v" * 131072)
    talk.run()
    r2t = next(seen.header for seen in initiator.received if isinstance(seen.header, pdu.ReadyToTransfer))
    initiator.answer(r2t)
    data = initiator.to_send()
    talk.to_target(data[:60000])
    talk.rest = data[60000:]  # type: ignore[attr-defined]
    return tag


def test_a_buffer_that_is_being_received_into_has_no_other_owner() -> None:
    """A reset by another session comes in the middle of a data segment: its slots are not free before its last byte."""
    talk = Conversation(slots=64)
    tag = half_a_data_out(talk)
    session = session_of(talk)
    pool = talk.space.pool
    assert pool is not None
    task = session.tasks.find(tag)
    assert task is not None
    dead: list[bool] = []
    session.abort(task, lambda: dead.append(True))
    assert dead == [True], "it will never be executed"
    others = []
    while (other := pool.allocate(65536)) is not None:
        other.views(0, 65536)[0][:] = b"o" * 65536
        others.append(other)
    talk.to_target(talk.rest)  # type: ignore[attr-defined]
    for other in others:
        assert bytes(other.views(0, 65536)[0]) == b"o" * 65536
        other.release()
    assert session.tasks.find(tag) is None, "now it is gone"
    talk.run()
    ping = talk.initiator.nop_out(b"in step")
    talk.run()
    assert bytes(talk.initiator.results[ping].data) == b"in step"
    talk.happened(talk.connection.lost("cable"))
    check_all_is_free(talk)


def test_a_connection_lost_behind_such_a_reset_frees_the_buffer() -> None:
    """The last byte never comes: the slots are free with the connection."""
    talk = Conversation(slots=64)
    tag = half_a_data_out(talk)
    task = session_of(talk).tasks.find(tag)
    assert task is not None
    session_of(talk).abort(task, lambda: None)
    talk.happened(talk.connection.lost("cable"))
    check_all_is_free(talk)


def test_an_abort_in_the_middle_of_immediate_data() -> None:
    """The command is not whole yet: it is dead at once, and its buffer free when its data is in."""
    talk = Conversation()
    initiator = talk.login()
    data = encode(write_header(initiator, 0x700, 65536), b"i" * 65536)
    talk.to_target(data[:30000])
    session = session_of(talk)
    task = session.tasks.find(0x700)
    assert task is not None
    dead: list[bool] = []
    session.abort(task, lambda: dead.append(True))
    assert dead == [True]
    talk.to_target(data[30000:])
    initiator.cmd_sn += 1
    assert not talk.commands
    assert session.tasks.find(0x700) is None
    tag = initiator.command(write_cdb(0, 8), write=b"n" * 4096)
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD
    talk.happened(talk.connection.lost("cable"))
    check_all_is_free(talk)


def abort_it(talk: Conversation, tag: int) -> list[bool]:
    session = session_of(talk)
    task = session.tasks.find(tag)
    assert task is not None
    dead: list[bool] = []
    session.abort(task, lambda: dead.append(True))
    return dead


@pytest.mark.parametrize("ends_by", ["its turn", "the end of the connection"])
@pytest.mark.parametrize("immediate_data", [True, False])
def test_a_task_aborted_while_it_waits_for_its_cmd_sn(ends_by: str, immediate_data: bool) -> None:
    """Held for a gap in front of it, it can't happen any more: dead at once, its place stays taken until its turn."""
    talk = Conversation()
    initiator = talk.login()
    ahead = (initiator.cmd_sn + 1) & 0xFFFFFFFF
    data = b"h" * 4096 if immediate_data else b""
    initiator.raw(encode(write_header(initiator, 0x700, 4096, cmd_sn=ahead), data))
    talk.run()
    assert not talk.commands
    dead = abort_it(talk, 0x700)
    assert dead == [True], "another session's reset does not wait for a gap that we can't fill"
    if ends_by == "its turn":
        first = initiator.command(write_cdb(0, 1), write=b"a" * BLOCK)
        initiator.cmd_sn += 1  # the aborted one's
        talk.run()
        assert initiator.results[first].status == scsi.GOOD
        assert session_of(talk).tasks.find(0x700) is None
        last = initiator.command(write_cdb(0, 1), write=b"b" * BLOCK)
        talk.run()
        assert initiator.results[last].status == scsi.GOOD
    talk.happened(talk.connection.lost("cable"))
    check_all_is_free(talk)


def test_a_held_write_that_already_failed_takes_its_data_and_answers_in_its_turn() -> None:
    """TASK SET FULL is decided when the header comes; what is sent for it is drained; the status waits for the turn."""
    talk = Conversation()
    initiator = talk.login()
    pool, talk.space.pool = talk.space.pool, None  # the volume server is away: BUSY
    ahead = initiator.cmd_sn + 1
    initiator.raw(encode(write_header(initiator, 0x700, 8192, cmd_sn=ahead, flags=pdu.WRITE), b"h" * 4096))
    initiator.data_out(0x700, b"h" * 4096, offset=4096)
    talk.run()
    talk.space.pool = pool
    assert talk.connection.state is State.FULL_FEATURE
    nop = initiator.nop_out(b"", immediate=False)
    initiator.results[0x700] = initiator.results[nop].__class__(0x700)
    initiator.cmd_sn += 1
    talk.run()
    assert initiator.results[0x700].status == scsi.BUSY


def test_a_held_task_that_failed_and_was_aborted_is_not_answered() -> None:
    """One of both: the abort has said that it is dead."""
    talk = Conversation()
    initiator = talk.login()
    header = write_header(initiator, 0x700, 4096, cmd_sn=initiator.cmd_sn + 1, flags=pdu.READ | pdu.FINAL)
    initiator.raw(encode(header, b"not asked for"))
    talk.run()
    assert abort_it(talk, 0x700) == [True]
    initiator.nop_out(b"", immediate=False)
    initiator.cmd_sn += 1
    talk.run()  # the initiator would not know the tag
    assert session_of(talk).tasks.find(0x700) is None


def test_a_held_write_asks_for_nothing_before_its_turn() -> None:
    """R2Ts and the queue for slots are for tasks of the task set; an abort before that leaves the window in order."""
    talk = Conversation(slots=64)
    initiator = talk.login(FirstBurstLength="65536")
    ahead = initiator.cmd_sn + 1
    initiator.raw(encode(write_header(initiator, 0x700, 1 << 20, cmd_sn=ahead, flags=pdu.WRITE), b"h" * 4096))
    initiator.data_out(0x700, b"h" * 4096, offset=4096)
    talk.run()
    assert not any(isinstance(seen.header, pdu.ReadyToTransfer) for seen in initiator.received)
    assert abort_it(talk, 0x700) == [True]
    initiator.nop_out(b"", immediate=False)
    initiator.cmd_sn += 1
    tag = initiator.command(write_cdb(0, 8), write=b"n" * 4096)
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD
    talk.happened(talk.connection.lost("cable"))
    check_all_is_free(talk)


def in_server(talk: Conversation) -> None:
    """A write that the volume server has."""
    talk.executes_at_once = False
    talk.initiator.command(write_cdb(0, 1), write=b"b" * BLOCK)
    talk.run()


def receiving(talk: Conversation) -> None:
    talk.initiator.answer_r2t = False
    talk.initiator.command(write_cdb(0, 2048), write=b"b" * (1 << 20))
    talk.run()


@pytest.mark.parametrize("prepare", [in_server, receiving])
def test_whoever_aborts_a_task_twice_hears_twice(prepare: Callable[[Conversation], None]) -> None:
    """Every abort has its own ``done``, at once where there is nothing to wait for."""
    talk = Conversation()
    talk.login()
    prepare(talk)
    session = session_of(talk)
    (task,) = session.tasks
    dead: list[int] = []
    session.abort(task, lambda: dead.append(1))
    session.abort(task, lambda: dead.append(2))
    if talk.commands:
        assert dead == []
        talk.execute()
    assert dead == [1, 2]


def test_a_read_that_is_aborted_before_it_was_executed_and_waits_for_slots_when_the_server_goes() -> None:
    """READ and ABORT TASK in one batch, then no slots, then no server: no answer for it, but one for the abort."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    tag = initiator.command(b"\x28" + bytes(9), read=BLOCK)
    abort = initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=tag)
    talk.run()
    session = session_of(talk)
    task = session.tasks.find(tag)
    assert task is not None
    assert not initiator.results[abort].is_complete
    task.waiter = talk.space.wait(lambda: False)
    talk.space.detach()
    session.space_lost()
    talk.run()
    assert initiator.results[abort].response == pdu.FUNCTION_COMPLETE
    assert not initiator.results[tag].is_complete


def test_a_tag_that_was_used_again_is_answered_for_its_second_use() -> None:
    """A function rejected at its deadline may come back after its tag has a new one: neither speaks for the other."""
    talk = Conversation(slots=1024)
    talk.executes_at_once = False
    initiator = talk.login()
    first, second = (initiator.command(write_cdb(n, 1), write=b"w" * BLOCK) for n in range(2))
    abort = initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=first)
    talk.run()
    talk.now = 20.0
    talk.happened(talk.connection.tick(20.0))
    talk.run()
    assert initiator.results.pop(abort).response == pdu.FUNCTION_REJECTED
    initiator._itt = abort - 1
    assert initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=second) == abort
    talk.run()
    talk.execute(0)  # the first returns
    talk.run()
    assert not initiator.results[abort].is_complete, "the second is still under way"
    talk.execute(0)
    talk.run()
    assert initiator.results[abort].response == pdu.FUNCTION_COMPLETE


def test_task_management_under_way_has_a_limit() -> None:
    """Behind a stuck disk one initiator can't pile up functions without end; the rest is rejected at once."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    task = initiator.command(write_cdb(0, 1), write=b"w" * BLOCK)
    aborts = [initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=task) for _ in range(MANAGEMENT_LIMIT + 9)]
    talk.run()
    answered = [tag for tag in aborts if initiator.results[tag].is_complete]
    assert answered == aborts[MANAGEMENT_LIMIT:]
    assert {initiator.results[tag].response for tag in answered} == {pdu.FUNCTION_REJECTED}
    talk.execute()
    talk.run()
    assert all(initiator.results[tag].response == pdu.FUNCTION_COMPLETE for tag in aborts[:MANAGEMENT_LIMIT])


def test_a_window_that_an_abort_opens_again_is_told() -> None:
    """Another session's reset ends all that this one had in its window: a NOP-In says so, nothing else would."""
    talk = Conversation(slots=64)
    talk.executes_at_once = False
    initiator = talk.login()
    tags = [initiator.command(write_cdb(n, 1), write=b"w" * BLOCK) for n in range(200)]
    talk.run()
    assert initiator._waiting
    session = session_of(talk)
    for task in session.tasks:
        session.abort(task, lambda: None)
    while talk.commands:
        talk.execute()
    talk.run()
    assert talk.commands, "the next ones have come"
    told = [seen.header for seen in initiator.received if isinstance(seen.header, pdu.NopIn)]
    assert told[0].target_transfer_tag == pdu.RESERVED_TAG
    assert not any(initiator.results[tag].is_complete for tag in tags)


def test_wrong_data_for_a_command_that_waits_for_its_turn() -> None:
    """Decided when it comes, answered in its turn; the connection goes on."""
    talk = Conversation()
    initiator = talk.login()
    ahead = initiator.cmd_sn + 1
    initiator.raw(encode(write_header(initiator, 0x700, 8192, cmd_sn=ahead), b"h" * 4096))
    initiator.data_out(0x700, b"h" * 512, offset=0, transfer_tag=0)
    talk.run()
    nop = initiator.nop_out(b"", immediate=False)
    initiator.results[0x700] = initiator.results[nop].__class__(0x700)
    initiator.cmd_sn += 1
    talk.run()
    assert initiator.results[0x700].status == scsi.CHECK_CONDITION
    assert talk.connection.state is State.FULL_FEATURE
