"""Silence, pings and answers that nobody takes: who is given up, when, and who is not."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.session.liveness import Timing
from tests.session.conversation import Conversation

QUICK = Timing(nop_interval_s=5.0, nop_timeout_s=3.0)


def pings(talk: Conversation) -> int:
    return sum(
        isinstance(seen.header, pdu.NopIn) and seen.header.target_transfer_tag != pdu.RESERVED_TAG for seen in talk.seen
    )


def test_an_initiator_that_answers_pings_lives_on() -> None:
    """One ping for each interval of silence, and each answer begins the next."""
    talk = Conversation(timing=QUICK)
    talk.login()
    talk.pass_time(60.0)
    assert not talk.connection.is_closed
    assert 8 <= pings(talk) <= 12


def test_an_initiator_that_does_not_is_given_up() -> None:
    """… when interval and time-out are over, not before."""
    talk = Conversation(timing=QUICK)
    talk.login().answer_pings = False
    talk.pass_time(8.0)
    assert not talk.connection.is_closed
    assert pings(talk) == 1
    talk.pass_time(3.0)
    assert talk.connection.is_closed
    assert any("NOP-In" in str(event) for event in talk.told)


def test_anything_that_comes_is_an_answer() -> None:
    """Whoever talks is there, whatever it says."""
    talk = Conversation(timing=QUICK)
    initiator = talk.login()
    initiator.answer_pings = False
    for _ in range(20):
        talk.pass_time(7.0)
        initiator.nop_out(b"")
        talk.run()
    assert not talk.connection.is_closed


@pytest.mark.parametrize("seconds", [100.0, 1000.0])
def test_pings_may_be_off(seconds: float) -> None:
    """nop_interval_s=0: silence is no reason."""
    talk = Conversation(timing=Timing(nop_interval_s=0.0))
    talk.login().answer_pings = False
    talk.pass_time(seconds)
    assert not talk.connection.is_closed
    assert pings(talk) == 0


def test_who_does_not_log_in_is_not_waited_for() -> None:
    """The login phase has its own limit."""
    talk = Conversation(timing=Timing(login_s=4.0))
    talk.pass_time(4.0)
    assert not talk.connection.is_closed
    talk.pass_time(1.0)
    assert talk.connection.is_closed
