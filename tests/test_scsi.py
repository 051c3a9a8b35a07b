"""SAM: LUNs, gates and their order, unit attentions, what changes under living sessions."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import COMMAND_SET
from tests.commands.bench import UUID, Bench, code, new_nexus

READ = "28 00 00000000 00 0001 00"
WRITE = "2a 00 00000000 00 0001 00"
NOT_SUPPORTED = (0x5, 0x25, 0x00)


@pytest.fixture
def disk() -> Bench:
    return Bench()


def another_unit() -> scsi.LogicalUnit:
    return scsi.LogicalUnit(COMMAND_SET, scsi.Identity("other", UUID), block.Geometry(1 << 20))


# LUNs -----------------------------------------------------------------------------------------------------------


def test_lun_addressing(disk: Bench) -> None:
    """Peripheral and flat addressing name the same unit; nothing behind the first level does."""
    disk.router.add(3, another_unit())
    disk.router.add(256, another_unit())
    assert [hex(scsi.encode_lun(number)) for number in (0, 3, 255, 256, 0x3FFF)] == [
        "0x0", "0x3000000000000", "0xff000000000000", "0x4100000000000000", "0x7fff000000000000",
    ]  # fmt: skip
    units = disk.router.units
    for lun, number in (
        (0x0000 << 48, 0), (0x4000 << 48, 0), (0x0003 << 48, 3), (0x4003 << 48, 3), (0x4100 << 48, 256),
    ):  # fmt: skip
        assert disk.router.unit(lun) is units[number]
    for lun in (0x0001 << 48, 0x0100 << 48, 0x8000 << 48, 0xC101 << 48, 1, 0x0000_0001 << 32, (1 << 64) - 1):
        assert disk.router.unit(lun) is None


@pytest.mark.parametrize("lun", [1 << 48, 0x0100 << 48, 0x8000 << 48, 0xC102 << 48, 1, (1 << 64) - 1])
def test_a_lun_without_a_unit(disk: Bench, lun: int) -> None:
    """INQUIRY says that there is nothing, REPORT LUNS and REQUEST SENSE answer, all else is 05/25/00."""
    assert disk.execute("12 00 00 0024 00", lun=lun).data[:5].hex() == "7f0006125b"
    assert disk.execute("12 01 00 0024 00", lun=lun).data.hex() == "7f00000100"
    assert code(disk.execute("12 01 83 0024 00", lun=lun)) == (0x5, 0x24, 0x00)
    assert disk.execute("a0 00 00 000000 00000010 00 00", lun=lun).data.hex() == "00000008000000000000000000000000"
    outcome = disk.execute("03 00 0000 ff 00", lun=lun)
    assert (outcome.status, outcome.data[2], outcome.data[12:14].hex()) == (scsi.GOOD, 5, "2500")
    for text in ("00", READ, WRITE, "25", "ff", "a3 0c", "9e 10"):
        assert code(disk.execute(text, lun=lun)) == NOT_SUPPORTED


def test_the_report_luns_unit(disk: Bench) -> None:
    """C101h: device type 1Eh, always ready, no disk."""
    lun = scsi.REPORT_LUNS_WELL_KNOWN_LUN
    nexus = disk.login(hears_power_on=True)
    assert disk.execute("00", lun=lun, nexus=nexus) == scsi.Outcome()
    assert disk.execute("12 00 00 0001 00", lun=lun).data.hex() == "1e"
    assert disk.execute("a0 00 02 000000 00000100 00 00", lun=lun).data.hex()[16:] == "0" * 16 + "c101" + "0" * 12
    assert disk.execute("03 01 0000 ff 00", lun=lun).data.hex() == "7200000000000000"
    assert code(disk.execute(READ, lun=lun)) == (0x5, 0x20, 0x00)


def test_a_target_without_units() -> None:
    """As a discovery session sees it."""
    router = scsi.TaskRouter(COMMAND_SET)
    nexus = new_nexus()
    router.establish(nexus)
    outcome = router.execute(scsi.Command(nexus, 0, bytes.fromhex("a00000000000000004000000").ljust(16, b"\0")))
    assert isinstance(outcome, scsi.Outcome)
    assert outcome.data == bytes(8)
    router.release(nexus)


# Unit attentions ------------------------------------------------------------------------------------------------


def test_a_new_nexus_hears_of_power_on(disk: Bench) -> None:
    """29/00 once, to the new one only, and not by commands that pass."""
    nexus = disk.login(hears_power_on=True)
    for text in ("12 00 00 0024 00", "a0 00 00 000000 00000010 00 00"):
        assert disk.execute(text, nexus=nexus).status == scsi.GOOD
    assert code(disk.execute("00", nexus=nexus)) == (0x6, 0x29, 0x00)
    assert disk.execute("00", nexus=nexus).status == scsi.GOOD
    assert disk.execute("00").status == scsi.GOOD


def test_attentions_come_in_order_and_once(disk: Bench) -> None:
    """First in, first out, but for resets, which come first; a condition that is pending already stays one."""
    nexus = disk.login()
    for _ in range(3):
        disk.unit.resize(block.Geometry(2 << 20))
        disk.unit.reset()
        disk.unit.raise_attention(scsi.MODE_PARAMETERS_CHANGED)
    seen = [code(disk.execute(READ, nexus=nexus)) for _ in range(3)]
    assert seen == [(0x6, 0x29, 0x03), (0x6, 0x2A, 0x09), (0x6, 0x2A, 0x01)]
    assert disk.execute(READ, nexus=nexus).status == scsi.GOOD
    assert len(disk.device.log) == 1


@pytest.mark.parametrize("text", ["ff", "2a 04 00000000 00 0001 04", "28 00 ffffffff 00 0001 00"])
def test_attention_stands_before_all_else(disk: Bench, text: str) -> None:
    """An unknown or refused command reports the unit attention first, and is refused when it comes again."""
    disk.unit.raise_attention(scsi.CAPACITY_DATA_HAS_CHANGED)
    assert code(disk.execute(text)) == (0x6, 0x2A, 0x09)
    assert code(disk.execute(text))[0] == 0x5


def test_released_nexuses_hear_nothing(disk: Bench) -> None:
    """And coming back is a new nexus, after the loss of the old one. To release twice, or one that never was, is no
    mistake."""
    disk.router.release(disk.nexus)
    disk.router.release(disk.nexus)
    disk.unit.release(new_nexus())
    disk.unit.resize(block.Geometry(2 << 20))
    assert disk.nexus.attentions == {}
    disk.router.establish(disk.nexus)
    assert disk.nexus.attentions == {disk.unit: [scsi.I_T_NEXUS_LOSS_OCCURRED]}


def test_inventory_changes(disk: Bench) -> None:
    """3F/0E on the units that were there; the new one says power on; REPORT LUNS takes it away."""
    other = disk.login()
    added = another_unit()
    disk.router.add(1, added)
    disk.nexus.devices[added] = disk.device
    assert disk.nexus.attentions == other.attentions == {disk.unit: [(0x3F, 0x0E)], added: [(0x29, 0x00)]}
    assert code(disk.execute("00")) == (0x6, 0x3F, 0x0E)
    assert code(disk.execute("00", lun=1 << 48)) == (0x6, 0x29, 0x00)
    disk.router.remove(1)
    assert disk.router.unit(1 << 48) is None
    assert disk.nexus.attentions == {disk.unit: [(0x3F, 0x0E)]}
    disk.execute("a0 00 00 000000 00000010 00 00")
    assert disk.nexus.attentions == {disk.unit: []}
    assert other.attentions == {disk.unit: [(0x3F, 0x0E)]}
    assert code(disk.execute("00", lun=1 << 48)) == NOT_SUPPORTED


def test_a_unit_in_two_maps(disk: Bench) -> None:
    """One unit under two numbers, in a map each: what is the unit's is heard in both, what is a map's in that one."""
    other = scsi.TaskRouter(COMMAND_SET, {5: disk.unit})
    nexus = new_nexus()
    nexus.devices[disk.unit] = disk.device
    other.establish(nexus)
    nexus.attentions[disk.unit].clear()
    other.add(6, another_unit())
    assert nexus.attentions[disk.unit] == [(0x3F, 0x0E)]
    assert disk.nexus.attentions == {disk.unit: []}
    luns = other.execute(scsi.Command(nexus, 5 << 48, bytes.fromhex("a00000000000000000200000"), 32))
    assert isinstance(luns, scsi.Outcome)
    assert luns.data.hex() == "0000001000000000" + "0005000000000000" + "0006000000000000"
    disk.unit.resize(block.Geometry(2 << 20))
    assert nexus.attentions[disk.unit] == disk.nexus.attentions[disk.unit] == [(0x2A, 0x09)]


# Gates ----------------------------------------------------------------------------------------------------------


def test_blocked(disk: Bench) -> None:
    """While the volume server is away what needs the medium is BUSY; identity is still told."""
    disk.unit.block("the volume server is away")
    for text in (READ, WRITE, "00", "25", "9e 10", "35", "42", "93", "1b"):
        assert disk.execute(text) == scsi.Outcome(scsi.BUSY)
    for text in ("12 00 00 0024 00", "a0 00 00 000000 00000010 00 00", "1a 00 3f 00 ff 00", "03 00 0000 ff 00"):
        assert disk.execute(text).status == scsi.GOOD
    assert code(disk.execute("ff")) == (0x5, 0x20, 0x00)
    disk.unit.unblock()
    assert disk.execute(READ).status == scsi.GOOD


def test_not_held(disk: Bench) -> None:
    """A nexus without the volume: NOT READY, also to TEST UNIT READY; the others go on."""
    other = disk.login()
    del other.devices[disk.unit]
    for text in (READ, WRITE, "00", "25", "35"):
        assert code(disk.execute(text, nexus=other)) == (0x2, 0x04, 0x00)
    assert disk.execute("12 00 00 0024 00", nexus=other).status == scsi.GOOD
    assert disk.execute(READ).status == scsi.GOOD


def test_the_order_of_gates(disk: Bench) -> None:
    """LUN, unit attention, operation, CDB, busy, ready, protection: each hides those behind it."""
    naca_write = "2a 00 00000000 00 0001 04"
    disk.unit.is_read_only = True
    disk.unit.block("away")
    disk.nexus.devices.clear()
    disk.unit.raise_attention(scsi.CAPACITY_DATA_HAS_CHANGED)
    assert code(disk.execute(naca_write, lun=1 << 48)) == NOT_SUPPORTED
    assert code(disk.execute(naca_write)) == (0x6, 0x2A, 0x09)
    assert code(disk.execute("fe")) == (0x5, 0x20, 0x00)
    assert code(disk.execute(naca_write)) == (0x5, 0x24, 0x00)
    assert disk.execute(WRITE).status == scsi.BUSY
    disk.unit.unblock()
    assert code(disk.execute(WRITE)) == (0x2, 0x04, 0x00)
    disk.nexus.devices[disk.unit] = disk.device
    assert code(disk.execute(WRITE)) == (0x7, 0x27, 0x00)
    disk.unit.is_read_only = False
    assert disk.execute(WRITE, data_out=bytes(512)).status == scsi.GOOD


# Change ---------------------------------------------------------------------------------------------------------


def test_resize(disk: Bench) -> None:
    """READ CAPACITY is new at once, every nexus hears 2A/09, and the new blocks are there."""
    other = disk.login()
    disk.unit.resize(disk.device.resize(2 << 20))
    for nexus in (disk.nexus, other):
        assert code(disk.execute("25", nexus=nexus)) == (0x6, 0x2A, 0x09)
        assert disk.execute("25", nexus=nexus).data.hex() == "00000fff00000200"
    assert disk.execute("28 00 00000fff 00 0001 00").status == scsi.GOOD


def test_a_command_that_started_before_a_resize(disk: Bench) -> None:
    """It was checked against the capacity at its start, and ends as it was."""
    request = disk.start(READ, data_in=512)
    assert isinstance(request, block.Request)
    disk.unit.resize(disk.device.resize(2 << 20))
    outcome = disk.step(request)
    assert isinstance(outcome, scsi.Outcome)
    assert outcome.status == scsi.GOOD


def test_reset(disk: Bench) -> None:
    """29/03 on every nexus."""
    other = disk.login()
    disk.unit.reset()
    for nexus in (disk.nexus, other):
        assert code(disk.execute("00", nexus=nexus)) == (0x6, 0x29, 0x03)


def test_capacity_is_of_whole_blocks() -> None:
    """A size that is no multiple of the block loses its tail."""
    unit = scsi.LogicalUnit(COMMAND_SET, scsi.Identity("x", UUID), block.Geometry(1023))
    assert unit.capacity_blocks == 1


def test_requests_carry_their_finish(disk: Bench) -> None:
    """The hot path's requests leave done and context to whoever submits them, and a READ its buffer."""
    for text, data_out in ((READ, b""), (WRITE, bytes(512))):
        command = disk.command(text, data_in=512, data_out=data_out)
        request = disk.router.execute(command)
        assert isinstance(request, block.Request)
        assert (request.done, request.context) == (None, None)
        assert request.finish is not None
        assert request.buffer is command.data_out
        assert command.device is disk.device
