"""iSCSI TransportIDs (SPC-4 7.6.4.6): how PERSISTENT RESERVE names an initiator port, byte by byte.

Format 00b is the name of an initiator, format 01b one of its ports: name, ",i,0x" and the ISID in hex. Both end with
a NUL and are padded with NULs. Nothing here knows registrations or sessions.
"""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple

from construct import Int8ub, Int16ub, Struct

from iscsi_ovs.commands import sense
from iscsi_ovs.scsi import CheckCondition, FieldPointer
from iscsi_ovs.wire import Derived

_ISCSI = 0x05
_DEVICE, _PORT = 0x00, 0x40  # TPID FORMAT
_LEAST_ADDITIONAL_BYTES = 20
_MAX_BYTES = 223 + len(",i,0x") + 12  # RFC 7143 section 4.2.7.1: a name has at most 223 bytes
_TEXT = re.compile(r"(?P<name>[^,\x00-\x20\x7f]+)(,i,0x(?P<isid>[0-9A-Fa-f]{1,12}))?")


class InitiatorPort(NamedTuple):
    """``isid`` None: every port of the initiator."""

    initiator_name: str
    isid: bytes | None


class Header(Derived):
    """``format``: TPID FORMAT, two reserved bits, PROTOCOL IDENTIFIER."""

    declaration = Struct("format" / Int8ub, "reserved_1" / Int8ub, "additional_length" / Int16ub)
    defaults: ClassVar[dict[str, int]] = {"format": _PORT | _ISCSI}


def encode(initiator_name: str, isid: bytes) -> bytes:
    """The TransportID of a port."""
    text = f"{initiator_name},i,0x{isid.hex()}".encode() + b"\0"
    text = text.ljust(max(_LEAST_ADDITIONAL_BYTES, -(-len(text) // 4) * 4), b"\0")
    return Header(additional_length=len(text)).pack() + text


def decode(data: bytes, at: int, end: int) -> tuple[InitiatorPort, int]:
    """The TransportID that begins at ``at``, and where it ends. ``end``: nothing of it lies there or behind.

    Raises INVALID FIELD IN PARAMETER LIST, pointing at the byte that is wrong.
    """
    if at + Header.SIZE > end:
        raise _wrong(at)
    header = Header.unpack_from(data, at)
    if header.format not in (_DEVICE | _ISCSI, _PORT | _ISCSI):
        raise _wrong(at)
    if header.reserved_1:
        raise _wrong(at + 1)
    # "The ADDITIONAL LENGTH field … shall be at least 20 and shall be a multiple of four."
    start, length = at + Header.SIZE, header.additional_length
    if length < _LEAST_ADDITIONAL_BYTES or length % 4 or start + length > end:
        raise _wrong(at + 2)
    text, terminator, padding = data[start : start + length].partition(b"\0")
    if not terminator or padding.strip(b"\0"):
        raise _wrong(start + len(text))
    try:
        match = _TEXT.fullmatch(text.decode())
    except UnicodeDecodeError as error:
        raise _wrong(start + error.start) from None
    if match is None or len(text) > _MAX_BYTES or bool(match["isid"]) != (header.format & 0xC0 == _PORT):
        raise _wrong(start)
    isid = bytes.fromhex(match["isid"].rjust(12, "0")) if match["isid"] else None
    # RFC 7143 section 4.2.7.1: names that differ in case only are the same name
    return InitiatorPort(match["name"].lower(), isid), start + length


def _wrong(byte: int) -> CheckCondition:
    return CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(byte, is_cdb=False))
