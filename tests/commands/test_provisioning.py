"""UNMAP and WRITE SAME: what reads as zeros afterwards, what is refused."""

from __future__ import annotations

import itertools

import pytest

from iscsi_ovs import block, scsi
from tests.commands.bench import Bench, code, field_pointer
from tests.commands.shapes import (
    BLOCK,
    CAPACITY,
    INVALID_FIELD,
    INVALID_PARAMETER,
    OUT_OF_RANGE,
    PARAMETER_LENGTH,
    sixteen,
    ten,
)

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

SAME = pytest.mark.parametrize(("opcode", "shape"), [(0x41, ten), (0x93, sixteen)])
NUMBER_OF_BLOCKS_BYTE = {0x41: 7, 0x93: 10}
UNMAP, ANCHOR, NDOB = 0x08, 0x10, 0x01


@SAME
def test_write_same_of_data(disk: Bench, opcode: int, shape) -> None:
    """One block, repeated; UNMAP does not change what is read back afterwards."""
    for flags in (0, UNMAP):
        block_of_data = bytes([flags + 1]) + bytes(511)
        outcome = disk.execute(shape(opcode, 3, 5, flags), data_out=block_of_data)
        assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, BLOCK)
        assert disk.device.log[-1].operation is block.Operation.WRITE_SAME
        assert disk.device.log[-1].pattern_bytes == BLOCK
        assert disk.device.data == bytes(3 * BLOCK) + block_of_data * 5 + bytes((CAPACITY - 8) * BLOCK)


@SAME
def test_write_same_of_zeros(disk: Bench, opcode: int, shape) -> None:
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
def test_write_same_refusals(disk: Bench, opcode: int, shape) -> None:
    """WRPROTECT, ANCHOR, the obsolete bits; then the range; then WSNZ."""
    one = bytes(BLOCK)
    for flags, bit in ((0x20, 7), (0xE0, 7), (ANCHOR, 4), (ANCHOR | UNMAP, 4), (0x04, 2), (0x02, 2)):
        outcome = disk.execute(shape(opcode, 0, 1, flags), data_out=one)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, bit))
    for lba, blocks in ((CAPACITY, 1), (CAPACITY - 1, 2), (CAPACITY + 1, 0)):
        assert code(disk.execute(shape(opcode, lba, blocks), data_out=one)) == OUT_OF_RANGE
    for lba in (0, CAPACITY):
        outcome = disk.execute(shape(opcode, lba, 0), data_out=one)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (NUMBER_OF_BLOCKS_BYTE[opcode], None))
    assert disk.device.log == []


@SAME
@pytest.mark.parametrize("flags", [0, UNMAP])
def test_write_same_wants_one_block(disk: Bench, opcode: int, shape, flags: int) -> None:
    """A data-out buffer that is no block: 05/0E/03."""
    for length in (0, 1, 256, 511, 513, 1024):
        outcome = disk.execute(shape(opcode, 0, 1, flags), data_out=b"\xa6" * length)
        assert code(outcome) == (0x5, 0x0E, 0x03)
    assert disk.device.log == []


@SAME
@pytest.mark.parametrize("fill", [b"\xa6", b"\0"])
def test_write_same_to_the_end(opcode: int, shape, fill: bytes) -> None:
    """On a fully provisioned unit zero blocks are all up to the last one (WSNZ=0); at the capacity there is none."""
    disk = Bench(personality=scsi.Personality(is_thin=False))
    disk.device.data[:] = b"\xff" * len(disk.device.data)
    assert disk.execute(shape(opcode, 3, 0), data_out=fill * BLOCK).status == scsi.GOOD
    assert disk.device.data == b"\xff" * (3 * BLOCK) + fill * ((CAPACITY - 3) * BLOCK)
    for lba in (CAPACITY, CAPACITY + 1):
        assert code(disk.execute(shape(opcode, lba, 0), data_out=fill * BLOCK)) == OUT_OF_RANGE


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
