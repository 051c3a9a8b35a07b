"""READ CAPACITY, GET LBA STATUS, READ DEFECT DATA, PRE-FETCH: what a disk says of its blocks."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from tests.commands.bench import Bench, code, field_pointer
from tests.commands.shapes import BLOCK, CAPACITY, INVALID_FIELD, OUT_OF_RANGE, sixteen, ten

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


# GET LBA STATUS -------------------------------------------------------------------------------------------------

HOLE, DATA = 0, 1


def lba_status(lba: int, length: int) -> str:
    return f"9e 12 {lba:016x} {length:08x} 00 00"


def ask(disk: Bench, lba: int, length: int, *answers: tuple[int, int]) -> list[tuple[int, int, int]]:
    """The (LBA, blocks, status) that it says while the volume server answers with (bytes, HOLE or DATA)."""
    result = disk.start(lba_status(lba, length), data_in=1 << 20)
    left = list(answers)
    while isinstance(result, block.Request):
        assert result.operation is block.Operation.EXTENTS
        assert result.offset_bytes + result.length_bytes <= disk.unit.capacity_blocks * disk.unit.block_bytes
        assert result.finish is not None
        run_bytes, is_data = left.pop(0)
        result = result.finish(block.Completion(result, None, min(run_bytes, result.length_bytes), is_data))
    assert not left, "it asked less than it was expected to"
    assert result.status == scsi.GOOD
    assert int.from_bytes(result.data[:4], "big") == len(result.data) - 4
    return [
        (int.from_bytes(result.data[at : at + 8], "big"), int.from_bytes(result.data[at + 8 : at + 12], "big"),
         result.data[at + 12])
        for at in range(8, len(result.data), 16)
    ]  # fmt: skip


def test_get_lba_status(disk: Bench) -> None:
    """With room for one: from the LBA asked for to the end of its run; LBAs behind the end are out of range."""
    outcome = disk.execute(lba_status(3, 24))
    blocks = CAPACITY - 3
    assert outcome.data.hex() == f"0000001400000000{3:016x}{blocks:08x}00000000"
    for length in (0, 1, 8, 12, 23):
        assert disk.execute(lba_status(3, length)).data == outcome.data[:length]
    assert code(disk.execute(lba_status(CAPACITY, 24))) == OUT_OF_RANGE
    disk.device.fail_next(block.Error.MEDIUM_READ)
    assert disk.execute(lba_status(3, 32)).status == scsi.CHECK_CONDITION


def test_lba_status_of_several_runs(disk: Bench) -> None:
    """As many descriptors as there is room for, without a gap, each status as the volume server told it."""
    runs = [(4096, DATA), (8192, HOLE), (4096, DATA), (1 << 20, HOLE)]
    whole = [(0, 8, 0), (8, 16, 1), (24, 8, 0), (32, CAPACITY - 32, 1)]
    assert ask(disk, 0, 8 + 4 * 16, *runs) == whole
    assert ask(disk, 0, 0xFFFFFFFF, *runs) == whole
    assert ask(disk, 0, 8 + 2 * 16 + 15, *runs[:3]) == whole[:2]
    assert ask(disk, 0, 8 + 16, *runs[:1]) == whole[:1]


def test_neighbours_with_one_status_are_one_descriptor(disk: Bench) -> None:
    """However the volume server cut them; a block with some data in it is mapped."""
    assert ask(disk, 0, 256, (512, DATA), (1024, DATA), (1 << 20, HOLE)) == [(0, 3, 0), (3, CAPACITY - 3, 1)]
    assert ask(disk, 0, 256, (1000, HOLE), (488, HOLE), (1 << 20, HOLE)) == [(0, 1, 1), (1, 1, 0), (2, CAPACITY - 2, 1)]
    assert ask(disk, 0, 256, (700, DATA), (188, DATA), (1 << 20, HOLE)) == [(0, 2, 0), (2, CAPACITY - 2, 1)]


def test_lba_status_is_bounded() -> None:
    """Neither many descriptors nor many neighbours keep one command for ever."""
    disk = Bench()
    disk.unit.resize(block.Geometry(1 << 50))
    disk.nexus.attentions[disk.unit].clear()
    alternating = [(512, number % 2) for number in range(257)]
    assert len(ask(disk, 0, 1 << 20, *alternating)) == 256
    alike = [(512, DATA)] * 512
    assert ask(disk, 0, 1 << 20, *alike) == [(0, 512, 0)]
    # a run of more than 2^32 - 1 blocks is two descriptors
    assert ask(disk, 0, 8 + 2 * 16, *[(1 << 50, HOLE)] * 3) == [
        (0, 0xFFFFFFFF, 1), (0xFFFFFFFF, 0xFFFFFFFF, 1),
    ]  # fmt: skip


def test_lba_status_of_a_thick_unit() -> None:
    """SBC-3 4.7.2: every LBA is mapped, and nobody is asked."""
    disk = Bench(personality=scsi.Personality(is_thin=False))
    outcome = disk.execute(lba_status(7, 256))
    assert outcome.data.hex() == f"0000001400000000{7:016x}{CAPACITY - 7:08x}00000000"
    assert disk.device.log == []


# READ DEFECT DATA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [0x00, 0x08, 0x10, 0x18])
def test_read_defect_data(disk: Bench, lists: int) -> None:
    """No defects, in whatever format they are asked for; the lists that were asked for are said to be there."""
    for form in range(8):
        for length in (0, 1, 4, 8, 0xFFFF):
            ten_bytes = disk.execute(f"37 00 {lists | form:02x} 00000000 {length:04x} 00")
            assert (ten_bytes.data, ten_bytes.transfer_bytes) == (
                bytes((0, lists | form, 0, 0))[:length],
                min(length, 4),
            )
            twelve_bytes = disk.execute(f"b7 {lists | form:02x} 00000000 {length:08x} 00 00")
            assert twelve_bytes.data == bytes((0, lists | form, 0, 0, 0, 0, 0, 0))[:length]
    assert disk.device.log == []


# PRE-FETCH ------------------------------------------------------------------------------------------------------

every_pre_fetch = pytest.mark.parametrize(("opcode", "shape"), [(0x34, ten), (0x90, sixteen)])


@every_pre_fetch
@pytest.mark.parametrize("flags", [0x00, 0x02])
def test_pre_fetch(disk: Bench, opcode: int, shape, flags: int) -> None:
    """The server reads the blocks, all of them: CONDITION MET. Zero blocks are all to the last one."""
    for lba, blocks, read in ((0, 1, 1), (5, 8, 8), (CAPACITY - 1, 1, 1), (0, 0, CAPACITY), (CAPACITY - 3, 0, 3)):
        assert disk.execute(shape(opcode, lba, blocks, flags)) == scsi.Outcome(scsi.CONDITION_MET)
        request = disk.device.log[-1]
        assert (request.operation, request.buffer) == (block.Operation.COMPARE, None)
        assert (request.offset_bytes, request.length_bytes) == (lba * BLOCK, read * BLOCK)
    disk.device.log.clear()
    assert disk.execute(shape(opcode, CAPACITY, 0, flags)).status == scsi.CONDITION_MET
    for lba, blocks in ((CAPACITY, 1), (CAPACITY - 1, 2), (CAPACITY + 1, 0), (0xFFFFFFFF, 0)):
        assert code(disk.execute(shape(opcode, lba, blocks, flags))) == OUT_OF_RANGE
    assert disk.device.log == []
    disk.device.fail_next(block.Error.MEDIUM_READ)
    assert code(disk.execute(shape(opcode, 0, 1))) == (0x3, 0x11, 0x00)


@pytest.mark.parametrize("blocks", [0, (8 << 20) // BLOCK + 1])
def test_pre_fetch_of_more_than_there_is_room_for(blocks: int) -> None:
    """What VPD page B0 says is taken, and GOOD says that it is not all."""
    disk = Bench()
    disk.unit.resize(block.Geometry(1 << 40))
    disk.nexus.attentions[disk.unit].clear()
    assert disk.execute("12 01 b0 00ff 00").data[16:20].hex() == "00004000"
    request = disk.start(sixteen(0x90, 0, blocks))
    assert isinstance(request, block.Request)
    assert request.length_bytes == 8 << 20
    assert request.finish is not None
    assert request.finish(block.Completion(request, None, 0)) == scsi.Outcome(scsi.GOOD)
