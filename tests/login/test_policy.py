"""Policies: what a login must obey, and what nobody may read."""

from __future__ import annotations

import pytest

from iscsi_ovs import login
from iscsi_ovs.login.policy import ALGORITHMS, CHAP, MD5, NONE, OPEN, SHA3_256, Policy
from tests.login.tools import IDENTITY, INITIATOR, OPERATIONAL_TO_FULL_FEATURE, TARGET, refused, send

SECRET = b"ninety-six bits and more"


def test_what_is_allowed_by_default() -> None:
    """Without a word from the owner nobody must authenticate, and every algorithm may be used, the strongest first."""
    assert Policy() == OPEN
    assert OPEN.methods == (NONE,)
    assert OPEN.algorithms == ALGORITHMS == (SHA3_256, 7, 6, MD5)
    assert not OPEN.accounts


def test_a_policy_tells_no_secret() -> None:
    """Neither repr nor str, nor a traceback's locals, show more than names."""
    policy = Policy((CHAP,), accounts={"alice": SECRET}, mutual_name="target", mutual_secret=SECRET[::-1])
    for shown in (repr(policy), str(policy), f"{policy}", repr([policy])):
        assert "alice" in shown
        assert SECRET.decode() not in shown
        assert SECRET[::-1].decode() not in shown


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": ()},
        {"methods": ("KRB5",)},
        {"algorithms": (4,)},
        {"methods": (CHAP,), "algorithms": ()},
        {"mutual_name": "target"},
        {"mutual_secret": SECRET},
    ],
)
def test_a_policy_that_can_not_be_obeyed(wrong: dict[str, object]) -> None:
    """What makes no sense is the owner's mistake, found where the policy is made."""
    with pytest.raises(AssertionError):
        Policy(**wrong)  # type: ignore[arg-type]


def test_the_owner_is_asked_for_both_names() -> None:
    """… once, when they are known."""
    asked: list[tuple[str, str | None]] = []

    def policy(initiator_name: str, target_name: str | None) -> Policy:
        asked.append((initiator_name, target_name))
        return OPEN

    side = login.Login(1)
    side.policy = policy
    send(side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
    assert asked == [(INITIATOR, TARGET)]


def test_a_login_that_skips_authentication() -> None:
    """Where CHAP is asked for, starting in the operational stage is an authentication failure."""
    side = login.Login(1)
    side.policy = lambda initiator_name, target_name: Policy((CHAP,), accounts={"alice": SECRET})
    refused((2, 1), side, OPERATIONAL_TO_FULL_FEATURE, IDENTITY)
