"""What the target brings up itself, and what may be said twice (RFC 7143 sections 6.2 and 6.3)."""

from __future__ import annotations

import pytest

from iscsi_ovs import login
from tests.login.tools import (
    DISCOVERY,
    IDENTITY,
    INITIATOR,
    OPERATIONAL,
    OPERATIONAL_TO_FULL_FEATURE,
    SECURITY_TO_OPERATIONAL,
    answers,
    refused,
    send,
)

SHORT = login.Offer(first_burst_length=8192)
NO_UNSOLICITED = login.Offer(initial_r2t=True, immediate_data=False)


def test_a_default_that_we_cannot_hold_is_brought_up() -> None:
    """FirstBurstLength is 65536 if nobody speaks of it: with less room, T waits until the initiator has agreed."""
    side = login.Login(1, SHORT)
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    assert step.flags == OPERATIONAL
    assert step.finished is None
    assert answers(step)["FirstBurstLength"] == "8192"
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, [("FirstBurstLength", "4096")])
    assert step.text == b""
    assert step.finished
    assert step.finished.first_burst_length == 4096


@pytest.mark.parametrize("answer", ["8193", "511", "Reject", "NotUnderstood", "Irrelevant", "Yes", "", "08192"])
def test_an_answer_that_the_rule_could_not_give_is_refused(answer: str) -> None:
    side = login.Login(1, SHORT)
    send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    refused((2, 0), side, OPERATIONAL_TO_FULL_FEATURE, [("FirstBurstLength", answer)])


def test_an_answer_may_be_hexadecimal() -> None:
    side = login.Login(1, SHORT)
    send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    assert send(side, OPERATIONAL_TO_FULL_FEATURE, [("FirstBurstLength", "0x2000")]).finished


def test_no_answer_is_refused() -> None:
    side = login.Login(1, SHORT)
    send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    refused((2, 0), side, OPERATIONAL_TO_FULL_FEATURE)


def test_immediate_data_is_brought_up() -> None:
    """With no unsolicited data at all, FirstBurstLength needs no word."""
    side = login.Login(1, NO_UNSOLICITED)
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    assert answers(step) == {
        "TargetPortalGroupTag": "1", "MaxRecvDataSegmentLength": "262144", "ImmediateData": "No",
    }  # fmt: skip
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, [("ImmediateData", "No")])
    assert step.finished
    assert not step.finished.immediate_data
    assert step.finished.initial_r2t


def test_immediate_data_may_not_be_insisted_on() -> None:
    side = login.Login(1, NO_UNSOLICITED)
    send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    refused((2, 0), side, OPERATIONAL_TO_FULL_FEATURE, [("ImmediateData", "Yes")])


def test_a_full_offer_leaves_nothing_to_bring_up() -> None:
    side = login.Login(1, NO_UNSOLICITED)
    pairs = [("InitialR2T", "No"), ("ImmediateData", "Yes"), ("FirstBurstLength", "262144")]
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY + pairs)
    assert step.finished
    assert not step.finished.immediate_data
    assert step.finished.initial_r2t


def test_nothing_is_brought_up_in_discovery() -> None:
    assert send(login.Login(1, SHORT), OPERATIONAL_TO_FULL_FEATURE, DISCOVERY).finished


def test_no_room_and_no_stage_to_say_so() -> None:
    """From security straight to full feature phase there is no place to lower the defaults: out of resources."""
    assert send(login.Login(1), 0x83, IDENTITY).finished
    refused((3, 2), login.Login(1, SHORT), 0x83, IDENTITY)


def test_without_the_operational_stage_nothing_is_declared() -> None:
    """Then our own MaxRecvDataSegmentLength is the default, too: the initiator was never told of another."""
    step = send(login.Login(1), 0x83, IDENTITY)
    assert step.finished
    assert step.finished.target_max_recv_data_segment_length == 8192


def test_a_key_is_negotiated_once() -> None:
    """Section 6.3: a second time is a login reject, even with the same value."""
    side = login.Login(1)
    send(side, OPERATIONAL, [*IDENTITY, ("MaxBurstLength", "262144")])
    refused((2, 0), side, OPERATIONAL, [("MaxBurstLength", "262144")])


def test_an_unknown_key_is_asked_once() -> None:
    side = login.Login(1)
    send(side, OPERATIONAL, [*IDENTITY, ("X-a", "1")])
    refused((2, 0), side, OPERATIONAL, [("X-a", "1")])


def test_a_rejected_key_is_not_tried_again() -> None:
    side = login.Login(1)
    send(side, OPERATIONAL, [*IDENTITY, ("MaxConnections", "0")])
    refused((2, 0), side, OPERATIONAL, [("MaxConnections", "1")])


def test_who_one_is_may_be_said_again() -> None:
    """libiscsi says it in both stages. Another value is another initiator: refused."""
    side = login.Login(1)
    send(side, SECURITY_TO_OPERATIONAL, [*IDENTITY, ("InitiatorAlias", "me")])
    assert send(side, OPERATIONAL, [*IDENTITY, ("InitiatorAlias", "me")]).flags == OPERATIONAL
    refused((2, 0), side, OPERATIONAL, [("InitiatorName", INITIATOR + "x")])


@pytest.mark.parametrize("alias", ["x" * 256, "é" * 128])
def test_a_declaration_that_is_too_long_is_refused(alias: str) -> None:
    refused((2, 0), login.Login(1), OPERATIONAL, [*IDENTITY, ("InitiatorAlias", alias)])


def test_an_offer_that_is_too_long_is_rejected() -> None:
    step = send(login.Login(1), OPERATIONAL, [*IDENTITY, ("MaxBurstLength", "1" * 300)])
    assert answers(step)["MaxBurstLength"] == "Reject"


def test_an_unknown_key_is_not_echoed_with_its_value() -> None:
    """What killed LIO once (CVE-2013-2850): the answer holds the key, at most 63 bytes, never the value."""
    step = send(login.Login(1), OPERATIONAL, [*IDENTITY, ("X-" + "a" * 61, "v" * 8000)])
    assert len(step.text) < 200
