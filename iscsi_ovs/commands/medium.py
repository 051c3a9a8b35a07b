"""What there is on the medium: READ CAPACITY, GET LBA STATUS, READ DEFECT DATA, PRE-FETCH (SBC-3 clause 5)."""

from __future__ import annotations

from iscsi_ovs import block
from iscsi_ovs.commands import cdb, sbc, sense
from iscsi_ovs.scsi import (
    CONDITION_MET,
    GOOD,
    CheckCondition,
    Command,
    Execution,
    LogicalUnit,
    Outcome,
    invalid_field,
)

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
    )
    return _cut(data.pack(), fields.allocation_length)


# GET LBA STATUS -------------------------------------------------------------------------------------------------

_MAPPED, _DEALLOCATED = 0, 1
MAX_LBA_STATUS_DESCRIPTORS = 256
_MAX_LBA_STATUS_QUESTIONS = 512  # to the volume server; neighbours that turn out to be alike cost one each, too
_MAX_DESCRIPTOR_BLOCKS = 0xFFFFFFFF


def get_lba_status(unit: LogicalUnit, command: Command) -> Execution:
    """As many descriptors as the allocation length has room for, from the LBA asked for on, and one at least.

    Neighbours with the same status are one descriptor. SBC-3 5.4.1 allows to say less than there is: initiators ask
    again from where the answer ends.
    """
    fields = cdb.GetLbaStatus.unpack_from(command.cdb)
    if fields.lba >= unit.capacity_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
    room = (fields.allocation_length - cdb.LbaStatusHeader.SIZE) // cdb.LbaStatusDescriptor.SIZE
    runs = _Runs(unit, fields.lba, min(max(room, 1), MAX_LBA_STATUS_DESCRIPTORS), fields.allocation_length)
    if not unit.personality.is_thin:
        # SBC-3 4.7.2: "a fully provisioned logical unit … every LBA is mapped"
        while not runs.is_complete:
            runs.add(min(unit.capacity_blocks - runs.lba, _MAX_DESCRIPTOR_BLOCKS), _MAPPED)
        return runs.answer()
    return runs.ask()


class _Runs:
    """What a GET LBA STATUS has found so far: runs of blocks with one status each."""

    def __init__(self, unit: LogicalUnit, lba: int, limit: int, allocation_length: int) -> None:
        self._unit = unit
        self._limit = limit
        self._allocation_length = allocation_length
        self._runs: list[tuple[int, int, int]] = []  # LBA, blocks, status
        self.lba = lba  # of what is not known yet
        self._is_full = False  # a run began for which there is no room
        self._questions = 0

    @property
    def is_complete(self) -> bool:
        is_over = self._is_full or self._questions >= _MAX_LBA_STATUS_QUESTIONS
        return is_over or self.lba >= self._unit.capacity_blocks

    def add(self, blocks: int, status: int) -> None:
        """The next ``blocks`` have this status."""
        if self._runs:
            lba, before, previous = self._runs[-1]
            if previous == status and before + blocks <= _MAX_DESCRIPTOR_BLOCKS:
                self._runs[-1] = (lba, before + blocks, status)
                self.lba += blocks
                return
        if len(self._runs) == self._limit:
            self._is_full = True
            return
        self._runs.append((self.lba, blocks, status))
        self.lba += blocks
        # One descriptor is what most ask for: then the end of the first answer is good enough.
        self._is_full = self._limit == 1

    def ask(self) -> block.Request:
        """The volume server knows what is allocated."""
        self._questions += 1
        block_bytes = self._unit.block_bytes
        wanted = min(self._unit.capacity_blocks - self.lba, _MAX_DESCRIPTOR_BLOCKS)
        return block.Request(block.Operation.EXTENTS, self.lba * block_bytes, wanted * block_bytes, finish=self._finish)

    def _finish(self, completion: block.Completion) -> Execution:
        _, error, run_bytes, is_data = completion
        if error is not None:
            return self._unit.failed(completion)
        blocks = run_bytes // self._unit.block_bytes
        # A run that ends inside of a block: that block is mapped.
        self.add(blocks or 1, _MAPPED if is_data or not blocks else _DEALLOCATED)
        return self.answer() if self.is_complete else self.ask()

    def answer(self) -> Outcome:
        descriptors = b"".join(
            cdb.LbaStatusDescriptor(lba=lba, blocks=blocks, provisioning_status=status).pack()
            for lba, blocks, status in self._runs
        )
        header = cdb.LbaStatusHeader(data_length=cdb.LbaStatusHeader.SIZE - 4 + len(descriptors))
        return _cut(header.pack() + descriptors, self._allocation_length)


# READ DEFECT DATA -----------------------------------------------------------------------------------------------


def read_defect_data_10(unit: LogicalUnit, command: Command) -> Execution:
    """Both lists are there when asked for, in whatever format, and empty: no defect of a store is ours to name."""
    fields = cdb.ReadDefectData10.unpack_from(command.cdb)
    return _cut(cdb.DefectListHeader10(format=fields.format & cdb.DEFECT_LIST).pack(), fields.allocation_length)


def read_defect_data_12(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ReadDefectData12.unpack_from(command.cdb)
    return _cut(cdb.DefectListHeader12(format=fields.format & cdb.DEFECT_LIST).pack(), fields.allocation_length)


# PRE-FETCH ------------------------------------------------------------------------------------------------------


def pre_fetch_10(unit: LogicalUnit, command: Command) -> Execution:
    _, _, lba, _, blocks, _ = cdb.unpack_transfer_10(command.cdb)
    return _pre_fetch(unit, lba, blocks)


def pre_fetch_16(unit: LogicalUnit, command: Command) -> Execution:
    _, _, lba, blocks, _, _ = cdb.unpack_transfer_16(command.cdb)
    return _pre_fetch(unit, lba, blocks)


def _pre_fetch(unit: LogicalUnit, lba: int, blocks: int) -> Execution:
    """The volume server reads the range, so that its page cache has it. Answered when that is done, IMMED or not.

    SBC-3, PRE-FETCH (10): CONDITION MET where "the cache … has sufficient capacity to accept all of the specified
    logical blocks", GOOD where it takes a part of them. We take MAXIMUM TRANSFER LENGTH; zero blocks are all to the
    last one.
    """
    sbc.check_range(unit, lba, blocks)
    wanted = blocks or unit.capacity_blocks - lba
    taken = min(wanted, unit.max_transfer_blocks)
    status = CONDITION_MET if taken == wanted else GOOD
    if taken == 0:
        return Outcome(status)

    def finish(completion: block.Completion) -> Outcome:
        return Outcome(status) if completion.error is None else unit.failed(completion)

    return block.Request(block.Operation.COMPARE, lba * unit.block_bytes, taken * unit.block_bytes, finish=finish)


def _cut(data: bytes, allocation_length: int) -> Outcome:
    data = data[:allocation_length]
    return Outcome(data=data, transfer_bytes=len(data))
