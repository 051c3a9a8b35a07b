"""The testing initiator's CHAP against the core: right logins, judged targets, and wrongs on demand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iscsi_ovs.login.policy import ALGORITHMS, CHAP, NONE, Policy
from iscsi_ovs.testing.chap import Chap, Values
from iscsi_ovs.testing.results import ViolationError
from tests.session.conversation import TARGET, Conversation

SECRET, OUR_SECRET = b"ninety-six bits, and more", b"the secret of the target"


def talk(algorithms: tuple[int, ...] = ALGORITHMS) -> Conversation:
    made = Conversation()
    made.security = Policy((CHAP,), algorithms, {"alice": SECRET}, "disks", OUR_SECRET)
    return made


def status(made: Conversation, chap: Chap | None) -> tuple[int, int] | None:
    made.initiator.login(TARGET, chap=chap)
    made.run()
    assert made.initiator.is_logged_in == (made.initiator.login_status == (0, 0))
    return made.initiator.login_status


@pytest.mark.parametrize("target", [TARGET, None], ids=["normal", "discovery"])
@pytest.mark.parametrize("form", ["0x", "0b"])
@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_logins(algorithm: int, mutual: bool, form: str, target: str | None) -> None:
    """Each algorithm, one-way and mutual, in both forms, for both kinds of session."""
    made = talk()
    chap = Chap("alice", SECRET, OUR_SECRET if mutual else None, "disks", algorithms=str(algorithm), form=form)
    made.initiator.login(target, chap=chap)
    made.run()
    assert made.initiator.is_logged_in
    assert made.initiator.answers["CHAP_A"] == str(algorithm)
    assert ("CHAP_N" in made.initiator.answers) == mutual
    assert made.session is not None
    assert made.session.parameters.account == "alice"


def test_a_target_without_chap_takes_none() -> None:
    """An initiator that offers CHAP,None takes what it gets."""
    made = talk()
    made.security = Policy((NONE,))
    assert status(made, Chap("alice", SECRET)) == (0, 0)


def test_refusals_and_their_log_lines() -> None:
    """A wrong secret, an unknown name, no CHAP at all: 0201, and the log says why without saying secrets."""
    for chap, cause in (
        (Chap("alice", b"a guess, long enough"), "as 'alice': wrong secret"),
        (Chap("mallory", SECRET), "as 'mallory': no such account"),
        (Chap("alice", SECRET, algorithms="99"), "no algorithm of ours"),
        (None, "we take CHAP"),
    ):
        made = talk()
        assert status(made, chap) == (2, 1)
        assert made.connection.is_closed
        told = " ".join(str(each) for each in made.told)
        assert cause in told
        assert made.initiator.name in told
        for secret in (SECRET, OUR_SECRET, b"a guess, long enough"):
            assert secret.decode() not in told


def test_the_initiator_judges_the_targets_proof() -> None:
    with pytest.raises(ViolationError, match="proof is wrong"):
        status(talk(), Chap("alice", SECRET, b"another than the target's"))
    with pytest.raises(ViolationError, match="calls itself 'disks'"):
        status(talk(), Chap("alice", SECRET, OUR_SECRET, "tapes"))


def drop(key: str) -> Callable[[str, Values], Values]:
    return lambda step, values: {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (drop("CHAP_N"), (2, 7)),
        (drop("CHAP_R"), (2, 7)),
        (drop("CHAP_I"), (2, 7)),
        (drop("CHAP_A"), (2, 7)),
        (lambda step, values: {**values, "CHAP_A": "8"}, (2, 0)),
        (lambda step, values: {**values, "CHAP_R": "0x"} if step == "response" else values, (2, 0)),
        (lambda step, values: {"AuthMethod": "None"} if step == "method" else values, (2, 1)),
    ],
)
def test_misbehaviour_on_demand(alter: Callable[[str, Values], Values], expected: tuple[int, int]) -> None:
    assert status(talk(), Chap("alice", SECRET, OUR_SECRET, alter=alter)) == expected
