"""TransportIDs: written as SPC-4 7.6.4.6 draws them, and read to the last byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.commands import transport_id
from iscsi_ovs.commands.transport_id import InitiatorPort
from iscsi_ovs.scsi import CheckCondition, FieldPointer

ISID = bytes.fromhex("00023d000001")
NAME = "iqn.1993-08.org.debian:01:abc"
PORT = bytes.fromhex("45000034") + b"iqn.1993-08.org.debian:01:abc,i,0x00023d000001".ljust(52, b"\0")
DEVICE = bytes.fromhex("05000020") + NAME.encode().ljust(32, b"\0")


def test_a_port_is_written_with_its_isid() -> None:
    """Format 01b, ended by a NUL, padded to a multiple of four, at least twenty bytes."""
    assert transport_id.encode(NAME, ISID) == bytes.fromhex("45000030") + PORT[4 : 4 + 48]
    assert transport_id.encode("iqn.x", bytes(6)) == bytes.fromhex("45000018") + b"iqn.x,i,0x000000000000\0\0"
    assert len(transport_id.encode("i", bytes(6))) == 24


def test_both_forms_are_read() -> None:
    """A port, an initiator; short ISIDs, capital letters; and where each ends."""
    assert transport_id.decode(PORT, 0, len(PORT)) == (InitiatorPort(NAME, ISID), len(PORT))
    assert transport_id.decode(b"????" + DEVICE, 4, 4 + len(DEVICE)) == (InitiatorPort(NAME, None), 4 + len(DEVICE))
    short = bytes.fromhex("45000018") + b"IQN.X:Y,i,0x23D000001".ljust(24, b"\0")
    assert transport_id.decode(short, 0, 28) == (InitiatorPort("iqn.x:y", ISID), 28)


@given(st.text(st.characters(codec="ascii", exclude_characters=",", min_codepoint=33, max_codepoint=126), min_size=1))
def test_what_is_written_can_be_read(name: str) -> None:
    """For every name that a login may bring."""
    data = transport_id.encode(name[:223].lower(), ISID)
    assert len(data) % 4 == 0
    assert transport_id.decode(data, 0, len(data)) == (InitiatorPort(name[:223].lower(), ISID), len(data))


def patched(at: int, value: bytes, data: bytes = PORT) -> bytes:
    return data[:at] + value + data[at + len(value) :]


WRONG = {
    "no header": (PORT[:3], 0),
    "another protocol": (patched(0, b"\x46"), 0),
    "a reserved bit": (patched(0, b"\x55"), 0),
    "format 10b": (patched(0, b"\x85"), 0),
    "format 01b without an ISID": (patched(0, b"\x45", DEVICE), 4),
    "format 00b with an ISID": (patched(0, b"\x05"), 4),
    "a reserved byte": (patched(1, b"\x01"), 1),
    "a length over the end": (patched(2, b"\x00\x38"), 2),
    "a length that is no multiple of four": (patched(2, b"\x00\x32"), 2),
    "a length under twenty": (patched(2, b"\x00\x10"), 2),
    "a length of nothing": (patched(2, b"\x00\x00"), 2),
    "a length that cuts the name": (patched(2, b"\x00\x18"), 28),
    "no NUL": (PORT[:4] + PORT[4:].replace(b"\0", b"a"), 56),
    "something behind the NUL": (patched(55, b"x"), 50),
    "no name": (bytes.fromhex("05000014") + bytes(20), 4),
    "an ISID of 13 digits": (patched(46, b"1111").replace(b"\0\0\0\0\0", b"1\0\0\0\0"), 4),
    "an ISID that is no number": (patched(40, b"g"), 4),
    "a space in the name": (patched(10, b" "), 4),
    "bytes that are no text": (patched(10, b"\xff"), 10),
}


@pytest.mark.parametrize(("data", "at"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_pointed_at(data: bytes, at: int) -> None:
    """INVALID FIELD IN PARAMETER LIST, with the byte."""
    with pytest.raises(CheckCondition) as caught:
        transport_id.decode(data, 0, len(data))
    assert caught.value.sense == (5, 0x26, 0)
    assert caught.value.pointer == FieldPointer(at, None, False)


@given(st.binary(max_size=80), st.integers(0, 8))
def test_any_bytes_are_read_or_refused(data: bytes, at: int) -> None:
    """Nothing else happens, and nothing behind the end is looked at."""
    try:
        port, end = transport_id.decode(data, at, len(data))
    except CheckCondition:
        return
    assert at < end <= len(data)
    assert port.initiator_name
