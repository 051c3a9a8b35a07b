"""Every row of the key table: its default, our offer, the edges of its range, its refusals (RFC 7143 section 13)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import login
from iscsi_ovs.login import keys
from tests.login.tools import (
    IDENTITY,
    OPERATIONAL,
    OPERATIONAL_TO_FULL_FEATURE,
    SECURITY_TO_OPERATIONAL,
    answers,
    operational_login,
    refused,
    send,
)

# Copied by hand out of section 13: name, default, low, high, rule, scope.
NUMBERS = [
    ("MaxConnections", 1, 1, 65535, "min", "S"),
    ("MaxBurstLength", 262144, 512, 16777215, "min", "S"),
    ("FirstBurstLength", 65536, 512, 16777215, "min", "S"),
    ("DefaultTime2Wait", 2, 0, 3600, "max", "S"),
    ("DefaultTime2Retain", 20, 0, 3600, "min", "S"),
    ("MaxOutstandingR2T", 1, 1, 65535, "min", "S"),
    ("ErrorRecoveryLevel", 0, 0, 2, "min", "S"),
    ("iSCSIProtocolLevel", 1, 0, 31, "min", "S"),
]
BOOLEANS = [
    ("InitialR2T", True, "or"),
    ("ImmediateData", True, "and"),
    ("DataPDUInOrder", True, "or"),
    ("DataSequenceInOrder", True, "or"),
]
OUR_NUMBERS = {
    "MaxConnections": 1, "MaxBurstLength": 16776192, "FirstBurstLength": 262144, "DefaultTime2Wait": 2,
    "DefaultTime2Retain": 0, "MaxOutstandingR2T": 4, "ErrorRecoveryLevel": 0, "iSCSIProtocolLevel": 2,
}  # fmt: skip
OUR_BOOLEANS = {"InitialR2T": False, "ImmediateData": True, "DataPDUInOrder": True, "DataSequenceInOrder": True}
NOT_NUMBERS = ["", " 1", "1 ", "-1", "+1", "1~", "1~2", "1,2", "0x", "x1", "0xg", "00", "01", "1e3", "1.0", "Yes",
               "99999999999", "9" * 255, "0x" + "f" * 200, "\u0661", "None", "Reject", "?", "1_0"]  # fmt: skip


def outcome(parameters: login.Parameters, name: str) -> Any:
    field = keys.KEYS[name].parameter
    assert field is not None
    return getattr(parameters, field)


def test_the_table_has_every_key_of_section_13() -> None:
    assert set(keys.KEYS) == {
        "HeaderDigest", "DataDigest", "MaxConnections", "SendTargets", "TargetName", "InitiatorName", "TargetAlias",
        "InitiatorAlias", "TargetAddress", "TargetPortalGroupTag", "InitialR2T", "ImmediateData",
        "MaxRecvDataSegmentLength", "MaxBurstLength", "FirstBurstLength", "DefaultTime2Wait", "DefaultTime2Retain",
        "MaxOutstandingR2T", "DataPDUInOrder", "DataSequenceInOrder", "ErrorRecoveryLevel", "SessionType",
        "TaskReporting", "iSCSIProtocolLevel", "NodeArchitecture", "AuthMethod", "IFMarker", "OFMarker", "IFMarkInt",
        "OFMarkInt", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R",
    }  # fmt: skip


def test_what_is_not_negotiated_stays_at_the_default() -> None:
    """The defaults of section 13, in Parameters and in the rows alike."""
    said, parameters = operational_login([])
    assert said == {"TargetPortalGroupTag": "1", "MaxRecvDataSegmentLength": "262144"}
    for name, default, *_ in [*NUMBERS, *BOOLEANS]:
        assert outcome(parameters, name) == default, name
        assert keys.KEYS[name].default == keys.format_value(default)
    assert parameters.max_recv_data_segment_length == 8192
    assert parameters.target_max_recv_data_segment_length == 262144
    assert not parameters.header_digest
    assert not parameters.data_digest


@pytest.mark.parametrize(("name", "default", "low", "high", "rule", "scope"), NUMBERS)
def test_a_number(name: str, default: int, low: int, high: int, rule: str, scope: str) -> None:
    """Inside its range a number meets ours by the row's rule, in decimal and in hexadecimal."""
    row = keys.KEYS[name]
    assert (row.low, row.high, row.scope.value) == (low, high, scope)
    own = OUR_NUMBERS[name]
    for value in {low, low + 1, default, own, high - 1, high}:
        wanted = min(value, own) if rule == "min" else max(value, own)
        if name == "FirstBurstLength":
            wanted = min(wanted, 262144)  # MaxBurstLength's default
        for said in (str(value), hex(value), f"0X{value:X}"):
            answer, parameters = operational_login([(name, said)])
            assert answer[name] == str(wanted)
            assert outcome(parameters, name) == wanted


@pytest.mark.parametrize(("name", "default", "low", "high"), [row[:4] for row in NUMBERS])
def test_a_number_out_of_range_or_none_is_rejected(name: str, default: int, low: int, high: int) -> None:
    """Section 6.2.2: Reject, and the default stays."""
    for said in [*NOT_NUMBERS, str(high + 1), hex(high + 1)] + ([str(low - 1)] if low else []):
        answer, parameters = operational_login([(name, said)])
        assert answer[name] == "Reject", said
        assert outcome(parameters, name) == default


@pytest.mark.parametrize(("name", "default", "rule"), BOOLEANS)
@pytest.mark.parametrize("theirs", [True, False])
def test_a_boolean(name: str, default: bool, rule: str, theirs: bool) -> None:
    own = OUR_BOOLEANS[name]
    wanted = (theirs and own) if rule == "and" else (theirs or own)
    answer, parameters = operational_login([(name, "Yes" if theirs else "No")])
    assert answer[name] == ("Yes" if wanted else "No")
    assert outcome(parameters, name) is wanted


@pytest.mark.parametrize("name", [row[0] for row in BOOLEANS])
@pytest.mark.parametrize("said", ["yes", "YES", "no", "", "1", "true", "Yes,No", "Yes ", "None", "Irrelevant"])
def test_a_boolean_is_exactly_yes_or_no(name: str, said: str) -> None:
    answer, parameters = operational_login([(name, said)])
    assert answer[name] == "Reject"
    assert outcome(parameters, name) is True


@pytest.mark.parametrize("name", ["HeaderDigest", "DataDigest"])
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("None", "None"),
        ("None,CRC32C", "None"),
        ("CRC32C,None", "CRC32C"),
        ("CRC32C", "CRC32C"),
        ("X-mine,CRC32C,None", "CRC32C"),
        ("crc32c", "Reject"),
        ("CRC32C~None", "Reject"),
        ("none", "Reject"),
        ("", "Reject"),
        ("None,", "Reject"),
        (",None", "Reject"),
        ("None,," * 100, "Reject"),
        (",".join(f"d{n}" for n in range(1000)) + ",None", "None"),
        ("a" * 255 + ",None", "None"),
        ("a" * 256 + ",None", "Reject"),
    ],
)
def test_digests(name: str, said: str, answer: str) -> None:
    """Of a list, the first that we know, in the initiator's order; where there is none: Reject, and no digest."""
    said_back, parameters = operational_login([(name, said)])
    assert said_back[name] == answer
    assert outcome(parameters, name) is (answer == "CRC32C")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("RFC3720", "RFC3720"),
        ("FastAbort,ResponseFence,RFC3720", "FastAbort"),
        ("ResponseFence,FastAbort", "ResponseFence"),
        ("Other", "Reject"),
    ],
)
def test_task_reporting(said: str, answer: str) -> None:
    back, parameters = operational_login([("TaskReporting", said)])
    assert back["TaskReporting"] == answer
    assert parameters.task_reporting == (answer if answer != "Reject" else "RFC3720")


@pytest.mark.parametrize("said", ["None", "CHAP,None", "None,CHAP", "SRP,KRB5,CHAP,None"])
def test_auth_method_none(said: str) -> None:
    step = send(login.Login(1), SECURITY_TO_OPERATIONAL, [*IDENTITY, ("AuthMethod", said)])
    assert answers(step)["AuthMethod"] == "None"


@pytest.mark.parametrize("said", ["CHAP", "SRP,CHAP", "", "none", ",None"])
def test_auth_method_without_none_is_refused(said: str) -> None:
    """02/01, authentication failure: not a Reject that the initiator might read as None."""
    refused((2, 1), login.Login(1), SECURITY_TO_OPERATIONAL, [*IDENTITY, ("AuthMethod", said)])


@pytest.mark.parametrize(("said", "value"), [("512", 512), ("0x200", 512), ("16777215", 16777215), ("8192", 8192)])
def test_max_recv_data_segment_length(said: str, value: int) -> None:
    """Each side declares its own; nobody answers, and ours is stated once."""
    back, parameters = operational_login([("MaxRecvDataSegmentLength", said)])
    assert back == {"TargetPortalGroupTag": "1", "MaxRecvDataSegmentLength": "262144"}
    assert parameters.max_recv_data_segment_length == value


@pytest.mark.parametrize("said", [*NOT_NUMBERS, "511", "0", "16777216"])
def test_max_recv_data_segment_length_out_of_range(said: str) -> None:
    """Reject, and the default of 8192 stays."""
    side = login.Login(1)
    send(side, SECURITY_TO_OPERATIONAL, IDENTITY)
    send(side, OPERATIONAL)  # ours is stated here
    if said in ("Reject", "Irrelevant", "NotUnderstood"):
        return  # an answer to our own statement
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, [("MaxRecvDataSegmentLength", said)])
    assert answers(step) == {"MaxRecvDataSegmentLength": "Reject"}
    assert step.finished
    assert step.finished.max_recv_data_segment_length == 8192


@pytest.mark.parametrize("name", ["IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt"])
@pytest.mark.parametrize("said", ["No", "Yes", "2048~65535", "1", ""])
def test_obsolete_keys_are_rejected(name: str, said: str) -> None:
    back, _ = operational_login([(name, said)])
    assert back[name] == "Reject"


@pytest.mark.parametrize("name", ["X-com.example.speed", "X#Old", "Y-digest", "RDMAExtensions", "SRP_U", "a", "Z" * 63])
def test_unknown_keys_are_not_understood(name: str) -> None:
    back, _ = operational_login([(name, "1")])
    assert back[name] == "NotUnderstood"


def test_not_understood_is_not_answered() -> None:
    """Two sides that don't understand each other's NotUnderstood would never end."""
    back, _ = operational_login([("X-com.example", "NotUnderstood"), ("TargetAlias", "NotUnderstood")])
    assert set(back) == {"TargetPortalGroupTag", "MaxRecvDataSegmentLength"}


@pytest.mark.parametrize("name", ["TargetAlias", "TargetAddress", "TargetPortalGroupTag"])
def test_keys_that_only_a_target_sends(name: str) -> None:
    refused((2, 0), login.Login(1), OPERATIONAL_TO_FULL_FEATURE, [*IDENTITY, (name, "7")])


def test_declarations_are_kept() -> None:
    _, parameters = operational_login([("InitiatorAlias", "büro 7"), ("NodeArchitecture", "x86_64,Linux")])
    assert parameters.initiator_alias == "büro 7"
    assert parameters.declared == (("NodeArchitecture", "x86_64,Linux"),)


def test_send_targets_waits_for_full_feature_phase() -> None:
    refused((2, 0), login.Login(1), OPERATIONAL_TO_FULL_FEATURE, [*IDENTITY, ("SendTargets", "All")])


OPERATIONAL_KEYS = [row.name for row in keys.KEYS.values() if row.stage is keys.Stage.OPERATIONAL]


@pytest.mark.parametrize("name", OPERATIONAL_KEYS)
def test_operational_keys_in_the_security_stage_are_refused(name: str) -> None:
    refused((2, 0), login.Login(1), SECURITY_TO_OPERATIONAL, [*IDENTITY, (name, keys.KEYS[name].default or "No")])


def test_security_keys_in_the_operational_stage_are_refused() -> None:
    refused((2, 0), login.Login(1), OPERATIONAL, [*IDENTITY, ("AuthMethod", "None")])


IRRELEVANT = [row for row in keys.KEYS.values() if row.irrelevant_in_discovery]


@pytest.mark.parametrize("row", IRRELEVANT, ids=lambda row: row.name)
def test_irrelevant_in_discovery(row: keys.Key) -> None:
    """Section 13: "Irrelevant when: SessionType=Discovery"; wherever SessionType stands in the text."""
    assert row.default is not None
    back, _ = operational_login([(row.name, row.default)], discovery=True)
    assert back[row.name] == "Irrelevant"
    side = login.Login(1)
    pairs = [(row.name, row.default), ("SessionType", "Discovery"), IDENTITY[0]]
    assert answers(send(side, OPERATIONAL, pairs))[row.name] == "Irrelevant"


def test_first_burst_never_exceeds_max_burst() -> None:
    """Section 13.14, in either order, and against the default."""
    for pairs in (
        [("MaxBurstLength", "4096"), ("FirstBurstLength", "65536")],
        [("FirstBurstLength", "65536"), ("MaxBurstLength", "4096")],
    ):
        back, parameters = operational_login(pairs)
        assert back["FirstBurstLength"] == back["MaxBurstLength"] == "4096"
        assert parameters.first_burst_length == parameters.max_burst_length == 4096


def test_answers_come_in_the_order_of_the_questions() -> None:
    side = login.Login(1)
    questions = ["X-a", "MaxOutstandingR2T", "FirstBurstLength", "MaxBurstLength", "IFMarker", "HeaderDigest"]
    values = ["1", "8", "65536", "262144", "No", "None"]
    step = send(side, OPERATIONAL, IDENTITY + list(zip(questions, values, strict=True)))
    assert list(answers(step))[:6] == questions


def test_a_smaller_offer_is_kept_to() -> None:
    """What the session layer lowers when shared memory is short."""
    offer = login.Offer(first_burst_length=8192, max_outstanding_r2t=1, initial_r2t=True)
    back, parameters = operational_login(
        [("FirstBurstLength", "262144"), ("MaxOutstandingR2T", "8"), ("InitialR2T", "No")], offer
    )
    assert (back["FirstBurstLength"], back["MaxOutstandingR2T"], back["InitialR2T"]) == ("8192", "1", "Yes")
    assert (parameters.first_burst_length, parameters.max_outstanding_r2t, parameters.initial_r2t) == (8192, 1, True)


@pytest.mark.parametrize(
    "broken", [{"first_burst_length": 511}, {"max_outstanding_r2t": 0}, {"max_burst_length": 1 << 24}]
)
def test_an_offer_out_of_range_is_our_mistake(broken: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        login.Offer(**broken)  # type: ignore[arg-type]


@given(st.text(max_size=40))
def test_parse_number_is_the_grammar_of_section_6_1(said: str) -> None:
    """Never an exception; what parses is decimal without leading zeros or hexadecimal behind 0x."""
    value = keys.parse_number(said, 0, 2**63)
    if value is not None:
        assert said.isascii()
        assert int(said, 0) == value


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("iqn.1993-08.org.debian:01:a1b2c3", True),
        ("iqn.2016-01.com.openvstorage:demo", True),
        ("iqn.1991-05.com.microsoft:DESKTOP-7", True),
        ("eui.02004567A425678D", True),
        ("naa.52004567BA64678D", True),
        ("naa.62004567BA64678D0123456789ABCDEF", True),
        ("iqn.2016-01.com.example:büro", True),
        ("iqn.2016-01.com.example:" + "a" * 199, True),
        ("iqn.2016-01.com.example:" + "a" * 200, False),
        ("iqn.2016-01.com.example:a b", False),
        ("iqn.2016-01.com.example:a,b", False),
        ("iqn.2016-01.com.example:a/b", False),
        ("iqn.2016-01.com.example:a_b", True),
        ("iqn.2016-01.", False),
        ("eui.0200", False),
        ("eui.02004567A425678Z", False),
        ("demo", False),
        ("", False),
    ],
)
def test_iscsi_names(name: str, is_one: bool) -> None:
    assert keys.is_iscsi_name(name) is is_one
