"""LOG SENSE, byte by byte."""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from tests.commands.bench import Bench, code, field_pointer

INVALID_FIELD = (0x5, 0x24, 0x00)
PAGES = "00 00 0003 00 0c 2f"
SUBPAGES = "40 ff 0008 0000 00ff 0c00 2f00"
PROVISIONING = "8c 00 000c 0002 03 08 00000000 01 000000"
EXCEPTIONS = "af 00 0008 0000 03 04 00 00 ff 00"


def log_sense(page: int, subpage: int = 0, *, flags: int = 0, pointer: int = 0, length: int = 0xFFFF) -> str:
    return f"4d {flags:02x} {page:02x} {subpage:02x} 00 {pointer:04x} {length:04x} 00"


@pytest.mark.parametrize("control", range(4))
@pytest.mark.parametrize(
    ("page", "subpage", "expected"),
    [(0x00, 0x00, PAGES), (0x00, 0xFF, SUBPAGES), (0x0C, 0x00, PROVISIONING), (0x2F, 0x00, EXCEPTIONS)],
)
def test_pages(disk: Bench, page: int, subpage: int, expected: str, control: int) -> None:
    """Whatever PC is: there are only lists. Cut at the allocation length."""
    whole = bytes.fromhex(expected)
    for length in (0, 1, 4, len(whole), 0xFFFF):
        outcome = disk.execute(log_sense(control << 6 | page, subpage, length=length))
        assert (outcome.data, outcome.transfer_bytes) == (whole[:length], min(length, len(whole)))


@pytest.mark.parametrize(
    ("used_bytes", "count"), [(1, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (5 << 40, 5 << 20), (1 << 60, 0xFFFFFFFF)]
)
@pytest.mark.parametrize("block_bytes", [512, 4096])
def test_what_a_thin_unit_takes(block_bytes: int, used_bytes: int, count: int) -> None:
    """In threshold sets of VPD page B2, begun ones too."""
    disk = Bench(logical_block_bytes=block_bytes)
    disk.used_bytes = used_bytes
    data = disk.execute(log_sense(0x0C, pointer=2)).data
    assert int.from_bytes(data[8:12], "big") == count
    assert disk.execute("12 01 b2 00ff 00").data[4] == {512: 11, 4096: 8}[block_bytes]


def test_what_is_left_for_all(disk: Bench) -> None:
    """Where the volume server knows: whole threshold sets, shared with others, before what is used."""
    disk.used_bytes, disk.available_bytes = 1, (3 << 20) - 1
    data = disk.execute(log_sense(0x0C)).data
    assert data.hex(" ", 4) == "8c000018 00010308 00000002 02000000 00020308 00000001 01000000"
    assert disk.execute(log_sense(0x0C, pointer=2)).data[4:] == data[16:]


def test_what_can_not_be_told_now(disk: Bench) -> None:
    """The volume server is away: BUSY."""
    disk.used_bytes = None
    assert disk.execute(log_sense(0x0C)) == scsi.Outcome(scsi.BUSY)


def test_a_thick_unit_has_no_provisioning() -> None:
    """The page is neither listed nor there."""
    disk = Bench(personality=scsi.Personality(is_thin=False))
    assert disk.execute(log_sense(0x00)).data.hex() == "00000002002f"
    assert code(disk.execute(log_sense(0x0C))) == INVALID_FIELD


def test_every_listed_page_is_there(disk: Bench) -> None:
    """And its length is true."""
    for page in disk.execute(log_sense(0x00)).data[4:]:
        data = disk.execute(log_sense(page)).data
        assert data[0] & 0x3F == page
        assert int.from_bytes(data[2:4], "big") == len(data) - 4


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (log_sense(0x00, flags=2), (1, 1)),
        (log_sense(0x00, flags=1), (1, 0)),
        (log_sense(0x02), (2, 5)),
        (log_sense(0x3F, 0xFF), (2, 5)),
        (log_sense(0x00, 0x01), (3, None)),
        (log_sense(0x2F, 0xFF), (3, None)),
        (log_sense(0x2F, pointer=1), (5, None)),
        (log_sense(0x00, pointer=0x100), (5, None)),
        (log_sense(0x0C, pointer=3), (5, None)),
    ],
)
def test_refusals(disk: Bench, text: str, pointer: tuple[int, int | None]) -> None:
    """PPC, SP, pages that are not there, parameters behind the last one."""
    outcome = disk.execute(text)
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, pointer)


def test_log_select_is_not_there(disk: Bench) -> None:
    """Nothing can be set or reset."""
    assert code(disk.execute("4c 02 00 00 00 0000 0000 00")) == (0x5, 0x20, 0x00)
    assert disk.execute("4d 00 00 00 00 0000 0000 00") == scsi.Outcome()
