"""Writes that are one act: COMPARE AND WRITE, ORWRITE (SBC-3 clause 5) and WRITE ATOMIC (SBC-4).

The volume server does each as one request, atomic against every handle of the volume, whichever target or client holds
it. They want all of their data: half a compare, or half an atomic write, is none.
"""

from __future__ import annotations

from functools import partial

from iscsi_ovs.block import Operation, Request
from iscsi_ovs.commands import cdb, sbc, sense, verify
from iscsi_ovs.scsi import CheckCondition, Command, Execution, LogicalUnit, Nexus, Outcome, invalid_field


def compare_and_write(unit: LogicalUnit, command: Command) -> Execution:
    """SBC-3 5.2. The data-out buffer holds the compare instance of the blocks, then the write instance."""
    fields = cdb.CompareAndWrite.unpack_from(command.cdb)
    if fields.flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    # "If the number of logical blocks exceeds the value in the MAXIMUM COMPARE AND WRITE LENGTH field … INVALID FIELD
    # IN CDB."
    if fields.blocks > unit.limits.max_compare_and_write_blocks:
        raise invalid_field(13)
    sbc.check_range(unit, fields.lba, fields.blocks)
    if fields.blocks == 0:
        if command.data_out_bytes:
            raise invalid_field(13)  # 256 blocks, cut to what the field can say
        return Outcome()
    length_bytes = fields.blocks * unit.block_bytes
    # Neither less nor more: an initiator that sent more meant another number of blocks than its CDB says.
    if command.data_out_bytes != 2 * length_bytes:
        raise CheckCondition(sense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    return Request(
        Operation.COMPARE_AND_WRITE,
        fields.lba * unit.block_bytes,
        length_bytes,
        sbc.data_out(command, 2 * length_bytes),
        fields.flags & cdb.FUA != 0,
        finish=partial(verify.finish_compare, unit, 2 * length_bytes),
    )


def orwrite_16(unit: LogicalUnit, command: Command) -> Execution:
    """The bits that are set in the data-out buffer are set on the medium."""
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_16(command.cdb)
    if flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    sbc.check_range(unit, lba, blocks)
    if blocks > unit.max_transfer_blocks:
        raise sbc.transfer_length_error(command)
    return _write(unit, command, Operation.OR_WRITE, flags, lba, blocks)


def max_atomic_write_bytes(unit: LogicalUnit, nexus: Nexus) -> int:
    """How much the nexus can write in one piece or not at all; 0: its store can't, or it does not hold the volume."""
    device = nexus.devices.get(unit)
    return 0 if device is None else device.features.max_atomic_write_bytes


def write_atomic_16(unit: LogicalUnit, command: Command) -> Execution:
    """After a crash or a power cut all of it is there, or nothing. As far as the store can do that."""
    assert command.device is not None
    max_bytes = command.device.features.max_atomic_write_bytes
    if not max_bytes:
        raise CheckCondition(sense.INVALID_COMMAND_OPERATION_CODE)
    fields = cdb.WriteAtomic16.unpack_from(command.cdb)
    if fields.flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    sbc.check_range(unit, fields.lba, fields.blocks)
    if fields.atomic_boundary:
        raise invalid_field(10)  # MAXIMUM ATOMIC BOUNDARY SIZE is 0
    if fields.blocks > min(max_bytes // unit.block_bytes, unit.max_transfer_blocks):
        raise invalid_field(12)
    return _write(unit, command, Operation.WRITE_ATOMIC, fields.flags, fields.lba, fields.blocks)


def _write(unit: LogicalUnit, command: Command, operation: Operation, flags: int, lba: int, blocks: int) -> Execution:
    if blocks == 0:
        return Outcome()
    length_bytes = blocks * unit.block_bytes
    return Request(
        operation,
        lba * unit.block_bytes,
        length_bytes,
        sbc.data_out(command, length_bytes),
        flags & cdb.FUA != 0,
        finish=unit.finish_write,
    )
