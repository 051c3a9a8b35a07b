"""Corpus 4, CHAP: lists, names, identifiers, challenges and responses of every wrong shape; steps out of order.

RFC 7143 section 9.2 (which status), 9.2.1 (reflection, one secret for both directions), 12.1.3 (the steps). Keys and
values that don't fit their step are an initiator error (0200) or a missing parameter (0207); what is cryptographically
wrong is an authentication failure (0201). Whatever it was, the log names the initiator, and no secret.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.login.policy import CHAP, Policy
from iscsi_ovs.testing.chap import Chap, Values
from tests.corpus.scene import Scene, scene
from tests.corpus.test_first_pdu import FULL, OPERATIONAL, SECURITY, flags, identity, login
from tests.targets.house import IQN

SECRET, OUR_SECRET = b"the secret of alice", b"the secret of the disks"
POLICY = Policy((CHAP,), accounts={"alice": SECRET, "0xa11ce": SECRET}, mutual_name="disks", mutual_secret=OUR_SECRET)

INITIATOR_ERROR, AUTHENTICATION_FAILURE, MISSING_PARAMETER = (2, 0x00), (2, 0x01), (2, 0x07)

Alter = Callable[[str, Values], Values]


def guarded(it: Scene) -> None:
    """Whoever logs in from here on must be alice."""
    it.bad.connection.surroundings.policy = lambda initiator_name, target_name: POLICY  # type: ignore[method-assign]


def put(step: str, **values: str | None) -> Alter:
    """In this step these keys are sent instead; None leaves one out."""

    def alter(at: str, sent: Values) -> Values:
        if at != step:
            return sent
        return {key: value for key, value in {**sent, **values}.items() if value is not None}

    return alter


def base64_of(length: int) -> str:
    return "0b" + base64.b64encode(bytes(length)).decode()


CASES: dict[str, tuple[Alter, tuple[int, int]]] = {
    # lists
    "CHAP_A empty": (put("algorithms", CHAP_A=""), INITIATOR_ERROR),
    "CHAP_A with a hole": (put("algorithms", CHAP_A="8,,7"), INITIATOR_ERROR),
    "CHAP_A of words": (put("algorithms", CHAP_A="MD5"), INITIATOR_ERROR),
    "CHAP_A=56": (put("algorithms", CHAP_A="56"), AUTHENTICATION_FAILURE),
    "a hundred algorithms": (put("algorithms", CHAP_A=",".join(map(str, range(9, 109)))), AUTHENTICATION_FAILURE),
    "CHAP_A missing": (put("algorithms", CHAP_A=None), MISSING_PARAMETER),
    # responses
    "CHAP_R short": (put("response", CHAP_R="0x" + "ab" * 31), AUTHENTICATION_FAILURE),
    "CHAP_R long": (put("response", CHAP_R="0x" + "ab" * 33), AUTHENTICATION_FAILURE),
    "CHAP_R of zeroes": (put("response", CHAP_R="0x" + "00" * 32), AUTHENTICATION_FAILURE),
    "CHAP_R of odd digits": (put("response", CHAP_R="0x" + "a" * 63), INITIATOR_ERROR),
    "CHAP_R=0x": (put("response", CHAP_R="0x"), INITIATOR_ERROR),
    "CHAP_R=0b": (put("response", CHAP_R="0b"), INITIATOR_ERROR),
    "CHAP_R empty": (put("response", CHAP_R=""), INITIATOR_ERROR),
    "CHAP_R in bare digits": (put("response", CHAP_R="ab" * 32), INITIATOR_ERROR),
    "CHAP_R in unpadded base64": (put("response", CHAP_R=base64_of(32).rstrip("=")), INITIATOR_ERROR),
    "CHAP_R padded too much": (put("response", CHAP_R=base64_of(32) + "="), INITIATOR_ERROR),
    "CHAP_R of 2 KiB": (put("response", CHAP_R="0x" + "ab" * 2048), INITIATOR_ERROR),
    "CHAP_R of 2 KiB in base64": (put("response", CHAP_R=base64_of(2048)), INITIATOR_ERROR),
    "CHAP_R missing": (put("response", CHAP_R=None), MISSING_PARAMETER),
    # names
    "CHAP_N empty": (put("response", CHAP_N=""), INITIATOR_ERROR),
    "CHAP_N of 300 bytes": (put("response", CHAP_N="a" * 300), INITIATOR_ERROR),
    "CHAP_N of nobody": (put("response", CHAP_N="mallory"), AUTHENTICATION_FAILURE),
    "CHAP_N in hexadecimal": (put("response", CHAP_N="0x" + b"alice".hex()), AUTHENTICATION_FAILURE),
    "CHAP_N missing": (put("response", CHAP_N=None), MISSING_PARAMETER),
    # what is asked of the target
    "CHAP_I=256": (put("response", CHAP_I="256"), INITIATOR_ERROR),
    "CHAP_I=-1": (put("response", CHAP_I="-1"), INITIATOR_ERROR),
    "CHAP_I missing": (put("response", CHAP_I=None), MISSING_PARAMETER),
    "CHAP_C missing": (put("response", CHAP_C=None), MISSING_PARAMETER),
    "CHAP_C empty": (put("response", CHAP_C="0x"), INITIATOR_ERROR),
    "CHAP_C of 1025 bytes": (put("response", CHAP_C="0x" + "ab" * 1025), INITIATOR_ERROR),
    # steps
    "the response before the challenge": (
        put("algorithms", CHAP_A=None, CHAP_N="alice", CHAP_R="0x" + "ab" * 32),
        INITIATOR_ERROR,
    ),
    "the response with the algorithms": (put("algorithms", CHAP_N="alice"), INITIATOR_ERROR),
    "a challenge with the algorithms": (put("algorithms", CHAP_I="1", CHAP_C="0xab"), INITIATOR_ERROR),
    "the algorithms again": (put("response", CHAP_A="8"), INITIATOR_ERROR),
    "the algorithms with the method": (put("method", CHAP_A="8"), INITIATOR_ERROR),
    "the method again": (put("response", AuthMethod="CHAP"), INITIATOR_ERROR),
    "another method in the middle": (put("algorithms", CHAP_A=None, AuthMethod="None"), INITIATOR_ERROR),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The one status that fits; the log says who and why and no secret; the target proves nothing."""
    alter, status = CASES[name]
    with scene() as it:
        guarded(it)
        peer = it.peer
        chap = Chap("alice", SECRET, OUR_SECRET, alter=alter, methods="CHAP")
        if name == "the algorithms with the method":
            peer.login(IQN, chap=chap, identity={"CHAP_A": "8"})
        else:
            peer.login(IQN, chap=chap)
        it.refused(*status)
        assert "CHAP_R" not in peer.answers
        told = [record.getMessage() for record in caplog.records if "login refused" in record.getMessage()]
        assert len(told) == 1
        assert f"({status[0]:02x}{status[1]:02x})" in told[0]
        assert peer.name in told[0]
        for secret in (SECRET, OUR_SECRET):
            assert secret.decode() not in caplog.text
            assert secret.hex() not in caplog.text


@pytest.mark.parametrize("name", ["alice", "0xa11ce"])
@pytest.mark.parametrize("form", ["0x", "0b"])
@pytest.mark.parametrize("length", [1, 16, 1024])
def test_let_in(name: str, form: str, length: int) -> None:
    """What looks odd and is right: names that look like numbers, base64, challenges of 1 and of 1024 bytes."""
    with scene() as it:
        guarded(it)
        it.peer.login(IQN, chap=Chap(name, SECRET, OUR_SECRET, form=form, challenge=b"c" * length))
        it.house.run()
        assert it.peer.is_logged_in
        it.bad.attentions()


def test_our_own_challenge_sent_back() -> None:
    """Section 9.2.1: responders "MUST check for this condition and close the TCP connection if it occurs"."""
    with scene() as it:
        guarded(it)

        def reflect(step: str, values: Values) -> Values:
            return {**values, "CHAP_C": it.peer.answers["CHAP_C"]} if step == "response" else values

        it.peer.login(IQN, chap=Chap("alice", SECRET, OUR_SECRET, alter=reflect))
        it.refused(*AUTHENTICATION_FAILURE)
        assert "CHAP_R" not in it.peer.answers


def test_our_challenge_answered_by_ourselves_on_a_second_connection() -> None:
    """The classic way round that check: what the target proves is proved with another secret, and never first."""
    with scene() as it:
        guarded(it)
        other = it.connect()
        other.connection.surroundings.policy = lambda initiator_name, target_name: POLICY  # type: ignore[method-assign]

        def borrow(step: str, values: Values) -> Values:
            return {**values, "CHAP_C": it.peer.answers["CHAP_C"]} if step == "response" else values

        it.peer.login(IQN, chap=Chap("alice", b"unknown to mallory"))
        it.house.run()
        other.initiator.login(IQN, chap=Chap("alice", b"unknown to mallory", b"this too", alter=borrow))
        it.house.run()
        assert other.initiator.login_status == AUTHENTICATION_FAILURE
        assert "CHAP_R" not in other.initiator.answers


@pytest.mark.parametrize("at", [(OPERATIONAL, FULL), (SECURITY, OPERATIONAL), (SECURITY, FULL)])
def test_going_round_it(at: tuple[int, int]) -> None:
    """Without AuthMethod, from the operational stage or past it: 0201."""
    with scene() as it:
        guarded(it)
        it.peer.is_wild = True
        it.send(login(flags(*at), identity()))
        it.refused(*AUTHENTICATION_FAILURE)


def test_the_next_stage_is_not_had_by_asking() -> None:
    """T=1 with each step: the stage ends with the right response, not before."""
    with scene() as it:
        guarded(it)
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, FULL), identity(AuthMethod="CHAP")))
        assert not it.answer().flags & pdu.TRANSIT
        it.send(login(flags(SECURITY, FULL), b"CHAP_A=8\0"))
        assert not it.answer().flags & pdu.TRANSIT
        it.send(login(flags(OPERATIONAL, FULL)))
        it.refused(*INITIATOR_ERROR)


def test_no_challenge_comes_twice_over_restarts() -> None:
    """CVE-2024-45751: a target that seeds nothing sends the same challenges after every start."""
    seen: set[str] = set()
    for _ in range(8):
        with scene() as it:
            for _ in range(8):
                client = it.connect()
                client.connection.surroundings.policy = lambda initiator_name, target_name: POLICY  # type: ignore
                client.initiator.login(IQN, chap=Chap("mallory", b"does not matter here"))
                it.house.run()
                seen.add(client.initiator.answers["CHAP_C"])
    assert len(seen) == 64
