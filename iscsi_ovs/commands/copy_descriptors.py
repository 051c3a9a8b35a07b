"""Parameter data of EXTENDED COPY and RECEIVE COPY RESULTS (SPC-4 6.4 and 6.18), byte by byte, and what is served.

The limits are those that RECEIVE COPY RESULTS and VPD page 8F state.
"""

from __future__ import annotations

from construct import Bytes, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Struct

from iscsi_ovs.wire import Derived

MAX_TARGET_DESCRIPTORS = 16
MAX_SEGMENT_DESCRIPTORS = 16
MAX_SEGMENT_BYTES = 16 << 20  # CONTRACTS 7

IDENTIFICATION_TARGET = 0xE4
BLOCK_TO_BLOCK = 0x02

# LIST ID USAGE, in its place in byte 1
LIST_ID_USAGE = 0x18
LIST_ID_RESERVED = 0x08
NO_LIST_ID = 0x18

# Byte 1 of a block to block segment
DESTINATION_COUNT = 0x02  # DC: NUMBER OF BLOCKS counts blocks of the destination

SNLID = 0x01  # an EXTENDED COPY needs no list identifier
HELD_DATA_DISCARDED = 0x80


class ParameterListHeader(Derived):
    """SPC-4 6.4.3.1 (LID1)."""

    declaration = Struct(
        "list_identifier" / Int8ub, "flags" / Int8ub, "target_list_length" / Int16ub, "reserved_4" / Int32ub,
        "segment_list_length" / Int32ub, "inline_data_length" / Int32ub,
    )  # fmt: skip


class IdentificationTarget(Derived):
    """SPC-4 6.4.5.1 and 6.4.5.2: a target by a designator, with the parameters of a block device."""

    declaration = Struct(
        "descriptor_type" / Int8ub, "device_type" / Int8ub, "relative_initiator_port" / Int16ub,
        "code_set" / Int8ub, "association_and_type" / Int8ub, "reserved_6" / Int8ub, "designator_length" / Int8ub,
        "designator" / Bytes(20), "pad" / Int8ub, "block_bytes" / Int24ub,
    )  # fmt: skip


class SegmentHeader(Derived):
    """SPC-4 6.4.6.1: what every segment descriptor begins with."""

    declaration = Struct("descriptor_type" / Int8ub, "flags" / Int8ub, "length" / Int16ub)


class BlockToBlock(Derived):
    """SPC-4 6.4.6.4."""

    declaration = Struct(
        "descriptor_type" / Int8ub, "flags" / Int8ub, "length" / Int16ub, "source_index" / Int16ub,
        "destination_index" / Int16ub, "reserved_8" / Int16ub, "blocks" / Int16ub, "source_lba" / Int64ub,
        "destination_lba" / Int64ub,
    )  # fmt: skip


class CopyStatus(Derived):
    """SPC-4 6.18.2."""

    declaration = Struct(
        "available_data" / Int32ub, "status" / Int8ub, "segments_processed" / Int16ub, "transfer_count_units" / Int8ub,
        "transfer_count" / Int32ub,
    )  # fmt: skip


class OperatingParameters(Derived):
    """SPC-4 6.18.4, up to the list of implemented descriptor type codes."""

    declaration = Struct(
        "available_data" / Int32ub, "snlid" / Int8ub, "reserved_5" / Bytes(3), "maximum_targets" / Int16ub,
        "maximum_segments" / Int16ub, "maximum_descriptor_list_length" / Int32ub, "maximum_segment_length" / Int32ub,
        "maximum_inline_data_length" / Int32ub, "held_data_limit" / Int32ub, "maximum_stream_transfer" / Int32ub,
        "reserved_32" / Int16ub, "total_concurrent_copies" / Int16ub, "maximum_concurrent_copies" / Int8ub,
        "data_segment_granularity" / Int8ub, "inline_data_granularity" / Int8ub, "held_data_granularity" / Int8ub,
        "reserved_40" / Bytes(3), "implemented_descriptors_length" / Int8ub,
    )  # fmt: skip


MAX_DESCRIPTOR_LIST_BYTES = (
    MAX_TARGET_DESCRIPTORS * IdentificationTarget.SIZE + MAX_SEGMENT_DESCRIPTORS * BlockToBlock.SIZE
)
IMPLEMENTED = bytes((BLOCK_TO_BLOCK, IDENTIFICATION_TARGET))
