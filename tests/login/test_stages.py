"""The stage graph, exhaustively, and the checks on each request's header (RFC 7143 sections 6.3, 11.12, 11.13)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import errors, login, pdu
from iscsi_ovs.login import keys, text
from tests.login.tools import (
    CONTINUE,
    DISCOVERY,
    IDENTITY,
    INITIATOR,
    ISID,
    OPERATIONAL,
    OPERATIONAL_TO_FULL_FEATURE,
    SECURITY_TO_OPERATIONAL,
    TARGET,
    answers,
    refused,
    request,
    send,
)

LEGAL_TRANSITS = {(0, 1), (0, 3), (1, 3)}  # by hand, from section 11.12.3


@pytest.mark.parametrize("transit", [0, 1])
@pytest.mark.parametrize("goes_on", [0, 1])
@pytest.mark.parametrize(("current", "following"), list(itertools.product(range(4), range(4))))
def test_every_flags_byte_of_a_first_request(transit: int, goes_on: int, current: int, following: int) -> None:
    flags = transit << 7 | goes_on << 6 | current << 2 | following
    legal = current in (0, 1) and not (transit and goes_on) and (not transit or (current, following) in LEGAL_TRANSITS)
    side = login.Login(1)
    if not legal:
        refused((2, 0), side, flags, IDENTITY)
        return
    step = send(side, flags, IDENTITY)
    if goes_on:
        assert (step.flags, step.text, step.finished) == (current << 2, b"", None)
    elif transit:
        assert step.flags == 0x80 | current << 2 | following
        assert (step.finished is not None) == (following == 3)
    else:
        assert step.flags == current << 2
        assert step.finished is None


@pytest.mark.parametrize("reached", [0, 1])
@pytest.mark.parametrize("flags", range(256))
def test_every_flags_byte_of_a_second_request(reached: int, flags: int) -> None:
    """The current stage is where the last response left us; reserved bits are not looked at."""
    side = login.Login(1)
    send(side, SECURITY_TO_OPERATIONAL if reached else 0, IDENTITY)
    transit, goes_on, current, following = flags >> 7, flags >> 6 & 1, flags >> 2 & 3, flags & 3
    legal = current == reached and not (transit and goes_on) and (not transit or (current, following) in LEGAL_TRANSITS)
    if legal:
        step = send(side, flags)
        assert bool(step.flags & pdu.TRANSIT) == bool(transit)
        assert side.stage == (following if transit else current)
    else:
        refused((2, 0), side, flags)


def test_the_first_response_states_the_portal_group_and_alias_once() -> None:
    """In the security stage open-iscsi takes no other statement."""
    side = login.Login(7, login.Offer(target_alias="disk of Ada"))
    assert answers(send(side, SECURITY_TO_OPERATIONAL, IDENTITY)) == {
        "TargetPortalGroupTag": "7",
        "TargetAlias": "disk of Ada",
    }
    assert answers(send(side, OPERATIONAL)) == {"MaxRecvDataSegmentLength": "262144"}
    assert send(side, OPERATIONAL).text == b""
    step = send(side, OPERATIONAL_TO_FULL_FEATURE)
    assert step.text == b""
    assert step.finished
    assert step.finished.portal_group_tag == 7
    assert step.finished.target_max_recv_data_segment_length == 262144


def test_discovery_has_no_portal_group() -> None:
    step = send(login.Login(7), OPERATIONAL_TO_FULL_FEATURE, DISCOVERY)
    assert answers(step) == {"MaxRecvDataSegmentLength": "262144"}
    assert step.finished
    assert step.finished.is_discovery
    assert step.finished.target_name is None


def test_the_outcome_names_the_nexus() -> None:
    step = send(login.Login(7), OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    assert step.finished
    finished = step.finished
    assert (finished.initiator_name, finished.target_name) == (INITIATOR, TARGET)
    assert (finished.isid, finished.cid, finished.portal_group_tag) == (ISID, 1, 7)
    assert not finished.is_discovery


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([], (2, 7)),
        (IDENTITY[1:], (2, 7)),
        (IDENTITY[:2], (2, 7)),
        (IDENTITY[:1], (2, 7)),
        ([("SessionType", "Discovery")], (2, 7)),
        ([IDENTITY[0], ("SessionType", "Other")], (2, 9)),
        ([IDENTITY[0], ("SessionType", "")], (2, 9)),
        ([("InitiatorName", ""), *IDENTITY[1:]], (2, 0)),
        ([("InitiatorName", "no name"), *IDENTITY[1:]], (2, 0)),
        ([*IDENTITY[:2], ("TargetName", "")], (2, 3)),
        ([*IDENTITY[:2], ("TargetName", "iqn.2016-01.com.example:" + "x" * 200)], (2, 3)),
    ],
)
def test_the_first_text_says_who_and_whom(pairs: list[tuple[str, str]], status: tuple[int, int]) -> None:
    refused(status, login.Login(1), SECURITY_TO_OPERATIONAL, pairs)


def test_session_type_is_normal_unless_said() -> None:
    step = send(login.Login(1), OPERATIONAL_TO_FULL_FEATURE, [IDENTITY[0], IDENTITY[2]])
    assert step.finished
    assert not step.finished.is_discovery


def test_check_target_is_asked_at_the_first_text_and_before_the_end() -> None:
    side = login.Login(1)
    asked: list[str] = []
    side.check_target = asked.append
    send(side, SECURITY_TO_OPERATIONAL, IDENTITY)
    send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    assert asked == [TARGET, TARGET]


def test_check_target_refuses() -> None:
    def refuse(name: str) -> None:
        raise errors.LoginError(2, 3, f"no {name}")

    side = login.Login(1)
    side.check_target = refuse
    refused((2, 3), side, SECURITY_TO_OPERATIONAL, IDENTITY)


def test_check_target_is_not_asked_in_discovery() -> None:
    side = login.Login(1)
    side.check_target = pytest.fail
    assert send(side, OPERATIONAL_TO_FULL_FEATURE, [*DISCOVERY, ("TargetName", TARGET)]).finished


@pytest.mark.parametrize(("version_max", "version_min", "is_spoken"), [(0, 0, True), (9, 0, True), (1, 1, False)])
def test_version(version_max: int, version_min: int, is_spoken: bool) -> None:
    """Section 11.12.4: ours is 0; an initiator that wants more at least is told so."""
    arguments: dict[str, Any] = {"version_max": version_max, "version_min": version_min}
    if is_spoken:
        send(login.Login(1), 0, IDENTITY, **arguments)
    else:
        refused((2, 5), login.Login(1), 0, IDENTITY, **arguments)


def test_a_session_that_is_not_there() -> None:
    refused((2, 0x0A), login.Login(1), 0, IDENTITY, tsih=9)


def test_a_session_whose_connection_is_named_anew() -> None:
    """The owner may let such a login go on, to be authenticated first."""
    side = login.Login(1)
    side.check_session = lambda request: request.tsih == 9
    refused((2, 0x0A), side, 0, IDENTITY, tsih=8)
    side = login.Login(1)
    side.check_session = lambda request: request.tsih == 9
    assert send(side, SECURITY_TO_OPERATIONAL, IDENTITY, tsih=9).flags == SECURITY_TO_OPERATIONAL


def test_check_session_may_say_why() -> None:
    def refuse(request: pdu.LoginRequest) -> bool:
        raise errors.LoginError(2, 6, f"session {request.tsih} has its one connection")

    side = login.Login(1)
    side.check_session = refuse
    assert "session 9" in refused((2, 6), side, 0, IDENTITY, tsih=9)


@pytest.mark.parametrize(
    "change",
    [{"initiator_task_tag": 6}, {"isid": bytes(6)}, {"cid": 2}, {"tsih": 1}, {"version_min": 1}, {"version_max": 1}],
)
def test_what_must_stay_the_same_during_login(change: dict[str, Any]) -> None:
    side = login.Login(1)
    send(side, SECURITY_TO_OPERATIONAL, IDENTITY)
    refused((2, 0), side, OPERATIONAL, **change)
    side = login.Login(1)
    send(side, CONTINUE, b"Initiator")
    refused((2, 0), side, 0, b"Name=x\0", **change)


def test_a_text_in_pieces() -> None:
    """Cut at every offset, and byte by byte, it says the same; each piece but the last is answered by nothing."""
    pairs = [*IDENTITY, ("MaxBurstLength", "65536")]
    whole = text.join(pairs)
    expected = send(login.Login(1), OPERATIONAL_TO_FULL_FEATURE, whole)
    for cut in range(len(whole) + 1):
        side = login.Login(1)
        assert send(side, OPERATIONAL | CONTINUE, whole[:cut]) == login.Step(OPERATIONAL)
        assert send(side, OPERATIONAL_TO_FULL_FEATURE, whole[cut:]) == expected
    side = login.Login(1)
    for offset in range(len(whole)):
        send(side, OPERATIONAL | CONTINUE, whole[offset : offset + 1])
    assert send(side, OPERATIONAL_TO_FULL_FEATURE) == expected


def test_an_answer_in_pieces() -> None:
    """128 unknown keys make more than 8192 bytes of NotUnderstood: C bit, empty requests, T with the last."""
    unknown = [(f"X-{number:061d}", "1") for number in range(125)]
    side = login.Login(1)
    whole = text.join(IDENTITY + unknown)
    send(side, OPERATIONAL | CONTINUE, whole[:8192])
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, whole[8192:])
    assert step.flags == OPERATIONAL | CONTINUE
    assert len(step.text) == 8192
    assert step.finished is None
    last = send(side, OPERATIONAL_TO_FULL_FEATURE)
    assert last.flags == OPERATIONAL_TO_FULL_FEATURE
    assert last.finished
    said = dict(text.split(step.text + last.text))
    assert [said[key] for key, _ in unknown] == ["NotUnderstood"] * 125


@pytest.mark.parametrize(("flags", "data"), [(OPERATIONAL, b"A=1\0"), (OPERATIONAL | CONTINUE, b"")])
def test_no_text_in_the_middle_of_an_answer(flags: int, data: bytes) -> None:
    side = login.Login(1)
    send(side, OPERATIONAL | CONTINUE, text.join(IDENTITY))
    assert send(side, OPERATIONAL, text.join((f"X-{n:061d}", "") for n in range(120))).flags & CONTINUE
    refused((2, 0), side, flags, data)


@pytest.mark.parametrize(
    "data",
    [
        b"InitiatorName",
        b"InitiatorName\0",
        b"=\0",
        b"A" * 64 + b"=1\0",
        b"A=1\0A=1\0",
        b"A=\xff\0",
        b"".join(b"K%d=1\0" % number for number in range(1000)),
        b"A=" + b"v" * 8193 + b"\0",
        bytes(100),
    ],
    ids=lambda data: repr(data[:16]),
)
def test_a_broken_text_is_refused(data: bytes) -> None:
    refused((2, 0), login.Login(1), OPERATIONAL, data)


def test_the_data_segment_is_bounded() -> None:
    """MaxRecvDataSegmentLength is 8192 during login, whatever was declared."""
    refused((2, 0), login.Login(1), OPERATIONAL | CONTINUE, bytes(8193))


def test_a_text_without_end_is_bounded() -> None:
    """C for ever: 64 KiB, and no more than 256 requests of any size."""
    side = login.Login(1)
    for _ in range(8):
        send(side, OPERATIONAL | CONTINUE, b"A" * 8192)
    refused((2, 0), side, OPERATIONAL | CONTINUE, b"A")
    side = login.Login(1)
    for _ in range(256):
        send(side, OPERATIONAL | CONTINUE)
    refused((2, 0), side, OPERATIONAL | CONTINUE)


def test_a_login_that_never_transits_is_bounded() -> None:
    side = login.Login(1)
    send(side, OPERATIONAL, IDENTITY)
    for _ in range(255):
        send(side, OPERATIONAL)
    refused((2, 0), side, OPERATIONAL)


def test_keys_over_many_requests_are_bounded() -> None:
    """A login remembers so many keys in all, and no request after them brings another."""
    side = login.Login(1, limits=login.TextLimits(keys=16))
    send(side, OPERATIONAL, IDENTITY)
    for turn in range(13):
        send(side, OPERATIONAL, [(f"X-{turn}", "")])
    send(side, OPERATIONAL)
    refused((2, 0), side, OPERATIONAL, [("X-13", "")])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 4, 5, 7, 0x81, 0x83, 0x87, 0x40, 0x44, 0xC7, 0x88]),
            st.one_of(
                st.binary(max_size=64),
                st.lists(
                    st.tuples(
                        st.sampled_from([*keys.KEYS, "X-a"]),
                        st.sampled_from(["", "Yes", "No", "None", "CHAP", "1", "0x10", "Normal", "Discovery", TARGET]),
                    ),
                    max_size=6,
                ).map(text.join),
                st.just(text.join(IDENTITY)),
            ),
        ),
        max_size=8,
    )
)
def test_any_requests_are_answered_or_refused(requests: list[tuple[int, bytes]]) -> None:
    """Nothing but LoginError leaves, every response fits 8192 bytes, T answers T only."""
    side = login.Login(1, login.Offer(first_burst_length=4096))
    for flags, data in requests:
        try:
            step = side.receive(request(flags), data)
        except errors.LoginError:
            return
        assert len(step.text) <= 8192
        assert flags & pdu.TRANSIT or not step.flags & pdu.TRANSIT
        assert not (step.flags & pdu.TRANSIT and step.flags & pdu.CONTINUE)
        if step.finished is not None:
            finished = step.finished
            has_unsolicited = finished.immediate_data or not finished.initial_r2t
            assert finished.is_discovery or not has_unsolicited or finished.first_burst_length <= 4096
            return
