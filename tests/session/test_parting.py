"""Logouts of every reason, behind every kind of task; what we ask for and announce ourselves."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.session import events
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.testing.initiator import Initiator, Result
from tests.session.conversation import BLOCK, Conversation, write_cdb


def logout(talk: Conversation, reason: int = pdu.CLOSE_SESSION, cid: int | None = None) -> Result:
    tag = talk.initiator.logout(reason, cid=cid)
    talk.run()
    return talk.initiator.results[tag]


@pytest.mark.parametrize("reason", [pdu.CLOSE_SESSION, pdu.CLOSE_CONNECTION])
def test_both_reasons_end_the_session(reason: int) -> None:
    """One connection a session: to close it is to close the session."""
    talk = Conversation()
    talk.login()
    assert logout(talk, reason).response == pdu.LOGOUT_SUCCESS
    assert talk.connection.is_closed
    assert sum(isinstance(event, events.SessionClosed) for event in talk.told) == 1


def test_the_cid_says_which_connection() -> None:
    """Another CID is not found; to close the session it does not matter."""
    talk = Conversation(cid=3)
    talk.login()
    assert logout(talk, pdu.CLOSE_CONNECTION, cid=4).response == pdu.CID_NOT_FOUND
    assert not talk.connection.is_closed
    assert logout(talk, pdu.CLOSE_SESSION, cid=4).response == pdu.LOGOUT_SUCCESS


def test_recovery_is_refused() -> None:
    """ErrorRecoveryLevel is 0: the session goes on."""
    talk = Conversation()
    talk.login()
    assert logout(talk, pdu.REMOVE_FOR_RECOVERY).response == pdu.RECOVERY_NOT_SUPPORTED
    assert not talk.connection.is_closed


@pytest.mark.parametrize("reason", [pdu.CLOSE_CONNECTION, pdu.REMOVE_FOR_RECOVERY])
def test_a_discovery_session_is_closed_as_a_session_only(reason: int) -> None:
    """Section 4.3: "All other requests MUST be rejected"."""
    talk = Conversation()
    talk.initiator.login(None)
    talk.run()
    assert logout(talk, reason).reject_reason == pdu.REJECT_PROTOCOL_ERROR
    assert logout(talk, pdu.CLOSE_SESSION).response == pdu.LOGOUT_SUCCESS


def test_a_logout_behind_a_stuck_disk_says_that_the_cleanup_failed() -> None:
    """At its deadline, once; the connection ends, and what is left is still told by when_idle."""
    talk = Conversation(timing=Timing(logout_s=5.0))
    talk.executes_at_once = False
    talk.login().command(write_cdb(0, 1), write=b"w" * BLOCK)
    talk.run()
    result = logout(talk)
    talk.pass_time(5.0)
    assert not result.is_complete
    talk.pass_time(1.0)
    assert result.response == pdu.CLEANUP_FAILED
    assert talk.connection.is_closed
    session = talk.session
    assert session is not None
    idle: list[bool] = []
    session.when_idle(lambda: idle.append(True))
    assert idle == []
    talk.execute()
    talk.run()
    assert idle == [True]


def test_a_connection_lost_during_its_logout_is_just_lost() -> None:
    """Nobody is answered, nothing is told twice."""
    talk = Conversation()
    talk.executes_at_once = False
    talk.login().command(write_cdb(0, 1), write=b"w" * BLOCK)
    talk.run()
    logout(talk)
    talk.happened(talk.connection.lost("cable"))
    talk.execute()
    talk.pass_time(20.0)
    assert sum(isinstance(event, events.SessionClosed) for event in talk.told) == 1
    assert sum(isinstance(event, events.ConnectionClosed) for event in talk.told) == 1


def test_128_writes_in_flight_at_a_logout() -> None:
    """None is answered, all are waited for, every slot is back."""
    talk = Conversation(slots=4096)
    initiator = talk.login()
    for n in range(256):  # the window opens with use
        initiator.command(write_cdb(n, 1), write=b"w" * BLOCK)
    talk.run()
    talk.executes_at_once = False
    tags = [initiator.command(write_cdb(n, 1), write=b"w" * BLOCK) for n in range(128)]
    talk.run()
    assert len(talk.commands) == 128
    result = initiator.results[initiator.logout(immediate=True)]  # the window is used up
    talk.run()
    while talk.commands:
        assert not result.is_complete
        talk.execute()
        talk.run()
    assert result.response == pdu.LOGOUT_SUCCESS
    assert not any(initiator.results[tag].is_complete for tag in tags)
    pool, session = talk.space.pool, talk.session
    assert pool is not None
    assert session is not None
    session.window.close()
    assert (pool.free_slots, pool.reserved_slots) == (pool.capacity_slots, 0)


def messages(initiator: Initiator) -> list[tuple[int, int, int, int]]:
    return [
        (header.async_event, header.parameter_1, header.parameter_2, header.parameter_3)
        for header in (each.header for each in initiator.received)
        if isinstance(header, pdu.AsynchronousMessage)
    ]


def test_what_we_ask_for_and_announce() -> None:
    """Section 11.9.1: events 1 and 3, each with a StatSN of its own (the initiator checks)."""
    talk = Conversation()
    initiator = talk.login()
    assert talk.session is not None
    talk.connection.parting.request_logout(7)
    talk.run()
    ping = initiator.nop_out(b"still here")
    talk.run()
    assert initiator.results[ping].is_complete
    talk.connection.parting.announce_drop(talk.session)
    talk.happened(talk.connection.drop("the end"))
    talk.run()
    assert messages(initiator) == [(pdu.ASYNC_LOGOUT_REQUEST, 0, 0, 7), (pdu.ASYNC_DROP_SESSION, 0, 2, 0)]
    assert talk.connection.is_closed
