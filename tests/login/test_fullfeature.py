"""Text in full feature phase: SendTargets, pieces both ways, and what is refused (RFC 7143 11.10, 11.11, C)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import errors, login, pdu
from iscsi_ovs.login import text
from iscsi_ovs.login.fullfeature import Targets
from iscsi_ovs.testing.initiator import parse_pairs

PREFIX = "iqn.2016-01.com.openvstorage:"
TARGETS = [
    (PREFIX + "a", ["192.0.2.1:3260,1", "[2001:db8::1]:3260,1"]),
    (PREFIX + "b", ["192.0.2.1:3260,1"]),
    (PREFIX + "c", []),
]
FINAL = pdu.FINAL


def exchange(
    targets: Targets = TARGETS, *, limits: login.TextLimits | None = None, **fields: Any
) -> login.TextExchange:
    parameters = login.Parameters(**{"is_discovery": True, **fields})
    return login.TextExchange(parameters, lambda: targets, limits)


def ask(
    side: login.TextExchange, data: bytes | list[tuple[str, str]] = b"", flags: int = FINAL,
    ttt: int = pdu.RESERVED_TAG, itt: int = 1,
) -> login.TextStep:  # fmt: skip
    request = pdu.TextRequest(flags=flags, initiator_task_tag=itt, target_transfer_tag=ttt)
    return side.receive(request, data if isinstance(data, bytes) else text.join(data))


def refused(reason: int, side: login.TextExchange, *arguments: Any, **named: Any) -> None:
    with pytest.raises(errors.PduError) as caught:
        ask(side, *arguments, **named)
    assert caught.value.reason == reason
    assert str(caught.value)
    assert not side.is_open, "a refusal ends the exchange"


def collect(side: login.TextExchange, data: list[tuple[str, str]]) -> tuple[bytes, int]:
    """The whole answer, and in how many pieces it came."""
    step, whole, pieces = ask(side, data), b"", 1
    while not step.flags & FINAL:
        assert step.flags == pdu.CONTINUE
        whole += step.text
        step, pieces = ask(side, ttt=step.target_transfer_tag), pieces + 1
    return whole + step.text, pieces


def test_all_targets_in_discovery() -> None:
    step = ask(exchange(), [("SendTargets", "All")])
    assert (step.flags, step.target_transfer_tag) == (FINAL, pdu.RESERVED_TAG)
    assert parse_pairs(step.text) == [
        ("TargetName", PREFIX + "a"),
        ("TargetAddress", "192.0.2.1:3260,1"),
        ("TargetAddress", "[2001:db8::1]:3260,1"),
        ("TargetName", PREFIX + "b"),
        ("TargetAddress", "192.0.2.1:3260,1"),
        ("TargetName", PREFIX + "c"),
    ]


@pytest.mark.parametrize(
    ("is_discovery", "value", "names"),
    [
        (True, "All", "abc"),
        (True, PREFIX + "b", "b"),
        (True, PREFIX + "x", ""),
        (True, "all", ""),
        (True, "", None),
        (False, "All", None),
        (False, "", "a"),
        (False, PREFIX + "a", "a"),
        (False, PREFIX + "b", "b"),
        (False, PREFIX + "x", ""),
        (True, "x" * 256, None),
    ],
)
def test_send_targets(is_discovery: bool, value: str, names: str | None) -> None:
    """Appendix C: All for discovery sessions, nothing for normal ones, a name for both; else Reject."""
    side = exchange(is_discovery=is_discovery, target_name=None if is_discovery else PREFIX + "a")
    pairs = parse_pairs(ask(side, [("SendTargets", value)]).text)
    if names is None:
        assert pairs == [("SendTargets", "Reject")]
    else:
        assert [name[-1] for key, name in pairs if key == "TargetName"] == list(names)


def test_targets_are_asked_for_each_time() -> None:
    """A volume created meanwhile is in the next answer."""
    targets = TARGETS[:1]
    side = exchange(targets)
    assert b":b" not in ask(side, [("SendTargets", "All")]).text
    targets.append(TARGETS[1])
    assert b":b" in ask(side, [("SendTargets", "All")]).text


@pytest.mark.parametrize("segment", [512, 8192, 65536, 2**24 - 1])
def test_ten_thousand_targets(segment: int) -> None:
    """Cut by the initiator's MaxRecvDataSegmentLength, C bit in all pieces but the last, new tags each time."""
    targets = [(f"{PREFIX}vol-{number:05d}", ["192.0.2.1:3260,1"]) for number in range(10_000)]
    side = exchange(targets, max_recv_data_segment_length=segment)
    whole, pieces = collect(side, [("SendTargets", "All")])
    assert pieces == -(-len(whole) // segment)
    assert [value for key, value in parse_pairs(whole) if key == "TargetName"] == [name for name, _ in targets]
    assert not side.is_open


@pytest.mark.parametrize(
    "name",
    [
        "HeaderDigest", "MaxBurstLength", "InitiatorName", "TargetName", "SessionType", "AuthMethod", "TargetAddress",
        "TargetPortalGroupTag", "IFMarker", "InitialR2T",
    ],
)  # fmt: skip
def test_keys_of_the_login_are_rejected(name: str) -> None:
    assert parse_pairs(ask(exchange(), [(name, "1")]).text) == [(name, "Reject")]


def test_unknown_keys_are_not_understood() -> None:
    step = ask(exchange(), [("X-a", "1"), ("Foo", ""), ("X-b", "NotUnderstood"), ("InitiatorAlias", "me")])
    assert parse_pairs(step.text) == [("X-a", "NotUnderstood"), ("Foo", "NotUnderstood")]


def test_an_answer_to_our_statement_is_not_answered() -> None:
    assert ask(exchange(), [("TargetAddress", "NotUnderstood"), ("TargetName", "Reject")]).text == b""


def test_an_empty_request_is_answered_by_nothing() -> None:
    assert ask(exchange()) == login.TextStep(FINAL, b"", pdu.RESERVED_TAG)


def test_max_recv_data_segment_length_may_change() -> None:
    """The old length holds for this answer, the new one from the next PDU on."""
    side = exchange([(f"{PREFIX}{number}", []) for number in range(100)], max_recv_data_segment_length=512)
    step = ask(side, [("MaxRecvDataSegmentLength", "1024"), ("SendTargets", "All")])
    while not step.flags & FINAL:
        assert len(step.text) == 512
        assert step.parameters is None
        step = ask(side, ttt=step.target_transfer_tag)
    assert step.parameters is side.parameters
    assert side.parameters.max_recv_data_segment_length == 1024
    assert len(ask(side, [("SendTargets", "All")]).text) == 1024


@pytest.mark.parametrize("said", ["511", "16777216", "x", ""])
def test_max_recv_data_segment_length_out_of_range(said: str) -> None:
    side = exchange()
    step = ask(side, [("MaxRecvDataSegmentLength", said)])
    assert parse_pairs(step.text) == [("MaxRecvDataSegmentLength", "Reject")]
    assert step.parameters is None
    assert side.parameters.max_recv_data_segment_length == 8192


def test_a_change_that_was_given_up_is_none() -> None:
    side = exchange()
    step = ask(side, [("MaxRecvDataSegmentLength", "1024")], flags=0)
    assert step.parameters is None
    ask(side, [("X-a", "1")])  # starts over
    assert side.parameters.max_recv_data_segment_length == 8192


def test_a_request_in_pieces() -> None:
    """C bit: nothing is answered before the last piece, and each answer hands out a new tag."""
    whole = text.join([("SendTargets", "All"), ("X-a", "1")])
    expected = ask(exchange(), whole)
    for cut in range(len(whole) + 1):
        side = exchange()
        first = ask(side, whole[:cut], flags=pdu.CONTINUE)
        assert (first.flags, first.text) == (0, b"")
        assert first.target_transfer_tag != pdu.RESERVED_TAG
        assert ask(side, whole[cut:], ttt=first.target_transfer_tag) == expected
    side, tag, tags = exchange(), pdu.RESERVED_TAG, set()
    for offset in range(len(whole)):
        tag = ask(side, whole[offset : offset + 1], flags=pdu.CONTINUE, ttt=tag).target_transfer_tag
        tags.add(tag)
    assert len(tags) == len(whole)
    assert ask(side, ttt=tag) == expected


def test_without_f_the_exchange_stays_open() -> None:
    """Section 11.11.1: F answers F only."""
    side = exchange()
    step = ask(side, [("X-a", "1")], flags=0)
    assert step.flags == 0
    assert step.target_transfer_tag != pdu.RESERVED_TAG
    assert side.is_open
    assert ask(side, ttt=step.target_transfer_tag) == login.TextStep(FINAL, b"", pdu.RESERVED_TAG)


def test_a_key_twice_in_one_exchange_is_refused() -> None:
    side = exchange()
    tag = ask(side, [("X-a", "1")], flags=0).target_transfer_tag
    refused(pdu.REJECT_PROTOCOL_ERROR, side, [("X-a", "1")], ttt=tag)
    assert ask(side, [("X-a", "1")]).flags == FINAL, "a new exchange may ask again"


def test_a_new_exchange_ends_the_old() -> None:
    side = exchange(max_recv_data_segment_length=512)
    tag = ask(side, b"SendTar", flags=pdu.CONTINUE).target_transfer_tag
    assert ask(side, [("SendTargets", PREFIX + "b")], itt=2).flags == FINAL
    refused(pdu.REJECT_INVALID_PDU_FIELD, side, b"gets=All\0", ttt=tag)


def test_a_tag_that_we_did_not_hand_out() -> None:
    refused(pdu.REJECT_INVALID_PDU_FIELD, exchange(), ttt=0)
    side = exchange()
    tag = ask(side, b"", flags=pdu.CONTINUE).target_transfer_tag
    refused(pdu.REJECT_INVALID_PDU_FIELD, side, ttt=tag + 1)


def test_a_tag_with_another_task() -> None:
    side = exchange()
    tag = ask(side, b"", flags=pdu.CONTINUE).target_transfer_tag
    refused(pdu.REJECT_INVALID_PDU_FIELD, side, ttt=tag, itt=2)


def test_a_request_needs_a_task_tag() -> None:
    refused(pdu.REJECT_INVALID_PDU_FIELD, exchange(), itt=pdu.RESERVED_TAG)


def test_f_and_c_together() -> None:
    refused(pdu.REJECT_PROTOCOL_ERROR, exchange(), flags=FINAL | pdu.CONTINUE)


@pytest.mark.parametrize(("data", "flags"), [(b"X-a=1\0", FINAL), (b"", pdu.CONTINUE)])
def test_text_in_the_middle_of_an_answer(data: bytes, flags: int) -> None:
    side = exchange([(f"{PREFIX}{number}", []) for number in range(100)], max_recv_data_segment_length=512)
    tag = ask(side, [("SendTargets", "All")]).target_transfer_tag
    refused(pdu.REJECT_PROTOCOL_ERROR, side, data, flags=flags, ttt=tag)


@pytest.mark.parametrize("data", [b"SendTargets=All", b"SendTargets\0", b"=\0", b"A=\xff\0", b"A=1\0A=2\0", bytes(9)])
def test_a_broken_text_is_refused_and_the_next_is_not(data: bytes) -> None:
    side = exchange()
    refused(pdu.REJECT_PROTOCOL_ERROR, side, data)
    assert ask(side, [("SendTargets", "All")]).flags == FINAL


def test_a_request_without_end_is_bounded() -> None:
    """The C bit for ever: bytes and pieces are limited (SPDK's CVE-2021-28361 was the empty piece)."""
    side, tag = exchange(), pdu.RESERVED_TAG
    for _ in range(8):
        tag = ask(side, b"A" * 8192, flags=pdu.CONTINUE, ttt=tag).target_transfer_tag
    refused(pdu.REJECT_PROTOCOL_ERROR, side, b"A", flags=pdu.CONTINUE, ttt=tag)
    tag = pdu.RESERVED_TAG
    for _ in range(256):
        tag = ask(side, b"", flags=pdu.CONTINUE, ttt=tag).target_transfer_tag
    refused(pdu.REJECT_PROTOCOL_ERROR, side, b"", flags=pdu.CONTINUE, ttt=tag)


def test_an_exchange_without_end_is_bounded() -> None:
    side, tag = exchange(), pdu.RESERVED_TAG
    for number in range(256):
        tag = ask(side, [(f"X-{number}", "")], flags=0, ttt=tag).target_transfer_tag
    refused(pdu.REJECT_PROTOCOL_ERROR, side, b"", flags=0, ttt=tag)


def test_transfer_tags_go_round_without_the_reserved_one() -> None:
    side = exchange()
    side._transfer_tag = pdu.RESERVED_TAG - 2
    first = ask(side, b"", flags=pdu.CONTINUE).target_transfer_tag
    second = ask(side, b"", flags=pdu.CONTINUE, ttt=first).target_transfer_tag
    assert (first, second) == (pdu.RESERVED_TAG - 1, 0)
    assert ask(side, ttt=second).flags == FINAL


@given(st.lists(st.tuples(st.binary(max_size=80), st.sampled_from([0, 0x40, 0x80, 0xC0]), st.booleans()), max_size=8))
def test_any_requests_are_answered_or_refused(requests: list[tuple[bytes, int, bool]]) -> None:
    """Nothing but PduError leaves; F comes with the reserved tag and only then."""
    side, tag = exchange(), pdu.RESERVED_TAG
    for data, flags, is_following in requests:
        try:
            step = ask(side, data, flags=flags, ttt=tag if is_following else pdu.RESERVED_TAG)
        except errors.PduError:
            tag = pdu.RESERVED_TAG
            continue
        tag = step.target_transfer_tag
        assert bool(step.flags & FINAL) == (tag == pdu.RESERVED_TAG)
        assert flags & FINAL or not step.flags & FINAL
