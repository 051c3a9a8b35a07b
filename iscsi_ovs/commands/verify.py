"""VERIFY and WRITE AND VERIFY (SBC-3 clause 5): is what stands on the medium readable, and is it this?

The volume server does the reading: COMPARE with a buffer holds the medium against what the initiator sent, COMPARE
without one reads the range and compares nothing, so no data moves for a VERIFY that brings none. Where blocks differ,
the sense says at which byte of the data-out buffer.
"""

from __future__ import annotations

from functools import partial

from iscsi_ovs import block
from iscsi_ovs.block import Operation, Request
from iscsi_ovs.commands import cdb, sbc, sense
from iscsi_ovs.scsi import CHECK_CONDITION, CheckCondition, Command, Execution, LogicalUnit, Outcome, invalid_field

# BYTCHK (SBC-3, VERIFY (10)): 2 is reserved
_MEDIUM_ONLY, _ALL_BLOCKS, _ONE_BLOCK_REPEATED = 0, 1, 3


def verify_10(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, _, blocks, _ = cdb.unpack_transfer_10(command.cdb)
    return _verify(unit, command, flags, lba, blocks)


def verify_12(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_12(command.cdb)
    return _verify(unit, command, flags, lba, blocks)


def verify_16(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_16(command.cdb)
    return _verify(unit, command, flags, lba, blocks)


def write_and_verify_10(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, _, blocks, _ = cdb.unpack_transfer_10(command.cdb)
    return _write_and_verify(unit, command, flags, lba, blocks)


def write_and_verify_12(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_12(command.cdb)
    return _write_and_verify(unit, command, flags, lba, blocks)


def write_and_verify_16(unit: LogicalUnit, command: Command) -> Execution:
    _, flags, lba, blocks, _, _ = cdb.unpack_transfer_16(command.cdb)
    return _write_and_verify(unit, command, flags, lba, blocks)


def _verify(unit: LogicalUnit, command: Command, flags: int, lba: int, blocks: int) -> Execution:
    """MAXIMUM TRANSFER LENGTH is for what is transferred (SBC-3 6.5.3): all the blocks, or one, or none at all."""
    if flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    byte_check = (flags & cdb.BYTCHK) >> 1
    if byte_check not in (_MEDIUM_ONLY, _ALL_BLOCKS, _ONE_BLOCK_REPEATED):
        raise invalid_field(1, 2)
    sbc.check_range(unit, lba, blocks)
    if byte_check == _ALL_BLOCKS and blocks > unit.max_transfer_blocks:
        raise sbc.transfer_length_error(command)
    if blocks == 0:
        return Outcome()  # "This condition shall not be considered an error."
    offset_bytes, length_bytes = lba * unit.block_bytes, blocks * unit.block_bytes
    if byte_check == _MEDIUM_ONLY:
        return Request(Operation.COMPARE, offset_bytes, length_bytes, finish=partial(finish_compare, unit, 0))
    transfer_bytes = length_bytes if byte_check == _ALL_BLOCKS else unit.block_bytes
    return Request(
        Operation.COMPARE,
        offset_bytes,
        length_bytes,
        sbc.data_out(command, transfer_bytes),
        pattern_bytes=0 if byte_check == _ALL_BLOCKS else unit.block_bytes,
        finish=partial(finish_compare, unit, transfer_bytes),
    )


def _write_and_verify(unit: LogicalUnit, command: Command, flags: int, lba: int, blocks: int) -> Execution:
    """SBC-3: "perform write medium operations", so it is durable first; then "verify medium operations".

    With BYTCHK 0 it is read, no more: another initiator's write in between is no error of the medium.
    """
    if flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    byte_check = (flags & cdb.BYTCHK) >> 1
    if byte_check not in (_MEDIUM_ONLY, _ALL_BLOCKS):
        raise invalid_field(1, 2)
    sbc.check_range(unit, lba, blocks)
    if blocks > unit.max_transfer_blocks:
        raise sbc.transfer_length_error(command)
    wanted = blocks * unit.block_bytes
    # As for WRITE: the whole blocks that came are written, and the residual count tells of the rest.
    whole = min(wanted, command.data_out_bytes // unit.block_bytes * unit.block_bytes)
    if whole == 0:
        return Outcome(transfer_bytes=wanted)
    offset_bytes, buffer = lba * unit.block_bytes, command.data_out

    def written(completion: block.Completion) -> Execution:
        if completion.error is not None:
            return unit.failed(completion)
        return Request(
            Operation.COMPARE,
            offset_bytes,
            whole,
            buffer if byte_check == _ALL_BLOCKS else None,
            finish=partial(finish_compare, unit, wanted),
        )

    return Request(Operation.WRITE, offset_bytes, whole, buffer, fua=True, finish=written)


def finish_compare(unit: LogicalUnit, transfer_bytes: int, completion: block.Completion) -> Outcome:
    """The end of what compares: MISCOMPARE says where, as an offset into the data that the initiator sent."""
    if completion.error is block.Error.MISCOMPARE:
        condition = CheckCondition(sense.MISCOMPARE_DURING_VERIFY_OPERATION, information=completion.detail)
        return Outcome(CHECK_CONDITION, unit.build_sense(condition))
    return sbc.finish_moved(unit, transfer_bytes, completion)
