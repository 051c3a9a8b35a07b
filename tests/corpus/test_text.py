"""Corpus 3, texts: pairs that are none, keys and values of any size and number, numbers that are none, pieces.

RFC 7143 section 6.1 (text format), 6.2 (negotiation), 6.3 (login), 11.10 (Text Request), 13 (keys). In the login phase
a broken text is refused with 0200 (or 0207 where the name is what is missing); in full feature phase with a Reject,
reason "protocol error".
"""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.login import text
from iscsi_ovs.testing.initiator import parse_pairs
from tests.corpus.scene import Scene, numbered, reject, scene
from tests.corpus.test_first_pdu import FULL, OPERATIONAL, SECURITY, flags, identity, login
from tests.targets.house import IQN

BROKEN: dict[str, bytes] = {
    "no NUL at the end": b"X-a=b",
    "no equals sign": b"X-a\0",
    "an empty key": b"=b\0",
    "a key of 64 bytes": b"X-" + b"a" * 62 + b"=b\0",
    "a key with a space": b"X a=b\0",
    "a value of 8193 bytes": b"X-a=" + b"b" * 8193 + b"\0",
    "a value with a line feed": b"X-a=b\nc\0",
    "a key twice": b"X-a=b\0X-a=b\0",
    "129 keys": b"".join(b"X-%d=b\0" % number for number in range(129)),
    "10000 keys": b"".join(b"X%d=\0" % number for number in range(10000)),
    "a value that is not UTF-8": b"X-a=\xff\xfe\0",
    "a key that is not ASCII": "X-ä=b\0".encode(),
    "NULs for keys": b"X-a=b\0" + bytes(16),
}


def say_in_login(it: Scene, data: bytes) -> None:
    """A text in the operational stage, in as many pieces as it takes."""
    it.peer.is_wild = True
    it.send(login(flags(SECURITY, OPERATIONAL), identity()))
    it.says()
    while len(data) > 8192 and not it.bad.connection.is_closed:
        it.send(login(flags(OPERATIONAL, transit=False, more=True), data[:8192]))
        data = data[8192:]
    if not it.bad.connection.is_closed:
        it.send(login(flags(OPERATIONAL, FULL), data))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_text_in_login(name: str) -> None:
    """Refused with "initiator error", 0200."""
    with scene() as it:
        say_in_login(it, BROKEN[name])
        it.refused(0x02, 0x00)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_text_in_full_feature_phase(name: str) -> None:
    """Rejected as a protocol error; the session goes on."""
    with scene() as it:
        peer = it.login()
        it.send(numbered(peer, pdu.TextRequest(initiator_task_tag=1), BROKEN[name]))
        it.rejected(pdu.REJECT_PROTOCOL_ERROR)


# What the target answers to a key with a value that can't be, and goes on (section 6.2: Reject keeps the default).
ANSWERS: dict[str, tuple[str, str, str]] = {
    "hexadecimal without a digit": ("MaxBurstLength", "0x", "Reject"),
    "a negative number": ("MaxBurstLength", "-1", "Reject"),
    "a number and more": ("MaxBurstLength", "1~", "Reject"),
    "a range": ("MaxBurstLength", "512~1024", "Reject"),
    "a number beyond 32 bits": ("MaxBurstLength", "99999999999", "Reject"),
    "a number of 200 digits": ("MaxBurstLength", "9" * 200, "Reject"),
    "below the range": ("MaxBurstLength", "511", "Reject"),
    "above the range": ("MaxBurstLength", "16777216", "Reject"),
    "a number in hexadecimal": ("MaxBurstLength", "0x80000", "524288"),
    "zero connections": ("MaxConnections", "0", "Reject"),
    "a boolean in small letters": ("InitialR2T", "yes", "Reject"),
    "an empty boolean": ("ImmediateData", "", "Reject"),
    "a list of a thousand values": ("HeaderDigest", ",".join(f"X-{n}" for n in range(999)) + ",None", "None"),
    "a list of nothing": ("HeaderDigest", "", "Reject"),
    "a list with a hole": ("HeaderDigest", "X-a,,None", "Reject"),
    "a simple value of 256 bytes": ("InitialR2T", "Y" * 256, "Reject"),
    "a key that nobody knows": ("X-com.example.What", "ever", "NotUnderstood"),
    "a marker": ("IFMarker", "Yes", "Reject"),
    "a marker interval": ("OFMarkInt", "2048~4096", "Reject"),
    "error recovery that we lack": ("ErrorRecoveryLevel", "2", "0"),
    "an error recovery that is none": ("ErrorRecoveryLevel", "3", "Reject"),
    "more connections than we take": ("MaxConnections", "65535", "1"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_value_that_can_not_be(name: str) -> None:
    """Answered, with Reject or NotUnderstood where there is nothing else; the login goes on."""
    key, value, answer = ANSWERS[name]
    with scene() as it:
        say_in_login(it, text.join([(key, value)]))
        said = it.says()[-1]
        assert (said.header.status_class, said.header.flags & pdu.TRANSIT) == (0, pdu.TRANSIT)
        assert dict(parse_pairs(said.data)).get(key) == answer


# Keys that may not be sent where they are sent.
MISPLACED = {
    "a key of the operational stage in the security stage": (SECURITY, OPERATIONAL, [("MaxBurstLength", "512")]),
    "a key of the security stage in the operational one": (OPERATIONAL, FULL, [("AuthMethod", "None")]),
    "a key of full feature phase": (OPERATIONAL, FULL, [("SendTargets", "All")]),
    "a target's key": (OPERATIONAL, FULL, [("TargetPortalGroupTag", "1")]),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_a_key_in_the_wrong_stage(name: str) -> None:
    """0200: what is declared may only be sent where section 13 says."""
    stage, following, pairs = MISPLACED[name]
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(stage, following), identity() + text.join(pairs)))
        it.refused(0x02, 0x00)


@pytest.mark.parametrize("again", ["512", "1024"])
def test_the_same_key_in_two_requests(again: str) -> None:
    """Section 6.3: "Negotiating a key twice … MUST be detected" and refused, with the same value too."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(OPERATIONAL, transit=False), identity() + text.join([("MaxBurstLength", "512")])))
        it.says()
        it.send(login(flags(OPERATIONAL, FULL), text.join([("MaxBurstLength", again)])))
        it.refused(0x02, 0x00)


def test_an_empty_piece_with_c() -> None:
    """A C bit with no data is a piece like any other (one peer dereferenced NULL: CVE-2021-28361)."""
    with scene() as it:
        peer = it.login()
        it.send(numbered(peer, pdu.TextRequest(flags=pdu.CONTINUE, initiator_task_tag=1)))
        tag = it.answer().target_transfer_tag
        assert tag != pdu.RESERVED_TAG
        request = pdu.TextRequest(initiator_task_tag=1, target_transfer_tag=tag)
        it.send(numbered(peer, request, text.join([("SendTargets", "")])))
        (answer,) = it.says()
        assert parse_pairs(answer.data)[0] == ("TargetName", IQN)
        it.lives()


TEXTS: dict[str, dict[str, Any]] = {
    "another task tag in mid-text": {"initiator_task_tag": 2},
    "a transfer tag that was never given": {"target_transfer_tag": 0x4444},
}


@pytest.mark.parametrize("name", TEXTS)
def test_c_and_then_something_else(name: str) -> None:
    """Section 11.10.4: a text goes on under its own two tags. Anything else is an invalid field; the text is over."""
    with scene() as it:
        peer = it.login()
        it.send(numbered(peer, pdu.TextRequest(flags=pdu.CONTINUE, initiator_task_tag=1), b"Send"))
        tag = it.answer().target_transfer_tag
        fields = {"initiator_task_tag": 1, "target_transfer_tag": tag, **TEXTS[name]}
        it.send(numbered(peer, pdu.TextRequest(**fields), b"Targets=\0"))
        it.rejected(pdu.REJECT_INVALID_PDU_FIELD)


def test_f_and_c_together() -> None:
    """Section 11.10.2: the last request of a text has no C bit."""
    with scene() as it:
        peer = it.login()
        it.send(numbered(peer, pdu.TextRequest(flags=pdu.FINAL | pdu.CONTINUE, initiator_task_tag=1), b"a=b\0"))
        it.rejected(pdu.REJECT_PROTOCOL_ERROR)


def test_a_text_without_end_in_full_feature_phase() -> None:
    """64 KiB are a text; more are rejected, and nothing of them is kept."""
    with scene() as it:
        peer = it.login()
        tag = pdu.RESERVED_TAG
        for _ in range(20):
            request = pdu.TextRequest(flags=pdu.CONTINUE, initiator_task_tag=1, target_transfer_tag=tag)
            it.send(numbered(peer, request, b"X" * 8192))
            answer = it.answer()
            if isinstance(answer, pdu.Reject):
                break
            tag = answer.target_transfer_tag
        assert isinstance(answer, pdu.Reject)
        assert answer.reason == pdu.REJECT_PROTOCOL_ERROR
        it.lives()


def test_the_reserved_task_tag() -> None:
    """A Text Request answers to a task tag, so it needs one."""
    with scene() as it:
        peer = it.login()
        it.send(numbered(peer, pdu.TextRequest(initiator_task_tag=pdu.RESERVED_TAG), b"SendTargets=\0"))
        reject(pdu.REJECT_INVALID_PDU_FIELD)(it)


def test_an_answer_is_no_longer_than_its_question() -> None:
    """128 keys are the most that one login may ask in all: NotUnderstood is no amplifier without a limit."""
    with scene() as it:
        asked = text.join([(f"X-{number}", "") for number in range(120)])
        say_in_login(it, asked)
        said = it.says()[-1]
        assert said.header.status_class == 0
        assert len(said.data) <= len(asked) + 120 * len("NotUnderstood") + len("MaxRecvDataSegmentLength=262144\0")
