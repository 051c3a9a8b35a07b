"""The wire: every PDU of RFC 7143 section 11, each declared once, flat, in construct.

A PDU is a 48-byte basic header segment (BHS), additional header segments, an optional header digest, a data segment
padded to four bytes, an optional data digest. Only headers are declared here: payload bytes never pass through a codec.
Bit 0x40 of the first byte is the I bit of a request; flags are named masks on whole bytes.
This file knows nothing of connections, sessions or what a field is good for.
"""

from __future__ import annotations

from typing import ClassVar

from construct import Bytes, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Struct

from iscsi_ovs.wire import Derived

BHS_BYTES = 48
OPCODE_MASK = 0x3F
IMMEDIATE = 0x40  # first byte: immediate delivery (section 11.2.1.1)
FINAL = 0x80  # flags byte: last PDU of a sequence (section 11.2.1.3)
CONTINUE = 0x40  # Login and Text flags: the text goes on in the next PDU (section 11.10.2)
RESERVED_TAG = 0xFFFFFFFF

# SCSI Command flags (section 11.3.1)
READ = 0x40
WRITE = 0x20
ATTRIBUTE_MASK = 0x07
ATTRIBUTE_UNTAGGED, ATTRIBUTE_SIMPLE, ATTRIBUTE_ORDERED, ATTRIBUTE_HEAD_OF_QUEUE, ATTRIBUTE_ACA = range(5)

# SCSI Response and Data-In flags (sections 11.4.1, 11.7.3)
BIDI_OVERFLOW = 0x10
BIDI_UNDERFLOW = 0x08
OVERFLOW = 0x04
UNDERFLOW = 0x02
STATUS = 0x01  # Data-In: this PDU also bears status
ACKNOWLEDGE = 0x40  # Data-In: a DataACK SNACK is asked for (ErrorRecoveryLevel 1 and up)

# SCSI Response codes (section 11.4.3)
COMPLETED_AT_TARGET = 0x00
TARGET_FAILURE = 0x01

# Login flags (sections 11.12, 11.13)
TRANSIT = 0x80
CSG_SHIFT = 2
STAGE_MASK = 0x03

# Task management functions (section 11.5.1) and responses (11.6.1)
ABORT_TASK, ABORT_TASK_SET, CLEAR_ACA, CLEAR_TASK_SET, LOGICAL_UNIT_RESET = 1, 2, 3, 4, 5
TARGET_WARM_RESET, TARGET_COLD_RESET, TASK_REASSIGN = 6, 7, 8
QUERY_TASK, QUERY_TASK_SET, I_T_NEXUS_RESET, QUERY_ASYNCHRONOUS_EVENT = 9, 10, 11, 12
FUNCTION_COMPLETE = 0
TASK_DOES_NOT_EXIST = 1
LUN_DOES_NOT_EXIST = 2
TASK_STILL_ALLEGIANT = 3
REASSIGNMENT_NOT_SUPPORTED = 4
FUNCTION_NOT_SUPPORTED = 5
FUNCTION_AUTHORIZATION_FAILED = 6
FUNCTION_SUCCEEDED = 7  # RFC 7144 section 5.2: what a query was after is there
FUNCTION_REJECTED = 255

# Logout reasons (section 11.14.1) and responses (11.15.1)
CLOSE_SESSION, CLOSE_CONNECTION, REMOVE_FOR_RECOVERY = 0, 1, 2
LOGOUT_SUCCESS, CID_NOT_FOUND, RECOVERY_NOT_SUPPORTED, CLEANUP_FAILED = 0, 1, 2, 3

# Reject reasons (section 11.17.1)
REJECT_DATA_DIGEST_ERROR = 0x02
REJECT_SNACK = 0x03
REJECT_PROTOCOL_ERROR = 0x04
REJECT_COMMAND_NOT_SUPPORTED = 0x05
REJECT_IMMEDIATE_COMMAND = 0x06
REJECT_TASK_IN_PROGRESS = 0x07
REJECT_INVALID_DATA_ACK = 0x08
REJECT_INVALID_PDU_FIELD = 0x09
REJECT_LONG_OPERATION = 0x0A
REJECT_WAITING_FOR_LOGOUT = 0x0C

# Asynchronous message events (section 11.9.1)
ASYNC_SCSI_EVENT, ASYNC_LOGOUT_REQUEST, ASYNC_DROP_CONNECTION, ASYNC_DROP_SESSION, ASYNC_NEGOTIATION = range(5)
ASYNC_TASK_TERMINATION = 5


class Header(Derived):
    """A basic header segment before its opcode is known, and the base of every PDU."""

    OPCODE: ClassVar[int] = -1

    declaration = Struct(
        "opcode" / Int8ub,
        "flags" / Int8ub,
        "opcode_specific_2" / Bytes(2),
        "total_ahs_length" / Int8ub,  # four-byte words
        "data_segment_length" / Int24ub,  # bytes, without padding
        "opcode_specific_8" / Bytes(8),
        "initiator_task_tag" / Int32ub,
        "opcode_specific_20" / Bytes(28),
    )


class Pdu(Derived):
    """Base of the declared PDUs: what all their headers have in common."""

    OPCODE: ClassVar[int] = -1


_LENGTHS = ("total_ahs_length" / Int8ub, "data_segment_length" / Int24ub)
_REQUEST_NUMBERS = ("cmd_sn" / Int32ub, "exp_stat_sn" / Int32ub)
_RESPONSE_NUMBERS = ("stat_sn" / Int32ub, "exp_cmd_sn" / Int32ub, "max_cmd_sn" / Int32ub)


class NopOut(Pdu):
    """Section 11.18. An echo request (its ITT is not reserved), or the answer to a NOP-In."""

    OPCODE = 0x00
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        *_REQUEST_NUMBERS, "reserved_32" / Bytes(16),
    )  # fmt: skip
    defaults = {"opcode": 0x00, "flags": FINAL, "target_transfer_tag": RESERVED_TAG}


class ScsiCommand(Pdu):
    """Section 11.3."""

    OPCODE = 0x01
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "expected_data_transfer_length" / Int32ub,
        *_REQUEST_NUMBERS, "cdb" / Bytes(16),
    )  # fmt: skip
    defaults = {"opcode": 0x01, "flags": FINAL | ATTRIBUTE_SIMPLE}


class TaskManagementRequest(Pdu):
    """Section 11.5. The low seven bits of ``flags`` are the function."""

    OPCODE = 0x02
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "referenced_task_tag" / Int32ub,
        *_REQUEST_NUMBERS, "ref_cmd_sn" / Int32ub, "exp_data_sn" / Int32ub, "reserved_40" / Bytes(8),
    )  # fmt: skip
    defaults = {"opcode": 0x02, "flags": FINAL, "referenced_task_tag": RESERVED_TAG}


class LoginRequest(Pdu):
    """Section 11.12."""

    OPCODE = 0x03
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "version_max" / Int8ub, "version_min" / Int8ub, *_LENGTHS,
        "isid" / Bytes(6), "tsih" / Int16ub, "initiator_task_tag" / Int32ub,
        "cid" / Int16ub, "reserved_22" / Bytes(2), *_REQUEST_NUMBERS, "reserved_32" / Bytes(16),
    )  # fmt: skip
    defaults = {"opcode": 0x03 | IMMEDIATE}


class TextRequest(Pdu):
    """Section 11.10."""

    OPCODE = 0x04
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        *_REQUEST_NUMBERS, "reserved_32" / Bytes(16),
    )  # fmt: skip
    defaults = {"opcode": 0x04, "flags": FINAL, "target_transfer_tag": RESERVED_TAG}


class DataOut(Pdu):
    """Section 11.7."""

    OPCODE = 0x05
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        "reserved_24" / Int32ub, "exp_stat_sn" / Int32ub, "reserved_32" / Int32ub,
        "data_sn" / Int32ub, "buffer_offset" / Int32ub, "reserved_44" / Int32ub,
    )  # fmt: skip
    defaults = {"opcode": 0x05, "target_transfer_tag": RESERVED_TAG}


class LogoutRequest(Pdu):
    """Section 11.14. The low seven bits of ``flags`` are the reason."""

    OPCODE = 0x06
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "reserved_8" / Bytes(8), "initiator_task_tag" / Int32ub, "cid" / Int16ub, "reserved_22" / Bytes(2),
        *_REQUEST_NUMBERS, "reserved_32" / Bytes(16),
    )  # fmt: skip
    defaults = {"opcode": 0x06, "flags": FINAL}


class SnackRequest(Pdu):
    """Section 11.16. Refused at ErrorRecoveryLevel 0."""

    OPCODE = 0x10
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        "reserved_24" / Int32ub, "exp_stat_sn" / Int32ub, "reserved_32" / Bytes(8),
        "beg_run" / Int32ub, "run_length" / Int32ub,
    )  # fmt: skip
    defaults = {"opcode": 0x10, "flags": FINAL, "target_transfer_tag": RESERVED_TAG}


class NopIn(Pdu):
    """Section 11.19."""

    OPCODE = 0x20
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        *_RESPONSE_NUMBERS, "reserved_36" / Bytes(12),
    )  # fmt: skip
    defaults = {
        "opcode": 0x20,
        "flags": FINAL,
        "initiator_task_tag": RESERVED_TAG,
        "target_transfer_tag": RESERVED_TAG,
    }


class ScsiResponse(Pdu):
    """Section 11.4. Its data segment, where there is one, is a sense length (two bytes) and sense data.

    Bytes 8 and 9 are RFC 7144's Status Qualifier: always 0 here, "no additional information" (SAM-5 5.3.2).
    """

    OPCODE = 0x21
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "response" / Int8ub, "status" / Int8ub, *_LENGTHS,
        "reserved_8" / Bytes(8), "initiator_task_tag" / Int32ub, "snack_tag" / Int32ub,
        *_RESPONSE_NUMBERS, "exp_data_sn" / Int32ub,
        "bidi_read_residual_count" / Int32ub, "residual_count" / Int32ub,
    )  # fmt: skip
    defaults = {"opcode": 0x21, "flags": FINAL}


class TaskManagementResponse(Pdu):
    """Section 11.6, with the additional response information of RFC 7144 section 5.2."""

    OPCODE = 0x22
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "response" / Int8ub, "reserved_3" / Int8ub, *_LENGTHS,
        "additional_response_information" / Bytes(3), "reserved_11" / Bytes(5),
        "initiator_task_tag" / Int32ub, "reserved_20" / Int32ub,
        *_RESPONSE_NUMBERS, "reserved_36" / Bytes(12),
    )  # fmt: skip
    defaults = {"opcode": 0x22, "flags": FINAL}


class LoginResponse(Pdu):
    """Section 11.13."""

    OPCODE = 0x23
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "version_max" / Int8ub, "version_active" / Int8ub, *_LENGTHS,
        "isid" / Bytes(6), "tsih" / Int16ub, "initiator_task_tag" / Int32ub, "reserved_20" / Int32ub,
        *_RESPONSE_NUMBERS, "status_class" / Int8ub, "status_detail" / Int8ub, "reserved_38" / Bytes(10),
    )  # fmt: skip
    defaults = {"opcode": 0x23}


class TextResponse(Pdu):
    """Section 11.11."""

    OPCODE = 0x24
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        *_RESPONSE_NUMBERS, "reserved_36" / Bytes(12),
    )  # fmt: skip
    defaults = {"opcode": 0x24, "flags": FINAL, "target_transfer_tag": RESERVED_TAG}


class DataIn(Pdu):
    """Section 11.7. ``status`` and ``stat_sn`` mean something only where the STATUS flag is set."""

    OPCODE = 0x25
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Int8ub, "status" / Int8ub, *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        *_RESPONSE_NUMBERS, "data_sn" / Int32ub, "buffer_offset" / Int32ub, "residual_count" / Int32ub,
    )  # fmt: skip
    defaults = {"opcode": 0x25, "target_transfer_tag": RESERVED_TAG}


class LogoutResponse(Pdu):
    """Section 11.15."""

    OPCODE = 0x26
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "response" / Int8ub, "reserved_3" / Int8ub, *_LENGTHS,
        "reserved_8" / Bytes(8), "initiator_task_tag" / Int32ub, "reserved_20" / Int32ub,
        *_RESPONSE_NUMBERS, "reserved_36" / Int32ub,
        "time2wait" / Int16ub, "time2retain" / Int16ub, "reserved_44" / Int32ub,
    )  # fmt: skip
    defaults = {"opcode": 0x26, "flags": FINAL}


class ReadyToTransfer(Pdu):
    """R2T, section 11.8."""

    OPCODE = 0x31
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "target_transfer_tag" / Int32ub,
        *_RESPONSE_NUMBERS, "r2t_sn" / Int32ub, "buffer_offset" / Int32ub, "desired_data_transfer_length" / Int32ub,
    )  # fmt: skip
    defaults = {"opcode": 0x31, "flags": FINAL}


class AsynchronousMessage(Pdu):
    """Section 11.9."""

    OPCODE = 0x32
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(2), *_LENGTHS,
        "lun" / Int64ub, "initiator_task_tag" / Int32ub, "reserved_20" / Int32ub,
        *_RESPONSE_NUMBERS, "async_event" / Int8ub, "async_vcode" / Int8ub,
        "parameter_1" / Int16ub, "parameter_2" / Int16ub, "parameter_3" / Int16ub, "reserved_44" / Int32ub,
    )  # fmt: skip
    defaults = {"opcode": 0x32, "flags": FINAL, "initiator_task_tag": RESERVED_TAG}


class Reject(Pdu):
    """Section 11.17. Its data segment is the header of the rejected PDU."""

    OPCODE = 0x3F
    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reason" / Int8ub, "reserved_3" / Int8ub, *_LENGTHS,
        "reserved_8" / Bytes(8), "initiator_task_tag" / Int32ub, "reserved_20" / Int32ub,
        *_RESPONSE_NUMBERS, "data_sn" / Int32ub, "reserved_40" / Bytes(8),
    )  # fmt: skip
    defaults = {"opcode": 0x3F, "flags": FINAL, "initiator_task_tag": RESERVED_TAG}


REQUESTS: dict[int, type[Pdu]] = {
    cls.OPCODE: cls
    for cls in (
        NopOut, ScsiCommand, TaskManagementRequest, LoginRequest, TextRequest, DataOut, LogoutRequest, SnackRequest,
    )
}  # fmt: skip
RESPONSES: dict[int, type[Pdu]] = {
    cls.OPCODE: cls
    for cls in (
        NopIn, ScsiResponse, TaskManagementResponse, LoginResponse, TextResponse, DataIn, LogoutResponse,
        ReadyToTransfer, AsynchronousMessage, Reject,
    )
}  # fmt: skip
PDUS: dict[int, type[Pdu]] = {**REQUESTS, **RESPONSES}

assert len(PDUS) == 18
assert all(cls.SIZE == BHS_BYTES for cls in PDUS.values())
assert all(opcode == cls.OPCODE for opcode, cls in PDUS.items())


class AdditionalHeader(Derived):
    """The head of an additional header segment (section 11.2.2). ``ahs_length``: bytes after the first three."""

    declaration = Struct("ahs_length" / Int16ub, "ahs_type" / Int8ub, "ahs_specific" / Int8ub)


AHS_EXTENDED_CDB = 1
AHS_BIDIRECTIONAL_READ_LENGTH = 2


def pad_bytes(length: int) -> int:
    """Bytes of padding behind a segment of ``length`` bytes (section 11.1: four-byte words)."""
    return -length & 3


def decode(header: bytes | bytearray | memoryview) -> Pdu:
    """The PDU whose 48-byte header this is. KeyError: no such opcode in RFC 7143. struct.error: too short."""
    return PDUS[header[0] & OPCODE_MASK].unpack_from(header)
