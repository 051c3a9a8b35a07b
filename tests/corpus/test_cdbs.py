"""Corpus 8, CDBs: every opcode and service action with anything behind it, lengths of 0 or all bits, sums that wrap.

The bad peer has a disk of its own here: a random CDB may be a FORMAT UNIT or a reservation, and that is its good right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.commands import OPERATIONS
from tests.corpus.scene import NEITHER, READ, TAG, WRITE, Peer, Scene, command, sense, with_a_victim

SEED = 20160101


@pytest.fixture
def it() -> Iterator[Scene]:
    """A scene in which the bad peer is logged in to another target than the good one."""
    yield from with_a_victim()


def outcome(it: Scene, data: bytes, tag: int = TAG) -> tuple[int, tuple[int, int, int] | None, bytes]:
    """Status, sense and data-in of the one answer that a task gets; a write is never left waiting for its data."""
    it.send(data)
    said = [each for each in it.says() if each.header.initiator_task_tag == tag]
    assert said, it.log
    assert not it.bad.connection.is_closed, it.log
    last = said[-1]
    assert isinstance(last.header, pdu.ScsiResponse | pdu.DataIn), last
    bytes_in = b"".join(each.data for each in said if isinstance(each.header, pdu.DataIn))
    sense_data = last.data[2:] if isinstance(last.header, pdu.ScsiResponse) else b""
    code = (sense_data[2] & 0x0F, sense_data[12], sense_data[13]) if len(sense_data) >= 14 else None
    assert (last.header.status == scsi.CHECK_CONDITION) is (code is not None)
    return last.header.status, code, bytes_in


def ask(it: Scene, cdb: bytes, room: int = 65535) -> tuple[int, tuple[int, int, int] | None, bytes]:
    return outcome(it, command(it.peer, cdb, READ, room))


def give(it: Scene, cdb: bytes, data: bytes) -> tuple[int, tuple[int, int, int] | None, bytes]:
    return outcome(it, command(it.peer, cdb, WRITE if data else NEITHER, len(data), data))


LEGAL = {scsi.GOOD, scsi.CHECK_CONDITION, scsi.CONDITION_MET, scsi.BUSY, scsi.RESERVATION_CONFLICT}


@pytest.mark.parametrize("opcode", range(256))
def test_every_opcode(it: Scene, opcode: int) -> None:
    """Random CDBs with no data, room for data, and data: a legal status, with sense where it says so, every time."""
    rng = random.Random(SEED + opcode)
    for number in range(12):
        cdb = bytes((opcode,)) + bytes(rng.choice((0, 0, rng.randrange(256))) for _ in range(15))
        direction, length = ((NEITHER, 0), (READ, 4096), (WRITE, 512))[number % 3]
        data = rng.randbytes(length) if direction == WRITE else b""
        status, _, _ = outcome(it, command(it.peer, cdb, direction, length, data, initiator_task_tag=TAG))
        assert status in LEGAL, cdb.hex()


WITH_ACTIONS = (0x5E, 0x5F, 0x83, 0x84, 0x9E, 0x9F, 0xA3, 0xA4)
UNKNOWN = {(0x05, 0x20, 0x00), (0x05, 0x24, 0x00)}


@pytest.mark.parametrize("opcode", WITH_ACTIONS)
def test_every_service_action(it: Scene, opcode: int) -> None:
    """All 32 of them; one that is in no row of ours is refused (where others read out of bounds: CVE-2024-42416)."""
    known = {row.service_action for row in OPERATIONS if row.opcode == opcode}
    for action in range(32):
        _, code, _ = ask(it, bytes((opcode, action)) + bytes(14))
        if action not in known:
            assert code in UNKNOWN, action


# CDBs with an allocation length: where it stands and how wide it is.
ALLOCATING: dict[str, tuple[bytes, int, int]] = {
    "INQUIRY": (bytes((0x12, 0, 0)), 3, 2),
    "INQUIRY, VPD 00": (bytes((0x12, 1, 0)), 3, 2),
    "INQUIRY, VPD 83": (bytes((0x12, 1, 0x83)), 3, 2),
    "REQUEST SENSE": (bytes((0x03, 0, 0, 0)), 4, 1),
    "MODE SENSE(6)": (bytes((0x1A, 0, 0x3F, 0)), 4, 1),
    "MODE SENSE(10)": (bytes((0x5A, 0, 0x3F, 0, 0, 0, 0)), 7, 2),
    "READ CAPACITY(16)": (bytes((0x9E, 0x10)) + bytes(8), 10, 4),
    "GET LBA STATUS": (bytes((0x9E, 0x12)) + bytes(8), 10, 4),
    "REPORT SUPPORTED OPERATION CODES": (bytes((0xA3, 0x0C)) + bytes(4), 6, 4),
}


@pytest.mark.parametrize("name", ALLOCATING)
def test_allocation_lengths(it: Scene, name: str) -> None:
    """SPC-4 4.2.5.6: data are cut at the allocation length, 0 is no error, and all bits are no buffer of ours."""
    head, at, width = ALLOCATING[name]
    assert len(head) == at

    def with_length(length: int) -> bytes:
        return (head + length.to_bytes(width, "big")).ljust(16, b"\0")

    most = (1 << 8 * width) - 1
    status, _, whole = ask(it, with_length(most), 1 << 20)
    assert status == scsi.GOOD
    assert 1 < len(whole) < 65536
    for length in (0, 1, 2, 7, len(whole) - 1, len(whole), len(whole) + 1):
        status, code, data = ask(it, with_length(min(length, most)))
        assert (status, code) == (scsi.GOOD, None), length
        assert data == whole[:length]


@pytest.mark.parametrize("length", [0, 1, 15])
def test_report_luns_with_less_than_a_lun(it: Scene, length: int) -> None:
    """SPC-3 6.21: an allocation length under 16 is an invalid field (SPC-4 says "should"; suites hold us to it)."""
    _, code, _ = ask(it, b"\xa0" + bytes(5) + length.to_bytes(4, "big") + bytes(6))
    assert code == (0x05, 0x24, 0x00)


def unmap(descriptors: list[tuple[int, int]], *, said: int | None = None, data_length: int | None = None) -> bytes:
    body = b"".join(lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4) for lba, blocks in descriptors)
    said = len(body) if said is None else said
    data_length = said + 6 if data_length is None else data_length
    return data_length.to_bytes(2, "big") + said.to_bytes(2, "big") + bytes(4) + body


UNMAPS: dict[str, tuple[bytes, tuple[int, int, int] | None]] = {
    "overlapping": (unmap([(0, 8), (4, 8)]), None),
    "of nothing": (unmap([]), None),
    "of no blocks": (unmap([(0, 0)]), None),
    "a descriptor cut short": (unmap([(0, 8)])[:20], (0x05, 0x1A, 0x00)),
    "7 bytes, which hold no header": (bytes(7), (0x05, 0x1A, 0x00)),
    "256 descriptors": (unmap([(number, 1) for number in range(256)]), None),
    "257 descriptors": (unmap([(number, 1) for number in range(257)]), (0x05, 0x26, 0x00)),
    "4000 descriptors": (unmap([(0, 1)] * 4000), (0x05, 0x26, 0x00)),
    "beyond the end": (unmap([(2047, 2)]), (0x05, 0x21, 0x00)),
    "a sum that wraps": (unmap([((1 << 64) - 1, 2)]), (0x05, 0x21, 0x00)),
    "all blocks there could be": (unmap([(0, 0xFFFFFFFF)]), None),  # too many, or out of range: see below
}


@pytest.mark.parametrize("name", UNMAPS)
def test_unmap(it: Scene, name: str) -> None:
    """SBC-3 5.28: descriptors within MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT, each within the medium."""
    data, wanted = UNMAPS[name]
    _, code, _ = give(it, b"\x42" + bytes(6) + len(data).to_bytes(2, "big") + bytes(7), data)
    if name == "all blocks there could be":
        assert code in {(0x05, 0x21, 0x00), (0x05, 0x26, 0x00)}
    else:
        assert code == wanted


def long_cdb(opcode: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    """READ(16) and its kin."""
    return bytes((opcode, flags)) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)


END = 2048  # blocks of a disk of 1 MiB
OUT_OF_RANGE = (0x05, 0x21, 0x00)


ALL_BITS = (1 << 64) - 1
RANGES = [
    (END, 0, True),
    (END - 1, 1, True),
    (END, 1, False),
    (END + 1, 0, False),
    (ALL_BITS, 1, False),
    (ALL_BITS, 0xFFFF, False),
]


@pytest.mark.parametrize("opcode", [0x88, 0x91])
@pytest.mark.parametrize(("lba", "blocks", "is_inside"), RANGES)
def test_ranges_at_the_end_and_beyond_all_numbers(
    it: Scene, opcode: int, lba: int, blocks: int, is_inside: bool
) -> None:
    """READ(16) and SYNCHRONIZE CACHE(16): LBA plus length is never wrapped."""
    _, code, _ = ask(it, long_cdb(opcode, lba, blocks))
    assert code == (None if is_inside else OUT_OF_RANGE)


@pytest.mark.parametrize(("lba", "blocks"), [(END, 1), (END - 1, 2), ((1 << 64) - 1, 1), (1 << 63, 1)])
@pytest.mark.parametrize("opcode", [0x8A, 0x93])
def test_writes_beyond_the_end(it: Scene, opcode: int, lba: int, blocks: int) -> None:
    """WRITE(16) and WRITE SAME(16) write nothing where there is no block."""
    data = bytes(512 * (blocks if opcode == 0x8A else 1))
    assert give(it, long_cdb(opcode, lba, blocks), data)[1] == OUT_OF_RANGE


def test_a_transfer_longer_than_any(it: Scene) -> None:
    """4 Gi blocks: beyond the end before it is too long, whatever room the initiator says it has."""
    assert ask(it, long_cdb(0x88, 0, 0xFFFFFFFF), 0xFFFFFFFF)[1] == OUT_OF_RANGE


@pytest.mark.parametrize("opcode", [0x41, 0x93])
def test_write_same_of_no_blocks_beyond_the_end(it: Scene, opcode: int) -> None:
    """WSNZ=1: NUMBER OF LOGICAL BLOCKS 0 is an invalid field, at the end of the medium too."""
    cdb = long_cdb(0x93, END, 0) if opcode == 0x93 else b"\x41\0" + END.to_bytes(4, "big") + bytes(10)
    assert give(it, cdb, bytes(512))[1] in {(0x05, 0x24, 0x00), OUT_OF_RANGE}


@pytest.mark.parametrize("length", [16, 200])
def test_a_cdb_longer_than_its_command(it: Scene, length: int) -> None:
    """An Extended CDB behind a TEST UNIT READY: what is behind the command's length is not looked at."""
    peer: Peer = it.peer
    ahs = pdu.AdditionalHeader(ahs_length=length + 1, ahs_type=pdu.AHS_EXTENDED_CDB).pack() + bytes(length)
    whole = bytearray(command(peer, bytes(6), NEITHER, 0))
    whole[4] = len(ahs) // 4
    assert outcome(it, bytes(whole) + ahs)[0] == scsi.GOOD


def test_naca(it: Scene) -> None:
    """SAM-5 5.2: NACA=1 where NormACA is 0 is an invalid field in the CDB."""
    it.send(command(it.peer, bytes((0, 0, 0, 0, 0, 4)), NEITHER, 0))
    sense(0x05, 0x24, 0x00)(it)
