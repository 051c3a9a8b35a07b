"""What takes blocks away or fills them with one pattern: UNMAP and WRITE SAME (SBC-3 4.7, 5.28, 5.41).

An unmapped block reads as zeros (LBPRZ=1), always: edges that the store can't deallocate are zeroed. So zeros and
unmapped blocks are the same to a reader, and WRITE SAME may unmap where it is told UNMAP and writes zeros.
"""

from __future__ import annotations

from functools import partial

from iscsi_ovs import block
from iscsi_ovs.block import Operation, Request
from iscsi_ovs.commands import cdb, sbc, sense
from iscsi_ovs.scsi import CheckCondition, Command, Execution, FieldPointer, LogicalUnit, Outcome, invalid_field

# UNMAP ----------------------------------------------------------------------------------------------------------


def unmap(unit: LogicalUnit, command: Command) -> Execution:
    """All descriptors are checked before the first block goes; then one DISCARD each, in order."""
    fields = cdb.Unmap.unpack_from(command.cdb)
    if fields.flags & cdb.UNMAP_ANCHOR:
        raise invalid_field(1, 0)  # ANC_SUP is 0
    length = fields.parameter_list_length
    if length == 0:
        return Outcome()  # "shall not be considered an error"
    if length < cdb.UnmapHeader.SIZE or command.data_out_bytes < length or command.data_out is None:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    ranges = _unmap_ranges(unit, command.data_out, length)
    if not ranges:
        return Outcome(transfer_bytes=length)
    return _discard(unit, ranges, 0, length)


def _unmap_ranges(unit: LogicalUnit, buffer: block.Buffer, length: int) -> list[tuple[int, int]]:
    """(offset, length) in bytes of every descriptor that names blocks. Looks at each byte of shared memory once."""
    header = cdb.UnmapHeader.unpack_from(b"".join(buffer.views(0, cdb.UnmapHeader.SIZE)))
    start = cdb.UnmapHeader.SIZE
    if header.data_length + 2 > length or start + header.descriptors_length > length:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    # "If the UNMAP BLOCK DESCRIPTOR DATA LENGTH field is not a multiple of 16, then the last … shall be ignored."
    count = header.descriptors_length // cdb.UnmapDescriptor.SIZE
    if count > unit.limits.max_unmap_descriptors:
        raise CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(2, is_cdb=False))
    data = b"".join(buffer.views(start, start + count * cdb.UnmapDescriptor.SIZE))
    ranges = []
    total_blocks = 0
    for at in range(0, len(data), cdb.UnmapDescriptor.SIZE):
        descriptor = cdb.UnmapDescriptor.unpack_from(data, at)
        sbc.check_range(unit, descriptor.lba, descriptor.blocks)
        total_blocks += descriptor.blocks
        if total_blocks > unit.limits.max_unmap_blocks:
            raise CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(start + at + 8, is_cdb=False))
        if descriptor.blocks:
            ranges.append((descriptor.lba * unit.block_bytes, descriptor.blocks * unit.block_bytes))
    return ranges


def _discard(unit: LogicalUnit, ranges: list[tuple[int, int]], index: int, transfer_bytes: int) -> Request:
    offset_bytes, length_bytes = ranges[index]

    def finish(completion: block.Completion) -> Execution:
        if completion.error is not None:
            return unit.failed(completion)
        if index + 1 == len(ranges):
            return Outcome(transfer_bytes=transfer_bytes)
        return _discard(unit, ranges, index + 1, transfer_bytes)

    return Request(Operation.DISCARD, offset_bytes, length_bytes, finish=finish)


# WRITE SAME -----------------------------------------------------------------------------------------------------


def write_same_10(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.Transfer10.unpack_from(command.cdb)
    # byte 1 bit 0 is reserved here (it was RELADR once): no NDOB in ten bytes
    return _write_same(unit, command, fields.flags & ~cdb.NDOB, fields.lba, fields.blocks, 7)


def write_same_16(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.Transfer16.unpack_from(command.cdb)
    return _write_same(unit, command, fields.flags, fields.lba, fields.blocks, 10)


def _write_same(unit: LogicalUnit, command: Command, flags: int, lba: int, blocks: int, blocks_field: int) -> Execution:
    """One block, written again and again (SBC-3 5.41).

    Zeros with UNMAP unmap (LBPRZ=1: unmapped blocks read as zeros); zeros without it stay allocated, which is what an
    initiator asks that way; anything else is data, UNMAP or not: an unmapped block would not read back as it.
    """
    if flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    if flags & cdb.ANCHOR:
        raise invalid_field(1, 4)
    if flags & cdb.UNMAP and not unit.personality.is_thin:
        raise invalid_field(1, 3)
    if flags & cdb.PBDATA_LBDATA:
        raise invalid_field(1, 2)
    sbc.check_range(unit, lba, blocks)
    if blocks == 0:
        blocks = _blocks_to_the_end(unit, lba, blocks_field)
    offset_bytes = lba * unit.block_bytes
    length_bytes = blocks * unit.block_bytes
    transfer_bytes = 0 if flags & cdb.NDOB else unit.block_bytes
    if transfer_bytes and (command.data_out is None or command.data_out_bytes != transfer_bytes):
        raise CheckCondition(sense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    finish = partial(sbc.finish_moved, unit, transfer_bytes)
    if transfer_bytes == 0 or _is_zero(command.data_out, transfer_bytes):
        if flags & cdb.UNMAP:
            return Request(Operation.DISCARD, offset_bytes, length_bytes, finish=finish)
        return Request(Operation.WRITE_ZEROES, offset_bytes, length_bytes, no_unmap=True, finish=finish)
    if length_bytes > unit.limits.max_write_same_bytes:
        raise invalid_field(blocks_field)
    return Request(
        Operation.WRITE_SAME,
        offset_bytes,
        length_bytes,
        command.data_out,
        pattern_bytes=unit.block_bytes,
        finish=finish,
    )


def _blocks_to_the_end(unit: LogicalUnit, lba: int, blocks_field: int) -> int:
    """NUMBER OF LOGICAL BLOCKS = 0: on a fully provisioned unit (WSNZ=0) all from the LBA to the last on the medium.

    A thin one says WSNZ=1: there it would mean to unmap, or to write, a whole disk by a field that was left empty.
    """
    if unit.personality.is_thin:
        raise invalid_field(blocks_field)
    if lba == unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    return unit.capacity_blocks - lba


def _is_zero(buffer: block.Buffer | None, length_bytes: int) -> bool:
    """Whether a block, 4096 bytes at most, is all zeros."""
    return buffer is not None and b"".join(buffer.views(0, length_bytes)).count(0) == length_bytes
