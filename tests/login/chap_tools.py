"""What the tests of CHAP share: a login up to any step, and the right answer computed without our own code."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Any

from iscsi_ovs import login
from iscsi_ovs.login.policy import CHAP, Policy
from tests.login.tools import IDENTITY, SECURITY_TO_OPERATIONAL, answers, send

SECRET = b"ninety-six bits, and more"
OUR_SECRET = b"the secret of the target"
POLICY = Policy((CHAP,), accounts={"alice": SECRET, "0xb0b": SECRET}, mutual_name="disks", mutual_secret=OUR_SECRET)
ONE_WAY = Policy((CHAP,), accounts={"alice": SECRET})

INITIATOR_ERROR, AUTHENTICATION_FAILURE, MISSING_PARAMETER = (2, 0), (2, 1), (2, 7)

ALL_KEYS = ("CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R")
VALUES = {"CHAP_A": "8", "CHAP_I": "1", "CHAP_C": "0x" + "ab" * 16, "CHAP_N": "alice", "CHAP_R": "0x" + "cd" * 32}

HASHES: dict[int, Callable[[bytes], Any]] = {
    5: hashlib.md5,
    6: hashlib.sha1,
    7: hashlib.sha256,
    8: hashlib.sha3_256,
}


def begin(policy: Policy = POLICY, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> login.Login:
    side = login.Login(1)
    side.policy = lambda initiator_name, target_name: policy
    side.random_bytes = random_bytes
    return side


def challenged(
    policy: Policy = POLICY, offer: str = "8,7,6,5", who: Any = IDENTITY
) -> tuple[login.Login, dict[str, str]]:
    """A login up to the target's challenge."""
    side = begin(policy)
    step = send(side, SECURITY_TO_OPERATIONAL, [*who, ("AuthMethod", "CHAP,None")])
    assert answers(step)["AuthMethod"] == "CHAP"
    assert step.flags == 0, "the stage is not over"
    step = send(side, 0, [("CHAP_A", offer)])
    assert step.flags == 0
    said = answers(step)
    assert set(said) == {"CHAP_A", "CHAP_I", "CHAP_C"}
    return side, said


def right(said: dict[str, str], secret: bytes = SECRET) -> bytes:
    """The response that a target's challenge wants, computed without our own code."""
    digest = HASHES[int(said["CHAP_A"])]
    return bytes(digest(bytes((int(said["CHAP_I"]),)) + secret + bytes.fromhex(said["CHAP_C"][2:])).digest())


def proof(said: dict[str, str], name: str = "alice", secret: bytes = SECRET) -> list[tuple[str, str]]:
    return [("CHAP_N", name), ("CHAP_R", "0x" + right(said, secret).hex())]
