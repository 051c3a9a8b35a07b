"""CHAP: one exchange, from CHAP_A to CHAP_R, as the target runs it (RFC 7143 sections 9.2, 12.1.3; RFC 1994).

    initiator   CHAP_A=8,7,6,5
    target      CHAP_A=8  CHAP_I=I  CHAP_C=C
    initiator   CHAP_N=name  CHAP_R=response            [CHAP_I=i  CHAP_C=c: now you]
    target      nothing, or                             CHAP_N=name  CHAP_R=response

Challenges are handed in, accounts come with the Policy. Whoever is refused learns one thing only, 0201: an account that
isn't there costs the same work and gets the same answer as a wrong secret. Messages (for the log) name the initiator,
the account and the cause; secrets, challenges and responses are in none of them.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from iscsi_ovs import errors
from iscsi_ovs.login import keys, policy
from iscsi_ovs.login.negotiation import AUTHENTICATION_FAILURE, INITIATOR_ERROR, MISSING_PARAMETER, refuse
from iscsi_ovs.login.policy import Policy
from iscsi_ovs.login.text import Pair

LONGEST_BINARY = 1024  # bytes. Section 12.1.3: "The length of C and R … MUST NOT exceed 1024 bytes."
LONGEST_NAME = 255  # bytes; section 6.1: "the maximum length of a simple-value"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A row of IANA's CHAP_A registry: its hash by hashlib's name, and how long a response is."""

    number: int
    hash: str
    digest_bytes: int


_ROWS = (
    Algorithm(policy.SHA3_256, "sha3_256", 32),
    Algorithm(policy.SHA_256, "sha256", 32),
    Algorithm(policy.SHA_1, "sha1", 20),
    Algorithm(policy.MD5, "md5", 16),
)
ALGORITHMS: dict[int, Algorithm] = {row.number: row for row in _ROWS}

assert tuple(ALGORITHMS) == policy.ALGORITHMS


def _is_there(algorithm: Algorithm) -> bool:
    try:
        return hashlib.new(algorithm.hash).digest_size == algorithm.digest_bytes
    except ValueError:
        return False


# A host in FIPS mode has no MD5.
AVAILABLE = frozenset(row.number for row in _ROWS if _is_there(row))


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """RFC 1994 section 4.1: the hash of "the Identifier, followed by … the secret, followed by … the Challenge"."""
    return hashlib.new(ALGORITHMS[algorithm].hash, bytes((identifier,)) + secret + challenge).digest()


def encode(value: bytes) -> str:
    """A binary-value, as a hex-constant: every initiator reads those."""
    return "0x" + value.hex()


def decode(text: str) -> bytes:
    """A binary-value of section 6.1, 1 … 1024 bytes: a hex-constant (0x) or a base64-constant (0b).

    Raises ValueError. Half a byte and what base64 would have to guess (padding left out, bits behind the end) are
    refused: two texts must never be one value by accident.
    """
    prefix, digits = text[:2].lower(), text[2:]
    if prefix == "0x":
        if len(digits) % 2 or not set(digits) <= _HEX_DIGITS:
            raise ValueError("not whole bytes in hexadecimal digits")
        value = bytes.fromhex(digits)
    elif prefix == "0b":
        try:
            value = binascii.a2b_base64(digits.encode("ascii"), strict_mode=True)
        except ValueError as error:  # binascii.Error and UnicodeEncodeError are such
            raise ValueError("not base64") from error
        if binascii.b2a_base64(value, newline=False) != digits.encode("ascii"):
            raise ValueError("base64 with bits to spare")
    else:
        raise ValueError("neither 0x… nor 0b…")
    if not 0 < len(value) <= LONGEST_BINARY:
        raise ValueError(f"{len(value)} bytes; 1 to {LONGEST_BINARY} are allowed")
    return value


_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

# What each step takes: the keys that must come, the keys that may come.
_STEPS: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"CHAP_A"}), frozenset()),
    (frozenset({"CHAP_N", "CHAP_R"}), frozenset({"CHAP_I", "CHAP_C"})),
    (frozenset(), frozenset()),
)
_DONE = len(_STEPS) - 1

# Stands for the secret of an account that isn't there: its answer is computed all the same.
_NOBODYS_SECRET = b"the secret of nobody"


class Exchange:
    """The target's side of one CHAP exchange with ``initiator_name``."""

    def __init__(self, policy: Policy, random_bytes: Callable[[int], bytes], initiator_name: str) -> None:
        self._policy = policy
        self._random_bytes = random_bytes
        self._initiator_name = initiator_name
        self._step = 0
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self.account: str | None = None  # who it is, once that is proved

    @property
    def is_done(self) -> bool:
        """Has the initiator proved itself (and have we, if it asked)?"""
        return self._step == _DONE

    def receive(self, values: Mapping[str, str]) -> list[Pair]:
        """Take the CHAP keys of one text. Raises LoginError.

        Section 9.2: "Whenever an iSCSI target gets a response whose keys, or their values, are not according to the
        step definition, it MUST answer with a Login reject with the "Initiator Error" or "Missing Parameter" status.
        These statuses are not intended for cryptographically incorrect values".
        """
        needed, allowed = _STEPS[self._step]
        if unexpected := sorted(values.keys() - needed - allowed):
            raise self._refuse(INITIATOR_ERROR, f"{unexpected[0]} out of its step")
        if missing := sorted(needed - values.keys()):
            raise self._refuse(MISSING_PARAMETER, f"{missing[0]} is missing")
        if self._step == _DONE:
            return []
        answers = self._on_algorithms(values["CHAP_A"]) if self._step == 0 else self._on_response(values)
        self._step += 1
        return answers

    def _on_algorithms(self, text: str) -> list[Pair]:
        items = keys.parse_list(text) or [""]
        offered = [keys.parse_number(item, 0, 2**32 - 1) for item in items]
        if None in offered:
            raise self._refuse(INITIATOR_ERROR, f"CHAP_A={text[:63]!r} is no list of numbers")
        chosen = next((one for one in self._policy.algorithms if one in offered and one in AVAILABLE), None)
        if chosen is None:
            raise self._refuse(AUTHENTICATION_FAILURE, f"no algorithm of ours in CHAP_A={text[:63]!r}")
        self._algorithm = chosen
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(ALGORITHMS[chosen].digest_bytes)
        return [("CHAP_A", str(chosen)), ("CHAP_I", str(self._identifier)), ("CHAP_C", encode(self._challenge))]

    def _on_response(self, values: Mapping[str, str]) -> list[Pair]:
        # A name is text, whatever it looks like: "0xalice" is a name.
        name = values["CHAP_N"]
        if not 0 < len(name.encode()) <= LONGEST_NAME:
            raise self._refuse(INITIATOR_ERROR, f"CHAP_N of {len(name.encode())} bytes")
        theirs = self._binary(values, "CHAP_R")
        asked = self._asked(values)
        if asked is not None and hmac.compare_digest(asked[1], self._challenge):
            # Section 9.2.1: "originators MUST NOT reuse the CHAP challenge sent by the responder for the other
            # direction of a bidirectional authentication. Responders MUST check for this condition".
            raise self._refuse(AUTHENTICATION_FAILURE, "our own challenge came back", name)
        secret = self._policy.accounts.get(name)
        ours = response(self._algorithm, self._identifier, secret or _NOBODYS_SECRET, self._challenge)
        is_right = hmac.compare_digest(ours, theirs)
        if secret is None or not is_right:
            cause = "no such account" if secret is None else "wrong secret"
            raise self._refuse(AUTHENTICATION_FAILURE, cause, name)
        answers = [] if asked is None else self._prove(name, secret, *asked)
        self.account = name
        return answers

    def _asked(self, values: Mapping[str, str]) -> tuple[int, bytes] | None:
        """Identifier and challenge of an initiator that wants proof of us, too."""
        given = values.keys() & {"CHAP_I", "CHAP_C"}
        if not given:
            return None
        if len(given) == 1:
            raise self._refuse(MISSING_PARAMETER, f"{given.pop()} without its partner")
        identifier = keys.parse_number(values["CHAP_I"], 0, 255)
        if identifier is None:
            raise self._refuse(INITIATOR_ERROR, f"CHAP_I={values['CHAP_I'][:63]!r} is no number of one byte")
        return identifier, self._binary(values, "CHAP_C")

    def _prove(self, name: str, secret: bytes, identifier: int, challenge: bytes) -> list[Pair]:
        """Our own proof, after the initiator's: nobody gets us to compute for them unproved."""
        mutual_name, mutual_secret = self._policy.mutual_name, self._policy.mutual_secret
        if mutual_name is None or mutual_secret is None:
            # Section 11.13.5: 0201 stands for "target authentication is not supported", too.
            raise self._refuse(AUTHENTICATION_FAILURE, "it asks for our proof, and we have no name and secret", name)
        if hmac.compare_digest(secret, mutual_secret):
            # Section 9.2.1: one secret must not serve both directions.
            raise self._refuse(AUTHENTICATION_FAILURE, "the secrets of both directions are the same", name)
        proof = response(self._algorithm, identifier, mutual_secret, challenge)
        return [("CHAP_N", mutual_name), ("CHAP_R", encode(proof))]

    def _binary(self, values: Mapping[str, str], key: str) -> bytes:
        try:
            return decode(values[key])
        except ValueError as error:
            raise self._refuse(INITIATOR_ERROR, f"{key}: {error}") from None

    def _refuse(self, status: tuple[int, int], cause: str, account: str | None = None) -> errors.LoginError:
        who = self._initiator_name if account is None else f"{self._initiator_name} as {account!r}"
        return refuse(status, f"CHAP: {who}: {cause}")
