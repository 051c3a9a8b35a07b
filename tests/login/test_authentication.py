"""Which method a login must prove itself by, and that nobody gets past it (RFC 7143 sections 9.2, 12.1)."""

from __future__ import annotations

import pytest

from iscsi_ovs import errors, login, pdu
from iscsi_ovs.login.policy import CHAP, NONE, OPEN, Policy
from tests.login.chap_tools import (
    AUTHENTICATION_FAILURE,
    INITIATOR_ERROR,
    SECRET,
    begin,
)
from tests.login.tools import (
    DISCOVERY,
    IDENTITY,
    INITIATOR,
    OPERATIONAL,
    OPERATIONAL_TO_FULL_FEATURE,
    SECURITY_TO_OPERATIONAL,
    TARGET,
    answers,
    refused,
    send,
)

# Which method


@pytest.mark.parametrize(
    ("methods", "offer", "chosen"),
    [
        ((CHAP,), "CHAP", "CHAP"),
        ((CHAP,), "None,CHAP", "CHAP"),
        ((CHAP,), "KRB5,SRP,CHAP", "CHAP"),
        ((CHAP, NONE), "None,CHAP", "CHAP"),
        ((CHAP, NONE), "None", "None"),
        ((NONE, CHAP), "CHAP,None", "None"),
        ((NONE,), "CHAP,None", "None"),
        ((CHAP,), "None", None),
        ((CHAP,), "KRB5", None),
        ((NONE,), "CHAP", None),
        ((CHAP,), "chap", None),
        ((CHAP,), "", None),
        ((CHAP,), "Reject", None),
        ((CHAP,), "CHAP," + "x" * 9000, None),
    ],
)
def test_the_method_by_our_order(methods: tuple[str, ...], offer: str, chosen: str | None) -> None:
    side = login.Login(1, limits=login.TextLimits(value_bytes=16384, data_segment_bytes=16384))
    side.policy = lambda initiator_name, target_name: Policy(methods, accounts={"alice": SECRET})
    request = [*IDENTITY, ("AuthMethod", offer)]
    if chosen is None:
        message = refused(AUTHENTICATION_FAILURE, side, SECURITY_TO_OPERATIONAL, request)
        assert INITIATOR in message
    else:
        step = send(side, SECURITY_TO_OPERATIONAL, request)
        assert answers(step)["AuthMethod"] == chosen
        assert bool(step.flags & pdu.TRANSIT) == (chosen == "None")


@pytest.mark.parametrize("flags", [OPERATIONAL, OPERATIONAL_TO_FULL_FEATURE, SECURITY_TO_OPERATIONAL, pdu.TRANSIT | 3])
def test_nobody_gets_past_unauthenticated(flags: int) -> None:
    """Beginning in the operational stage, or leaving the first one without AuthMethod: 0201."""
    assert "must authenticate" in refused(AUTHENTICATION_FAILURE, begin(), flags, IDENTITY)


@pytest.mark.parametrize("step", [0, 1])
def test_asking_for_the_next_stage_does_not_lead_there(step: int) -> None:
    """T=1 in the middle of the exchange: the answer has T=0."""
    side = begin()
    said = send(side, pdu.TRANSIT | 3, [*IDENTITY, ("AuthMethod", "CHAP")])
    assert (said.flags, said.finished) == (0, None)
    if step:
        said = send(side, pdu.TRANSIT | 3, [("CHAP_A", "8")])
        assert (said.flags, said.finished) == (0, None)
    assert side.stage == 0
    refused(INITIATOR_ERROR, side, OPERATIONAL_TO_FULL_FEATURE)


def test_a_method_may_be_offered_in_the_second_request() -> None:
    """An initiator that first says who it is."""
    side = begin()
    assert send(side, 0, IDENTITY).flags == 0
    assert answers(send(side, 0, [("AuthMethod", "CHAP")])) == {"AuthMethod": "CHAP"}


def test_the_owner_may_refuse_at_once() -> None:
    """An initiator that no list of ours names: 0202, before it is challenged."""

    def policy(initiator_name: str, target_name: str | None) -> Policy:
        raise errors.LoginError(2, 2, f"{initiator_name} is not in the list")

    side = login.Login(1)
    side.policy = policy
    refused((2, 2), side, 0, [*IDENTITY, ("AuthMethod", "CHAP")])


def test_a_policy_for_each_target_and_for_discovery() -> None:
    """Asked for at the first text, and once more before the end: it may be another one by then."""
    asked: list[tuple[str, str | None]] = []
    for who in (IDENTITY, DISCOVERY, [*DISCOVERY, ("TargetName", TARGET)]):
        side = login.Login(1)

        def policy(initiator_name: str, target_name: str | None) -> Policy:
            asked.append((initiator_name, target_name))
            return OPEN

        side.policy = policy
        send(side, SECURITY_TO_OPERATIONAL, who)
        send(side, OPERATIONAL_TO_FULL_FEATURE)
    assert asked == [(INITIATOR, TARGET)] * 2 + [(INITIATOR, None)] * 4


@pytest.mark.parametrize("late", [("SessionType", "Discovery"), ("TargetName", TARGET + "2")])
def test_nobody_becomes_another_after_the_first_text(late: tuple[str, str]) -> None:
    """Who was let in for one thing can't turn to another that might have asked for more."""
    side = begin(OPEN)
    who = [IDENTITY[0], IDENTITY[2]] if late[0] == "SessionType" else DISCOVERY
    send(side, SECURITY_TO_OPERATIONAL, who)
    assert "too late" in refused(INITIATOR_ERROR, side, OPERATIONAL_TO_FULL_FEATURE, [late])


# Bounds


def test_text_before_authentication_is_bounded() -> None:
    """64 KiB and 128 keys, over all requests of a login: NotUnderstood can't be had for ever."""
    side = begin()
    send(side, 0, IDENTITY)
    for number in range(8):
        send(side, 0, [(f"X-{number}", "x" * 8100)])
    assert "65536 bytes" in refused(INITIATOR_ERROR, side, 0, [("X-8", "x" * 800)])
    side = begin()
    send(side, 0, IDENTITY)
    send(side, 0, [(f"X-{number}", "") for number in range(125)])
    assert "128 keys" in refused(INITIATOR_ERROR, side, 0, [("X-last", "")])
