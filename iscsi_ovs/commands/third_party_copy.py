"""VPD page 8F, third-party copy (SPC-4 7.8.17): what EXTENDED COPY does here, from the tables that do it."""

from __future__ import annotations

from construct import Bytes, Int8ub, Int16ub, Int32ub, Struct

from iscsi_ovs import scsi
from iscsi_ovs.commands import copy_descriptors
from iscsi_ovs.wire import Derived

PAGE = 0x8F
EXTENDED_COPY, RECEIVE_COPY_RESULTS = 0x83, 0x84
CONCURRENT_COPIES = 0xFF  # as RECEIVE COPY OPERATING PARAMETERS says

# Descriptor types
SUPPORTED_COMMANDS, PARAMETER_DATA, SUPPORTED_DESCRIPTORS, GENERAL_COPY_OPERATIONS = 0x0001, 0x0004, 0x0008, 0x8001


class DescriptorHeader(Derived):
    """SPC-4 7.8.17.2."""

    declaration = Struct("descriptor_type" / Int16ub, "length" / Int16ub)


class ParameterData(Derived):
    """SPC-4 7.8.17.5."""

    declaration = Struct(
        "reserved_0" / Int32ub, "maximum_targets" / Int16ub, "maximum_segments" / Int16ub,
        "maximum_descriptor_list_length" / Int32ub, "maximum_inline_data_length" / Int32ub, "reserved_16" / Bytes(12),
    )  # fmt: skip


class GeneralCopyOperations(Derived):
    """SPC-4 7.8.17.11. Granularities are powers of two, in bytes."""

    declaration = Struct(
        "total_concurrent_copies" / Int32ub, "maximum_identified_concurrent_copies" / Int32ub,
        "maximum_segment_length" / Int32ub, "data_segment_granularity" / Int8ub, "inline_data_granularity" / Int8ub,
        "reserved_14" / Bytes(18),
    )  # fmt: skip


def is_supported(unit: scsi.LogicalUnit) -> bool:
    """3PC (SPC-4 table 142)."""
    return any(row.opcode == EXTENDED_COPY for row in unit.operations)


def page(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    """The page, without its header."""
    return b"".join(
        (
            _descriptor(SUPPORTED_COMMANDS, _list(_commands(unit))),
            _descriptor(
                PARAMETER_DATA,
                ParameterData(
                    maximum_targets=copy_descriptors.MAX_TARGET_DESCRIPTORS,
                    maximum_segments=copy_descriptors.MAX_SEGMENT_DESCRIPTORS,
                    maximum_descriptor_list_length=copy_descriptors.MAX_DESCRIPTOR_LIST_BYTES,
                ).pack(),
            ),
            _descriptor(SUPPORTED_DESCRIPTORS, _list(copy_descriptors.IMPLEMENTED)),
            _descriptor(
                GENERAL_COPY_OPERATIONS,
                GeneralCopyOperations(
                    total_concurrent_copies=CONCURRENT_COPIES,
                    maximum_identified_concurrent_copies=CONCURRENT_COPIES,
                    maximum_segment_length=copy_descriptors.MAX_SEGMENT_BYTES,
                    data_segment_granularity=unit.block_bytes.bit_length() - 1,
                ).pack(),
            ),
        )
    )


def _commands(unit: scsi.LogicalUnit) -> bytes:
    """Opcodes, each with the number of its service actions, and those."""
    commands = b""
    for opcode in (EXTENDED_COPY, RECEIVE_COPY_RESULTS):
        actions = bytes(row.service_action or 0 for row in unit.operations if row.opcode == opcode)
        commands += bytes((opcode, len(actions))) + actions
    return commands


def _list(items: bytes) -> bytes:
    return bytes((len(items),)) + items


def _descriptor(kind: int, body: bytes) -> bytes:
    """Each descriptor is a multiple of four bytes long."""
    body += bytes(-len(body) % 4)
    return DescriptorHeader(descriptor_type=kind, length=len(body)).pack() + body
