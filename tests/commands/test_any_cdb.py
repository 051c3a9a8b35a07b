"""Whatever a peer sends as a CDB, with whatever data and lengths: an answer, never an exception."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import OPERATIONS, vpd
from tests.commands.bench import IQN, Bench

OPCODES = st.one_of(st.integers(0, 255), st.sampled_from([row.opcode for row in OPERATIONS]))
# fields of CDBs are full of zeros and small numbers, or nothing passes the first check
BYTE = st.one_of(st.just(0), st.integers(0, 16), st.sampled_from([0x7F, 0x80, 0xFF]), st.integers(0, 255))
LENGTHS = st.one_of(st.sampled_from([0, 1, 8, 24, 511, 512, 513, 4096]), st.integers(0, 20000))
LUNS = st.one_of(st.just(0), st.sampled_from([1 << 48, 0x4000 << 48, 0xC101 << 48]), st.integers(0, (1 << 64) - 1))


@st.composite
def cdbs(draw: st.DrawFn) -> bytes:
    body = draw(st.lists(BYTE, min_size=0, max_size=31))
    return bytes([draw(OPCODES), *body])


def check(disk: Bench, command: scsi.Command) -> None:
    """The answer has a form that a transport can send."""
    outcome = disk.drive(command)
    assert outcome.status in (scsi.GOOD, scsi.CONDITION_MET, scsi.CHECK_CONDITION, scsi.RESERVATION_CONFLICT)
    assert bool(outcome.sense) is (outcome.status == scsi.CHECK_CONDITION)
    assert outcome.transfer_bytes >= 0
    if outcome.status != scsi.GOOD:
        assert outcome.transfer_bytes == 0
    if outcome.data:
        assert outcome.transfer_bytes == len(outcome.data)
    if outcome.buffer is not None:
        assert len(disk.payload) == min(outcome.transfer_bytes, command.data_in_bytes)
    for request in disk.device.log:
        assert 0 <= request.offset_bytes <= request.offset_bytes + request.length_bytes <= disk.size_bytes
        if request.operation in (block.Operation.READ, block.Operation.WRITE):
            assert request.length_bytes % 512 == 0
            assert 0 < request.length_bytes <= 8 << 20
    disk.device.log.clear()
    assert disk.pool.is_whole


DISK = Bench()


@given(raw=cdbs(), lun=LUNS, data_in=LENGTHS, data_out=LENGTHS, seed=st.integers(0, 2**32))
def test_no_command_raises(raw: bytes, lun: int, data_in: int, data_out: int, seed: int) -> None:
    """All opcodes, random CDBs of any length, random lengths and data."""
    command = DISK.command("", lun, data_in, random.Random(seed).randbytes(data_out))
    command.cdb = raw
    check(DISK, command)


@pytest.mark.parametrize("opcode", range(256))
def test_every_opcode(opcode: int) -> None:
    """The same with a seed per opcode, so that each is sure to be there with zeros, ones and noise."""
    noise = random.Random(opcode)
    for body in (bytes(15), b"\xff" * 15, *(noise.randbytes(15) for _ in range(10)), bytes(14) + b"\x04", b"\x10" * 15):
        for data_in, data_out in ((0, b""), (1 << 16, b""), (0, noise.randbytes(600))):
            command = DISK.command("", 0, data_in, data_out)
            command.cdb = bytes([opcode]) + body
            check(DISK, command)


@given(
    length=st.integers(0, 0xFFFF),
    header=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    body=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=8),
    cut=st.integers(0, 200),
)
def test_any_unmap_list(length: int, header: tuple[int, int], body: list[tuple[int, int]], cut: int) -> None:
    """Parameter lists that lie about their lengths."""
    data = b"".join(number.to_bytes(2, "big") for number in header) + bytes(4)
    data += b"".join(lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4) for lba, blocks in body)
    check(DISK, DISK.command(f"42 00 00000000 00 {length:04x} 00", 0, 0, data[:cut]))
    honest = (len(data) - 2).to_bytes(2, "big") + (len(data) - 8).to_bytes(2, "big") + data[4:]
    check(DISK, DISK.command(f"42 00 00000000 00 {len(data):04x} 00", 0, 0, honest))


@given(data=st.data())
def test_any_copy_list(data: st.DataObject) -> None:
    """Parameter lists of EXTENDED COPY, right but for a few bytes, and cut anywhere."""
    naa = vpd.naa(DISK.unit)
    target = bytes.fromhex("e4000000 01030008") + naa.ljust(20, b"\0") + (512).to_bytes(4, "big")
    segment = bytes.fromhex("02000018 00000000 00000001 0000000000000000 0000000000000001")
    whole = bytearray(bytes.fromhex("01000020 00000000 0000001c 00000000") + target + segment)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), BYTE), max_size=4)):
        whole[at] = value
    length = data.draw(st.sampled_from([len(whole), len(whole), len(whole) + 40, 0xFFFFFFFF, 47]))
    sent = bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])
    check(DISK, DISK.command(f"83 00 0000000000000000 {length:08x} 00 00", 0, 0, sent))


def test_any_page_of_any_unit() -> None:
    """All 256 VPD and mode pages, on the disk and where there is none; names as long as iSCSI allows."""
    disk = Bench()
    disk.nexus.target_name = IQN.ljust(223, "x")
    for lun in (0, 5 << 48, 0xC101 << 48):
        for page in range(256):
            check(disk, disk.command(f"12 01 {page:02x} ffff 00", lun, 1 << 16))
            check(disk, disk.command(f"1a 00 {page:02x} 00 ff 00", lun, 1 << 16))
            check(disk, disk.command(f"5a 10 3f {page:02x} 000000 ffff 00", lun, 1 << 16))
