"""Sense data, byte for byte, in both formats; and a sense for every way in which storage fails."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import sense
from tests.commands.bench import Bench, code


@pytest.mark.parametrize(
    ("pointer", "information", "expected"),
    [
        (None, None, "70 00 05 00000000 0a 00000000 24 00 00 000000"),
        (scsi.FieldPointer(2), None, "70 00 05 00000000 0a 00000000 24 00 00 c0 0002"),
        (scsi.FieldPointer(1, 7), None, "70 00 05 00000000 0a 00000000 24 00 00 cf 0001"),
        (scsi.FieldPointer(16, 0, is_cdb=False), None, "70 00 05 00000000 0a 00000000 24 00 00 88 0010"),
        (None, 0x01020304, "f0 00 05 01020304 0a 00000000 24 00 00 000000"),
        (None, 1 << 32, "70 00 05 00000000 0a 00000000 24 00 00 000000"),
    ],
)
def test_fixed_format(pointer: scsi.FieldPointer | None, information: int | None, expected: str) -> None:
    """SPC-4 4.5.3; information over 32 bits does not fit and is not VALID."""
    assert sense.build(sense.INVALID_FIELD_IN_CDB, pointer, information, False) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("pointer", "information", "expected"),
    [
        (None, None, "72 05 24 00 000000 00"),
        (scsi.FieldPointer(1, 7), None, "72 05 24 00 000000 08 02 06 0000 cf0001 00"),
        (None, 1 << 32, "72 05 24 00 000000 0c 00 0a 80 00 0000000100000000"),
        (scsi.FieldPointer(2), 7, "72 05 24 00 000000 14 00 0a 80 00 0000000000000007 02 06 0000 c00002 00"),
    ],
)
def test_descriptor_format(pointer: scsi.FieldPointer | None, information: int | None, expected: str) -> None:
    """SPC-4 4.5.2."""
    assert sense.build(sense.INVALID_FIELD_IN_CDB, pointer, information, True) == bytes.fromhex(expected)


def test_names_are_unique() -> None:
    """No two names for one code."""
    codes = [value for value in vars(sense).values() if isinstance(value, scsi.Sense)]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (block.Error.OUT_OF_RANGE, (0x5, 0x21, 0x00)),
        (block.Error.NO_SPACE, (0x7, 0x27, 0x07)),
        (block.Error.READ_ONLY, (0x7, 0x27, 0x00)),
        (block.Error.MEDIUM_READ, (0x3, 0x11, 0x00)),
        (block.Error.BAD_PAGE, (0x3, 0x11, 0x00)),
        (block.Error.MEDIUM_WRITE, (0x3, 0x0C, 0x00)),
        (block.Error.WRITE_FAULT, (0x3, 0x0C, 0x00)),
        (block.Error.UNSUPPORTED, (0x5, 0x24, 0x00)),
        (block.Error.INVALID, (0x4, 0x44, 0x00)),
        (block.Error.CANCELLED, None),
        (block.Error.UNREACHABLE, None),
        (block.Error.OUTCOME_UNKNOWN, (0xB, 0x00, 0x00)),
        (block.Error.MISCOMPARE, (0xE, 0x1D, 0x00)),
        (block.Error.SANITIZING, (0x2, 0x04, 0x1B)),
    ],
)
@pytest.mark.parametrize(
    ("text", "data_out"),
    [
        ("28 00 00000000 00 0001 00", b""),
        ("2a 00 00000000 00 0001 00", bytes(512)),
        ("35 00 00000000 00 0000 00", b""),
        ("42 00 00000000 00 0018 00", bytes.fromhex("0016 0010 00000000 0000000000000000 00000001 00000000")),
        ("93 00 0000000000000000 00000001", b"\xa6" * 512),
    ],
    ids=["read", "write", "flush", "unmap", "write same"],
)
def test_storage_errors(
    disk: Bench, error: block.Error, expected: tuple[int, int, int] | None, text: str, data_out: bytes
) -> None:
    """Each block.Error has its sense; those after which trying again is right are BUSY, without sense."""
    disk.device.fail_next(error)
    outcome = disk.execute(text, data_out=data_out)
    assert outcome.transfer_bytes == 0
    assert disk.payload == b""
    if expected is None:
        assert (outcome.status, outcome.sense) == (scsi.BUSY, b"")
    else:
        assert code(outcome) == expected


def test_every_storage_error_is_tested() -> None:
    """The table above is complete, as FAILURES asserts of itself."""
    mark = next(mark for mark in test_storage_errors.pytestmark if mark.args[0] == ("error", "expected"))
    assert dict(mark.args[1]).keys() == set(block.Error)
