"""The soft threshold of the pool, as initiators see it: mode pages 01 and 1C/02, and the unit attention."""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from tests.commands.bench import Bench, code

INVALID_FIELD = (0x5, 0x24, 0x00)
INVALID_FIELD_IN_LIST = (0x5, 0x26, 0x00)
SENSE_1C_02 = "5a 08 1c 02 00 00 00 00 ff 00"


@pytest.mark.parametrize(
    ("left_bytes", "flags", "count"), [(0, 0, 0), ((5 << 20) + 1, 0x80, 5), (1 << 62, 0x80, 0xFFFFFFFF)]
)
def test_the_descriptor_says_where_it_is(disk: Bench, left_bytes: int, flags: int, count: int) -> None:
    """In threshold sets that are left; not enabled where there is none."""
    disk.unit.soft_threshold_bytes = left_bytes
    page = disk.execute(SENSE_1C_02).data[8:]
    assert page[:4].hex() == "5c020014"
    assert page[16:].hex() == f"{flags:02x}010000{count:08x}"


def test_it_is_not_an_initiators_to_choose(disk: Bench) -> None:
    """What is sent back as it is is taken; anything else is refused."""
    disk.unit.soft_threshold_bytes = 5 << 20
    page = bytearray(disk.execute(SENSE_1C_02).data[8:])
    select = "55 10 0000000000 0020 00"
    assert disk.execute(select, data_out=bytes(8) + page).status == scsi.GOOD
    page[23] += 1
    assert code(disk.execute(select, data_out=bytes(8) + page)) == INVALID_FIELD_IN_LIST


def test_a_thick_unit_has_none() -> None:
    """Neither the page nor the bit that says that thresholds are reported."""
    disk = Bench(personality=scsi.Personality(is_thin=False))
    assert code(disk.execute(SENSE_1C_02)) == INVALID_FIELD
    assert disk.execute("5a 08 01 00 00 00 00 00 ff 00").data[8:][7] == 0


def test_the_unit_attention_says_which_descriptor(disk: Bench) -> None:
    """Once; INFORMATION is the descriptor's place in the mode page."""
    disk.unit.raise_attention(scsi.SOFT_THRESHOLD_REACHED)
    disk.unit.raise_attention(scsi.SOFT_THRESHOLD_REACHED)
    outcome = disk.execute("00 00 00 00 00 00")
    assert code(outcome) == (0x6, 0x38, 0x07)
    assert outcome.sense[0] & 0x80
    assert int.from_bytes(outcome.sense[3:7], "big") == 16
    assert disk.execute("00 00 00 00 00 00") == scsi.Outcome()
