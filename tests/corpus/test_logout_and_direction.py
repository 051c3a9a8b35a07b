"""Corpus 11: logouts of what is not there or during I/O, SNACK, and PDUs that only a target sends.

RFC 7143 section 11.14 to 11.16 (Logout, SNACK), 11.17.1 (Reject reasons), 8.1 (who sends what).
"""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.session.states import State
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import (
    READ,
    TAG,
    WRITE,
    Case,
    Peer,
    cases,
    command,
    judge,
    numbered,
    read_cdb,
    reject,
    scene,
    write_cdb,
)
from tests.corpus.test_sequence_numbers import held, let_go


def logout(peer: Peer, reason: int, **fields: Any) -> bytes:
    header = pdu.LogoutRequest(flags=pdu.FINAL | reason, initiator_task_tag=TAG)
    for name, value in fields.items():
        setattr(header, name, value)
    return numbered(peer, header)


def test_logout_of_another_connection() -> None:
    """Response 1, "CID not found": and the connection that asked goes on."""
    with scene() as it:
        it.send(logout(it.login(), pdu.CLOSE_CONNECTION, cid=77))
        assert it.answer().response == pdu.CID_NOT_FOUND
        it.lives()


def test_logout_for_recovery() -> None:
    """Response 2, "connection recovery is not supported": ErrorRecoveryLevel is 0."""
    with scene() as it:
        it.send(logout(it.login(), pdu.REMOVE_FOR_RECOVERY))
        assert it.answer().response == pdu.RECOVERY_NOT_SUPPORTED
        it.lives()


@pytest.mark.parametrize("reason", [3, 64, 127])
def test_logout_for_a_reason_that_is_none(reason: int) -> None:
    with scene() as it:
        it.send(logout(it.login(), reason))
        it.rejected(pdu.REJECT_INVALID_PDU_FIELD)


@pytest.mark.parametrize("reason", [pdu.CLOSE_SESSION, pdu.CLOSE_CONNECTION])
def test_logout_during_io(reason: int) -> None:
    """The response comes when the last task is over; what comes after the request is not taken any more."""
    with scene() as it:
        peer = it.login()
        held(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        it.send(logout(peer, reason, initiator_task_tag=TAG + 1))
        assert it.says() == []
        let_go(it)
        said = it.says()
        assert isinstance(said[-1].header, pdu.LogoutResponse)
        assert said[-1].header.response == pdu.LOGOUT_SUCCESS
        assert it.bad.connection.is_closed


def test_logout_while_a_write_waits_for_its_data() -> None:
    """The data never comes: the task ends with its session."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes", ImmediateData="No")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096))
        it.says()
        it.send(logout(peer, pdu.CLOSE_SESSION, initiator_task_tag=TAG + 1))
        assert isinstance(it.says()[-1].header, pdu.LogoutResponse)
        assert it.bad.connection.is_closed


def test_a_command_behind_a_logout() -> None:
    """Nothing follows a Logout Request: the connection ends."""
    with scene() as it:
        peer = it.login()
        held(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        it.send(logout(peer, pdu.CLOSE_SESSION, initiator_task_tag=TAG + 1))
        assert it.bad.connection.state is State.LOGGING_OUT
        it.send(command(peer, read_cdb(0, 1), READ, 512, initiator_task_tag=TAG + 2))
        assert it.says() == []
        assert it.bad.connection.is_closed


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(("first", "length"), [(0, 0), (0, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_snack(kind: int, first: int, length: int) -> None:
    """Section 11.16: "support for … SNACK" is for ErrorRecoveryLevel 1 and up: Reject, reason "SNACK reject"."""
    with scene() as it:
        it.login()
        header = pdu.SnackRequest(flags=pdu.FINAL | kind, initiator_task_tag=TAG, beg_run=first, run_length=length)
        it.send(encode(header))
        it.rejected(pdu.REJECT_SNACK)


@cases(
    *(
        Case(
            kind.__name__,
            lambda peer, kind=kind: encode(kind(initiator_task_tag=TAG), bytes(100)),  # type: ignore[misc]
            reject(pdu.REJECT_COMMAND_NOT_SUPPORTED),
        )
        for kind in pdu.RESPONSES.values()
    ),
    *(
        Case(
            f"opcode {opcode:#04x}",
            lambda peer, opcode=opcode: bytes((opcode,)) + bytes(47),  # type: ignore[misc]
            reject(pdu.REJECT_COMMAND_NOT_SUPPORTED),
        )
        for opcode in range(64)
        if opcode not in pdu.PDUS
    ),
)
def test_a_pdu_that_only_a_target_sends(case: Case) -> None:
    """… or that nobody sends: Reject, "command not supported"; one header is lost, not the connection."""
    judge(case)
