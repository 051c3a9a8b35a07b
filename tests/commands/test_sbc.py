"""Block commands: which bytes move, what is refused, what residuals say."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from tests.commands.bench import Bench, code, field_pointer
from tests.commands.shapes import BLOCK, CAPACITY, INVALID_FIELD, OUT_OF_RANGE, pattern, six, sixteen, ten, twelve

READS = [(0x08, six), (0x28, ten), (0xA8, twelve), (0x88, sixteen)]
WRITES = [(0x0A, six), (0x2A, ten), (0xAA, twelve), (0x8A, sixteen)]
LONG_READS, LONG_WRITES = READS[1:], WRITES[1:]
every_read = pytest.mark.parametrize(("opcode", "shape"), READS)
every_write = pytest.mark.parametrize(("opcode", "shape"), WRITES)
every_transfer = pytest.mark.parametrize(("opcode", "shape"), READS + WRITES)
long_transfers = pytest.mark.parametrize(("opcode", "shape"), LONG_READS + LONG_WRITES)


# READ and WRITE -------------------------------------------------------------------------------------------------


@every_read
def test_read(disk: Bench, opcode: int, shape) -> None:
    """The blocks that the CDB names, no residual."""
    disk.device.data[:] = pattern(CAPACITY)
    for lba, blocks in ((0, 1), (7, 8), (CAPACITY - 1, 1), (CAPACITY - 255, 255)):
        outcome = disk.execute(shape(opcode, lba, blocks), data_in=blocks * BLOCK)
        assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, blocks * BLOCK)
        assert disk.payload == disk.device.data[lba * BLOCK : (lba + blocks) * BLOCK]


@every_write
def test_write(disk: Bench, opcode: int, shape) -> None:
    """The blocks that the CDB names, and no others."""
    before = disk.device.data[:] = pattern(CAPACITY, 7)
    data = pattern(8, 100)
    outcome = disk.execute(shape(opcode, 5, 8), data_out=data)
    assert (outcome.status, outcome.transfer_bytes, outcome.sense) == (scsi.GOOD, len(data), b"")
    assert disk.device.data == before[: 5 * BLOCK] + data + before[13 * BLOCK :]


def test_read_6_of_zero_blocks_is_256(disk: Bench) -> None:
    """SBC-3 5.10: zero means 256; bits above the 21 of the LBA were a LUN once and say nothing."""
    request = disk.start(six(0x08, 1, 0, flags=0xE0), data_in=256 * BLOCK)
    assert isinstance(request, block.Request)
    assert (request.offset_bytes, request.length_bytes) == (BLOCK, 256 * BLOCK)
    request = disk.start(six(0x0A, 1, 0), data_out=bytes(256 * BLOCK))
    assert isinstance(request, block.Request)
    assert (request.operation, request.length_bytes) == (block.Operation.WRITE, 256 * BLOCK)


@long_transfers
def test_no_blocks(disk: Bench, opcode: int, shape) -> None:
    """Zero blocks are no error up to the capacity itself, and beyond it they are out of range."""
    for lba in (0, CAPACITY):
        outcome = disk.start(shape(opcode, lba, 0), data_in=BLOCK)
        assert outcome == scsi.Outcome()
    for lba in (CAPACITY + 1, 0x80000000, 0xFFFFFFFF):
        outcome = disk.execute(shape(opcode, lba, 0))
        assert code(outcome) == OUT_OF_RANGE
    assert disk.device.log == []


@every_transfer
def test_beyond_the_end(disk: Bench, opcode: int, shape) -> None:
    """A transfer that touches a block too far fails whole."""
    for lba, blocks in ((CAPACITY, 1), (CAPACITY - 1, 2), (CAPACITY - 254, 255), (0x1FFFFF, 1)):
        outcome = disk.execute(shape(opcode, lba, blocks), data_out=bytes(BLOCK) if (opcode, shape) in WRITES else b"")
        assert code(outcome) == OUT_OF_RANGE
    assert disk.device.log == []


@pytest.mark.parametrize("opcode", [0x88, 0x8A, 0x91, 0x93])
def test_lba_arithmetic_does_not_wrap(disk: Bench, opcode: int) -> None:
    """LBA + length beyond 2^64."""
    outcome = disk.execute(sixteen(opcode, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF), data_out=bytes(BLOCK))
    assert code(outcome) == OUT_OF_RANGE


@long_transfers
@pytest.mark.parametrize("protect", [1, 2, 7])
def test_protection_is_refused(disk: Bench, opcode: int, shape, protect: int) -> None:
    """No protection information here: RDPROTECT and WRPROTECT are zero (SBC-3 tables 62 and 122)."""
    outcome = disk.execute(shape(opcode, 0, 1, flags=protect << 5))
    assert code(outcome) == INVALID_FIELD
    assert field_pointer(outcome) == (1, 7)


@pytest.mark.parametrize(
    ("opcode", "shape", "byte"),
    [(0xA8, twelve, 6), (0xAA, twelve, 6), (0x88, sixteen, 10), (0x8A, sixteen, 10), (0x28, ten, 7), (0x2A, ten, 7)],
)
def test_maximum_transfer_length(opcode: int, shape, byte: int) -> None:
    """8 MiB pass, one block more is an invalid field, pointed at."""
    disk = Bench()
    disk.unit.resize(block.Geometry(1 << 40))
    disk.nexus.attentions[disk.unit].clear()
    limit = (8 << 20) // BLOCK
    request = disk.start(shape(opcode, 0, limit), data_in=8 << 20, data_out_bytes=8 << 20)
    assert isinstance(request, block.Request)
    assert request.length_bytes == 8 << 20
    outcome = disk.start(shape(opcode, 0, limit + 1), data_in=9 << 20)
    assert isinstance(outcome, scsi.Outcome)
    assert code(outcome) == INVALID_FIELD
    assert field_pointer(outcome) == (byte, None)


@pytest.mark.parametrize(("opcode", "shape"), LONG_WRITES)
def test_force_unit_access_is_real(disk: Bench, opcode: int, shape) -> None:
    """A FUA write is durable when it is answered; DPO and the obsolete FUA_NV change nothing; without FUA it isn't."""
    data = pattern(1)
    for flags, is_durable in ((0x10, False), (0x02, False), (0x08, True), (0x1A, True)):
        disk.device.flushed[:BLOCK] = bytes(BLOCK)
        assert disk.execute(shape(opcode, 0, 1, flags), data_out=data).status == scsi.GOOD
        assert (disk.device.flushed[:BLOCK] == data) is is_durable


@pytest.mark.parametrize(("opcode", "shape"), LONG_READS)
def test_read_with_dpo_and_fua(disk: Bench, opcode: int, shape) -> None:
    """DPOFUA is 1, so both are accepted; what a FUA read returns is durable."""
    data = pattern(1)
    for flags, is_durable in ((0x10, False), (0x02, False), (0x08, True), (0x18, True)):
        disk.execute(ten(0x2A, 0, 1), data_out=data)
        disk.device.flushed[:BLOCK] = bytes(BLOCK)
        outcome = disk.execute(shape(opcode, 0, 1, flags), data_in=BLOCK)
        assert (outcome.status, disk.payload) == (scsi.GOOD, data)
        assert (disk.device.flushed[:BLOCK] == data) is is_durable
    disk.device.fail_next(block.Error.WRITE_FAULT, block.Operation.FLUSH)
    assert code(disk.execute(shape(opcode, 0, 1, 0x08), data_in=BLOCK)) == (0x3, 0x0C, 0x00)


def test_a_fua_read_without_a_write_cache() -> None:
    """Everything is durable there already."""
    disk = Bench(personality=scsi.Personality(write_cache=False))
    assert disk.execute(ten(0x28, 0, 1, 0x08)).status == scsi.GOOD
    assert [request.operation for request in disk.device.log] == [block.Operation.READ]


def test_offsets_are_of_logical_blocks() -> None:
    """A disk of 4096-byte blocks counts in them."""
    disk = Bench(logical_block_bytes=4096)
    disk.device.data[8192:12288] = b"\x55" * 4096
    disk.execute(ten(0x28, 2, 1))
    assert disk.payload == b"\x55" * 4096
    assert code(disk.execute(ten(0x28, 256, 1))) == OUT_OF_RANGE


def test_shrunken_volume(disk: Bench) -> None:
    """A READ that comes back short went across the end of what is there: no half an answer is a whole one."""
    disk.device.resize(4096)
    outcome = disk.execute(ten(0x28, 7, 2))
    assert code(outcome) == OUT_OF_RANGE
    assert outcome.transfer_bytes == 0


# Residuals ------------------------------------------------------------------------------------------------------


@every_read
@pytest.mark.parametrize(
    ("blocks", "room", "read_bytes"),
    [(1, 200, 512), (2, 512, 512), (2, 513, 1024), (3, 1024, 1024), (1, 10000, 512), (1, 511, 512)],
)
def test_read_residuals(disk: Bench, opcode: int, shape, blocks: int, room: int, read_bytes: int) -> None:
    """Only the blocks that the room needs are read, what SCSI wanted is told, and GOOD."""
    disk.device.data[:] = pattern(CAPACITY)
    outcome = disk.execute(shape(opcode, 3, blocks), data_in=room)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, blocks * BLOCK)
    assert disk.device.log[0].length_bytes == read_bytes
    length = min(room, blocks * BLOCK)
    assert disk.payload == disk.device.data[3 * BLOCK : 3 * BLOCK + length]


@every_read
def test_read_without_room(disk: Bench, opcode: int, shape) -> None:
    """No room at all (also: flagged as a write): checked, told, not read."""
    assert disk.start(shape(opcode, 0, 2)) == scsi.Outcome(transfer_bytes=2 * BLOCK)
    assert disk.start(shape(opcode, 0, 2), data_out=bytes(BLOCK)) == scsi.Outcome(transfer_bytes=2 * BLOCK)
    assert code(disk.execute(shape(opcode, CAPACITY, 2), data_in=0)) == OUT_OF_RANGE


@every_write
@pytest.mark.parametrize(
    ("blocks", "sent", "written"),
    [(1, 10000, 1), (1, 1024, 1), (2, 512, 1), (3, 1300, 2), (1, 200, 0), (2, 511, 0), (1, 0, 0)],
)
def test_write_residuals(disk: Bench, opcode: int, shape, blocks: int, sent: int, written: int) -> None:
    """Never more than the CDB names, never a piece of a block, never a byte that did not come."""
    before = bytes(disk.device.data)
    data = b"\xbb" * sent
    outcome = disk.execute(shape(opcode, 0, blocks), data_out=data, data_in=0)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, blocks * BLOCK)
    assert disk.device.data == data[: written * BLOCK] + before[written * BLOCK :]


def test_cut_transfers_that_fail(disk: Bench) -> None:
    """An error of a cut READ or WRITE is told as any other."""
    disk.device.fail_next(block.Error.MEDIUM_READ)
    outcome = disk.execute(ten(0x28, 0, 2), data_in=512)
    assert (code(outcome), outcome.transfer_bytes) == ((0x3, 0x11, 0x00), 0)
    disk.device.fail_next(block.Error.NO_SPACE)
    outcome = disk.execute(ten(0x2A, 0, 2), data_out=bytes(512))
    assert (code(outcome), outcome.transfer_bytes) == ((0x7, 0x27, 0x07), 0)


# SYNCHRONIZE CACHE ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opcode", "shape"), [(0x35, ten), (0x91, sixteen)])
@pytest.mark.parametrize("flags", [0x00, 0x02, 0x04])
def test_synchronize_cache(disk: Bench, opcode: int, shape, flags: int) -> None:
    """What was acknowledged is durable when it is answered, IMMED or not."""
    disk.execute(ten(0x2A, 0, 1), data_out=pattern(1))
    for lba, blocks in ((0, 0), (0, 1), (CAPACITY, 0), (CAPACITY - 1, 1)):
        assert disk.execute(shape(opcode, lba, blocks, flags)) == scsi.Outcome()
    assert disk.device.flushed[:BLOCK] == pattern(1)
    for lba, blocks in ((CAPACITY, 1), (CAPACITY + 1, 0), (1, CAPACITY)):
        assert code(disk.execute(shape(opcode, lba, blocks))) == OUT_OF_RANGE


# Write protection -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [ten(0x2A, 0, 1), six(0x0A, 0, 1), sixteen(0x93, 0, 1), ten(0x41, 0, 1), "42 00 00000000 00 0018 00"],
)
def test_read_only(disk: Bench, text: str) -> None:
    """A write-protected unit writes nothing, and says so."""
    disk.unit.is_read_only = True
    outcome = disk.execute(text, data_out=bytes(BLOCK))
    assert code(outcome) == (0x7, 0x27, 0x00)
    assert disk.execute(ten(0x28, 0, 1)).status == scsi.GOOD
    assert disk.execute(ten(0x35, 0, 0)).status == scsi.GOOD
