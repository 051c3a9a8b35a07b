"""UNH-IOL's CHAP groups (RFC 7143 section 12.1.3): each key valid, invalid, out of order, too big or small, reflected.

The hostile forms of each key are in tests/corpus/test_chap.py; here is one exchange for each test of the list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iscsi_ovs.login.policy import CHAP, Policy
from iscsi_ovs.testing.chap import Chap, Values
from tests.corpus.scene import Scene, scene
from tests.targets.house import IQN

SECRET, OUR_SECRET = b"the secret of alice", b"the secret of the disks"
POLICY = Policy((CHAP,), accounts={"alice": SECRET}, mutual_name="disks", mutual_secret=OUR_SECRET)
LET_IN = (0, 0)
INITIATOR_ERROR, AUTHENTICATION_FAILURE, MISSING_PARAMETER = (2, 0x00), (2, 0x01), (2, 0x07)


def login(it: Scene, *, mutual: bool = False, target: str | None = IQN, **options: Any) -> tuple[int, int] | None:
    """A login of alice's; its last status."""
    it.bad.connection.surroundings.policy = lambda initiator_name, target_name: POLICY  # type: ignore[method-assign]
    options = {"methods": "CHAP", **options}
    chap = Chap("alice", options.pop("secret", SECRET), OUR_SECRET if mutual else None, **options)
    it.peer.login(target, chap=chap)
    it.house.run()
    return it.peer.login_status


def instead(step: str, **values: str | None) -> Callable[[str, Values], Values]:
    """These keys in this step; None leaves one out."""

    def alter(at: str, sent: Values) -> Values:
        changed = {**sent, **values} if at == step else {**sent}
        return {key: value for key, value in changed.items() if value is not None}

    return alter


def challenge_of(it: Scene) -> Callable[[str, Values], Values]:
    """The target's own challenge is sent back to it."""

    def alter(step: str, sent: Values) -> Values:
        return {**sent, "CHAP_C": it.peer.answers["CHAP_C"]} if step == "response" else sent

    return alter


VALID: dict[str, dict[str, Any]] = {
    "1.1 CHAP_A, SHA3-256": {"algorithms": "8"},
    "1.1 CHAP_A, SHA-256": {"algorithms": "7"},
    "1.1 CHAP_A, SHA-1": {"algorithms": "6"},
    "1.1 CHAP_A, MD5": {"algorithms": "5"},
    "1.1 CHAP_A, a list": {"algorithms": "5,6,7,8"},
    "2.1 CHAP_I": {"mutual": True, "identifier": 255},
    "2.6 CHAP_I, another one": {"mutual": True, "identifier": 0},
    "3.1 CHAP_C, as long as may be": {"mutual": True, "challenge": bytes(range(256)) * 4},
    "3.2 CHAP_C, small": {"mutual": True, "challenge": b"c"},
    "4.1 CHAP_N": {"mutual": True, "target_name": "disks"},
    "5.0 CHAP_R, base64": {"form": "0b"},
    "in a discovery session": {"target": None},
}


@pytest.mark.parametrize("name", VALID)
def test_valid(name: str) -> None:
    """CHAP 1.1, 2.1, 2.6, 3.1, 3.2, 4.1: who proves itself is let in; a target that was asked proves itself, too."""
    with scene() as it:
        assert login(it, **VALID[name]) == LET_IN
        assert it.peer.is_logged_in


INVALID: dict[str, tuple[Callable[[str, Values], Values], tuple[int, int]]] = {
    "1.2.1 CHAP_A, a number that is none": (instead("algorithms", CHAP_A="4"), AUTHENTICATION_FAILURE),
    "1.2.2 CHAP_A, no number": (instead("algorithms", CHAP_A="MD5"), INITIATOR_ERROR),
    "1.3 CHAP_A, out of order": (instead("response", CHAP_A="8"), INITIATOR_ERROR),
    "2.2 CHAP_I, 256": (instead("response", CHAP_I="256"), INITIATOR_ERROR),
    "2.3 CHAP_I, out of order": (instead("algorithms", CHAP_I="1"), INITIATOR_ERROR),
    "3.3 CHAP_C, too big": (instead("response", CHAP_C="0x" + "ab" * 1025), INITIATOR_ERROR),
    "3.4 CHAP_C, too small": (instead("response", CHAP_C="0x"), INITIATOR_ERROR),
    "3.5 CHAP_C, out of order": (instead("algorithms", CHAP_C="0xab"), INITIATOR_ERROR),
    "4.3 CHAP_N, small": (instead("response", CHAP_N="a"), AUTHENTICATION_FAILURE),
    "4.4 CHAP_N, too big": (instead("response", CHAP_N="a" * 256), INITIATOR_ERROR),
    "4.5 CHAP_N, out of order": (instead("algorithms", CHAP_N="alice"), INITIATOR_ERROR),
    "4.6 CHAP_N, the target's": (instead("response", CHAP_N="disks"), AUTHENTICATION_FAILURE),
    "4.8 CHAP_N, of nobody": (instead("response", CHAP_N="bob"), AUTHENTICATION_FAILURE),
    "5.1 CHAP_R, wrong": (instead("response", CHAP_R="0x" + "ab" * 32), AUTHENTICATION_FAILURE),
    "5.2 CHAP_R, too big": (instead("response", CHAP_R="0x" + "ab" * 33), AUTHENTICATION_FAILURE),
    "5.3 CHAP_R, too small": (instead("response", CHAP_R="0x" + "ab" * 31), AUTHENTICATION_FAILURE),
    "5.4 CHAP_R, out of order": (instead("algorithms", CHAP_R="0xab"), INITIATOR_ERROR),
    "5.5 CHAP_R, missing": (instead("response", CHAP_R=None), MISSING_PARAMETER),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid(name: str) -> None:
    """CHAP 1.2 to 5.5: refused with the status of section 11.13.5, and the target proves nothing."""
    alter, status = INVALID[name]
    with scene() as it:
        assert login(it, mutual=True, alter=alter) == status
        assert "CHAP_R" not in it.peer.answers
        assert it.bad.connection.is_closed


def test_reflection() -> None:
    """CHAP 3.7, 3.8 (and 2.5), section 9.2.1: the target's challenge, asked of itself: authentication failure."""
    with scene() as it:
        assert login(it, mutual=True, alter=challenge_of(it)) == AUTHENTICATION_FAILURE
        assert "CHAP_R" not in it.peer.answers


def test_challenges_and_identifiers_differ() -> None:
    """CHAP 2.4, 3.6.1 to 3.6.4, section 9.2.1: one after the other or at the same time: no challenge comes twice."""
    with scene() as it:
        challenges = []
        for _ in range(16):
            it.bad = it.connect()
            assert login(it) == LET_IN
            challenges.append(it.peer.answers["CHAP_C"])
        assert len(set(challenges)) == 16
        assert all(len(each) >= 2 + 2 * 16 for each in challenges)


def test_transition_without_proof() -> None:
    """CHAP (target) 1.1, section 6.3: T in the security stage before CHAP is through is not granted, or is refused."""
    with scene() as it:
        assert login(it, methods="None") == AUTHENTICATION_FAILURE


def test_the_wrong_secret() -> None:
    """CHAP 5.1, section 11.13.5: 0201."""
    with scene() as it:
        assert login(it, secret=b"the secret of nobody") == AUTHENTICATION_FAILURE
