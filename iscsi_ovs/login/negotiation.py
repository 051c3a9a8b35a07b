"""Negotiation during login: the initiator's pairs in, our answers out (RFC 7143 section 6.2), by the table in ``keys``.

Each pair passes the same checks in the same order: key known? allowed in this stage? new? well-formed? Then the row's
rule makes the answer. The few keys that this target must bring up itself, because their defaults promise more than
the Offer can hold, are brought up in ``proposals``. Stages and flags are not known here, and the security keys of
the SecurityNegotiation stage are ``authentication``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from iscsi_ovs import errors
from iscsi_ovs.login import keys
from iscsi_ovs.login.keys import Key, Offer, Parameters, Rule, Sender, Stage, Value
from iscsi_ovs.login.text import Pair

# Status-Class and Status-Detail of section 11.13.5
INITIATOR_ERROR = (2, 0x00)
AUTHENTICATION_FAILURE = (2, 0x01)
NOT_FOUND = (2, 0x03)
UNSUPPORTED_VERSION = (2, 0x05)
MISSING_PARAMETER = (2, 0x07)
SESSION_TYPE_NOT_SUPPORTED = (2, 0x09)
SESSION_DOES_NOT_EXIST = (2, 0x0A)
SERVICE_UNAVAILABLE = (3, 0x01)
OUT_OF_RESOURCES = (3, 0x02)


def refuse(status: tuple[int, int], message: str) -> errors.LoginError:
    return errors.LoginError(status[0], status[1], message)


def resolve(row: Key, text: str, own: Any) -> tuple[str, Value | None]:
    """The answer to an offer, and its value; ``None`` where the offer is refused and the default stays."""
    if len(text.encode()) > row.value_bytes:
        return keys.REJECT, None
    value: Value | None = None
    if row.rule in (Rule.AND, Rule.OR):
        theirs = keys.parse_boolean(text)
        if theirs is not None:
            value = (theirs and own) if row.rule is Rule.AND else (theirs or own)
    elif row.rule in (Rule.MIN, Rule.MAX):
        number = keys.parse_number(text, row.low, row.high)
        if number is not None:
            value = min(number, own) if row.rule is Rule.MIN else max(number, own)
    elif row.rule is Rule.LIST:
        # Section 6.2.1: "the first value that it supports … selected from the originator list".
        value = next((item for item in keys.parse_list(text) or () if item in own), None)
    if value is None:
        return keys.REJECT, None
    return keys.format_value(value), value


class Negotiation:
    """What one login has agreed on so far."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._values: dict[str, Any] = {}  # by field of Parameters
        self._received: dict[str, str] = {}  # by key, as sent
        self._declared: list[Pair] = []
        self._stated: set[str] = set()  # keys that we sent without being asked
        self._proposed: dict[str, Value] = {}  # of those, the ones that await an answer

    # ------------------------------------------------------------------ what the initiator sent

    def receive(self, pairs: Iterable[Pair], stage: Stage) -> list[Pair]:
        """Take one text; return the answers in the order of the questions."""
        pairs = list(pairs)
        answers: dict[str, str] = {}
        for name, text in sorted(pairs, key=lambda pair: keys.ORDER.get(pair[0], len(keys.ORDER))):
            answer = self._receive(name, text, stage)
            if answer is not None:
                answers[name] = answer
        return [(name, answers[name]) for name, _ in pairs if name in answers]

    def _receive(self, name: str, text: str, stage: Stage) -> str | None:
        row = keys.KEYS.get(name)
        if row is None:
            return self._receive_unknown(name, text)
        if stage not in row.stage or not row.stage:
            raise refuse(INITIATOR_ERROR, f"{name} can't be sent in the {stage.name} stage")
        if name in self._proposed:
            self._settle(row, text)
            return None
        is_ours = Sender.INITIATOR not in row.sender
        if (is_ours or name in self._stated) and text in keys.RESERVED_ANSWERS:
            return None  # the initiator says that it can do nothing with what we stated
        if is_ours:
            raise refuse(INITIATOR_ERROR, f"{name} is a target's to send")
        if name in self._received:
            # Section 6.3: "An attempt to renegotiate/redeclare parameters not specifically allowed MUST be detected".
            if row.repeatable and self._received[name] == text:
                return None
            raise refuse(INITIATOR_ERROR, f"{name} a second time")
        self._received[name] = text
        if row.rule is Rule.OBSOLETE:
            return keys.REJECT
        if row.rule is Rule.DECLARATIVE:
            return self._declare(row, text)
        if row.irrelevant_in_discovery and self._values.get("is_discovery"):
            return keys.IRRELEVANT
        return self._negotiate(row, text)

    def _receive_unknown(self, name: str, text: str) -> str | None:
        if name in self._received:
            raise refuse(INITIATOR_ERROR, f"{name[:63]} a second time")
        self._received[name] = ""  # its value is nothing to us
        return None if text in keys.RESERVED_ANSWERS else keys.NOT_UNDERSTOOD

    def _negotiate(self, row: Key, text: str) -> str:
        answer, value = resolve(row, text, self._own(row))
        if value is None:
            return answer
        self._store(row, value)
        return answer

    def _own(self, row: Key) -> Any:
        assert row.own is not None
        own = getattr(self._offer, row.own)
        if row.name == "FirstBurstLength":
            # Section 13.14: "FirstBurstLength MUST NOT exceed MaxBurstLength."
            return min(own, self._in_force("max_burst_length"))
        return own

    def _store(self, row: Key, value: Value) -> None:
        assert row.parameter is not None
        if row.name in ("HeaderDigest", "DataDigest"):
            value = value != keys.NONE
        self._values[row.parameter] = value

    def _declare(self, row: Key, text: str) -> str | None:
        if len(text.encode()) > row.value_bytes:
            raise refuse(INITIATOR_ERROR, f"{row.name} of {len(text.encode())} bytes")
        if row.name == "SessionType":
            if text not in ("Normal", "Discovery"):
                raise refuse(SESSION_TYPE_NOT_SUPPORTED, f"SessionType={text}")
            self._values["is_discovery"] = text == "Discovery"
        elif row.name == "InitiatorName":
            if not keys.is_iscsi_name(text):
                raise refuse(INITIATOR_ERROR, f"InitiatorName={text} is not an iSCSI name")
            self._values["initiator_name"] = text
        elif row.name == "TargetName":
            if not keys.is_iscsi_name(text):
                raise refuse(NOT_FOUND, f"TargetName={text} is not an iSCSI name")
            self._values["target_name"] = text
        elif row.name == "MaxRecvDataSegmentLength":
            number = keys.parse_number(text, row.low, row.high)
            if number is None:
                return keys.REJECT
            self._values["max_recv_data_segment_length"] = number
        elif row.parameter is not None:
            self._values[row.parameter] = text
        else:
            self._declared.append((row.name, text))
        return None

    # ------------------------------------------------------------------ what we bring up ourselves

    def state(self, name: str, value: Value) -> Pair:
        """Declare a value of ours."""
        self._stated.add(name)
        if name == "MaxRecvDataSegmentLength":
            self._values["target_max_recv_data_segment_length"] = value
        return name, keys.format_value(value)

    def has_stated(self, name: str) -> bool:
        return name in self._stated

    def proposals(self) -> list[Pair]:
        """Keys that the initiator left at a default which is more than we can hold."""
        if self._values.get("is_discovery"):
            return []
        wanted: dict[str, Value] = {}
        if not self._offer.immediate_data and "ImmediateData" not in self._received:
            wanted["ImmediateData"] = False
        unsolicited = not self._in_force("initial_r2t") or (
            self._in_force("immediate_data") and "ImmediateData" not in wanted
        )
        limit = self._own(keys.KEYS["FirstBurstLength"])
        if unsolicited and self._in_force("first_burst_length") > limit:
            wanted["FirstBurstLength"] = limit
        new = {name: value for name, value in wanted.items() if name not in self._stated}
        self._stated.update(new)
        self._proposed.update(new)
        return [(name, keys.format_value(value)) for name, value in new.items()]

    @property
    def is_waiting(self) -> bool:
        """Has the initiator still to answer one of our proposals?"""
        return bool(self._proposed)

    def _settle(self, row: Key, text: str) -> None:
        """The initiator's answer to a proposal must be a value that the rule could give."""
        own = self._proposed.pop(row.name)
        answer, value = resolve(row, text, own)
        if value is None or answer != keys.format_value(value) or keys.format_value(value) != _normal(row, text):
            raise refuse(INITIATOR_ERROR, f"{row.name}={text[:255]} does not answer {row.name}={own}")
        self._received[row.name] = text
        self._store(row, value)

    # ------------------------------------------------------------------ what came of it

    def _in_force(self, field: str) -> Any:
        return self._values.get(field, _DEFAULTS[field])

    @property
    def is_discovery(self) -> bool:
        return bool(self._in_force("is_discovery"))

    @property
    def initiator_name(self) -> str | None:
        return self._values.get("initiator_name")

    @property
    def target_name(self) -> str | None:
        return self._values.get("target_name")

    def parameters(self, **fixed: Any) -> Parameters:
        values = {**self._values, **fixed, "declared": tuple(self._declared)}
        longest = values.get("max_burst_length", Parameters().max_burst_length)
        values["first_burst_length"] = min(self._in_force("first_burst_length"), longest)
        return Parameters(**values)


def _normal(row: Key, text: str) -> str:
    """A number in hexadecimal is the same answer."""
    number = keys.parse_number(text, row.low, row.high) if row.rule in (Rule.MIN, Rule.MAX) else None
    return text if number is None else str(number)


_DEFAULT_PARAMETERS = Parameters()
_DEFAULTS: dict[str, Any] = {field: getattr(_DEFAULT_PARAMETERS, field) for field in Parameters.__slots__}
