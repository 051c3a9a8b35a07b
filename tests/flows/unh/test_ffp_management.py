"""FFP groups 11 to 14: task management, SNACK, logout, Reject (RFC 7143 sections 11.5, 11.6, 11.14 to 11.17)."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import NEITHER, READ, TAG, TEST_UNIT_READY, command, numbered, read_cdb, scene
from tests.targets.house import OTHER_PORT, Client, House


def held_read(client: Client, house: House) -> int:
    """A READ that is under way, on a disk that is slow."""
    house.service.handles[-1].hold()
    tag = client.read(0, 8)
    house.run()
    return tag


def test_abort_task_immediate(client: Client, house: House) -> None:
    """FFP 11 (1 of 9), section 11.5.1: an immediate ABORT TASK; complete only when the task can't act any more, and the
    task itself is never answered."""
    task = held_read(client, house)
    abort = client.initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=task)
    house.run()
    assert not client.initiator.results[abort].is_complete
    house.service.handles[-1].let_go()
    assert client.do(abort).response == pdu.FUNCTION_COMPLETE
    assert not client.initiator.results[task].is_complete


def test_abort_task_not_immediate(client: Client, house: House) -> None:
    """FFP 11 (1 of 9), section 11.5: a function with a CmdSN of its own has its turn like a command."""
    task = held_read(client, house)
    abort = client.initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=task, immediate=False)
    house.service.handles[-1].let_go()
    house.run()
    assert client.do(abort).response in (pdu.FUNCTION_COMPLETE, pdu.TASK_DOES_NOT_EXIST)
    assert client.initiator.exp_cmd_sn == client.initiator.cmd_sn


@pytest.mark.parametrize("what", ["a task of this connection", "no task", "another LUN"])
def test_task_reassign(client: Client, house: House, what: str) -> None:
    """FFP 11 (2 to 4 of 9), section 11.6.1: at ErrorRecoveryLevel 0 a TASK REASSIGN is refused, whatever it names:
    allegiance reassignment is not supported, and the task goes on."""
    task = held_read(client, house)
    named = {"a task of this connection": task, "no task": 0x7777, "another LUN": task}[what]
    lun = 9 if what == "another LUN" else 0
    tag = client.initiator.tmf(pdu.TASK_REASSIGN, referenced_task_tag=named, lun=lun)
    assert client.do(tag).response == pdu.REASSIGNMENT_NOT_SUPPORTED
    house.service.handles[-1].let_go()
    assert client.do(task).status == scsi.GOOD


@pytest.mark.parametrize(
    ("function", "lun", "response"),
    [
        (pdu.ABORT_TASK, 0, pdu.TASK_DOES_NOT_EXIST),
        (pdu.LOGICAL_UNIT_RESET, 9, pdu.LUN_DOES_NOT_EXIST),
        (pdu.LOGICAL_UNIT_RESET, 0, pdu.FUNCTION_COMPLETE),
    ],
)
def test_responses(client: Client, function: int, lun: int, response: int) -> None:
    """FFP 11 (5 to 7 of 9), section 11.6.1: a task that is none, a LUN that is none, and a function that is done."""
    assert client.do(client.initiator.tmf(function, lun=lun, referenced_task_tag=0x7777)).response == response


def test_target_warm_reset(client: Client, house: House) -> None:
    """FFP 11 (8 of 9), section 11.5.1: every unit that the session sees is reset: its tasks end without an answer,
    other sessions hear of it by a unit attention, and all of them go on."""
    task = held_read(client, house)
    other = house.login(isid=OTHER_PORT)
    reset = client.initiator.tmf(pdu.TARGET_WARM_RESET)
    house.run()
    for handle in house.service.handles:
        handle.let_go()
    assert client.do(reset).response == pdu.FUNCTION_COMPLETE
    assert not client.initiator.results[task].is_complete
    told = other.do(other.initiator.command(bytes(6)))
    assert (told.sense_key, (told.additional_sense or (0, 0))[0]) == (0x06, 0x29)
    other.attentions()
    client.attentions()
    assert client.do(client.read(0, 8)).status == other.do(other.read(0, 8)).status == scsi.GOOD


def test_target_cold_reset(client: Client, house: House) -> None:
    """FFP 11 (9 of 9), section 11.5.1: as a warm reset, and "the target MUST … terminate all of its … connections"."""
    other = house.login(isid=OTHER_PORT)
    client.initiator.tmf(pdu.TARGET_COLD_RESET)
    house.run()
    assert client.connection.is_closed
    assert other.connection.is_closed
    assert house.login().initiator.is_logged_in


@pytest.mark.parametrize("kind", range(4))
def test_snack(kind: int) -> None:
    """FFP 12 (1 to 4 of 4), section 11.16: Data/R2T, status, DataACK and R-Data SNACK at ErrorRecoveryLevel 0: "SNACK
    reject", and the session goes on."""
    with scene() as it:
        it.login()
        it.send(encode(pdu.SnackRequest(flags=pdu.FINAL | kind, initiator_task_tag=TAG, run_length=1)))
        it.rejected(pdu.REJECT_SNACK)


def test_logout_closes_the_session(client: Client) -> None:
    """FFP 13 (1 of 3), section 11.14.1, reason 0: response 0, then the connection is closed."""
    assert client.do(client.initiator.logout()).response == pdu.LOGOUT_SUCCESS
    assert client.connection.is_closed


def test_logout_closes_the_connection(client: Client) -> None:
    """FFP 13 (2 of 3), section 11.14.1, reason 1: the one connection, named by its CID; with it the session ends."""
    assert client.do(client.initiator.logout(pdu.CLOSE_CONNECTION)).response == pdu.LOGOUT_SUCCESS
    assert client.connection.is_closed


def test_logout_for_recovery(client: Client) -> None:
    """FFP 13 (3 of 3), section 11.15.1, reason 2 at ErrorRecoveryLevel 0: "connection recovery is not supported"."""
    assert client.do(client.initiator.logout(pdu.REMOVE_FOR_RECOVERY)).response == pdu.RECOVERY_NOT_SUPPORTED
    assert not client.connection.is_closed


def test_reject_of_an_opcode() -> None:
    """FFP 14 (1 of 3), section 11.17: "command not supported", with the header that was refused, F, no task tag, and a
    StatSN of its own."""
    with scene() as it:
        peer = it.login()
        wrong = bytes((0x1D,)) + bytes(15) + b"\0\0\7\7" + bytes(28)
        expected = peer.exp_stat_sn
        it.send(wrong)
        (said,) = it.says()
        header = said.header
        assert (header.reason, header.initiator_task_tag) == (pdu.REJECT_COMMAND_NOT_SUPPORTED, pdu.RESERVED_TAG)
        assert (header.flags & pdu.FINAL, header.stat_sn, said.data) == (pdu.FINAL, expected, wrong)
        it.lives()


def test_reject_of_a_field() -> None:
    """FFP 14 (2 of 3), section 11.17.1: "invalid PDU field": the CmdSN of what is refused counts as received."""
    with scene() as it:
        peer = it.login()
        before = peer.exp_cmd_sn
        request = command(peer, read_cdb(0, 1), NEITHER, 512)
        it.send(request)
        it.rejected(pdu.REJECT_INVALID_PDU_FIELD, request)
        assert peer.exp_cmd_sn == before + 1


def test_reject_of_a_task_in_progress() -> None:
    """FFP 14 (3 of 3), section 11.17.1: a tag that is in use: "task in progress", and the first task is answered."""
    with scene() as it:
        peer = it.login()
        it.house.service.handles[-1].hold()
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        it.send(command(peer, TEST_UNIT_READY, NEITHER, 0))
        it.rejected(pdu.REJECT_TASK_IN_PROGRESS)
        it.house.service.handles[-1].let_go()
        assert it.answer().status == scsi.GOOD
        it.send(numbered(peer, pdu.NopOut(initiator_task_tag=TAG)))
        it.says()
