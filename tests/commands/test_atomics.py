"""COMPARE AND WRITE, ORWRITE, WRITE ATOMIC: all of it or nothing, with all of their data or not at all."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Error, Operation
from tests.commands.bench import Bench, code, field_pointer
from tests.commands.shapes import BLOCK, CAPACITY, INVALID_FIELD, OUT_OF_RANGE, pattern, sixteen

MISCOMPARE = (0xE, 0x1D, 0x00)
WRONG_AMOUNT = (0x5, 0x0E, 0x03)
DPO, FUA = 0x10, 0x08


@pytest.fixture
def disk() -> Bench:
    disk = Bench()
    disk.device.data[:] = pattern(CAPACITY)
    return disk


def compare_and_write(lba: int, blocks: int, flags: int = 0) -> str:
    return f"89 {flags:02x} {lba:016x} 000000 {blocks:02x} 00 00"


def write_atomic(lba: int, blocks: int, flags: int = 0, boundary: int = 0) -> str:
    return f"9c {flags:02x} {lba:016x} {boundary:04x} {blocks:04x} 00 00"


def blocks_of(disk: Bench, lba: int, blocks: int) -> bytes:
    return bytes(disk.device.data[lba * BLOCK : (lba + blocks) * BLOCK])


# COMPARE AND WRITE ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2, 255])
def test_compare_and_write(disk: Bench, blocks: int) -> None:
    """The first half is what must be there, the second what is there then."""
    old, new = blocks_of(disk, 9, blocks), b"\xee" * (blocks * BLOCK)
    outcome = disk.execute(compare_and_write(9, blocks), data_out=old + new)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, 2 * len(old))
    assert disk.device.data == pattern(9) + new + pattern(CAPACITY)[(9 + blocks) * BLOCK :]
    assert disk.device.log[0].operation is Operation.COMPARE_AND_WRITE


@pytest.mark.parametrize("at", [0, 27, 2 * BLOCK - 27, 2 * BLOCK - 1])
def test_compare_and_write_that_differs(disk: Bench, at: int) -> None:
    """Nothing is written; VALID, and INFORMATION is the offset of the first byte that differs."""
    old = blocks_of(disk, 0, 2)
    wrong = old[:at] + bytes([old[at] ^ 0x43]) + old[at + 1 :]
    outcome = disk.execute(compare_and_write(0, 2), data_out=wrong + b"\xee" * len(old))
    assert code(outcome) == MISCOMPARE
    assert (outcome.sense[0], int.from_bytes(outcome.sense[3:7], "big")) == (0xF0, at)
    assert disk.device.data == pattern(CAPACITY)


def test_compare_and_write_of_no_blocks(disk: Bench) -> None:
    """No error up to the capacity itself; with data it was 256 blocks, which the field can't say."""
    for lba in (0, CAPACITY):
        assert disk.execute(compare_and_write(lba, 0)) == scsi.Outcome()
        outcome = disk.execute(compare_and_write(lba, 0), data_out=bytes(512 * BLOCK))
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (13, None))
    for lba, blocks in ((CAPACITY + 1, 0), (CAPACITY, 1), (CAPACITY - 1, 2), ((1 << 64) - 1, 255)):
        assert code(disk.execute(compare_and_write(lba, blocks), data_out=bytes(4 * BLOCK))) == OUT_OF_RANGE
    assert disk.device.log == []


@pytest.mark.parametrize("length", [0, 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK + 1, 3 * BLOCK, 4 * BLOCK])
def test_compare_and_write_wants_two_blocks_each(disk: Bench, length: int) -> None:
    """Less and more alike are refused: the halves would not be where the initiator put them."""
    assert code(disk.execute(compare_and_write(0, 1), data_out=bytes(length))) == WRONG_AMOUNT
    assert disk.device.log == []


def test_compare_and_write_honours_fua(disk: Bench) -> None:
    """DPO is advice; FUA is durable when it is answered."""
    new = b"\xee" * BLOCK
    for flags, is_durable in ((DPO, False), (FUA, True), (DPO | FUA, True)):
        disk.device.flushed[:BLOCK] = bytes(BLOCK)
        assert disk.execute(compare_and_write(0, 1, flags), data_out=blocks_of(disk, 0, 1) + new).status == scsi.GOOD
        assert (disk.device.flushed[:BLOCK] == new) is is_durable


def test_compare_and_write_limits() -> None:
    """MAXIMUM COMPARE AND WRITE LENGTH of VPD page B0 is obeyed."""
    disk = Bench()
    assert disk.execute("12 01 b0 00ff 00").data[5] == disk.unit.limits.max_compare_and_write_blocks == 255
    disk.unit.limits = scsi.Limits(max_compare_and_write_blocks=16)
    assert disk.execute(compare_and_write(0, 16), data_out=bytes(32 * BLOCK)).status == scsi.GOOD
    outcome = disk.execute(compare_and_write(0, 17), data_out=bytes(34 * BLOCK))
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (13, None))


def test_compare_and_write_when_the_server_dies(disk: Bench) -> None:
    """CONTRACTS 9: its outcome is unknown, and a second try would miscompare: ABORTED COMMAND, not BUSY."""
    disk.device.fail_next(Error.OUTCOME_UNKNOWN)
    outcome = disk.execute(compare_and_write(0, 1), data_out=bytes(2 * BLOCK))
    assert code(outcome) == (0xB, 0x00, 0x00)


# ORWRITE --------------------------------------------------------------------------------------------------------


def test_orwrite(disk: Bench) -> None:
    """The bits of both."""
    disk.device.data[: 3 * BLOCK] = b"\xa5" * (3 * BLOCK)
    outcome = disk.execute(sixteen(0x8B, 0, 2), data_out=b"\x5a" * (2 * BLOCK))
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, 2 * BLOCK)
    assert blocks_of(disk, 0, 3) == b"\xff" * (2 * BLOCK) + b"\xa5" * BLOCK
    assert disk.device.log[0].operation is Operation.OR_WRITE


def test_orwrite_honours_fua(disk: Bench) -> None:
    """As WRITE."""
    for flags, is_durable in ((DPO, False), (FUA, True)):
        disk.device.flushed[:BLOCK] = bytes(BLOCK)
        assert disk.execute(sixteen(0x8B, 0, 1, flags), data_out=b"\xff" * BLOCK).status == scsi.GOOD
        assert any(disk.device.flushed[:BLOCK]) is is_durable


# WRITE ATOMIC ---------------------------------------------------------------------------------------------------


def test_write_atomic(atomic: Bench) -> None:
    """Up to what the store declares, at any LBA; FUA as in WRITE."""
    for lba, blocks in ((0, 1), (3, 5), (1, 128), (CAPACITY - 128, 128)):
        data = pattern(blocks, 33)
        outcome = atomic.execute(write_atomic(lba, blocks, FUA), data_out=data)
        assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(data))
        assert blocks_of(atomic, lba, blocks) == atomic.device.flushed[lba * BLOCK : (lba + blocks) * BLOCK] == data
    assert {request.operation for request in atomic.device.log} == {Operation.WRITE_ATOMIC}


def test_write_atomic_is_reported(atomic: Bench) -> None:
    """REPORT SUPPORTED OPERATION CODES names it where the store can do it."""
    assert atomic.execute("a3 0c 01 9c 0000 00000100 00 00").data[1] & 0x07 == 0x03


def test_write_atomic_limits(atomic: Bench) -> None:
    """VPD page B0 says how much; no boundary is served, so none is accepted."""
    assert atomic.execute("12 01 b0 00ff 00").data[44:].hex() == "00000080" + "00000000" * 4
    outcome = atomic.execute(write_atomic(0, 129), data_out=bytes(129 * BLOCK))
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (12, None))
    outcome = atomic.execute(write_atomic(0, 1, boundary=8), data_out=bytes(BLOCK))
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (10, None))
    assert atomic.device.log == []


def test_write_atomic_of_a_store_that_can_not(disk: Bench) -> None:
    """05/20/00, and zeros in B0."""
    assert code(disk.execute(write_atomic(0, 1), data_out=bytes(BLOCK))) == (0x5, 0x20, 0x00)
    assert disk.execute("a3 0c 01 9c 0000 00000100 00 00").data[1] & 0x07 == 0x01, "not supported"
    assert disk.execute("12 01 b0 00ff 00").data[44:] == bytes(20)


# ORWRITE and WRITE ATOMIC ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [0x8B, 0x9C])
def test_what_both_check(atomic: Bench, opcode: int) -> None:
    """Protection, range, zero blocks, and all of the data or nothing; more than all is an underflow, no error."""

    def cdb(lba: int, blocks: int, flags: int = 0) -> str:
        return sixteen(0x8B, lba, blocks, flags) if opcode == 0x8B else write_atomic(lba, blocks, flags)

    outcome = atomic.execute(cdb(0, 1, 0x20), data_out=bytes(BLOCK))
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 7))
    for lba in (0, CAPACITY):
        assert atomic.execute(cdb(lba, 0)) == scsi.Outcome()
    for lba, blocks in ((CAPACITY + 1, 0), (CAPACITY, 1), (CAPACITY - 1, 2), ((1 << 64) - 1, 2)):
        assert code(atomic.execute(cdb(lba, blocks), data_out=bytes(2 * BLOCK))) == OUT_OF_RANGE
    for length in (0, 1, 2 * BLOCK - 1):
        assert code(atomic.execute(cdb(0, 2), data_out=bytes(length))) == WRONG_AMOUNT
    assert atomic.device.log == []
    assert atomic.execute(cdb(0, 2), data_out=bytes(3 * BLOCK)).transfer_bytes == 2 * BLOCK
    atomic.device.fail_next(Error.NO_SPACE)
    assert code(atomic.execute(cdb(0, 1), data_out=bytes(BLOCK))) == (0x7, 0x27, 0x07)
    atomic.unit.is_read_only = True
    assert code(atomic.execute(cdb(0, 1), data_out=bytes(BLOCK))) == (0x7, 0x27, 0x00)


def test_orwrite_maximum_transfer_length() -> None:
    """As WRITE (16)."""
    disk = Bench()
    disk.unit.resize(block.Geometry(1 << 40))
    disk.nexus.attentions[disk.unit].clear()
    outcome = disk.execute(sixteen(0x8B, 0, (8 << 20) // BLOCK + 1), data_out=bytes(BLOCK))
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (10, None))
