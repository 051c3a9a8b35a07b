"""VERIFY and WRITE AND VERIFY: what is held against what, and where the sense says that it differs."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Error, Operation
from tests.commands.bench import Bench, code, field_pointer
from tests.commands.shapes import BLOCK, CAPACITY, INVALID_FIELD, OUT_OF_RANGE, pattern, sixteen, ten, twelve

MISCOMPARE = (0xE, 0x1D, 0x00)
WRONG_AMOUNT = (0x5, 0x0E, 0x03)
DPO = 0x10
MEDIUM_ONLY, ALL_BLOCKS, RESERVED, ONE_BLOCK = 0x00, 0x02, 0x04, 0x06  # BYTCHK, in its place

every_verify = pytest.mark.parametrize(("opcode", "shape"), [(0x2F, ten), (0xAF, twelve), (0x8F, sixteen)])
every_write = pytest.mark.parametrize(("opcode", "shape"), [(0x2E, ten), (0xAE, twelve), (0x8E, sixteen)])
every_one = pytest.mark.parametrize(
    ("opcode", "shape"), [(0x2F, ten), (0xAF, twelve), (0x8F, sixteen), (0x2E, ten), (0xAE, twelve), (0x8E, sixteen)]
)


@pytest.fixture
def disk() -> Bench:
    disk = Bench()
    disk.device.data[:] = pattern(CAPACITY)
    return disk


def operations(disk: Bench) -> list[Operation]:
    return [request.operation for request in disk.device.log]


# VERIFY ---------------------------------------------------------------------------------------------------------


@every_verify
def test_the_medium_is_read(disk: Bench, opcode: int, shape) -> None:
    """BYTCHK 0: the server reads every block; no data moves, none is asked for, however long the range is."""
    for lba, blocks in ((0, 1), (5, 7), (CAPACITY - 1, 1), (0, CAPACITY)):
        disk.device.log.clear()
        assert disk.execute(shape(opcode, lba, blocks, DPO)) == scsi.Outcome()
        (request,) = disk.device.log
        assert (request.operation, request.buffer) == (Operation.COMPARE, None)
        assert (request.offset_bytes, request.length_bytes) == (lba * BLOCK, blocks * BLOCK)


@every_verify
def test_an_unreadable_medium(disk: Bench, opcode: int, shape) -> None:
    """What VERIFY is for."""
    disk.device.fail_next(Error.MEDIUM_READ)
    assert code(disk.execute(shape(opcode, 0, 8))) == (0x3, 0x11, 0x00)


@every_verify
@pytest.mark.parametrize("blocks", [1, 2, 9])
def test_all_blocks_are_compared(disk: Bench, opcode: int, shape, blocks: int) -> None:
    """BYTCHK 1: equal is GOOD; one byte off is a miscompare, and INFORMATION says which byte."""
    data = bytes(disk.device.data[3 * BLOCK : (3 + blocks) * BLOCK])
    outcome = disk.execute(shape(opcode, 3, blocks, ALL_BLOCKS), data_out=data)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(data))
    for at in (0, 27, len(data) - 1):
        wrong = data[:at] + bytes([data[at] ^ 0x58]) + data[at + 1 :]
        outcome = disk.execute(shape(opcode, 3, blocks, ALL_BLOCKS), data_out=wrong)
        assert code(outcome) == MISCOMPARE
        assert (outcome.sense[0], int.from_bytes(outcome.sense[3:7], "big")) == (0xF0, at)
    assert disk.device.data == pattern(CAPACITY)


@every_verify
def test_one_block_is_compared_with_each(disk: Bench, opcode: int, shape) -> None:
    """BYTCHK 3: the block that came is held against every block; the offset counts on through the blocks."""
    one = b"\xc3" * BLOCK
    disk.device.data[10 * BLOCK : 14 * BLOCK] = one * 4
    outcome = disk.execute(shape(opcode, 10, 4, ONE_BLOCK), data_out=one)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, BLOCK)
    disk.device.data[12 * BLOCK + 5] = 0
    outcome = disk.execute(shape(opcode, 10, 4, ONE_BLOCK), data_out=one)
    assert code(outcome) == MISCOMPARE
    assert int.from_bytes(outcome.sense[3:7], "big") == 2 * BLOCK + 5


@every_verify
def test_miscompare_in_descriptor_format(disk: Bench, opcode: int, shape) -> None:
    """An information descriptor with VALID, in the format that the control mode page chose."""
    disk.unit.set_modes(scsi.Modes(descriptor_sense=True))
    outcome = disk.execute(shape(opcode, 0, 1, ALL_BLOCKS), data_out=b"\0" * BLOCK)
    assert outcome.sense.hex() == "720e1d000000000c" + "000a8000" + "0" * 16


@every_verify
@pytest.mark.parametrize("flags", [ALL_BLOCKS, ONE_BLOCK])
def test_too_little_to_compare_with(disk: Bench, opcode: int, shape, flags: int) -> None:
    """GOOD would say of blocks that they are right though nobody said what is right."""
    for data in (b"", bytes(1), bytes(BLOCK - 1)):
        assert code(disk.execute(shape(opcode, 0, 1, flags), data_out=data)) == WRONG_AMOUNT
    assert disk.device.log == []


@every_verify
def test_verify_of_a_protected_unit(disk: Bench, opcode: int, shape) -> None:
    """Write protection does not concern what writes nothing."""
    disk.unit.is_read_only = True
    assert disk.execute(shape(opcode, 0, 1)).status == scsi.GOOD
    data = bytes(disk.device.data[:BLOCK])
    assert disk.execute(shape(opcode, 0, 1, ALL_BLOCKS), data_out=data).status == scsi.GOOD


# WRITE AND VERIFY -----------------------------------------------------------------------------------------------


@every_write
@pytest.mark.parametrize("flags", [MEDIUM_ONLY, ALL_BLOCKS, DPO])
def test_it_is_durable_and_then_verified(disk: Bench, opcode: int, shape, flags: int) -> None:
    """Written through to the medium, then read back from there."""
    data = pattern(3, 99)
    outcome = disk.execute(shape(opcode, 4, 3, flags), data_out=data)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(data))
    assert operations(disk) == [Operation.WRITE, Operation.COMPARE]
    assert disk.device.flushed[4 * BLOCK : 7 * BLOCK] == data
    assert (disk.device.log[1].buffer is None) is (flags != ALL_BLOCKS)


@every_write
def test_what_came_back_is_something_else(disk: Bench, opcode: int, shape) -> None:
    """BYTCHK 1 compares; so a medium that lies, or somebody who wrote in between, is seen."""
    data = pattern(2, 7)
    request = disk.start(shape(opcode, 0, 2, ALL_BLOCKS), data_out=data)
    assert isinstance(request, block.Request)
    compare = disk.step(request)
    assert isinstance(compare, block.Request)
    disk.device.data[BLOCK + 1] ^= 1
    outcome = disk.step(compare)
    assert isinstance(outcome, scsi.Outcome)
    assert code(outcome) == MISCOMPARE
    assert int.from_bytes(outcome.sense[3:7], "big") == BLOCK + 1


@every_write
def test_a_failed_write_is_not_verified(disk: Bench, opcode: int, shape) -> None:
    """Its error is told."""
    disk.device.fail_next(Error.WRITE_FAULT)
    assert code(disk.execute(shape(opcode, 0, 1), data_out=bytes(BLOCK))) == (0x3, 0x0C, 0x00)
    assert operations(disk) == [Operation.WRITE]


@every_write
@pytest.mark.parametrize(
    ("blocks", "sent", "written"), [(1, 1024, 1), (2, 512, 1), (3, 1300, 2), (1, 200, 0), (1, 0, 0)]
)
def test_write_and_verify_residuals(disk: Bench, opcode: int, shape, blocks: int, sent: int, written: int) -> None:
    """As WRITE: whole blocks that came are written (and verified), the residual count tells the rest."""
    before = bytes(disk.device.data)
    outcome = disk.execute(shape(opcode, 0, blocks, ALL_BLOCKS), data_out=b"\xbb" * sent, data_in=0)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, blocks * BLOCK)
    assert disk.device.data == b"\xbb" * (written * BLOCK) + before[written * BLOCK :]


# Both -----------------------------------------------------------------------------------------------------------


@every_one
def test_no_blocks(disk: Bench, opcode: int, shape) -> None:
    """Zero blocks are no error up to the capacity itself, and beyond it they are out of range."""
    for lba in (0, CAPACITY):
        assert disk.execute(shape(opcode, lba, 0, ALL_BLOCKS)) == scsi.Outcome()
    for lba, blocks in ((CAPACITY + 1, 0), (0x80000000, 0), (0xFFFFFFFF, 0), (CAPACITY, 1), (CAPACITY - 1, 2)):
        assert code(disk.execute(shape(opcode, lba, blocks, ALL_BLOCKS), data_out=bytes(BLOCK))) == OUT_OF_RANGE
    assert disk.device.log == []


@every_one
def test_refused_fields(disk: Bench, opcode: int, shape) -> None:
    """Protection information there is none; BYTCHK 2 is reserved, and 3 is not for what is written."""
    for protect in (0x20, 0xE0):
        outcome = disk.execute(shape(opcode, 0, 1, protect), data_out=bytes(BLOCK))
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 7))
    for flags in (RESERVED,) if opcode & 0x0F == 0x0F else (RESERVED, ONE_BLOCK):
        outcome = disk.execute(shape(opcode, 0, 1, flags), data_out=bytes(BLOCK))
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 2))
    assert disk.device.log == []


@pytest.mark.parametrize(
    ("opcode", "shape", "byte"),
    [(0x2F, ten, 7), (0xAF, twelve, 6), (0x8F, sixteen, 10), (0x2E, ten, 7), (0xAE, twelve, 6), (0x8E, sixteen, 10)],
)
def test_maximum_transfer_length(opcode: int, shape, byte: int) -> None:
    """It bounds what is transferred: not VERIFY without data, nor VERIFY of one block repeated."""
    disk = Bench()
    disk.unit.resize(block.Geometry(1 << 40))
    disk.nexus.attentions[disk.unit].clear()
    over = (8 << 20) // BLOCK + 1
    outcome = disk.start(shape(opcode, 0, over, ALL_BLOCKS), data_out=bytes(BLOCK))
    assert isinstance(outcome, scsi.Outcome)
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (byte, None))
    if opcode & 0x0F == 0x0F:
        for flags in (MEDIUM_ONLY, ONE_BLOCK):
            request = disk.start(shape(opcode, 0, over, flags), data_out=bytes(BLOCK))
            assert isinstance(request, block.Request)
            assert request.length_bytes == over * BLOCK


@every_write
def test_write_and_verify_of_a_protected_unit(disk: Bench, opcode: int, shape) -> None:
    """It writes."""
    disk.unit.is_read_only = True
    assert code(disk.execute(shape(opcode, 0, 1), data_out=bytes(BLOCK))) == (0x7, 0x27, 0x00)
