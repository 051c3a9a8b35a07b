"""Block commands: which bytes move, what is refused, what residuals say."""

from __future__ import annotations

import itertools

import pytest

from iscsi_ovs import block, scsi
from tests.commands.bench import Bench, code, field_pointer

BLOCK = 512
CAPACITY = (1 << 20) // BLOCK
OUT_OF_RANGE = (0x5, 0x21, 0x00)
INVALID_FIELD = (0x5, 0x24, 0x00)
INVALID_PARAMETER = (0x5, 0x26, 0x00)
PARAMETER_LENGTH = (0x5, 0x1A, 0x00)


def six(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {lba | flags << 16:06x} {blocks:02x} 00"


def ten(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {flags:02x} {lba:08x} 00 {blocks:04x} 00"


def twelve(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {flags:02x} {lba:08x} {blocks:08x} 00 00"


def sixteen(opcode: int, lba: int, blocks: int, flags: int = 0) -> str:
    return f"{opcode:02x} {flags:02x} {lba:016x} {blocks:08x} 00 00"


READS = [(0x08, six), (0x28, ten), (0xA8, twelve), (0x88, sixteen)]
WRITES = [(0x0A, six), (0x2A, ten), (0xAA, twelve), (0x8A, sixteen)]
LONG_READS, LONG_WRITES = READS[1:], WRITES[1:]
every_read = pytest.mark.parametrize(("opcode", "shape"), READS)
every_write = pytest.mark.parametrize(("opcode", "shape"), WRITES)
every_transfer = pytest.mark.parametrize(("opcode", "shape"), READS + WRITES)
long_transfers = pytest.mark.parametrize(("opcode", "shape"), LONG_READS + LONG_WRITES)


def pattern(blocks: int, seed: int = 1) -> bytes:
    return b"".join(bytes([(seed + number) % 255 + 1]) * BLOCK for number in range(blocks))


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
    """DPOFUA is 1, so both are accepted."""
    for flags in (0x10, 0x08, 0x18, 0x02):
        assert disk.execute(shape(opcode, 0, 1, flags)).status == scsi.GOOD


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


# READ CAPACITY --------------------------------------------------------------------------------------------------


def test_read_capacity_10(disk: Bench) -> None:
    """Last LBA and block length; all ones for more than 2^32 blocks."""
    outcome = disk.execute("25")
    assert (outcome.data.hex(" ", 4), outcome.transfer_bytes) == ("000007ff 00000200", 8)
    for size_bytes, last in ((1 << 41, "ffffffff"), ((1 << 41) + BLOCK, "ffffffff"), ((1 << 41) - BLOCK, "fffffffe")):
        disk.unit.resize(block.Geometry(size_bytes))
        disk.nexus.attentions[disk.unit].clear()
        assert disk.execute("25").data.hex(" ", 4) == f"{last} 00000200"


def test_read_capacity_10_with_an_lba(disk: Bench) -> None:
    """Only with PMI (SBC-2 5.10.1)."""
    outcome = disk.execute("25 00 00000001 0000 00 00")
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (2, None))
    assert disk.execute("25 00 00000001 0000 01 00").status == scsi.GOOD


def test_get_lba_status(disk: Bench) -> None:
    """One descriptor from the LBA asked for to the end of its run; LBAs behind the end are out of range."""
    outcome = disk.execute("9e 12 0000000000000003 00000020 00 00")
    blocks = CAPACITY - 3
    assert outcome.data.hex() == f"0000001400000000{3:016x}{blocks:08x}00000000"
    assert disk.execute("9e 12 0000000000000003 0000000c 00 00").data == outcome.data[:12]
    assert code(disk.execute(f"9e 12 {CAPACITY:016x} 00000018 00 00")) == OUT_OF_RANGE
    disk.device.fail_next(block.Error.MEDIUM_READ)
    assert disk.execute("9e 12 0000000000000003 00000020 00 00").status == scsi.CHECK_CONDITION


def test_read_capacity_16(disk: Bench) -> None:
    """512e: eight logical blocks a physical one, aligned at 0; thin, and unmapped blocks read as zeros."""
    outcome = disk.execute("9e 10 0000000000000000 00000020 00 00")
    assert outcome.data.hex() == "00000000000007ff000002000003c000" + "00" * 16
    disk = Bench(logical_block_bytes=4096)
    disk.unit.resize(block.Geometry(1 << 50))
    disk.nexus.attentions[disk.unit].clear()
    data = disk.execute("9e 10 0000000000000000 00000020 00 00").data
    assert data.hex().startswith(f"{(1 << 38) - 1:016x}000010000000c000")
    for length in (0, 1, 12, 31, 33, 0xFFFFFFFF):
        outcome = disk.execute(f"9e 10 0000000000000000 {length:08x} 00 00")
        assert (outcome.data, outcome.transfer_bytes) == (data[:length], min(length, 32))
    outcome = disk.execute("9e 10 0000000000000001 00000020 00 00")
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (2, None))


# UNMAP ----------------------------------------------------------------------------------------------------------


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    """An UNMAP parameter list."""
    body = b"".join(lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4) for lba, blocks in ranges)
    return (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body


def unmap(disk: Bench, data: bytes, length: int | None = None) -> scsi.Outcome:
    return disk.execute(f"42 00 00000000 00 {len(data) if length is None else length:04x} 00", data_out=data)


def test_unmap(disk: Bench) -> None:
    """Each descriptor's blocks read as zeros afterwards, in the order of the list, one request each."""
    disk.device.data[:] = b"\xff" * (CAPACITY * BLOCK)
    data = unmap_list((1, 2), (100, 0), (CAPACITY - 1, 1), (8, 8))
    outcome = unmap(disk, data)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(data))
    assert [(request.operation, request.offset_bytes, request.length_bytes) for request in disk.device.log] == [
        (block.Operation.DISCARD, BLOCK, 2 * BLOCK),
        (block.Operation.DISCARD, (CAPACITY - 1) * BLOCK, BLOCK),
        (block.Operation.DISCARD, 8 * BLOCK, 8 * BLOCK),
    ]
    zeros = {number for number in range(CAPACITY) if not any(disk.device.data[number * BLOCK : (number + 1) * BLOCK])}
    assert zeros == {1, 2, 8, 9, 10, 11, 12, 13, 14, 15, CAPACITY - 1}


def test_unmap_stops_at_the_first_failure(disk: Bench) -> None:
    """What comes after a failed descriptor is left alone."""
    disk.device.fail_next(block.Error.MEDIUM_WRITE)
    assert code(unmap(disk, unmap_list((0, 1), (1, 1)))) == (0x3, 0x0C, 0x00)
    assert len(disk.device.log) == 1


@pytest.mark.parametrize(
    "data",
    [b"", unmap_list(), unmap_list((CAPACITY, 0)), unmap_list((5, 0), (6, 0)), bytes.fromhex("0015 000f") + bytes(19)],
    ids=["no list", "no descriptors", "nothing at the end", "nothing twice", "a cut descriptor is ignored"],
)
def test_unmap_of_nothing(disk: Bench, data: bytes) -> None:
    """No error, nothing done."""
    assert unmap(disk, data) == scsi.Outcome(transfer_bytes=len(data))
    assert disk.device.log == []


def test_unmap_list_is_checked_before_anything_goes(disk: Bench) -> None:
    """Lengths, range, number of descriptors and blocks; the blocks of a list with one bad descriptor all stay."""
    good = (0, 1)
    assert code(unmap(disk, unmap_list(good, (CAPACITY, 1)))) == OUT_OF_RANGE
    assert code(unmap(disk, unmap_list(good, (CAPACITY + 1, 0)))) == OUT_OF_RANGE
    assert code(unmap(disk, unmap_list(good, (0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF)))) == OUT_OF_RANGE
    for length in range(1, 8):
        assert code(unmap(disk, unmap_list(good), length)) == PARAMETER_LENGTH
    assert code(unmap(disk, unmap_list(good), 25)) == PARAMETER_LENGTH  # 24 came
    assert code(unmap(disk, b"", 24)) == PARAMETER_LENGTH  # nothing came
    assert code(unmap(disk, unmap_list(good)[:-1])) == PARAMETER_LENGTH
    assert code(unmap(disk, bytes.fromhex("0016 0011") + unmap_list(good)[4:])) == PARAMETER_LENGTH
    assert code(unmap(disk, bytes.fromhex("0017 0010") + unmap_list(good)[4:])) == PARAMETER_LENGTH
    assert disk.device.log == []


def test_unmap_limits(disk: Bench) -> None:
    """256 descriptors and 2^20 blocks altogether (VPD page B0); one more of either is refused whole."""
    assert unmap(disk, unmap_list(*[(0, 1)] * 256)).status == scsi.GOOD
    disk.device.log.clear()
    outcome = unmap(disk, unmap_list(*[(0, 1)] * 257))
    assert code(outcome) == INVALID_PARAMETER
    disk.unit.resize(block.Geometry(1 << 40))
    disk.nexus.attentions[disk.unit].clear()
    first = disk.start("42 00 00000000 00 0028 00", data_out=unmap_list((0, 1 << 19), (1 << 21, 1 << 19)))
    assert isinstance(first, block.Request)
    assert first.length_bytes == BLOCK << 19
    disk.pool = Bench().pool
    outcome = unmap(disk, unmap_list((0, 1 << 19), (1 << 21, (1 << 19) + 1)))
    assert code(outcome) == INVALID_PARAMETER
    assert outcome.sense[15:18].hex() == "800020"  # byte 32 of the parameter list: the second NUMBER OF BLOCKS
    assert disk.device.log == []


def test_unmap_anchor_is_refused(disk: Bench) -> None:
    """ANC_SUP is 0."""
    outcome = disk.execute("42 01 00000000 00 0018 00", data_out=unmap_list((0, 1)))
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 0))


# WRITE SAME -----------------------------------------------------------------------------------------------------

SAME = pytest.mark.parametrize(("opcode", "shape", "blocks_byte"), [(0x41, ten, 7), (0x93, sixteen, 10)])
UNMAP, ANCHOR, NDOB = 0x08, 0x10, 0x01


@SAME
def test_write_same_of_data(disk: Bench, opcode: int, shape, blocks_byte: int) -> None:
    """One block, repeated; UNMAP does not change what is read back afterwards."""
    for flags in (0, UNMAP):
        block_of_data = bytes([flags + 1]) + bytes(511)
        outcome = disk.execute(shape(opcode, 3, 5, flags), data_out=block_of_data)
        assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, BLOCK)
        assert disk.device.log[-1].operation is block.Operation.WRITE_SAME
        assert disk.device.log[-1].pattern_bytes == BLOCK
        assert disk.device.data == bytes(3 * BLOCK) + block_of_data * 5 + bytes((CAPACITY - 8) * BLOCK)


@SAME
def test_write_same_of_zeros(disk: Bench, opcode: int, shape, blocks_byte: int) -> None:
    """With UNMAP the blocks are unmapped, without it they are zeroed and stay allocated."""
    for flags, operation, no_unmap in (
        (0, block.Operation.WRITE_ZEROES, True),
        (UNMAP, block.Operation.DISCARD, False),
    ):
        disk.device.data[:] = b"\xff" * (CAPACITY * BLOCK)
        outcome = disk.execute(shape(opcode, 3, 5, flags), data_out=bytes(BLOCK))
        assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, BLOCK)
        request = disk.device.log[-1]
        assert (request.operation, request.no_unmap, request.buffer) == (operation, no_unmap, None)
        assert not any(disk.device.data[3 * BLOCK : 8 * BLOCK])
        assert disk.device.data.count(0xFF) == (CAPACITY - 5) * BLOCK


def test_write_same_16_without_data(disk: Bench) -> None:
    """NDOB: zeros, and no data-out buffer is asked for; one that comes is not looked at."""
    disk.device.data[:] = b"\xff" * (CAPACITY * BLOCK)
    assert disk.execute(sixteen(0x93, 0, 1, NDOB)) == scsi.Outcome()
    assert disk.device.log[-1].operation is block.Operation.WRITE_ZEROES
    assert disk.execute(sixteen(0x93, 1, 1, NDOB | UNMAP)) == scsi.Outcome()
    assert disk.device.log[-1].operation is block.Operation.DISCARD
    assert disk.execute(sixteen(0x93, 2, 1, NDOB), data_out=b"\xff" * BLOCK) == scsi.Outcome()
    assert disk.device.data == bytes(3 * BLOCK) + b"\xff" * ((CAPACITY - 3) * BLOCK)


def test_write_same_10_has_no_ndob(disk: Bench) -> None:
    """Bit 0 of byte 1 is reserved there."""
    assert disk.execute(ten(0x41, 0, 1, NDOB), data_out=b"\xa6" * BLOCK).status == scsi.GOOD
    assert disk.device.data[:BLOCK] == b"\xa6" * BLOCK


@SAME
def test_write_same_refusals(disk: Bench, opcode: int, shape, blocks_byte: int) -> None:
    """WRPROTECT, ANCHOR, the obsolete bits; then the range; then WSNZ."""
    one = bytes(BLOCK)
    for flags, bit in ((0x20, 7), (0xE0, 7), (ANCHOR, 4), (ANCHOR | UNMAP, 4), (0x04, 2), (0x02, 2)):
        outcome = disk.execute(shape(opcode, 0, 1, flags), data_out=one)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, bit))
    for lba, blocks in ((CAPACITY, 1), (CAPACITY - 1, 2), (CAPACITY + 1, 0)):
        assert code(disk.execute(shape(opcode, lba, blocks), data_out=one)) == OUT_OF_RANGE
    for lba in (0, CAPACITY):
        outcome = disk.execute(shape(opcode, lba, 0), data_out=one)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (blocks_byte, None))
    assert disk.device.log == []


@SAME
@pytest.mark.parametrize("flags", [0, UNMAP])
def test_write_same_wants_one_block(disk: Bench, opcode: int, shape, blocks_byte: int, flags: int) -> None:
    """A data-out buffer that is no block: 05/0E/03."""
    for length in (0, 1, 256, 511, 513, 1024):
        outcome = disk.execute(shape(opcode, 0, 1, flags), data_out=b"\xa6" * length)
        assert code(outcome) == (0x5, 0x0E, 0x03)
    assert disk.device.log == []


def test_write_same_lengths() -> None:
    """32 MiB of data at a time, any length of zeros (CONTRACTS 7)."""
    disk = Bench()
    disk.unit.resize(block.Geometry(1 << 45))
    disk.nexus.attentions[disk.unit].clear()
    limit = (32 << 20) // BLOCK
    for blocks, flags, fill in itertools.product((limit, limit + 1, 0xFFFFFFFF), (0, UNMAP), (0x00, 0xA6)):
        result = disk.start(sixteen(0x93, 0, blocks, flags), data_out=bytes([fill]) * BLOCK)
        if fill and blocks > limit:
            assert isinstance(result, scsi.Outcome)
            assert (code(result), field_pointer(result)) == (INVALID_FIELD, (10, None))
        else:
            assert isinstance(result, block.Request)
            assert result.length_bytes == blocks * BLOCK


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
