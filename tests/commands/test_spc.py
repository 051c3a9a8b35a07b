"""Primary commands: INQUIRY, REPORT LUNS, MODE SENSE, REQUEST SENSE, START STOP UNIT, byte by byte."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import COMMAND_SET
from tests.commands.bench import UUID, Bench, code, field_pointer

INVALID_FIELD = (0x5, 0x24, 0x00)


def test_test_unit_ready(disk: Bench) -> None:
    """Ready."""
    assert disk.execute("00") == scsi.Outcome()


# INQUIRY --------------------------------------------------------------------------------------------------------


def test_standard_inquiry(disk: Bench) -> None:
    """A disk of SPC-4 and SBC-3 behind iSCSI: hierarchical LUNs, command queuing, asymmetric access of both kinds,
    third-party copy, several ports; no bit that promises more."""
    data = disk.execute("12 00 00 00ff 00").data
    assert len(data) == 96
    assert data[:8].hex() == "000006125b381002"
    assert data[8:36] == b"OVS     SHM VOLUME      0001"
    assert data[58:74].hex(" ", 2) == "00a0 0960 0460 04c0 0000 0000 0000 0000"
    assert not any(data[36:58] + data[74:])


@pytest.mark.parametrize("length", [0, 1, 5, 36, 95, 96, 97, 0xFFFF])
def test_inquiry_allocation_length(disk: Bench, length: int) -> None:
    """Cut, and never padded."""
    whole = disk.execute("12 00 00 00ff 00").data
    outcome = disk.execute(f"12 00 00 {length:04x} 00")
    assert (outcome.data, outcome.transfer_bytes) == (whole[:length], min(length, 96))


def test_inquiry_refusals(disk: Bench) -> None:
    """A page code without EVPD, the obsolete CMDDT, an unknown page."""
    for text, pointer in (
        ("12 00 01 00ff 00", (2, None)),
        ("12 00 80 00ff 00", (2, None)),
        ("12 02 00 00ff 00", (1, 1)),
        ("12 01 01 00ff 00", (2, None)),
        ("12 01 ff 00ff 00", (2, None)),
    ):
        outcome = disk.execute(text)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, pointer)


def test_inquiry_strings_are_ascii_and_fit() -> None:
    """Identity that is too long is cut, what is no ASCII is replaced."""
    bench = Bench(personality=scsi.Personality(vendor="Überlänge", product="x" * 40, revision="12345"))
    data = bench.execute("12 00 00 00ff 00").data
    assert data[8:36] == b"?berl?ng" + b"x" * 16 + b"1234"


# REPORT LUNS ----------------------------------------------------------------------------------------------------

WELL_KNOWN = "c101000000000000"


def test_report_luns(disk: Bench) -> None:
    """Units, well known units, both; in the order of their numbers, flat addressing above 255."""
    for number in (7, 300, 2):
        disk.router.add(number, scsi.LogicalUnit(COMMAND_SET, scsi.Identity("x", UUID), block.Geometry(1 << 20)))
    units = "000000000000000000020000000000000007000000000000412c000000000000"
    for select, luns in ((0, units), (1, WELL_KNOWN), (2, units + WELL_KNOWN)):
        outcome = disk.execute(f"a0 00 {select:02x} 000000 00000400 00 00")
        assert outcome.data.hex() == f"{len(luns) // 2:08x}00000000" + luns
        assert outcome.transfer_bytes == len(outcome.data)


def test_report_luns_refusals(disk: Bench) -> None:
    """Other selections, and an allocation length under sixteen."""
    for select in (3, 0x10, 0x11, 0x12, 0xFF):
        outcome = disk.execute(f"a0 00 {select:02x} 000000 00000400 00 00")
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (2, None))
    for length in range(16):
        outcome = disk.execute(f"a0 00 00 000000 {length:08x} 00 00")
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (6, None))
    assert len(disk.execute("a0 00 02 000000 00000014 00 00").data) == 20


# REQUEST SENSE --------------------------------------------------------------------------------------------------


def test_request_sense(disk: Bench) -> None:
    """NO SENSE in the format that is asked for, cut at the allocation length."""
    assert disk.execute("03 00 0000 ff 00").data.hex() == "700000000000000a" + "00" * 10
    assert disk.execute("03 01 0000 ff 00").data.hex() == "7200000000000000"
    assert disk.execute("03 00 0000 04 00").data.hex() == "70000000"
    assert disk.execute("03 00 0000 00 00") == scsi.Outcome()


def test_request_sense_takes_the_unit_attention(disk: Bench) -> None:
    """It is reported as data with GOOD, oldest first, and gone afterwards."""
    nexus = disk.login(hears_power_on=True)
    disk.unit.raise_attention(scsi.CAPACITY_DATA_HAS_CHANGED)
    first, second, third = (disk.execute("03 01 0000 ff 00", nexus=nexus).data.hex() for _ in range(3))
    assert (first, second, third) == ("7206290000000000", "72062a0900000000", "7200000000000000")
    assert disk.execute("00", nexus=nexus).status == scsi.GOOD


def test_request_sense_says_why_the_unit_is_not_ready() -> None:
    """As TEST UNIT READY would, with the progress of a sanitize; a unit attention goes before."""
    disk = Bench(personality=scsi.Personality(is_removable=True))
    disk.execute("1b 00 0000 02 00")
    assert disk.execute("03 01 0000 ff 00").data.hex() == "72023a0000000000"
    disk.execute("1b 00 0000 03 00")
    disk.unit.sanitize_progress = 0x8000
    disk.unit.raise_attention(scsi.CAPACITY_DATA_HAS_CHANGED)
    assert disk.execute("03 01 0000 ff 00").data.hex() == "72062a0900000000"
    assert disk.execute("03 01 0000 ff 00").data.hex() == "7202041b00000008" + "0206000080800000"
    assert disk.execute("03 00 0000 ff 00").data.hex() == "700002000000000a" + "00000000041b00808000"


# SEND DIAGNOSTIC ------------------------------------------------------------------------------------------------


def test_send_diagnostic(disk: Bench) -> None:
    """The default self-test passes where the medium is reached; to ask for nothing is no error, whatever PF says."""
    for flags in (0x00, 0x04, 0x07, 0x10, 0x14):
        assert disk.execute(f"1d {flags:02x} 00 0000 00") == scsi.Outcome()
    disk.unit.block("away")
    assert disk.execute("1d 04 00 0000 00") == scsi.Outcome(scsi.BUSY)
    assert disk.execute("1d 00 00 0000 00") == scsi.Outcome()


def test_send_diagnostic_refusals(disk: Bench) -> None:
    """Other self-tests, and diagnostic pages."""
    for text, pointer in (
        ("1d 20 00 0000 00", (1, 7)), ("1d 80 00 0000 00", (1, 7)), ("1d c4 00 0000 00", (1, 7)),
        ("1d 10 00 0004 00", (3, None)), ("1d 04 00 0001 00", (3, None)),
    ):  # fmt: skip
        outcome = disk.execute(text)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, pointer)


# MODE SENSE -----------------------------------------------------------------------------------------------------

ERROR_RECOVERY = "010a000000000080" + "00" * 4  # LBPERE
CACHING = "881204" + "00" * 17
CONTROL = "8a0a0210" + "00" * 8
EXCEPTIONS = "1c0a" + "00" * 10
EXTENSION = "4a01001c07" + "00" * 27
ALL = ERROR_RECOVERY + CACHING + CONTROL + EXCEPTIONS
PROVISIONING = "5c020014" + "00" * 13 + "01" + "00" * 6
EVERY_SUBPAGE = ERROR_RECOVERY + CACHING + CONTROL + EXTENSION + EXCEPTIONS + PROVISIONING
CHANGEABLE = "010a" + "00" * 10 + "881204" + "00" * 17 + "8a0a040008" + "00" * 7 + EXCEPTIONS
SHORT = "0000080000000200"
LONG = "00000000000008000000000000000200"


def mode_6(flags: int, page: int, subpage: int = 0, length: int = 0xFF) -> str:
    return f"1a {flags:02x} {page:02x} {subpage:02x} {length:02x} 00"


def mode_10(flags: int, page: int, subpage: int = 0, length: int = 0xFFFF) -> str:
    return f"5a {flags:02x} {page:02x} {subpage:02x} 000000 {length:04x} 00"


@pytest.mark.parametrize(
    ("page", "subpage", "pages"),
    [
        (0x01, 0x00, ERROR_RECOVERY), (0x08, 0x00, CACHING), (0x0A, 0x00, CONTROL), (0x1C, 0x00, EXCEPTIONS),
        (0x0A, 0x01, EXTENSION), (0x1C, 0x02, PROVISIONING), (0x1C, 0xFF, EXCEPTIONS + PROVISIONING), (0x3F, 0x00, ALL),
        (0x01, 0xFF, ERROR_RECOVERY), (0x0A, 0xFF, CONTROL + EXTENSION), (0x3F, 0xFF, EVERY_SUBPAGE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("control", [0, 2, 3], ids=["current", "default", "saved"])
def test_mode_sense(disk: Bench, page: int, subpage: int, pages: str, control: int) -> None:
    """Header, block descriptor, pages; six bytes and ten, with and without descriptors, long and short ones."""
    size = len(pages) // 2
    page |= control << 6
    for text, expected in (
        (mode_6(0x00, page, subpage), f"{size + 11:02x} 00 10 08 {SHORT}"),
        (mode_6(0x08, page, subpage), f"{size + 3:02x} 00 10 00"),
        (mode_10(0x00, page, subpage), f"{size + 14:04x} 00 10 00 00 0008 {SHORT}"),
        (mode_10(0x10, page, subpage), f"{size + 22:04x} 00 10 01 00 0010 {LONG}"),
        (mode_10(0x08, page, subpage), f"{size + 6:04x} 00 10 00 00 0000"),
        (mode_10(0x18, page, subpage), f"{size + 6:04x} 00 10 00 00 0000"),
    ):
        outcome = disk.execute(text)
        assert outcome.data.hex() == expected.replace(" ", "") + pages
        assert outcome.transfer_bytes == len(outcome.data)


def test_changeable_values(disk: Bench) -> None:
    """WCE, D_SENSE and SWP."""
    assert disk.execute(mode_6(0x08, 0x7F)).data[4:].hex() == CHANGEABLE


@pytest.mark.parametrize("shape", [mode_6, mode_10])
def test_unknown_mode_pages(disk: Bench, shape) -> None:
    """The page or the subpage is pointed at."""
    for page, subpage, pointer in (
        (0x00, 0x00, (2, 5)),
        (0x02, 0x00, (2, 5)),
        (0x19, 0xFF, (2, 5)),
        (0x0A, 0x02, (3, None)),
        (0x01, 0x01, (3, None)),
        (0x3F, 0x01, (3, None)),
    ):
        outcome = disk.execute(shape(0, page, subpage))
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, pointer)


@pytest.mark.parametrize("length", [0, 1, 4, 12, 67, 68, 69, 255])
def test_mode_sense_allocation_length(disk: Bench, length: int) -> None:
    """Cut; the length in the header stays that of the whole."""
    whole = disk.execute(mode_6(0, 0x3F)).data
    assert len(whole) == 68
    outcome = disk.execute(mode_6(0, 0x3F, length=length))
    assert (outcome.data, outcome.transfer_bytes) == (whole[:length], min(length, 68))


def test_mode_sense_of_a_big_disk() -> None:
    """The short descriptor has no room for its blocks: all ones. The long one has."""
    disk = Bench(logical_block_bytes=4096)
    disk.unit.resize(block.Geometry(1 << 50))
    disk.nexus.attentions[disk.unit].clear()
    assert disk.execute(mode_6(0, 0x08)).data[4:12].hex() == "ffffffff00001000"
    assert disk.execute(mode_10(0x10, 0x08)).data[8:24].hex() == "00000040000000000000000000001000"


def test_write_protect_bit(disk: Bench) -> None:
    """WP beside DPOFUA."""
    disk.unit.is_read_only = True
    assert disk.execute(mode_6(0, 0x3F)).data[2] == 0x90
    assert disk.execute(mode_10(0, 0x3F)).data[3] == 0x90


def test_descriptor_sense(disk: Bench) -> None:
    """D_SENSE is told as current, not as default, and sense data follow it; a reset takes it back."""
    disk.unit.set_modes(scsi.Modes(descriptor_sense=True))
    assert disk.execute(mode_6(0x08, 0x0A)).data[6] == 0x06
    assert disk.execute(mode_6(0x08, 0x8A)).data[6] == 0x02
    assert disk.execute("ff").sense.hex() == "7205200000000000"
    disk.unit.reset()
    assert code(disk.execute("00")) == (0x6, 0x29, 0x03)
    assert disk.execute(mode_6(0x08, 0x0A)).data[6] == 0x02
