"""READ CAPACITY and GET LBA STATUS: what a disk says of its blocks."""

from __future__ import annotations

from iscsi_ovs import block, scsi
from tests.commands.bench import Bench, code, field_pointer
from tests.commands.shapes import BLOCK, CAPACITY, INVALID_FIELD, OUT_OF_RANGE

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
