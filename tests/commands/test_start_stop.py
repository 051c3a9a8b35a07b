"""START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL. What an eject does to the unit: test_personality."""

from __future__ import annotations

import itertools

import pytest

from iscsi_ovs import block, scsi
from tests.commands.bench import Bench, code, field_pointer

EJECT, LOAD = "1b 00 0000 02 00", "1b 00 0000 03 00"
PREVENT, ALLOW = "1e 000000 01 00", "1e 000000 00 00"
REMOVAL_PREVENTED = (0x5, 0x53, 0x02)


@pytest.fixture
def removable() -> Bench:
    return Bench(personality=scsi.Personality(is_removable=True))


def flushes(disk: Bench) -> int:
    assert all(request.operation is block.Operation.FLUSH for request in disk.device.log)
    return len(disk.device.log)


def test_start_and_stop(disk: Bench) -> None:
    """START is nothing to do; a stop flushes, unless NO_FLUSH; the unit stays ready for everybody."""
    for immediate, (action, flushed) in itertools.product((0, 1), ((0x01, 0), (0x00, 1), (0x04, 0), (0x05, 0))):
        disk.device.log.clear()
        assert disk.execute(f"1b {immediate:02x} 0000 {action:02x} 00") == scsi.Outcome()
        assert flushes(disk) == flushed
    assert disk.execute("00").status == scsi.GOOD


@pytest.mark.parametrize("condition", range(1, 16))
def test_power_conditions(removable: Bench, condition: int) -> None:
    """START and LOEJ are ignored: nothing is ejected; the quiet ones write the cache out, unless NO_FLUSH."""
    for low in (0x0, 0x1, 0x2, 0x3, 0x4, 0x6):
        removable.device.log.clear()
        assert removable.execute(f"1b 00 0000 {condition << 4 | low:02x} 00") == scsi.Outcome()
        assert flushes(removable) == (condition in (0x2, 0x3, 0xA, 0xB) and not low & 0x4)
        assert removable.execute("00").status == scsi.GOOD


def test_a_stop_of_a_unit_that_is_away(disk: Bench) -> None:
    """BUSY, as whatever reaches for the medium; a start reaches for nothing."""
    disk.unit.block("away")
    assert disk.execute("1b 00 0000 00 00") == scsi.Outcome(scsi.BUSY)
    assert disk.execute("1b 00 0000 20 00") == scsi.Outcome(scsi.BUSY)
    assert disk.execute("1b 00 0000 01 00") == scsi.Outcome()


def test_removal_is_prevented(removable: Bench) -> None:
    """Neither out nor in, for nobody; the medium is still there; then it is allowed."""
    other = removable.login()
    assert removable.execute(PREVENT) == scsi.Outcome()
    for nexus in (removable.nexus, other):
        for text in (EJECT, LOAD):
            assert code(removable.execute(text, nexus=nexus)) == REMOVAL_PREVENTED
    assert removable.execute("00") == scsi.Outcome()
    assert removable.execute("1b 00 0000 00 00") == scsi.Outcome(), "a stop takes nothing out"
    assert removable.execute(ALLOW) == scsi.Outcome()
    assert removable.execute(EJECT) == scsi.Outcome()
    assert removable.execute(PREVENT) == scsi.Outcome(), "without a medium, too"
    assert code(removable.execute(LOAD)) == REMOVAL_PREVENTED
    removable.execute(ALLOW)
    assert removable.execute(LOAD) == scsi.Outcome()


def test_each_nexus_prevents_for_itself(removable: Bench) -> None:
    """Until the last one allows; to say it twice is to say it once."""
    other = removable.login()
    for nexus in (removable.nexus, removable.nexus, other):
        removable.execute(PREVENT, nexus=nexus)
    removable.execute(ALLOW)
    assert code(removable.execute(EJECT)) == REMOVAL_PREVENTED
    removable.execute(ALLOW, nexus=other)
    assert removable.execute(EJECT) == scsi.Outcome()


@pytest.mark.parametrize("end", ["logout", "nexus lost", "logical unit reset", "hard reset"])
def test_prevention_ends(removable: Bench, end: str) -> None:
    """With its nexus, and with any reset."""
    other = removable.login()
    removable.execute(PREVENT, nexus=other)
    if end == "logout":
        removable.router.release(other)
    elif end == "nexus lost":
        removable.unit.nexus_lost(other)
    else:
        removable.unit.reset(scsi.Reset.HARD if end == "hard reset" else scsi.Reset.LOGICAL_UNIT)
        removable.nexus.attentions[removable.unit].clear()
    assert removable.execute(EJECT) == scsi.Outcome()


def test_a_fixed_medium_can_be_prevented_from_nothing(disk: Bench) -> None:
    """The command is taken; the obsolete values are not."""
    for text in (PREVENT, ALLOW):
        assert disk.execute(text) == scsi.Outcome()
    for prevent in (2, 3):
        outcome = disk.execute(f"1e 000000 {prevent:02x} 00")
        assert (code(outcome), field_pointer(outcome)) == ((0x5, 0x24, 0x00), (4, 1))
