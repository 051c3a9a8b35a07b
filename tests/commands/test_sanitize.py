"""SANITIZE and FORMAT UNIT: what is asked of the volume server, what a unit says meanwhile, what is refused."""

from __future__ import annotations

import errno

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Error, Operation
from iscsi_ovs.scsi import Sanitize
from tests.commands.bench import Bench, code, field_pointer
from tests.commands.shapes import BLOCK, CAPACITY, INVALID_FIELD, INVALID_PARAMETER, PARAMETER_LENGTH, pattern, ten

OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE, EXIT = 0x01, 0x02, 0x03, 0x1F
IMMED, AUSE = 0x80, 0x20
IN_PROGRESS = (0x2, 0x04, 0x1B)
FAILED = (0x3, 0x31, 0x03)


def cdb(action: int, length: int = 0, flags: int = 0, reserved: str = "0000000000") -> str:
    return f"48 {action | flags:02x} {reserved} {length:04x} 00"


def sanitize(disk: Bench, action: int, data: bytes = b"", flags: int = 0) -> scsi.Outcome:
    return disk.execute(cdb(action, len(data), flags), data_out=data)


def parameters(pattern: bytes, flags: int = 0x01, length: int | None = None) -> bytes:
    return bytes((flags, 0)) + (len(pattern) if length is None else length).to_bytes(2, "big") + pattern


# SANITIZE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, 5, 256, 511, 512])
def test_overwrite(disk: Bench, length: int) -> None:
    """The pattern fills a block, from its first byte on, cut at the block's end."""
    data = parameters(bytes(range(1, 251))[:length] if length < 251 else pattern(1)[:length])
    outcome = sanitize(disk, OVERWRITE, data)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(data))
    (request,) = disk.sanitizes
    assert (request.kind, request.is_immediate, request.may_exit_failure) == (Sanitize.OVERWRITE, False, False)
    assert request.patterns == [(data[4:] * BLOCK)[:BLOCK]]


def test_overwrite_passes(disk: Bench) -> None:
    """OVERWRITE COUNT; with INVERT they alternate, and the last leaves the pattern itself."""
    normal, inverted = b"\xa5" * BLOCK, b"\x5a" * BLOCK
    for flags, expected in (
        (0x01, [normal]), (0x03, [normal] * 3), (0x1F, [normal] * 31), (0x81, [normal]), (0x82, [inverted, normal]),
        (0x83, [normal, inverted, normal]),
    ):  # fmt: skip
        sanitize(disk, OVERWRITE, parameters(b"\xa5", flags))
        assert disk.sanitizes.pop().patterns == expected


def test_block_erase_and_exit(disk: Bench) -> None:
    """No data; IMMED and AUSE are passed on. Without a failure there is nothing to exit from, and nobody is asked."""
    assert sanitize(disk, EXIT) == scsi.Outcome()
    assert disk.sanitizes == []
    disk.unit.has_failed_to_sanitize = True
    for action, kind in ((BLOCK_ERASE, Sanitize.BLOCK_ERASE), (EXIT, Sanitize.EXIT_FAILURE_MODE)):
        assert sanitize(disk, action) == scsi.Outcome()
        request = disk.sanitizes.pop()
        assert (request.kind, request.is_immediate, request.may_exit_failure) == (kind, False, False)
        outcome = disk.execute(cdb(action, 8), data_out=bytes(8))
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (7, None))
    assert sanitize(disk, BLOCK_ERASE, flags=IMMED | AUSE) == scsi.Outcome()
    request = disk.sanitizes.pop()
    assert (request.is_immediate, request.may_exit_failure) == (True, True)
    assert disk.device.log == []


@pytest.mark.parametrize("action", [OVERWRITE, BLOCK_ERASE, EXIT])
def test_reserved_fields(disk: Bench, action: int) -> None:
    """ZNR is for zoned devices; the rest must be zero: of a command that destroys everything, nothing is guessed."""
    data = parameters(bytes(BLOCK)) if action == OVERWRITE else b""
    outcome = disk.execute(cdb(action, len(data), 0x40), data_out=data)
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 6))
    for at in range(2, 7):
        reserved = bytearray(5)
        reserved[at - 2] = at
        outcome = disk.execute(cdb(action, len(data), 0, reserved.hex()), data_out=data)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (at, None))
    assert disk.sanitizes == []


def test_service_actions_that_are_not_there(disk: Bench) -> None:
    """CRYPTOGRAPHIC ERASE among them: nothing here is encrypted."""
    for action in range(32):
        if action not in (OVERWRITE, BLOCK_ERASE, EXIT):
            outcome = disk.execute(cdb(action))
            assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 4))
    assert disk.sanitizes == []


def test_overwrite_parameter_lists(disk: Bench) -> None:
    """Lengths by the CDB, then what stands in the list."""
    for length in (0, 1, 2, 3, 4, BLOCK + 5, 0xFFFF):
        outcome = disk.execute(cdb(OVERWRITE, length), data_out=bytes(BLOCK + 8))
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (7, None))
    assert code(disk.execute(cdb(OVERWRITE, 8), data_out=bytes(7))) == PARAMETER_LENGTH
    for data, byte in (
        (parameters(bytes(8), 0x00), 0), (parameters(bytes(8), 0x21), 0), (parameters(bytes(8), 0x80), 0),
        (parameters(bytes(8), length=0), 2), (parameters(bytes(8), length=BLOCK + 1), 2),
    ):  # fmt: skip
        outcome = sanitize(disk, OVERWRITE, data)
        assert (code(outcome), outcome.sense[17]) == (INVALID_PARAMETER, byte)
    assert code(sanitize(disk, OVERWRITE, parameters(bytes(8), length=9))) == PARAMETER_LENGTH
    assert disk.sanitizes == []


def test_how_it_ends(disk: Bench) -> None:
    """A failed sanitize operation is 03/31/03; a server that went away in the middle goes on with it: BUSY."""
    disk.sanitize_error = OSError(errno.EIO, "the store")
    assert code(sanitize(disk, BLOCK_ERASE)) == FAILED
    disk.sanitize_error = OSError(errno.ECONNRESET, "the server")
    assert sanitize(disk, BLOCK_ERASE).status == scsi.BUSY
    # one failed without AUSE before
    disk.sanitize_error = OSError(errno.EPERM, "may not be exited")
    disk.unit.has_failed_to_sanitize = True
    assert code(sanitize(disk, EXIT)) == code(sanitize(disk, BLOCK_ERASE, flags=AUSE)) == INVALID_FIELD


def test_a_protected_unit_is_not_wiped() -> None:
    """Neither with data nor without."""
    disk = Bench(personality=scsi.Personality(is_read_only=True))
    for action, data in ((OVERWRITE, parameters(bytes(8))), (BLOCK_ERASE, b""), (EXIT, b"")):
        assert code(sanitize(disk, action, data)) == (0x7, 0x27, 0x00)
    assert code(disk.execute("04 00 00 0000 00")) == (0x7, 0x27, 0x00)
    assert disk.sanitizes == disk.device.log == []


def test_a_thick_unit_has_no_block_erase() -> None:
    """It would not be unmapped afterwards; VPD page B1 (WABEREQ) says that it is not there."""
    disk = Bench(personality=scsi.Personality(is_thin=False))
    assert code(sanitize(disk, BLOCK_ERASE)) == INVALID_FIELD
    assert sanitize(disk, OVERWRITE, parameters(bytes(8))).status == scsi.GOOD
    assert disk.execute("12 01 b1 00ff 00").data[7] == 0
    assert Bench().execute("12 01 b1 00ff 00").data[7] == 0x40


# Meanwhile ------------------------------------------------------------------------------------------------------


def test_while_it_is_under_way(disk: Bench) -> None:
    """Everything that needs the medium: 02/04/1B and how far it has come; who asks what the unit is hears it."""
    disk.unit.sanitize_progress = 0x1234
    for text in (
        "00", ten(0x28, 0, 1), ten(0x2A, 0, 1), ten(0x2F, 0, 1), "1b 00 00 00 01 00", "1b 00 00 00 00 00", "25",
        "04 00 00 0000 00", cdb(BLOCK_ERASE), cdb(EXIT),
    ):  # fmt: skip
        outcome = disk.execute(text)
        assert code(outcome) == IN_PROGRESS
        assert outcome.sense[15:18].hex() == "801234"
    for text in ("12 00 00 00ff 00", "a0 00 00 000000 000000ff 00 00", "1a 00 3f 00 ff 00"):
        assert disk.execute(text).status == scsi.GOOD
    polled = disk.execute("03 00 0000 ff 00")
    assert (polled.status, polled.data[2], polled.data[12:14].hex(), polled.data[15:18].hex()) == (
        scsi.GOOD, 0x2, "041b", "801234",
    )  # fmt: skip
    disk.unit.sanitize_progress = None
    assert disk.execute("00").status == scsi.GOOD
    assert disk.execute("03 00 0000 ff 00").data[2] == 0


def test_after_it_failed(disk: Bench) -> None:
    """03/31/03 to all but SANITIZE: another one, or leaving."""
    disk.unit.has_failed_to_sanitize = True
    for text in ("00", ten(0x28, 0, 1), ten(0x2A, 0, 1), "25", "04 00 00 0000 00"):
        assert code(disk.execute(text)) == FAILED
    assert disk.execute("03 00 0000 ff 00").data[12:14].hex() == "3103"
    for action in (BLOCK_ERASE, EXIT):
        assert sanitize(disk, action).status == scsi.GOOD
    disk.unit.has_failed_to_sanitize = False
    assert disk.execute("00").status == scsi.GOOD


# FORMAT UNIT ----------------------------------------------------------------------------------------------------


def format_unit(disk: Bench, flags: int = 0, data: bytes = b"") -> scsi.Outcome:
    return disk.execute(f"04 {flags:02x} 00 0000 00", data_out=data)


@pytest.mark.parametrize("is_thin", [True, False])
def test_format_unit(is_thin: bool) -> None:
    """Every block reads as zeros, durably; unmapped on a thin unit, allocated on a thick one."""
    disk = Bench(personality=scsi.Personality(is_thin=is_thin))
    disk.device.data[:] = pattern(CAPACITY)
    assert format_unit(disk) == scsi.Outcome()
    assert disk.device.flushed == bytes(CAPACITY * BLOCK)
    wipe, flush = disk.device.log
    assert (wipe.operation, wipe.no_unmap) == (
        (Operation.DISCARD, False) if is_thin else (Operation.WRITE_ZEROES, True)
    )
    assert (wipe.offset_bytes, wipe.length_bytes, flush.operation) == (0, CAPACITY * BLOCK, Operation.FLUSH)


def test_format_of_odd_volumes() -> None:
    """Whole blocks, and none at all."""
    disk = Bench(logical_block_bytes=4096)
    disk.unit.resize(block.Geometry(4096 * 3 + 512))
    disk.nexus.attentions[disk.unit].clear()
    format_unit(disk)
    assert disk.device.log[0].length_bytes == 4096 * 3
    disk.unit.resize(block.Geometry(0))
    disk.nexus.attentions[disk.unit].clear()
    assert format_unit(disk) == scsi.Outcome()


def test_a_format_that_fails(disk: Bench) -> None:
    """Either step."""
    disk.device.fail_next(Error.MEDIUM_WRITE)
    assert code(format_unit(disk)) == (0x3, 0x0C, 0x00)
    disk.device.fail_next(Error.WRITE_FAULT, Operation.FLUSH)
    assert code(format_unit(disk)) == (0x3, 0x0C, 0x00)


@pytest.mark.parametrize(
    ("flags", "header"),
    [
        (0x10, "00000000"), (0x18, "00020000"), (0x10, "00f20000"), (0x10, "00820000"), (0x30, "0000000000000000"),
        (0x30, "0082000000000000"),
    ],
)  # fmt: skip
def test_parameter_lists_that_are_honoured(disk: Bench, flags: int, header: str) -> None:
    """Short and long; IMMED; FOV with what there is nothing to do for (primary list, certification, stop)."""
    data = bytes.fromhex(header)
    outcome = format_unit(disk, flags, data)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(data))


@pytest.mark.parametrize(
    ("flags", "header", "byte"),
    [
        (0x10, "01000000", 0), (0x10, "00880000", 1), (0x10, "00080000", 1), (0x10, "00400000", 1),
        (0x10, "00100000", 1), (0x10, "00000004", 2), (0x30, "0000000000000004", 4), (0x30, "0000000100000000", 3),
        (0x30, "0000000001000000", 4),
    ],
)  # fmt: skip
def test_parameter_lists_that_are_not(disk: Bench, flags: int, header: str, byte: int) -> None:
    """Protection information, a pattern, options without FOV, defects: nothing is wiped."""
    outcome = format_unit(disk, flags, bytes.fromhex(header))
    assert (code(outcome), outcome.sense[17]) == (INVALID_PARAMETER, byte)
    assert disk.device.log == []


def test_refused_formats(disk: Bench) -> None:
    """FMTPINFO; a list that is cut."""
    for flags in (0x40, 0x80, 0xC0):
        outcome = format_unit(disk, flags)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 7))
    for flags, header in ((0x10, ""), (0x10, "000000"), (0x30, "00000000000000")):
        assert code(format_unit(disk, flags, bytes.fromhex(header))) == PARAMETER_LENGTH
    assert disk.device.log == []
