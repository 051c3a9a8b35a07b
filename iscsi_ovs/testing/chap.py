"""CHAP as an initiator does it, for tests: right, or wrong in whatever way a test wants (RFC 7143 section 12.1.3).

    initiator.login(target, chap=Chap("alice", b"her secret"))
    initiator.login(target, chap=Chap("alice", b"her secret", target_secret=b"its secret"))       # mutual
    initiator.login(target, chap=Chap("alice", b"her secret", alter=lambda step, values: {**values, "CHAP_N": ""}))

A target that does not keep to the order of steps, chooses what was not offered, or can't prove itself raises
ViolationError.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from iscsi_ovs.testing.results import ViolationError

HASHES = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}

Values = dict[str, str]


@dataclass(slots=True)
class Chap:
    """``form`` is how binary values are written (``0x`` or ``0b``). ``alter`` may change what each step sends: it is
    given the step (``method``, ``algorithms``, ``response``) and its keys, and returns the keys to send."""

    name: str
    secret: bytes = field(repr=False)
    target_secret: bytes | None = field(default=None, repr=False)  # ask the target for its proof
    target_name: str | None = None  # … by this name, if it matters
    algorithms: str = "8,7,6,5"
    methods: str = "CHAP,None"
    form: str = "0x"
    challenge: bytes | None = None  # for the target; drawn anew where it is None
    identifier: int = 1
    alter: Callable[[str, Values], Values] | None = None
    _algorithm: int = field(default=0, init=False, repr=False)  # chosen by the target
    _asked: bytes = field(default=b"", init=False, repr=False)  # the challenge that we sent

    @property
    def method(self) -> str:
        return self._altered("method", {"AuthMethod": self.methods}).get("AuthMethod", "")

    def answer(self, said: Mapping[str, str]) -> Values | None:
        """Our next step, given the target's keys of this one; None: it is over."""
        if said.get("AuthMethod") == "CHAP":
            return self._altered("algorithms", {"CHAP_A": self.algorithms})
        if "CHAP_C" in said:
            return self._altered("response", self._respond(said))
        if self.target_secret is not None:
            self._verify(said)
        return None

    def _respond(self, said: Mapping[str, str]) -> Values:
        if {"CHAP_A", "CHAP_I"} - said.keys():
            raise ViolationError("a challenge without algorithm or identifier")
        if said["CHAP_A"] not in self.algorithms.split(","):
            raise ViolationError(f"CHAP_A={said['CHAP_A']} was not offered")
        self._algorithm = int(said["CHAP_A"])
        theirs = _decode(said["CHAP_C"])
        values = {
            "CHAP_N": self.name,
            "CHAP_R": self._encode(self._digest(int(said["CHAP_I"]), self.secret, theirs)),
        }
        if self.target_secret is not None:
            self._asked = self.challenge or secrets.token_bytes(16)
            values |= {"CHAP_I": str(self.identifier), "CHAP_C": self._encode(self._asked)}
        return values

    def _verify(self, said: Mapping[str, str]) -> None:
        if {"CHAP_N", "CHAP_R"} - said.keys():
            raise ViolationError("the target does not prove itself")
        if self.target_name is not None and said["CHAP_N"] != self.target_name:
            raise ViolationError(f"the target calls itself {said['CHAP_N']!r}")
        assert self.target_secret is not None
        if _decode(said["CHAP_R"]) != self._digest(self.identifier, self.target_secret, self._asked):
            raise ViolationError("the target's proof is wrong")

    def _digest(self, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        return hashlib.new(HASHES[self._algorithm], bytes((identifier,)) + secret + challenge).digest()

    def _encode(self, value: bytes) -> str:
        return self.form + (value.hex() if self.form.lower() == "0x" else base64.b64encode(value).decode())

    def _altered(self, step: str, values: Values) -> Values:
        return values if self.alter is None else self.alter(step, values)


def _decode(text: str) -> bytes:
    if text[:2].lower() == "0x":
        return bytes.fromhex(text[2:])
    if text[:2].lower() == "0b":
        return base64.b64decode(text[2:], validate=True)
    raise ViolationError(f"{text[:20]!r} is no binary value")
