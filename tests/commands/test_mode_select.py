"""MODE SELECT: what it takes and what it refuses, who hears of it, what is kept; and that the modes are obeyed."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Operation
from iscsi_ovs.commands import mode_pages, mode_select
from tests.commands.bench import Bench, code, list_pointer

CHANGED = (0x6, 0x2A, 0x01)
INVALID_CDB = (0x5, 0x24, 0x00)
INVALID_LIST = (0x5, 0x26, 0x00)
LENGTH_ERROR = (0x5, 0x1A, 0x00)

CACHING = "881204" + "00" * 17
CONTROL = "8a0a0210" + "00" * 8
EXTENSION = "4a01001c07" + "00" * 27
SHORT = "0000080000000200"
LONG = "00000000000008000000000000000200"
WCE_OFF = "881200" + "00" * 17
SWP = "8a0a021008" + "00" * 7
D_SENSE = "8a0a0610" + "00" * 8


def select(
    disk: Bench, pages: str, *, flags: int = 0x10, descriptor: str = "", nexus: scsi.Nexus | None = None
) -> scsi.Outcome:
    """MODE SELECT (6)."""
    data = bytes.fromhex(f"00 00 00 {len(descriptor) // 2:02x}" + descriptor + pages)
    return disk.execute(f"15 {flags:02x} 0000 {len(data):02x} 00", data_out=data, nexus=nexus)


def select_10(disk: Bench, pages: str, *, descriptor: str = "", long_lba: int = 0) -> scsi.Outcome:
    data = bytes.fromhex(f"0000 00 00 {long_lba:02x} 00 {len(descriptor) // 2:04x}" + descriptor + pages)
    return disk.execute(f"55 10 0000000000 {len(data):04x} 00", data_out=data)


def sense_page(disk: Bench, page: int, subpage: int = 0) -> str:
    return disk.execute(f"1a 08 {page:02x} {subpage:02x} ff 00").data[4:].hex()


# What is taken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [select, select_10])
def test_software_write_protect(disk: Bench, shape) -> None:
    """SWP: WP is told, writes are refused, reads are not; and back."""
    assert shape(disk, SWP).status == scsi.GOOD
    assert sense_page(disk, 0x0A) == SWP
    assert disk.execute("1a 00 3f 00 ff 00").data[2] == 0x90
    assert code(disk.execute("2a 00 00000000 00 0001 00", data_out=bytes(512))) == (0x7, 0x27, 0x00)
    assert disk.execute("28 00 00000000 00 0001 00").status == scsi.GOOD
    assert shape(disk, CONTROL).status == scsi.GOOD
    assert disk.execute("2a 00 00000000 00 0001 00", data_out=bytes(512)).status == scsi.GOOD


def test_a_read_only_disk_stays_read_only() -> None:
    """SWP taken back does not take the operator's protection back."""
    disk = Bench(personality=scsi.Personality(is_read_only=True))
    select(disk, SWP)
    select(disk, CONTROL)
    assert code(disk.execute("2a 00 00000000 00 0001 00", data_out=bytes(512))) == (0x7, 0x27, 0x00)


def test_descriptor_sense(disk: Bench) -> None:
    """D_SENSE: the next sense data have the other format."""
    assert select(disk, D_SENSE).status == scsi.GOOD
    assert disk.execute("ff").sense.hex() == "7205200000000000"
    assert disk.execute("28 00 00000800 00 0001 00").sense[0] == 0x72


def test_the_write_cache_goes_and_comes(disk: Bench) -> None:
    """WCE 0: what is cached is written out first, then every write is durable."""
    disk.execute("2a 00 00000000 00 0001 00", data_out=b"a" * 512)
    assert select(disk, WCE_OFF).status == scsi.GOOD
    assert disk.device.flushed[:512] == b"a" * 512
    assert sense_page(disk, 0x08) == WCE_OFF
    disk.execute("2a 00 00000001 00 0001 00", data_out=b"b" * 512)
    assert disk.device.flushed[512:1024] == b"b" * 512
    disk.device.log.clear()
    assert select(disk, CACHING).status == scsi.GOOD
    assert disk.device.log == []
    disk.execute("2a 00 00000002 00 0001 00", data_out=b"c" * 512)
    assert disk.device.flushed[1024:1536] == bytes(512)


def test_a_cache_that_can_not_be_written_out_stays(disk: Bench) -> None:
    """The command fails as the flush did; BUSY while the volume server is away."""
    disk.device.fail_next(block.Error.WRITE_FAULT, Operation.FLUSH)
    assert code(select(disk, WCE_OFF)) == (0x3, 0x0C, 0x00)
    assert sense_page(disk, 0x08) == CACHING
    disk.unit.block("away")
    assert select(disk, WCE_OFF) == scsi.Outcome(scsi.BUSY)
    assert sense_page(disk, 0x08) == CACHING


@pytest.mark.parametrize("shape", [select, select_10])
def test_what_mode_sense_says_is_taken_back(disk: Bench, shape) -> None:
    """All pages as they are, PS and all: nothing changes, and nobody is told."""
    other = disk.login()
    pages = sense_page(disk, 0x3F, 0xFF)
    assert pages.startswith("010a")
    assert "8812" in pages
    for descriptor in ("", SHORT, "ffffffff00000200", "0000000000000200"):
        outcome = shape(disk, pages, descriptor=descriptor)
        assert outcome.status == scsi.GOOD
        assert outcome.transfer_bytes == (len(pages + descriptor) // 2 + (4 if shape is select else 8))
    assert disk.execute("00", nexus=other) == scsi.Outcome()
    assert disk.device.log == []


def test_a_long_block_descriptor(disk: Bench) -> None:
    """LONGLBA: sixteen bytes."""
    for blocks in (LONG, "0" * 16 + LONG[16:], "f" * 16 + LONG[16:]):
        assert select_10(disk, CONTROL, descriptor=blocks, long_lba=1).status == scsi.GOOD


def test_nothing_to_select(disk: Bench) -> None:
    """A parameter list length of zero is no error, nor is a header alone."""
    assert disk.execute("15 10 0000 00 00") == scsi.Outcome()
    assert disk.execute("55 00 0000000000 0000 00") == scsi.Outcome()
    assert select(disk, "").status == scsi.GOOD
    assert select_10(disk, "").status == scsi.GOOD


# Who hears of it ------------------------------------------------------------------------------------------------


def test_the_others_hear_of_it(disk: Bench) -> None:
    """2A/01 on every nexus but the one that did it, and only when something has changed."""
    other = disk.login()
    select(disk, SWP)
    assert disk.execute("00") == scsi.Outcome()
    assert code(disk.execute("00", nexus=other)) == CHANGED
    select(disk, SWP)
    assert disk.execute("00", nexus=other) == scsi.Outcome()


def test_a_list_is_taken_whole_or_not_at_all(disk: Bench) -> None:
    """What is wrong at the end undoes the start."""
    other = disk.login()
    assert code(select(disk, SWP + WCE_OFF[:-2] + "01")) == INVALID_LIST
    assert sense_page(disk, 0x0A) == CONTROL
    assert disk.execute("00", nexus=other) == scsi.Outcome()
    assert select(disk, SWP + WCE_OFF).status == scsi.GOOD
    assert (sense_page(disk, 0x0A), sense_page(disk, 0x08)) == (SWP, WCE_OFF)


# What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "pointer"), [(0x00, (1, 4)), (0x12, (1, 1)), (0x13, (1, 1))])
def test_refused_flags(disk: Bench, flags: int, pointer: tuple[int, int]) -> None:
    """PF=0 with pages; RTD."""
    outcome = select(disk, SWP, flags=flags)
    assert code(outcome) == INVALID_CDB
    assert outcome.sense[15:18].hex() == f"{0xC8 | pointer[1]:02x}{pointer[0]:04x}"
    assert sense_page(disk, 0x0A) == CONTROL


@pytest.mark.parametrize(
    ("pages", "pointer"),
    [
        ("0a0a0211" + "00" * 8, (4 + 3, 0)),
        ("0a0a0010" + "00" * 8, (4 + 2, 1)),  # GLTSD is no choice
        ("0a0a021000" + "00" * 6 + "80", (4 + 11, 7)),
        (CACHING + "010a80" + "00" * 9, (4 + 20 + 2, 7)),
        ("4a01001c03" + "00" * 27, (4 + 4, 2)),
        ("0a0b0210" + "00" * 9, (4 + 1, None)),  # a page length that lies
        ("0a090210" + "00" * 7, (4 + 1, None)),
        ("4a01001d" + "00" * 29, (4 + 2, None)),
        ("4a01021c" + "00" * 28, (4 + 2, None)),
        ("020e" + "00" * 14, (4, 5)),  # pages that are not there
        ("0000", (4, 5)),
        ("3f00", (4, 5)),
        ("4a02001c" + "00" * 28, (4 + 1, None)),
        ("42010000", (4, 5)),
        ("4a00000a" + "00" * 8, (4, 6)),  # the page has no subpage format
    ],
)
def test_refused_pages(disk: Bench, pages: str, pointer: tuple[int, int | None]) -> None:
    """05/26/00, and which byte and bit."""
    outcome = select(disk, pages)
    assert (code(outcome), list_pointer(outcome)) == (INVALID_LIST, pointer)
    assert disk.unit.modes == disk.unit.default_modes


def test_refused_headers(disk: Bench) -> None:
    """A medium type; a block descriptor that would change the disk, of a length that there is not, or two of them."""
    for data, pointer in (
        ("00 01 00 00", (1, None)),
        ("00 00 00 07" + "00" * 8, (3, None)),
        ("00 00 00 10" + SHORT + SHORT, (3, None)),
        ("00 00 00 08 00000400 00 000200", (4, None)),
        ("00 00 00 08 00000800 00 001000", (9, None)),
    ):
        raw = bytes.fromhex(data)
        outcome = disk.execute(f"15 10 0000 {len(raw):02x} 00", data_out=raw)
        assert (code(outcome), list_pointer(outcome)) == (INVALID_LIST, pointer)
    for data, pointer in (
        ("0000 01 00 00 00 0000", (2, None)),
        ("0000 00 00 01 00 0008" + SHORT, (6, None)),
        ("0000 00 00 00 00 0010" + LONG, (6, None)),
        ("0000 00 00 01 00 0010 0000000000000400 00000000 00000200", (8, None)),
        ("0000 00 00 01 00 0010 0000000000000800 00000000 00001000", (20, None)),
    ):
        raw = bytes.fromhex(data)
        outcome = disk.execute(f"55 10 0000000000 {len(raw):04x} 00", data_out=raw)
        assert (code(outcome), list_pointer(outcome)) == (INVALID_LIST, pointer)


@pytest.mark.parametrize("whole", ["00000000" + SWP, "00000008" + SHORT + EXTENSION])
def test_cut_lists(disk: Bench, whole: str) -> None:
    """Cut at every byte: a length error, but for where nothing is cut in two."""
    raw = bytes.fromhex(whole)
    complete = {4, 12, len(raw)} if raw[3] else {4, len(raw)}
    if raw[3]:
        complete.discard(4)  # the header promises a descriptor
    for length in range(1, len(raw) + 1):
        outcome = disk.execute(f"15 10 0000 {length:02x} 00", data_out=raw[:length])
        if length in complete:
            assert outcome.status == scsi.GOOD
        else:
            assert code(outcome) == LENGTH_ERROR


def test_a_list_that_does_not_come(disk: Bench) -> None:
    """The CDB says more than the initiator sends, or it sends nothing."""
    raw = bytes.fromhex("00000000" + SWP)
    assert code(disk.execute(f"15 10 0000 {len(raw) + 1:02x} 00", data_out=raw)) == LENGTH_ERROR
    assert code(disk.execute("15 10 0000 10 00")) == LENGTH_ERROR


# What is kept ---------------------------------------------------------------------------------------------------


def save(disk: Bench, pages: str) -> scsi.RecordUpdate:
    data = bytes.fromhex("00000000" + pages)
    update = disk.start(f"15 11 0000 {len(data):02x} 00", data_out=data)
    assert isinstance(update, scsi.RecordUpdate)
    assert update.record == mode_select.RECORD
    return update


def saved_page(disk: Bench, page: int) -> str:
    return disk.execute(f"1a 08 {0xC0 | page:02x} 00 ff 00").data[4:].hex()


def test_saved_modes(disk: Bench) -> None:
    """They hold once they are kept; they are what a reset goes back to, and what another process finds."""
    other = disk.login()
    update = save(disk, SWP)
    assert disk.execute("1a 08 0a 00 ff 00").data[4:].hex() == CONTROL, "not before they are kept"
    outcome = update.finish(None)
    assert isinstance(outcome, scsi.Outcome)
    assert outcome.status == scsi.GOOD
    assert code(disk.execute("00", nexus=other)) == CHANGED
    assert saved_page(disk, 0x0A) == SWP
    assert saved_page(disk, 0x08) == CACHING
    select(disk, D_SENSE)
    assert saved_page(disk, 0x0A) == SWP
    disk.unit.reset()
    assert disk.unit.modes == scsi.Modes(write_protect=True)

    later = Bench()
    later.unit.load_record(mode_select.RECORD, 0, b"")
    assert later.unit.saved_modes == scsi.Modes()
    later.unit.load_record(mode_select.RECORD, 1, update.data)
    assert code(later.execute("00")) == CHANGED, "another process has saved them under living sessions"
    assert later.unit.modes == later.unit.saved_modes == scsi.Modes(write_protect=True)
    assert later.unit.default_modes == scsi.Modes()


def test_only_what_is_different_is_kept(disk: Bench) -> None:
    """The operator may still choose what no initiator has changed."""
    assert save(disk, SWP).data == b'{"write_protect": true}'
    later = Bench(personality=scsi.Personality(write_cache=False))
    later.unit.load_record(mode_select.RECORD, 1, b'{"write_protect": true}')
    assert later.unit.modes == scsi.Modes(write_protect=True, write_cache=False)


def test_save_without_a_list(disk: Bench) -> None:
    """SP with nothing to select keeps what is current."""
    select(disk, D_SENSE)
    update = disk.start("15 11 0000 00 00")
    assert isinstance(update, scsi.RecordUpdate)
    assert update.finish(None) == scsi.Outcome()
    assert disk.unit.saved_modes == scsi.Modes(descriptor_sense=True)


def test_modes_that_can_not_be_kept(disk: Bench) -> None:
    """BUSY, and nothing has changed."""
    outcome = save(disk, SWP).finish(OSError(errno.ENOSPC, "full"))
    assert isinstance(outcome, scsi.Outcome)
    assert outcome == scsi.Outcome(scsi.BUSY)
    assert disk.unit.modes == disk.unit.saved_modes == scsi.Modes()


def test_a_cache_is_written_out_before_its_end_is_kept(disk: Bench) -> None:
    """FLUSH, then the record, then the mode."""
    data = bytes.fromhex("00000000" + WCE_OFF)
    flush = disk.start(f"15 11 0000 {len(data):02x} 00", data_out=data)
    assert isinstance(flush, block.Request)
    assert flush.operation is Operation.FLUSH
    update = disk.step(flush)
    assert isinstance(update, scsi.RecordUpdate)
    assert disk.unit.modes.write_cache
    update.finish(None)
    assert not disk.unit.modes.write_cache


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"null", b'{"write_protect": 1}', b'{"colour": true}', b"\xff" * 64, b'{"a"' * 999]
)
def test_damaged_records(disk: Bench, data: bytes) -> None:
    """Nothing is guessed: a disk that may be write protected is not served as one that is not."""
    with pytest.raises(ValueError):
        disk.unit.load_record(mode_select.RECORD, 1, data)
    assert disk.unit.modes == disk.unit.saved_modes == scsi.Modes()


def test_every_page_has_its_length() -> None:
    """PAGE LENGTH is what follows it."""
    for row in mode_pages.PAGES:
        length = int.from_bytes(row.page[row.header_bytes // 2 : row.header_bytes], "big")
        assert row.header_bytes + length == len(row.page)
        assert (row.page[0] & 0x3F, row.page[1] if row.page[0] & 0x40 else 0) == (row.code, row.subpage)
        assert not any(row.page[bit.byte] & bit.mask for bit in row.changeable)


PIECES = st.sampled_from(
    [bytes.fromhex(text) for text in (CACHING, CONTROL, EXTENSION, WCE_OFF, SWP, D_SENSE, "010a" + "00" * 10, "02", "")]
)


@given(
    pages=st.lists(PIECES, max_size=4),
    descriptor=st.sampled_from([b"", bytes.fromhex(SHORT), bytes.fromhex(LONG)]),
    damage=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 255)), max_size=2),
    cut=st.integers(0, 8),
    is_long=st.booleans(),
)
def test_any_list(
    pages: list[bytes], descriptor: bytes, damage: list[tuple[int, int]], cut: int, is_long: bool
) -> None:
    """Nearly right lists: taken whole, or refused with a reason and nothing changed; what is taken is what is told."""
    disk = Bench(size_bytes=1 << 16)
    other = disk.login()
    size = len(descriptor)
    head = bytes((0, 0, 0, 0, size == 16, 0, 0, size)) if is_long else bytes((0, 0, 0, size))
    raw = bytearray(head + descriptor + b"".join(pages))
    for at, mask in damage:
        if at < len(raw):
            raw[at] ^= mask
    data = bytes(raw[: len(raw) - cut] if cut < len(raw) else raw)
    length = f"{len(data):04x}" if is_long else f"{len(data):02x}"
    outcome = disk.execute(f"55 10 0000000000 {length} 00" if is_long else f"15 10 0000 {length} 00", data_out=data)
    if outcome.status != scsi.GOOD:
        assert outcome.sense[2] & 0xF == 0x5
        assert tuple(outcome.sense[12:14]) in ((0x26, 0x00), (0x1A, 0x00))
        assert disk.unit.modes == disk.unit.default_modes
    changed = disk.unit.modes != disk.unit.default_modes
    assert other.attentions[disk.unit] == ([scsi.MODE_PARAMETERS_CHANGED] if changed else [])
