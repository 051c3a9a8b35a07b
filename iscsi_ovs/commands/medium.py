"""What there is on the medium: READ CAPACITY, GET LBA STATUS, READ DEFECT DATA, PRE-FETCH (SBC-3 clause 5)."""

from __future__ import annotations

from iscsi_ovs import block
from iscsi_ovs.commands import cdb, sense
from iscsi_ovs.scsi import CheckCondition, Command, Execution, LogicalUnit, Outcome, invalid_field

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
