"""Every PDU of RFC 7143 section 11: its codec equals its declaration, its fields lie where the RFC draws them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import pdu

ALL = [*pdu.PDUS.values(), pdu.Header]
HEADERS = st.binary(min_size=48, max_size=48)
every_pdu = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


@every_pdu
@given(data=HEADERS)
def test_interpreted_is_derived(cls: type[pdu.Pdu], data: bytes) -> None:
    """construct and the derived codec agree on any 48 bytes, both ways."""
    interpreted = cls.declaration.parse(data)
    header = cls.unpack_from(data)
    assert header.as_dict() == {name: interpreted[name] for name in cls.FIELDS}
    assert header.pack() == data
    assert cls.declaration.build(header.as_dict()) == data
    assert cls(**header.as_dict()) == header


@every_pdu
@pytest.mark.parametrize("length", range(48))
def test_a_truncated_header_raises(cls: type[pdu.Pdu], length: int) -> None:
    with pytest.raises(struct.error):
        cls.unpack_from(bytes(length))


@every_pdu
def test_trailing_bytes_are_not_looked_at(cls: type[pdu.Pdu]) -> None:
    data = bytes(range(48))
    assert cls.unpack_from(data + b"\xff" * 9) == cls.unpack_from(data)
    assert cls.unpack_from(memoryview(b"\xff" * 5 + data), 5) == cls.unpack_from(data)


@every_pdu
def test_common_fields_lie_in_one_place(cls: type[pdu.Pdu]) -> None:
    """Section 11.2.1: opcode, flags, TotalAHSLength, DataSegmentLength and task tag are the same in every PDU."""
    data = bytearray(48)
    data[0], data[1], data[4] = 0x11, 0x22, 0x33
    data[5:8] = b"\x44\x55\x66"
    data[16:20] = b"\x77\x88\x99\xaa"
    header = cls.unpack_from(data)
    assert (header.opcode, header.flags, header.total_ahs_length) == (0x11, 0x22, 0x33)
    assert header.data_segment_length == 0x445566
    assert header.initiator_task_tag == 0x778899AA


@pytest.mark.parametrize("opcode", range(64))
def test_decode_by_opcode(opcode: int) -> None:
    """The low six bits choose the PDU, with or without the I bit; opcodes outside RFC 7143 raise KeyError."""
    for first in (opcode, opcode | pdu.IMMEDIATE):
        data = bytes([first]) + bytes(47)
        if opcode in pdu.PDUS:
            assert type(pdu.decode(data)) is pdu.PDUS[opcode]
            assert pdu.decode(data).opcode == first
        else:
            with pytest.raises(KeyError):
                pdu.decode(data)


@pytest.mark.parametrize("length", range(1, 48))
def test_decode_of_a_truncated_header_raises(length: int) -> None:
    with pytest.raises(struct.error):
        pdu.decode(bytes(length))


@every_pdu
def test_a_new_pdu_carries_its_opcode(cls: type[pdu.Pdu]) -> None:
    """What is built from nothing decodes to itself."""
    if cls is not pdu.Header:
        assert pdu.decode(cls().pack()) == cls()


def test_requests_and_responses_are_apart() -> None:
    assert not set(pdu.REQUESTS) & set(pdu.RESPONSES)
    assert all(opcode < 0x20 for opcode in pdu.REQUESTS)
    assert all(opcode >= 0x20 for opcode in pdu.RESPONSES)


@pytest.mark.parametrize(("length", "padding"), [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0), (5, 3), (0xFFFFFF, 1)])
def test_padding(length: int, padding: int) -> None:
    assert pdu.pad_bytes(length) == padding


# Drawn by hand from the figures of section 11, not by the code under test.
GOLDEN = [
    (
        "a READ(10) of 8 blocks, simple, from LUN 1",
        pdu.ScsiCommand(
            flags=pdu.FINAL | pdu.READ | pdu.ATTRIBUTE_SIMPLE, lun=1 << 48, initiator_task_tag=0x10,
            expected_data_transfer_length=4096, cmd_sn=7, exp_stat_sn=9,
            cdb=bytes.fromhex("28000000001000000800") + bytes(6),
        ),
        "01c10000 00000000 0001000000000000 00000010 00001000 00000007 00000009 28000000001000000800000000000000",
    ),
    (
        "the first Login Request of a session",
        pdu.LoginRequest(
            flags=pdu.TRANSIT | 1, isid=bytes.fromhex("00023d000000"), initiator_task_tag=5, cid=1, cmd_sn=1,
            exp_stat_sn=0, data_segment_length=0x1F4,
        ),
        "43810000 000001f4 00023d000000 0000 00000005 0001 0000 00000001 00000000 00000000000000000000000000000000",
    ),
    (
        "a Login Response that opens full feature phase",
        pdu.LoginResponse(
            flags=0x87, isid=bytes.fromhex("00023d000000"), tsih=3, initiator_task_tag=5, stat_sn=1, exp_cmd_sn=2,
            max_cmd_sn=0x21,
        ),
        "23870000 00000000 00023d000000 0003 00000005 00000000 00000001 00000002 00000021 0000 00000000000000000000",
    ),
    (
        "a Login Response that refuses: target not found",
        pdu.LoginResponse(status_class=2, status_detail=3),
        "23000000 00000000 0000000000000000 00000000 00000000 00000000 00000000 00000000 0203 00000000000000000000",
    ),
    (
        "the last Data-In of a read, with status and an underflow of 512",
        pdu.DataIn(
            flags=pdu.FINAL | pdu.UNDERFLOW | pdu.STATUS, data_segment_length=0xE00, initiator_task_tag=0x10,
            stat_sn=9, exp_cmd_sn=8, max_cmd_sn=0x27, data_sn=1, buffer_offset=0x2000, residual_count=0x200,
        ),
        "25830000 00000e00 0000000000000000 00000010 ffffffff 00000009 00000008 00000027 00000001 00002000 00000200",
    ),
    (
        "an R2T for 64 KiB at 128 KiB",
        pdu.ReadyToTransfer(
            lun=0, initiator_task_tag=0x11, target_transfer_tag=0xAB, stat_sn=9, exp_cmd_sn=9, max_cmd_sn=0x28,
            r2t_sn=2, buffer_offset=0x20000, desired_data_transfer_length=0x10000,
        ),
        "31800000 00000000 0000000000000000 00000011 000000ab 00000009 00000009 00000028 00000002 00020000 00010000",
    ),
    (
        "a Data-Out that answers it",
        pdu.DataOut(
            flags=pdu.FINAL, data_segment_length=0x10000, initiator_task_tag=0x11, target_transfer_tag=0xAB,
            exp_stat_sn=9, data_sn=3, buffer_offset=0x20000,
        ),
        "05800000 00010000 0000000000000000 00000011 000000ab 00000000 00000009 00000000 00000003 00020000 00000000",
    ),
    (
        "a SCSI Response: CHECK CONDITION, overflow of 4",
        pdu.ScsiResponse(
            flags=pdu.FINAL | pdu.OVERFLOW, status=2, data_segment_length=20, initiator_task_tag=0x12, stat_sn=10,
            exp_cmd_sn=10, max_cmd_sn=0x29, residual_count=4,
        ),
        "21840002 00000014 0000000000000000 00000012 00000000 0000000a 0000000a 00000029 00000000 00000000 00000004",
    ),
    (
        "an ABORT TASK",
        pdu.TaskManagementRequest(
            opcode=0x42, flags=pdu.FINAL | pdu.ABORT_TASK, initiator_task_tag=0x13, referenced_task_tag=0x11,
            cmd_sn=11, exp_stat_sn=10, ref_cmd_sn=9,
        ),
        "42810000 00000000 0000000000000000 00000013 00000011 0000000b 0000000a 00000009 00000000 0000000000000000",
    ),
    (
        "a Reject of an invalid PDU field",
        pdu.Reject(reason=pdu.REJECT_INVALID_PDU_FIELD, data_segment_length=48, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3),
        "3f800900 00000030 0000000000000000 ffffffff 00000000 00000001 00000002 00000003 00000000 0000000000000000",
    ),
    (
        "an asynchronous message: log out within 10 s",
        pdu.AsynchronousMessage(async_event=pdu.ASYNC_LOGOUT_REQUEST, parameter_3=10, stat_sn=1),
        "32800000 00000000 0000000000000000 ffffffff 00000000 00000001 00000000 00000000 01000000 0000000a 00000000",
    ),
    (
        "a Logout Response",
        pdu.LogoutResponse(initiator_task_tag=9, stat_sn=4, exp_cmd_sn=5, max_cmd_sn=6, time2wait=2, time2retain=20),
        "26800000 00000000 0000000000000000 00000009 00000000 00000004 00000005 00000006 00000000 00020014 00000000",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("header", "golden"), [row[1:] for row in GOLDEN], ids=[row[0] for row in GOLDEN])
def test_golden_bytes(header: pdu.Pdu, golden: str) -> None:
    """Byte for byte what the figures of section 11 say."""
    data = bytes.fromhex(golden)
    assert len(data) == 48
    assert header.pack() == data
    assert pdu.decode(data) == header


def test_additional_header() -> None:
    """Section 11.2.2: length, type, then what is the type's own."""
    assert pdu.AdditionalHeader(ahs_length=17, ahs_type=pdu.AHS_EXTENDED_CDB).pack() == b"\x00\x11\x01\x00"
