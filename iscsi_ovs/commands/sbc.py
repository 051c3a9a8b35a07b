"""Block commands (SBC-3): what becomes of an LBA and a number of blocks.

READ and WRITE are the hot path: one unpack of the CDB, the checks in the standard's order, one block.Request. Checks
are: protection information (there is none), range, transfer length, and only then the data. Everything else that
writes, unmaps or flushes is one Request, or a chain of them through ``finish``. Offsets and lengths are bytes below
this file, blocks above it.
"""

from __future__ import annotations

from functools import partial

from iscsi_ovs import block
from iscsi_ovs.block import Operation, Request
from iscsi_ovs.commands import cdb, sense
from iscsi_ovs.scsi import CheckCondition, Command, Execution, FieldPointer, LogicalUnit, Outcome, invalid_field

_BLOCKS_OF_ZERO_6 = 256  # READ (6): "A TRANSFER LENGTH field set to zero specifies that 256 logical blocks"
_READ = Operation.READ
_WRITE = Operation.WRITE


# READ and WRITE -------------------------------------------------------------------------------------------------


def read_6(unit: LogicalUnit, command: Command) -> Execution:
    word, blocks, _ = cdb.unpack_transfer_6(command.cdb)
    return _read(unit, command, 0, word & cdb.LBA_MASK_6, blocks or _BLOCKS_OF_ZERO_6)


def read_10(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, _, blocks, _ = cdb.unpack_transfer_10(command.cdb)
    return _read(unit, command, flags, lba, blocks)


def read_12(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_12(command.cdb)
    return _read(unit, command, flags, lba, blocks)


def read_16(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_16(command.cdb)
    return _read(unit, command, flags, lba, blocks)


def write_6(unit: LogicalUnit, command: Command) -> Execution:
    word, blocks, _ = cdb.unpack_transfer_6(command.cdb)
    return _write(unit, command, 0, word & cdb.LBA_MASK_6, blocks or _BLOCKS_OF_ZERO_6)


def write_10(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, _, blocks, _ = cdb.unpack_transfer_10(command.cdb)
    return _write(unit, command, flags, lba, blocks)


def write_12(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_12(command.cdb)
    return _write(unit, command, flags, lba, blocks)


def write_16(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_16(command.cdb)
    return _write(unit, command, flags, lba, blocks)


def _read(unit: LogicalUnit, command: Command, flags: int, lba: int, blocks: int) -> Execution:
    """FUA asks for what is on the medium rather than in a volatile cache: the volume server has one copy of a block,
    that every read sees, so there is nothing to pass by. But a FUA read also says that what it returns is durable
    (SBC-3 4.15); the server may still hold an acknowledged write unflushed, so an initiator that needs durability
    flushes, as all known ones do. DPO is advice about a cache that we do not have.
    """
    if flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    if lba + blocks > unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    if blocks > unit.max_transfer_blocks:
        raise _transfer_length_error(command)
    wanted = blocks * unit.block_bytes
    room = command.data_in_bytes
    if 0 < wanted <= room:
        return Request(_READ, lba * unit.block_bytes, wanted, finish=unit.finish_read)
    # Residual overflow: the blocks that the initiator has room for are read, what SCSI wanted is told.
    needed = -(-room // unit.block_bytes) * unit.block_bytes
    if wanted == 0 or needed == 0:
        return Outcome(transfer_bytes=wanted)
    return Request(_READ, lba * unit.block_bytes, needed, finish=partial(_finish_cut_read, unit, wanted))


def _finish_cut_read(unit: LogicalUnit, wanted: int, completion: block.Completion) -> Outcome:
    outcome = unit.finish_read(completion)
    if outcome.transfer_bytes:
        outcome.transfer_bytes = wanted
    return outcome


def _write(unit: LogicalUnit, command: Command, flags: int, lba: int, blocks: int) -> Execution:
    if flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    if lba + blocks > unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    if blocks > unit.max_transfer_blocks:
        raise _transfer_length_error(command)
    wanted = blocks * unit.block_bytes
    there = command.data_out_bytes
    if 0 < wanted <= there:
        return Request(
            _WRITE, lba * unit.block_bytes, wanted, command.data_out, flags & cdb.FUA != 0, finish=unit.finish_write
        )
    # Residual overflow: the initiator sent less than its CDB says. The whole blocks that came are written; a piece of
    # a block is not, for the rest of that block is anybody's guess. The residual count tells the initiator.
    whole = there // unit.block_bytes * unit.block_bytes
    if wanted == 0 or whole == 0:
        return Outcome(transfer_bytes=wanted)
    return Request(
        _WRITE,
        lba * unit.block_bytes,
        whole,
        command.data_out,
        flags & cdb.FUA != 0,
        finish=partial(_finish_moved, unit, wanted),
    )


def _transfer_length_error(command: Command) -> CheckCondition:
    """Over MAXIMUM TRANSFER LENGTH (SBC-3 6.5.3). The field's byte goes by the CDB's group."""
    return invalid_field({0: 4, 1: 7, 4: 10, 5: 6}[command.cdb[0] >> 5])


def _finish_moved(unit: LogicalUnit, transfer_bytes: int, completion: block.Completion) -> Outcome:
    """The end of whatever brings no data back; ``transfer_bytes`` of data-out belonged to it."""
    if completion.error is not None:
        return unit.failed(completion)
    return Outcome(transfer_bytes=transfer_bytes)


# Flush ----------------------------------------------------------------------------------------------------------


def synchronize_cache_10(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.Transfer10.unpack_from(command.cdb)
    return _synchronize_cache(unit, fields.lba, fields.blocks)


def synchronize_cache_16(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.Transfer16.unpack_from(command.cdb)
    return _synchronize_cache(unit, fields.lba, fields.blocks)


def _synchronize_cache(unit: LogicalUnit, lba: int, blocks: int) -> Execution:
    """The whole volume is flushed, whatever the range (it may be: "shall" is for at least these blocks). With IMMED we
    could answer at once; we answer when it is true."""
    _check_range(unit, lba, blocks)
    return flush(unit)


def flush(unit: LogicalUnit) -> Request:
    """Everything acknowledged so far becomes durable."""
    return Request(Operation.FLUSH, finish=partial(_finish_moved, unit, 0))


def _check_range(unit: LogicalUnit, lba: int, blocks: int) -> None:
    if lba + blocks > unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)


# Capacity -------------------------------------------------------------------------------------------------------


def read_capacity_10(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ReadCapacity10.unpack_from(command.cdb)
    # SBC-2 5.10.1: "The LOGICAL BLOCK ADDRESS field shall be set to zero if the PMI bit is set to zero." With PMI
    # (obsolete since) the answer is the last block too: no seek is slow here.
    if fields.lba and not fields.flags & cdb.PMI:
        raise invalid_field(2)
    data = cdb.ReadCapacity10Data(
        last_lba=min(max(unit.capacity_blocks - 1, 0), 0xFFFFFFFF),  # all ones: "use READ CAPACITY (16)"
        block_bytes=unit.block_bytes,
    )
    return Outcome(data=data.pack(), transfer_bytes=data.SIZE)


def read_capacity_16(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ReadCapacity16.unpack_from(command.cdb)
    if fields.lba and not fields.flags & cdb.PMI:
        raise invalid_field(2)
    exponent = (unit.personality.physical_block_bytes // unit.block_bytes).bit_length() - 1
    data = cdb.ReadCapacity16Data(
        last_lba=max(unit.capacity_blocks - 1, 0),
        block_bytes=unit.block_bytes,
        exponent=exponent,
        provisioning=cdb.LBPME | cdb.LBPRZ if unit.personality.is_thin else 0,  # lowest aligned LBA 0
    ).pack()[: fields.allocation_length]
    return Outcome(data=data, transfer_bytes=len(data))


_MAPPED, _DEALLOCATED = 0, 1


def get_lba_status(unit: LogicalUnit, command: Command) -> Execution:
    """One descriptor: what the first LBA is, and how far that holds. Initiators ask again from there."""
    fields = cdb.GetLbaStatus.unpack_from(command.cdb)
    lba, block_bytes = fields.lba, unit.block_bytes
    if lba >= unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    wanted = min(unit.capacity_blocks - lba, 0xFFFFFFFF)

    def finish(completion: block.Completion) -> Outcome:
        _, error, run_bytes, is_data = completion
        if error is not None:
            return unit.failed(completion)
        blocks = run_bytes // block_bytes
        data = cdb.LbaStatus(
            data_length=cdb.LbaStatus.SIZE - 4,
            lba=lba,
            blocks=blocks or 1,  # a run that ends inside of a block: that block is mapped
            # SBC-3 4.7.2: "a fully provisioned logical unit … every LBA is mapped"
            provisioning_status=_DEALLOCATED if blocks and not is_data and unit.personality.is_thin else _MAPPED,
        ).pack()[: fields.allocation_length]
        return Outcome(data=data, transfer_bytes=len(data))

    return block.Request(block.Operation.EXTENTS, lba * block_bytes, wanted * block_bytes, finish=finish)


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
        _check_range(unit, descriptor.lba, descriptor.blocks)
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
    _check_range(unit, lba, blocks)
    if blocks == 0:
        raise invalid_field(blocks_field)  # WSNZ=1: zero does not mean "to the end"
    offset_bytes = lba * unit.block_bytes
    length_bytes = blocks * unit.block_bytes
    transfer_bytes = 0 if flags & cdb.NDOB else unit.block_bytes
    if transfer_bytes and (command.data_out is None or command.data_out_bytes != transfer_bytes):
        raise CheckCondition(sense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    finish = partial(_finish_moved, unit, transfer_bytes)
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


def _is_zero(buffer: block.Buffer | None, length_bytes: int) -> bool:
    """Whether a block, 4096 bytes at most, is all zeros."""
    return buffer is not None and b"".join(buffer.views(0, length_bytes)).count(0) == length_bytes
