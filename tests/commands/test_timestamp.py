"""REPORT and SET TIMESTAMP, with a clock of the test's."""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from tests.commands.bench import Bench, code

NOW_MS = 0x0123_4567_89AB
REPORT = "a3 0f 00000000 000000ff 00 00"


@pytest.fixture
def clock(disk: Bench) -> list[int]:
    """What time it is, as one number in a list."""
    clock = [NOW_MS]
    disk.unit.now_ms = lambda: clock[0]
    return clock


def set_timestamp(disk: Bench, value: int, length: int = 12) -> scsi.Outcome:
    data = (bytes(4) + value.to_bytes(6, "big") + bytes(2))[:length]
    return disk.execute(f"a4 0f 00000000 {length:08x} 00 00", data_out=data)


@pytest.mark.usefixtures("clock")
def test_the_time_is_the_targets(disk: Bench) -> None:
    """Ten bytes follow, set by other means, milliseconds in six bytes; cut at the allocation length."""
    whole = bytes.fromhex("000a 03 00 0123456789ab 0000")
    assert disk.execute(REPORT).data == whole
    for length in (0, 1, 9, 12):
        assert disk.execute(f"a3 0f 00000000 {length:08x} 00 00").data == whole[:length]


def test_set(disk: Bench, clock: list[int]) -> None:
    """It goes on from what was set, past its six bytes, too; the other nexuses hear of it."""
    other = disk.login()
    outcome = set_timestamp(disk, 1000)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, 12)
    clock[0] += 234
    assert disk.execute(REPORT).data.hex() == "000a02000000000004d20000"
    assert code(disk.execute("00", nexus=other)) == (0x6, 0x2A, 0x10)
    set_timestamp(disk, (1 << 48) - 1)
    clock[0] += 1
    assert disk.execute(REPORT).data[4:10] == bytes(6)


@pytest.mark.usefixtures("clock")
def test_refused_lists(disk: Bench) -> None:
    """Shorter than they are; none at all is no error."""
    for length in (1, 4, 11):
        assert code(set_timestamp(disk, 0, length)) == (0x5, 0x1A, 0x00)
    assert disk.execute("a4 0f 00000000 00000000 00 00") == scsi.Outcome()
    assert disk.execute(REPORT).data[2] == 3
