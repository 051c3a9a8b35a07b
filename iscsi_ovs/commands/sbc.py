"""Block commands (SBC-3): READ, WRITE, SYNCHRONIZE CACHE, and what every block command checks.

READ and WRITE are the hot path: one unpack of the CDB, the checks in the standard's order, one block.Request. Checks
are: protection information (there is none), range, transfer length, and only then the data. Offsets and lengths are
bytes below this file, blocks above it. The neighbours have a noun each: medium (what is there), provisioning (UNMAP,
WRITE SAME), verify, atomics (COMPARE AND WRITE and its kind), sanitize, xcopy.
"""

from __future__ import annotations

from functools import partial

from iscsi_ovs import block
from iscsi_ovs.block import Operation, Request
from iscsi_ovs.commands import cdb, sense
from iscsi_ovs.scsi import CheckCondition, Command, Execution, LogicalUnit, Outcome, invalid_field

_BLOCKS_OF_ZERO_6 = 256  # READ (6): "A TRANSFER LENGTH field set to zero specifies that 256 logical blocks"
_LENGTH_FIELD = {0: 4, 1: 7, 4: 10, 5: 6}  # where TRANSFER LENGTH begins, by the opcode's group
_READ_SPECIAL = cdb.PROTECT | cdb.FUA  # one look for what most READs don't have
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
    """DPO is advice about a cache that we do not have."""
    if flags & _READ_SPECIAL:
        return _read_special(unit, command, flags, lba, blocks)
    if lba + blocks > unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    if blocks > unit.max_transfer_blocks:
        raise transfer_length_error(command)
    wanted = blocks * unit.block_bytes
    room = command.data_in_bytes
    if 0 < wanted <= room:
        return Request(_READ, lba * unit.block_bytes, wanted, finish=unit.finish_read)
    # Residual overflow: the blocks that the initiator has room for are read, what SCSI wanted is told.
    needed = -(-room // unit.block_bytes) * unit.block_bytes
    if wanted == 0 or needed == 0:
        return Outcome(transfer_bytes=wanted)
    return Request(_READ, lba * unit.block_bytes, needed, finish=partial(_finish_cut_read, unit, wanted))


def _read_special(unit: LogicalUnit, command: Command, flags: int, lba: int, blocks: int) -> Execution:
    """FUA: there is one copy of a block that every read sees, so there is no cache to pass by. But it also asks that
    what a volatile cache has of these blocks is on the medium before they are read from there (SBC-3 4.15): flush."""
    if flags & cdb.PROTECT:
        raise invalid_field(1, 7)
    read = _read(unit, command, 0, lba, blocks)
    if not isinstance(read, Request) or not unit.modes.write_cache:
        return read

    def flushed(completion: block.Completion) -> Execution:
        return read if completion.error is None else unit.failed(completion)

    return Request(Operation.FLUSH, finish=flushed)


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
        raise transfer_length_error(command)
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
        finish=partial(finish_moved, unit, wanted),
    )


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
    check_range(unit, lba, blocks)
    return flush(unit)


def flush(unit: LogicalUnit) -> Request:
    """Everything acknowledged so far becomes durable."""
    return Request(Operation.FLUSH, finish=partial(finish_moved, unit, 0))


# What every block command checks, and how it ends ---------------------------------------------------------------


def check_range(unit: LogicalUnit, lba: int, blocks: int) -> None:
    if lba + blocks > unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)


def data_out(command: Command, length_bytes: int) -> block.Buffer:
    """All of the data that a command needs. READ and WRITE live with less; what compares or is atomic does not."""
    if command.data_out is None or command.data_out_bytes < length_bytes:
        raise CheckCondition(sense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
    return command.data_out


def transfer_length_error(command: Command) -> CheckCondition:
    """Over MAXIMUM TRANSFER LENGTH (SBC-3 6.5.3). The field's byte goes by the CDB's group."""
    return invalid_field(_LENGTH_FIELD[command.cdb[0] >> 5])


def finish_moved(unit: LogicalUnit, transfer_bytes: int, completion: block.Completion) -> Outcome:
    """The end of whatever brings no data back; ``transfer_bytes`` of data-out belonged to it."""
    if completion.error is not None:
        return unit.failed(completion)
    return Outcome(transfer_bytes=transfer_bytes)
