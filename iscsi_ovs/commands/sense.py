"""Sense data (SPC-4 4.5): both formats, the codes in use by name, and what storage's errors mean.

This file knows neither commands nor who asks: it turns (key, ASC, ASCQ), a field pointer and an information value into
bytes.
"""

from __future__ import annotations

from typing import ClassVar

from construct import Bytes, Int8ub, Int32ub, Int64ub, Struct

from iscsi_ovs import block, scsi
from iscsi_ovs.scsi import Sense
from iscsi_ovs.wire import Derived

UNIT_ATTENTION_KEY = scsi.UNIT_ATTENTION_KEY

NO_SENSE = Sense(0x0, 0x00, 0x00)
NOT_READY = scsi.NOT_READY
WRITE_ERROR = Sense(0x3, 0x0C, 0x00)
SANITIZE_COMMAND_FAILED = scsi.SANITIZE_COMMAND_FAILED
UNRECOVERED_READ_ERROR = Sense(0x3, 0x11, 0x00)
INTERNAL_TARGET_FAILURE = Sense(0x4, 0x44, 0x00)
INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = Sense(0x5, 0x0E, 0x03)
COPY_ABORTED_KEY = 0xA
COPY_ABORTED = Sense(0xA, 0x00, 0x00)
UNREACHABLE_COPY_TARGET = Sense(0xA, 0x08, 0x04)
COPY_TARGET_DEVICE_NOT_REACHABLE = Sense(0xA, 0x0D, 0x02)
INCORRECT_COPY_TARGET_DEVICE_TYPE = Sense(0xA, 0x0D, 0x03)
UNEXPECTED_INEXACT_SEGMENT = Sense(0xA, 0x26, 0x0A)
ABORTED_COMMAND = Sense(0xB, 0x00, 0x00)
MISCOMPARE_DURING_VERIFY_OPERATION = Sense(0xE, 0x1D, 0x00)
OPERATION_IN_PROGRESS = Sense(0x5, 0x00, 0x16)
PARAMETER_LIST_LENGTH_ERROR = Sense(0x5, 0x1A, 0x00)
INVALID_COMMAND_OPERATION_CODE = scsi.INVALID_COMMAND_OPERATION_CODE
LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = Sense(0x5, 0x21, 0x00)
INVALID_FIELD_IN_CDB = scsi.INVALID_FIELD_IN_CDB
LOGICAL_UNIT_NOT_SUPPORTED = scsi.LOGICAL_UNIT_NOT_SUPPORTED
INVALID_FIELD_IN_PARAMETER_LIST = Sense(0x5, 0x26, 0x00)
TOO_MANY_TARGET_DESCRIPTORS = Sense(0x5, 0x26, 0x06)
UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE = Sense(0x5, 0x26, 0x07)
TOO_MANY_SEGMENT_DESCRIPTORS = Sense(0x5, 0x26, 0x08)
UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE = Sense(0x5, 0x26, 0x09)
INLINE_DATA_LENGTH_EXCEEDED = Sense(0x5, 0x26, 0x0B)
MEDIUM_REMOVAL_PREVENTED = Sense(0x5, 0x53, 0x02)
WRITE_PROTECTED = scsi.WRITE_PROTECTED
MEDIUM_NOT_PRESENT = scsi.MEDIUM_NOT_PRESENT
SANITIZE_IN_PROGRESS = scsi.SANITIZE_IN_PROGRESS
INVALID_RELEASE_OF_PERSISTENT_RESERVATION = Sense(0x5, 0x26, 0x04)
INSUFFICIENT_REGISTRATION_RESOURCES = Sense(0x5, 0x55, 0x04)
SPACE_ALLOCATION_FAILED = Sense(0x7, 0x27, 0x07)

# Every block.Error has its row (asserted below). None is BUSY: the initiator tries again, nothing is known to be lost.
FAILURES: dict[block.Error, Sense | None] = {
    block.Error.OUT_OF_RANGE: LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
    block.Error.NO_SPACE: SPACE_ALLOCATION_FAILED,
    block.Error.READ_ONLY: WRITE_PROTECTED,
    block.Error.MEDIUM_READ: UNRECOVERED_READ_ERROR,
    block.Error.BAD_PAGE: UNRECOVERED_READ_ERROR,  # and the logical unit adds which block
    block.Error.MEDIUM_WRITE: WRITE_ERROR,
    block.Error.WRITE_FAULT: WRITE_ERROR,  # CONTRACTS 1: sticky until the volume is opened again and checked
    block.Error.UNSUPPORTED: INVALID_FIELD_IN_CDB,
    block.Error.INVALID: INTERNAL_TARGET_FAILURE,  # our own request was malformed: not the initiator's fault
    block.Error.CANCELLED: None,  # a fence took it before it started
    block.Error.UNREACHABLE: None,
    block.Error.OUTCOME_UNKNOWN: ABORTED_COMMAND,  # what may not be done twice: COMPARE AND WRITE, COPY (CONTRACTS 9)
    block.Error.MISCOMPARE: MISCOMPARE_DURING_VERIFY_OPERATION,  # the operation adds where
    block.Error.SANITIZING: SANITIZE_IN_PROGRESS,
}
assert set(FAILURES) == set(block.Error), "every storage error has its sense"

FIXED_CURRENT = 0x70
DESCRIPTOR_CURRENT = 0x72
VALID = 0x80
SENSE_KEY_SPECIFIC_VALID = 0x80
COMMAND_DATA = 0x40  # the field pointer is into the CDB
BIT_POINTER_VALID = 0x08


class FixedSense(Derived):
    """SPC-4 4.5.3."""

    declaration = Struct(
        "response_code" / Int8ub, "obsolete_1" / Int8ub, "sense_key" / Int8ub, "information" / Int32ub,
        "additional_sense_length" / Int8ub, "command_specific" / Int32ub, "asc" / Int8ub, "ascq" / Int8ub,
        "field_replaceable_unit" / Int8ub, "sense_key_specific" / Bytes(3),
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"response_code": FIXED_CURRENT, "additional_sense_length": 10}


class DescriptorSense(Derived):
    """SPC-4 4.5.2.1: the header; descriptors follow."""

    declaration = Struct(
        "response_code" / Int8ub, "sense_key" / Int8ub, "asc" / Int8ub, "ascq" / Int8ub,
        "reserved_4" / Bytes(3), "additional_sense_length" / Int8ub,
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"response_code": DESCRIPTOR_CURRENT}


class InformationDescriptor(Derived):
    """SPC-4 4.5.2.2."""

    declaration = Struct(
        "descriptor_type" / Int8ub, "additional_length" / Int8ub, "flags" / Int8ub, "reserved_3" / Int8ub,
        "information" / Int64ub,
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"descriptor_type": 0x00, "additional_length": 0x0A, "flags": VALID}


class SenseKeySpecificDescriptor(Derived):
    """SPC-4 4.5.2.4."""

    declaration = Struct(
        "descriptor_type" / Int8ub, "additional_length" / Int8ub, "reserved_2" / Bytes(2),
        "sense_key_specific" / Bytes(3), "reserved_7" / Int8ub,
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"descriptor_type": 0x02, "additional_length": 0x06}


def _sense_key_specific(pointer: scsi.SenseKeySpecific) -> bytes:
    """SPC-4 4.5.2.4.2, field pointers; 4.5.2.4.4, progress."""
    if isinstance(pointer, scsi.Progress):
        return bytes((SENSE_KEY_SPECIFIC_VALID, *pointer.value.to_bytes(2, "big")))
    flags = SENSE_KEY_SPECIFIC_VALID | (COMMAND_DATA if pointer.is_cdb else 0)
    if pointer.bit is not None:
        flags |= BIT_POINTER_VALID | pointer.bit
    return bytes((flags, *pointer.byte.to_bytes(2, "big")))


def build_fixed(sense: Sense, pointer: scsi.SenseKeySpecific | None = None, information: int | None = None) -> bytes:
    """Fixed format, 18 bytes. An information value that needs more than 32 bits is left out (VALID 0)."""
    fixed = FixedSense(sense_key=sense.key, asc=sense.asc, ascq=sense.ascq)
    if information is not None and information < 1 << 32:
        fixed.response_code |= VALID
        fixed.information = information
    if pointer is not None:
        fixed.sense_key_specific = _sense_key_specific(pointer)
    return fixed.pack()


def build_descriptor(
    sense: Sense, pointer: scsi.SenseKeySpecific | None = None, information: int | None = None
) -> bytes:
    """Descriptor format."""
    descriptors = b""
    if information is not None:
        descriptors += InformationDescriptor(information=information).pack()
    if pointer is not None:
        descriptors += SenseKeySpecificDescriptor(sense_key_specific=_sense_key_specific(pointer)).pack()
    header = DescriptorSense(
        sense_key=sense.key, asc=sense.asc, ascq=sense.ascq, additional_sense_length=len(descriptors)
    )
    return header.pack() + descriptors


def build(
    sense: Sense, pointer: scsi.SenseKeySpecific | None, information: int | None, descriptor_format: bool
) -> bytes:
    """Either format."""
    return (build_descriptor if descriptor_format else build_fixed)(sense, pointer, information)
