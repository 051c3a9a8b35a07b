"""The key table: every text key of RFC 7143 section 13 (and RFC 7144's iSCSIProtocolLevel), one row a key.

A row says who may send the key, how two values become one, its default and range, when it may be used, and which knob
of ``Offer`` is our side of it. ``negotiation`` walks the table; nothing else in the package knows a key's rule.
``Offer`` is what this target proposes, ``Parameters`` what a login came to: both name their fields after the keys.
This file reads no PDU and keeps no state.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH = 8192  # bytes; in force until declared otherwise, and all through login
LONGEST_DATA_SEGMENT = 2**24 - 1

# Answers that are not values (section 6.2).
REJECT = "Reject"
IRRELEVANT = "Irrelevant"
NOT_UNDERSTOOD = "NotUnderstood"
NONE = "None"
CRC32C = "CRC32C"
RESERVED_ANSWERS = frozenset({REJECT, IRRELEVANT, NOT_UNDERSTOOD})

Value = bool | int | str


class Rule(enum.Enum):
    """How the two sides' values become one (section 6.2.2)."""

    AND = "No if either side says No"
    OR = "Yes if either side says Yes"
    MIN = "the smaller number"
    MAX = "the larger number"
    LIST = "the first of the initiator's list that we support"
    DECLARATIVE = "each side states its own, nobody answers"
    OBSOLETE = "always answered Reject (section 13.25)"
    METHOD = "the first of our own preference that the initiator offers (section 12.1)"
    STEP = "a step of the authentication method that was chosen (section 12.1.3)"


class Sender(enum.Flag):
    """Who may send a key."""

    INITIATOR = 1
    TARGET = 2
    BOTH = 3


class Use(enum.Enum):
    """When a key may be sent (section 13: the "Use" line)."""

    LEADING_ONLY = "LO"
    INITIALIZE_ONLY = "IO"
    FULL_FEATURE_PHASE_ONLY = "FFPO"
    ALL = "ALL"


class Stage(enum.Flag):
    """The login stages a key may be sent in."""

    SECURITY = 1
    OPERATIONAL = 2
    ANY = 3
    NEVER = 0


class Scope(enum.Enum):
    """What a value holds for."""

    CONNECTION = "C"
    SESSION = "S"


@dataclass(frozen=True, slots=True)
class Offer:
    """Our side of a negotiation. Lengths in bytes, times in seconds.

    When shared memory is short the session layer lowers ``first_burst_length``, or forbids unsolicited data altogether
    with ``initial_r2t=True, immediate_data=False``.
    """

    max_recv_data_segment_length: int = 262144
    max_burst_length: int = 16776192
    first_burst_length: int = 262144
    initial_r2t: bool = False
    immediate_data: bool = True
    max_outstanding_r2t: int = 4
    max_connections: int = 1
    default_time2wait: int = 2
    default_time2retain: int = 0  # a session that lost its connection is not kept
    error_recovery_level: int = 0
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    protocol_level: int = 2  # RFC 7144 section 7.1: 1 is RFC 7143, 2 has RFC 7144's additions
    header_digests: tuple[str, ...] = (CRC32C, NONE)
    data_digests: tuple[str, ...] = (CRC32C, NONE)
    # Section 13.23. One connection has its responses in order, which is all that ResponseFence asks for.
    task_reporting: tuple[str, ...] = ("FastAbort", "ResponseFence", "RFC3720")
    target_alias: str | None = None

    def __post_init__(self) -> None:
        for row in KEYS.values():
            if row.high and row.own is not None:
                assert row.low <= getattr(self, row.own) <= row.high, f"{row.own} is out of {row.name}'s range"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a login came to; every field is RFC 7143's default until negotiated. Lengths in bytes, times in seconds."""

    initiator_name: str = ""
    initiator_alias: str | None = None
    target_name: str | None = None  # None: a discovery session that named none
    is_discovery: bool = False
    isid: bytes = bytes(6)
    cid: int = 0
    portal_group_tag: int = 0
    max_recv_data_segment_length: int = DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH  # the initiator's: what we may send
    target_max_recv_data_segment_length: int = DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH  # ours, as we declared it
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    initial_r2t: bool = True
    immediate_data: bool = True
    max_outstanding_r2t: int = 1
    max_connections: int = 1
    default_time2wait: int = 2
    default_time2retain: int = 20
    error_recovery_level: int = 0
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    header_digest: bool = False
    data_digest: bool = False
    auth_method: str = NONE
    account: str | None = None  # that proved itself, where one had to
    task_reporting: str = "RFC3720"
    protocol_level: int = 1
    declared: tuple[tuple[str, str], ...] = ()  # what else the initiator stated about itself, as sent


@dataclass(frozen=True, slots=True)
class Key:
    """One row. ``own`` names a field of Offer, ``parameter`` a field of Parameters."""

    name: str
    rule: Rule
    sender: Sender
    use: Use
    scope: Scope
    stage: Stage
    default: str | None = None
    low: int = 0
    high: int = 0
    own: str | None = None
    parameter: str | None = None
    irrelevant_in_discovery: bool = False
    repeatable: bool = False  # libiscsi states who it is again in the operational stage; the same value is tolerated
    value_bytes: int = 255  # section 6.1: "the maximum length of a simple-value … is 255 bytes"


_I, _T, _IT = Sender.INITIATOR, Sender.TARGET, Sender.BOTH
_LO, _IO, _FFPO, _ALL = Use.LEADING_ONLY, Use.INITIALIZE_ONLY, Use.FULL_FEATURE_PHASE_ONLY, Use.ALL
_S, _C = Scope.SESSION, Scope.CONNECTION
_SEC, _OPS, _ANY, _NEVER = Stage.SECURITY, Stage.OPERATIONAL, Stage.ANY, Stage.NEVER
_AND, _OR, _MIN, _MAX, _LIST = Rule.AND, Rule.OR, Rule.MIN, Rule.MAX, Rule.LIST
_DECL, _OBSOLETE, _METHOD, _STEP = Rule.DECLARATIVE, Rule.OBSOLETE, Rule.METHOD, Rule.STEP
_LONG = 8192  # a list is bounded by the text, not by the 255 bytes of each item

# In the order in which they are worked off: SessionType makes others irrelevant, MaxBurstLength bounds
# FirstBurstLength.
# fmt: off
_ROWS = (
    Key("SessionType", _DECL, _I, _LO, _S, _ANY, "Normal", parameter="is_discovery", repeatable=True),
    Key("InitiatorName", _DECL, _I, _IO, _S, _ANY, parameter="initiator_name", repeatable=True),
    Key("InitiatorAlias", _DECL, _I, _ALL, _S, _ANY, parameter="initiator_alias", repeatable=True),
    Key("TargetName", _DECL, _IT, _IO, _S, _ANY, parameter="target_name", repeatable=True),
    Key("TargetAlias", _DECL, _T, _ALL, _S, _ANY, own="target_alias"),
    Key("TargetAddress", _DECL, _T, _ALL, _S, _ANY),
    Key("TargetPortalGroupTag", _DECL, _T, _IO, _S, _ANY, low=0, high=65535, parameter="portal_group_tag"),
    Key("NodeArchitecture", _DECL, _IT, _LO, _S, _ANY),
    Key("SendTargets", _DECL, _I, _FFPO, _S, _NEVER),
    Key("AuthMethod", _METHOD, _IT, _IO, _C, _SEC, parameter="auth_method", value_bytes=_LONG),
    Key("CHAP_A", _STEP, _IT, _IO, _C, _SEC, value_bytes=_LONG),
    Key("CHAP_I", _STEP, _IT, _IO, _C, _SEC),
    Key("CHAP_C", _STEP, _IT, _IO, _C, _SEC, value_bytes=_LONG),
    Key("CHAP_N", _STEP, _IT, _IO, _C, _SEC),
    Key("CHAP_R", _STEP, _IT, _IO, _C, _SEC, value_bytes=_LONG),
    Key("HeaderDigest", _LIST, _IT, _IO, _C, _OPS, NONE,
        own="header_digests", parameter="header_digest", value_bytes=_LONG),
    Key("DataDigest", _LIST, _IT, _IO, _C, _OPS, NONE,
        own="data_digests", parameter="data_digest", value_bytes=_LONG),
    Key("MaxConnections", _MIN, _IT, _LO, _S, _OPS, "1", 1, 65535,
        own="max_connections", parameter="max_connections", irrelevant_in_discovery=True),
    Key("InitialR2T", _OR, _IT, _LO, _S, _OPS, "Yes",
        own="initial_r2t", parameter="initial_r2t", irrelevant_in_discovery=True),
    Key("ImmediateData", _AND, _IT, _LO, _S, _OPS, "Yes",
        own="immediate_data", parameter="immediate_data", irrelevant_in_discovery=True),
    Key("MaxRecvDataSegmentLength", _DECL, _IT, _ALL, _C, _OPS, "8192", 512, LONGEST_DATA_SEGMENT,
        own="max_recv_data_segment_length", parameter="max_recv_data_segment_length"),
    Key("MaxBurstLength", _MIN, _IT, _LO, _S, _OPS, "262144", 512, LONGEST_DATA_SEGMENT,
        own="max_burst_length", parameter="max_burst_length", irrelevant_in_discovery=True),
    Key("FirstBurstLength", _MIN, _IT, _LO, _S, _OPS, "65536", 512, LONGEST_DATA_SEGMENT,
        own="first_burst_length", parameter="first_burst_length", irrelevant_in_discovery=True),
    Key("DefaultTime2Wait", _MAX, _IT, _LO, _S, _OPS, "2", 0, 3600,
        own="default_time2wait", parameter="default_time2wait"),
    Key("DefaultTime2Retain", _MIN, _IT, _LO, _S, _OPS, "20", 0, 3600,
        own="default_time2retain", parameter="default_time2retain"),
    Key("MaxOutstandingR2T", _MIN, _IT, _LO, _S, _OPS, "1", 1, 65535,
        own="max_outstanding_r2t", parameter="max_outstanding_r2t", irrelevant_in_discovery=True),
    Key("DataPDUInOrder", _OR, _IT, _LO, _S, _OPS, "Yes",
        own="data_pdu_in_order", parameter="data_pdu_in_order", irrelevant_in_discovery=True),
    Key("DataSequenceInOrder", _OR, _IT, _LO, _S, _OPS, "Yes",
        own="data_sequence_in_order", parameter="data_sequence_in_order", irrelevant_in_discovery=True),
    Key("ErrorRecoveryLevel", _MIN, _IT, _LO, _S, _OPS, "0", 0, 2,
        own="error_recovery_level", parameter="error_recovery_level"),
    Key("TaskReporting", _LIST, _IT, _LO, _S, _OPS, "RFC3720",
        own="task_reporting", parameter="task_reporting", irrelevant_in_discovery=True, value_bytes=_LONG),
    Key("iSCSIProtocolLevel", _MIN, _IT, _LO, _S, _OPS, "1", 0, 31,
        own="protocol_level", parameter="protocol_level", irrelevant_in_discovery=True),
    Key("IFMarker", _OBSOLETE, _IT, _IO, _C, _OPS),
    Key("OFMarker", _OBSOLETE, _IT, _IO, _C, _OPS),
    Key("IFMarkInt", _OBSOLETE, _IT, _IO, _C, _OPS),
    Key("OFMarkInt", _OBSOLETE, _IT, _IO, _C, _OPS),
)
# fmt: on
KEYS: dict[str, Key] = {row.name: row for row in _ROWS}
ORDER: dict[str, int] = {row.name: number for number, row in enumerate(_ROWS)}

assert len(KEYS) == len(_ROWS), "a key has one row"
assert all(row.own is None or row.own in Offer.__slots__ for row in _ROWS)
assert all(row.parameter is None or row.parameter in Parameters.__slots__ for row in _ROWS)

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,19})|0[xX]([0-9A-Fa-f]{1,16})")


def parse_number(text: str, low: int, high: int) -> int | None:
    """A numerical-value of section 6.1 (decimal, or hexadecimal behind 0x); None if it isn't one, or out of range."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    value = int(match[1]) if match[1] is not None else int(match[2], 16)
    return value if low <= value <= high else None


def parse_boolean(text: str) -> bool | None:
    """Exactly Yes or No; None for anything else."""
    return {"Yes": True, "No": False}.get(text)


def parse_list(text: str) -> list[str] | None:
    """The items of a list-of-values; None if one is empty or longer than a simple value may be."""
    items = text.split(",")
    return items if all(0 < len(item.encode()) <= 255 for item in items) else None


def format_value(value: Value) -> str:
    """A value as it stands on the wire."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return str(value)


_NAME = re.compile(r"(iqn\.\d{4}-\d{2}\..+|eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32}))")
_NOT_IN_A_NAME = re.compile(r"[\x00-\x20\x7f!-,/;-@\[-^`{-~]")


def is_iscsi_name(text: str) -> bool:
    """Does this look like a name of section 4.2.7? Letters beyond ASCII, upper case and ``_`` are let pass: initiators
    in the field send them."""
    return len(text.encode()) <= 223 and _NAME.fullmatch(text) is not None and _NOT_IN_A_NAME.search(text) is None
