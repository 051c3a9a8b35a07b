"""Corpus 7, SCSI Command PDUs: directions, expected lengths and LUNs that don't fit the CDB.

RFC 7143 section 11.3 (SCSI Command), 11.4.5 (residuals), SAM-5 4.7 (LUN formats).
"""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu, scsi
from tests.corpus.scene import (
    BOTH,
    NEITHER,
    READ,
    TAG,
    TEST_UNIT_READY,
    WRITE,
    Case,
    cases,
    command,
    judge,
    read_cdb,
    reject,
    scene,
    sense,
    status,
    write_cdb,
)

REPORT_LUNS = b"\xa0\0\2\0\0\0\0\0\1\0\0\0"
INQUIRY = b"\x12\0\0\0\xff\0"
NO_UNIT = sense(0x05, 0x25, 0x00)  # LOGICAL UNIT NOT SUPPORTED


@cases(
    Case(
        # Bidirectional commands are a target's choice (section 11.3.1); this one has none.
        "R and W",
        lambda peer: command(peer, read_cdb(0, 1), BOTH, 512),
        reject(pdu.REJECT_COMMAND_NOT_SUPPORTED),
    ),
    Case(
        # Section 11.3.1: "If … both the R bit and the W bit are set to 0", Expected Data Transfer Length is 0.
        "neither, and a length",
        lambda peer: command(peer, read_cdb(0, 1), NEITHER, 512),
        reject(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    Case("neither, for a READ", lambda peer: command(peer, read_cdb(0, 1), NEITHER, 0), status()),
    Case("W for a READ", lambda peer: command(peer, read_cdb(0, 1), WRITE, 512, bytes(512)), status()),
    # Section 11.3.1.1: 5 to 7 are reserved.
    Case("every attribute bit", lambda peer: command(peer, TEST_UNIT_READY, 7, 0), status(scsi.CHECK_CONDITION)),
)
def test_directions(case: Case) -> None:
    """What the two bits may say, and that a CDB of the other direction moves nothing it should not."""
    judge(case)


# Direction, EDTL, blocks in the CDB → residual flag and count
RESIDUALS = {
    "a READ of less than expected": (READ, 1024, 1, pdu.UNDERFLOW, 512),
    "a READ of more than expected": (READ, 512, 2, pdu.OVERFLOW, 512),
    "a READ, and room for 4 GiB": (READ, 0xFFFFFFFF, 1, pdu.UNDERFLOW, 0xFFFFFFFF - 512),
    "a READ, and no room": (READ, 0, 1, pdu.OVERFLOW, 512),
    "a READ of a part of a block": (READ, 100, 1, pdu.OVERFLOW, 412),
    "a WRITE of less than sent": (WRITE, 1024, 1, pdu.UNDERFLOW, 512),
    "a WRITE of more than sent": (WRITE, 512, 2, pdu.OVERFLOW, 512),
    "a WRITE, and nothing sent": (WRITE, 0, 1, pdu.OVERFLOW, 512),
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_the_expected_length_is_not_the_cdbs(name: str) -> None:
    """GOOD with the residual of section 11.4.5, and nothing beyond the smaller of the two is moved."""
    direction, expected, blocks, flag, count = RESIDUALS[name]
    with scene() as it:
        it.good.do(it.good.write(0, b"\xaa" * 2048))
        peer = it.login()
        data = bytes(expected) if direction == WRITE else b""
        cdb = write_cdb(0, blocks) if direction == WRITE else read_cdb(0, blocks)
        it.send(command(peer, cdb, direction, expected, data))
        said = it.says()
        last = said[-1].header
        assert (last.status, last.flags & (pdu.OVERFLOW | pdu.UNDERFLOW), last.residual_count) == (0, flag, count)
        moved = min(expected, blocks * 512)
        assert sum(len(each.data) for each in said) == (moved if direction == READ else 0)
        wanted = bytes(moved if direction == WRITE else 0).ljust(2048, b"\xaa")
        assert bytes(it.good.do(it.good.read(0, 4)).data) == wanted


def test_a_write_that_says_four_gigabytes() -> None:
    """No more than MaxBurstLength is asked for at a time, and no more than MAXIMUM TRANSFER LENGTH is ever kept."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes", ImmediateData="No", MaxBurstLength="65536", MaxOutstandingR2T="1")
        it.send(command(peer, write_cdb(0, 1), WRITE, 0xFFFFFFFF))
        r2t = it.answer()
        assert (r2t.buffer_offset, r2t.desired_data_transfer_length) == (0, 65536)
        it.others_go_on()


@cases(
    Case("flat space addressing", lambda peer: command(peer, read_cdb(0, 1), READ, 512, lun=0x4000 << 48), status()),
    Case(
        "the REPORT LUNS well known unit",
        lambda peer: command(peer, REPORT_LUNS, READ, 256, lun=0xC101 << 48),
        status(),
    ),
    Case(
        "the well known unit has no blocks",
        lambda peer: command(peer, read_cdb(0, 1), READ, 512, lun=0xC101 << 48),
        sense(0x05, 0x20, 0x00),
    ),
    Case(
        "a second level", lambda peer: command(peer, TEST_UNIT_READY, NEITHER, 0, lun=1 << 32), NO_UNIT
    ),
    Case("the last byte", lambda peer: command(peer, TEST_UNIT_READY, NEITHER, 0, lun=1), NO_UNIT),
    Case("a unit that is not", lambda peer: command(peer, read_cdb(0, 1), READ, 512, lun=9 << 48), NO_UNIT),
    Case(
        "all bits", lambda peer: command(peer, TEST_UNIT_READY, NEITHER, 0, lun=(1 << 64) - 1), NO_UNIT
    ),
    Case(
        "logical unit addressing",
        lambda peer: command(peer, TEST_UNIT_READY, NEITHER, 0, lun=0x8001 << 48),
        NO_UNIT,
    ),
    Case("INQUIRY of a unit that is not", lambda peer: command(peer, INQUIRY, READ, 255, lun=9 << 48), status()),
    Case(
        "REPORT LUNS of a unit that is not", lambda peer: command(peer, REPORT_LUNS, READ, 256, lun=9 << 48), status()
    ),
)  # fmt: skip
def test_luns(case: Case) -> None:
    """SAM-5 4.7: two ways to say LUN 0, one well known unit, and everything else is LOGICAL UNIT NOT SUPPORTED."""
    judge(case)


def test_inquiry_says_that_there_is_no_unit() -> None:
    """SPC-4 6.6.2: peripheral qualifier 011b and device type 1Fh where no logical unit can be."""
    with scene() as it:
        it.send(command(it.login(), INQUIRY, READ, 255, lun=9 << 48))
        (said,) = it.says()
        assert said.data[0] == 0x7F
        assert said.header.status == scsi.GOOD
        assert said.header.initiator_task_tag == TAG
