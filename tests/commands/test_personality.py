"""Disks of every kind: what the operator chose is what INQUIRY, VPD, READ CAPACITY and mode pages say, and obey."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Operation
from iscsi_ovs.scsi import Personality
from tests.commands.bench import UUID, Bench, code, field_pointer
from tests.commands.test_vpd import designators, page

READ_CAPACITY_16 = "9e 10 0000000000000000 00000020 00 00"
WRITE = "2a 00 00000000 00 0001 00"
EJECT, LOAD = "1b 00 0000 02 00", "1b 00 0000 03 00"
NO_MEDIUM = (0x2, 0x3A, 0x00)
UNMAP_LIST = bytes.fromhex("0026 0020 00000000 0000000000000000 00000008 00000000 0000000000000010 00000008 00000000")


def of(**choices: object) -> Bench:
    return Bench(personality=Personality(**choices))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "choices",
    [
        {"logical_block_bytes": 520},
        {"physical_block_bytes": 1024},
        {"logical_block_bytes": 4096, "physical_block_bytes": 512},
        {"naa": 0x4 << 60},
        {"naa": 1},
        {"naa": 0x3 << 124},
        {"rotation_rate": 0xFFFF},
        {"rotation_rate": -1},
    ],
)
def test_what_no_disk_can_be(choices: dict[str, int]) -> None:
    """It is refused at once, and not found out by an initiator."""
    with pytest.raises(ValueError, match=next(iter(choices)) if len(choices) == 1 else "block_bytes"):
        Personality(**choices)  # type: ignore[arg-type]


def test_names() -> None:
    """Vendor, product and revision; a serial number and an NAA of the operator's on every page that has them."""
    disk = of(vendor="ACME", product="ANVIL", revision="1.0", serial="S-42", naa=0x5 << 60 | 7)
    assert disk.execute("12 00 00 00ff 00").data[8:36] == b"ACME    ANVIL           1.0 "
    assert page(disk, 0x80) == b"S-42"
    units = designators(page(disk, 0x83))[:3]
    assert units[0] == (0x01, 0x03, bytes.fromhex("5000000000000007"))
    assert units[1] == (0x02, 0x01, b"ACME    S-42")
    assert units[2] == (0x03, 0x08, b"naa.5000000000000007".ljust(24, b"\0"))


def test_a_long_naa() -> None:
    """NAA 6 has sixteen bytes."""
    value = 0x6 << 124 | 0xABC
    units = designators(page(of(naa=value), 0x83))
    assert units[0] == (0x01, 0x03, value.to_bytes(16, "big"))
    assert units[2][2].rstrip(b"\0") == f"naa.{value:032X}".encode()


def test_a_disk_that_rotates() -> None:
    """B1 says how fast."""
    assert page(of(rotation_rate=7200), 0xB1)[:2].hex() == "1c20"


# Blocks ---------------------------------------------------------------------------------------------------------


def test_blocks_of_4096_bytes() -> None:
    """Capacity in whole blocks, one logical block in a physical one; the tail of the volume is not shown."""
    disk = Bench(size_bytes=(1 << 20) + 3 * 1024, personality=Personality(logical_block_bytes=4096))
    assert disk.execute("25").data.hex() == "000000ff00001000"
    assert disk.execute(READ_CAPACITY_16).data.hex() == "00000000000000ff000010000000c000" + "00" * 16
    assert code(disk.execute("28 00 00000100 00 0001 00")) == (0x5, 0x21, 0x00)
    assert disk.execute("2a 00 000000ff 00 0001 00", data_out=b"x" * 4096).status == scsi.GOOD
    assert disk.device.data[0xFF * 4096 :] == b"x" * 4096 + bytes(3 * 1024)


def test_physical_blocks_of_512_bytes() -> None:
    """Exponent 0, granularity 1."""
    disk = of(physical_block_bytes=512)
    assert disk.execute(READ_CAPACITY_16).data[13] == 0
    assert page(disk, 0xB0)[2:4].hex() == "0001"


# Thick ----------------------------------------------------------------------------------------------------------


def test_a_thick_disk_claims_no_provisioning() -> None:
    """No LBPME, no page B2, no unmap limits; everything is mapped (GET LBA STATUS)."""
    disk = of(is_thin=False)
    assert disk.execute(READ_CAPACITY_16).data[14:16].hex() == "0000"
    assert 0xB2 not in page(disk, 0x00)
    assert code(disk.execute("12 01 b2 00ff 00")) == (0x5, 0x24, 0x00)
    assert not any(page(disk, 0xB0)[16:32])
    assert disk.execute("9e 12 0000000000000000 00000018 00 00").data[20] == 0


def test_a_thick_disk_does_not_unmap() -> None:
    """UNMAP is not there, and REPORT SUPPORTED OPERATION CODES says so; WRITE SAME refuses UNMAP and writes zeros."""
    disk = of(is_thin=False)
    assert code(disk.execute("42 00 00000000 00 0028 00", data_out=UNMAP_LIST)) == (0x5, 0x20, 0x00)
    assert disk.execute("a3 0c 01 42 0000 000000ff 00 00").data.hex() == "00010000"
    for text in ("41 08 00000000 00 0001 00", "93 08 0000000000000000 00000001 00 00"):
        outcome = disk.execute(text, data_out=bytes(512))
        assert (code(outcome), field_pointer(outcome)) == ((0x5, 0x24, 0x00), (1, 3))
    assert disk.execute("41 00 00000000 00 0001 00", data_out=bytes(512)).status == scsi.GOOD


# Read-only ------------------------------------------------------------------------------------------------------


def test_a_read_only_disk() -> None:
    """WP in mode data, 07/27/00 for whatever writes, and it reads."""
    disk = of(is_read_only=True)
    assert disk.execute("1a 00 3f 00 ff 00").data[2] == 0x90
    assert code(disk.execute(WRITE, data_out=bytes(512))) == (0x7, 0x27, 0x00)
    assert disk.execute("28 00 00000000 00 0001 00").status == scsi.GOOD
    assert not any(request.operation is Operation.WRITE for request in disk.device.log)


# Removable ------------------------------------------------------------------------------------------------------

MEDIUM_COMMANDS = (
    "00", "28 00 00000000 00 0001 00", "25", "9e 10 0000000000000000 00000020 00 00", "35",
    "9e 12 0000000000000000 00000018 00 00", "42", "93",
)  # fmt: skip


def test_the_medium_comes_out() -> None:
    """RMB; an eject flushes and takes the medium from everybody; identity and mode pages are still told."""
    disk = of(is_removable=True)
    other = disk.login()
    assert disk.execute("12 00 00 00ff 00").data[1] == 0x80
    assert disk.execute(EJECT) == scsi.Outcome()
    assert [request.operation for request in disk.device.log] == [Operation.FLUSH]
    for text in MEDIUM_COMMANDS:
        assert code(disk.execute(text)) == NO_MEDIUM
        assert code(disk.execute(text, nexus=other)) == NO_MEDIUM
    for text in ("12 00 00 0024 00", "1a 00 3f 00 ff 00", "a0 00 00 000000 00000010 00 00", "03 00 0000 ff 00"):
        assert disk.execute(text).status == scsi.GOOD
    assert disk.execute(EJECT) == scsi.Outcome(), "it is out already"
    assert len(disk.device.log) == 1


def test_the_medium_goes_in() -> None:
    """Who did not put it in hears 28/00: it may be another one. A second load is nothing new."""
    disk = of(is_removable=True)
    other = disk.login()
    disk.execute(EJECT)
    assert disk.execute(LOAD) == scsi.Outcome()
    assert disk.execute("00") == scsi.Outcome()
    assert code(disk.execute("00", nexus=other)) == (0x6, 0x28, 0x00)
    assert disk.execute(LOAD) == scsi.Outcome()
    assert disk.execute("00", nexus=other) == scsi.Outcome()


def test_a_medium_that_can_not_be_flushed_stays_in() -> None:
    """The eject fails as the flush did."""
    disk = of(is_removable=True)
    disk.device.fail_next(block.Error.WRITE_FAULT)
    assert code(disk.execute(EJECT)) == (0x3, 0x0C, 0x00)
    assert disk.execute("00") == scsi.Outcome()


def test_a_fixed_disk_has_nothing_to_eject(disk: Bench) -> None:
    """LOEJ is an invalid field."""
    for text in (EJECT, LOAD):
        outcome = disk.execute(text)
        assert (code(outcome), field_pointer(outcome)) == ((0x5, 0x24, 0x00), (4, 1))


def test_nothing_comes_out_of_a_unit_that_is_away() -> None:
    """BUSY while the volume server is gone, NOT READY for who does not hold the volume."""
    disk = of(is_removable=True)
    disk.unit.block("the volume server is away")
    assert disk.execute(EJECT) == scsi.Outcome(scsi.BUSY)
    disk.unit.unblock()
    del disk.nexus.devices[disk.unit]
    assert code(disk.execute(EJECT)) == (0x2, 0x04, 0x00)


def test_sanitize_keeps_from_the_medium(disk: Bench) -> None:
    """02/04/1B with its progress, until it is over."""
    disk.unit.sanitize_progress = 0x1234
    outcome = disk.execute("00")
    assert code(outcome) == (0x2, 0x04, 0x1B)
    assert outcome.sense[15:].hex() == "801234"
    assert code(disk.execute(WRITE, data_out=bytes(512))) == (0x2, 0x04, 0x1B)
    disk.unit.sanitize_progress = None
    assert disk.execute("00") == scsi.Outcome()


# Identity ---------------------------------------------------------------------------------------------------------


def test_identity_is_of_the_volume_unless_chosen(disk: Bench) -> None:
    """What the operator leaves alone is the volume's."""
    assert page(disk, 0x80) == UUID.encode()
