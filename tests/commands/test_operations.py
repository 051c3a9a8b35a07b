"""The table, and what is generated from it."""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.commands import OPERATIONS
from iscsi_ovs.commands.operations import ABSENT_OPERATIONS, WELL_KNOWN_OPERATIONS
from iscsi_ovs.scsi import Operation
from tests.commands.bench import Bench, code, field_pointer

INVALID_FIELD = (0x5, 0x24, 0x00)
TIMEOUTS = "000a 00 00 00000000 00000000".replace(" ", "")

PROMISED = [
    "TEST UNIT READY",
    "REQUEST SENSE",
    "FORMAT UNIT",
    "READ (6)",
    "WRITE (6)",
    "INQUIRY",
    "MODE SELECT (6)",
    "RESERVE (6)",
    "RELEASE (6)",
    "MODE SENSE (6)",
    "START STOP UNIT",
    "SEND DIAGNOSTIC",
    "PREVENT ALLOW MEDIUM REMOVAL",
    "READ CAPACITY (10)",
    "READ (10)",
    "WRITE (10)",
    "WRITE AND VERIFY (10)",
    "VERIFY (10)",
    "PRE-FETCH (10)",
    "SYNCHRONIZE CACHE (10)",
    "READ DEFECT DATA (10)",
    "WRITE SAME (10)",
    "UNMAP",
    "SANITIZE, OVERWRITE",
    "SANITIZE, BLOCK ERASE",
    "SANITIZE, EXIT FAILURE MODE",
    "LOG SENSE",
    "MODE SELECT (10)",
    "RESERVE (10)",
    "RELEASE (10)",
    "MODE SENSE (10)",
    "PERSISTENT RESERVE IN, READ KEYS",
    "PERSISTENT RESERVE IN, READ RESERVATION",
    "PERSISTENT RESERVE IN, REPORT CAPABILITIES",
    "PERSISTENT RESERVE IN, READ FULL STATUS",
    "PERSISTENT RESERVE OUT, REGISTER",
    "PERSISTENT RESERVE OUT, RESERVE",
    "PERSISTENT RESERVE OUT, RELEASE",
    "PERSISTENT RESERVE OUT, CLEAR",
    "PERSISTENT RESERVE OUT, PREEMPT",
    "PERSISTENT RESERVE OUT, PREEMPT AND ABORT",
    "PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY",
    "PERSISTENT RESERVE OUT, REGISTER AND MOVE",
    "EXTENDED COPY (LID1)",
    "RECEIVE COPY STATUS (LID1)",
    "RECEIVE COPY OPERATING PARAMETERS",
    "READ (16)",
    "COMPARE AND WRITE",
    "WRITE (16)",
    "ORWRITE (16)",
    "WRITE AND VERIFY (16)",
    "VERIFY (16)",
    "PRE-FETCH (16)",
    "SYNCHRONIZE CACHE (16)",
    "WRITE SAME (16)",
    "WRITE ATOMIC (16)",
    "READ CAPACITY (16)",
    "GET LBA STATUS",
    "REPORT LUNS",
    "REPORT TARGET PORT GROUPS",
    "REPORT SUPPORTED OPERATION CODES",
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
    "REPORT TIMESTAMP",
    "SET TARGET PORT GROUPS",
    "SET TIMESTAMP",
    "READ (12)",
    "WRITE (12)",
    "WRITE AND VERIFY (12)",
    "VERIFY (12)",
    "READ DEFECT DATA (12)",
]

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda row: row.name)


def rsoc(disk: Bench, options: int, opcode: int = 0, service_action: int = 0, length: int = 0xFFFF) -> scsi.Outcome:
    return disk.execute(f"a3 0c {options:02x} {opcode:02x} {service_action:04x} {length:08x} 00 00")


def descriptor(row: Operation, flags: int) -> str:
    flags |= 0 if row.service_action is None else 1
    return f"{row.opcode:02x}00{row.service_action or 0:04x}00{flags:02x}{row.cdb_length:04x}"


def test_every_promised_operation_is_there() -> None:
    """And nothing else."""
    assert [row.name for row in OPERATIONS] == PROMISED


def test_what_passes_a_unit_attention() -> None:
    """SAM-5 5.14.3; and REPORT LUNS' own unit is ready besides."""
    names = ["REQUEST SENSE", "INQUIRY", "REPORT LUNS"]
    assert [row.name for row in ABSENT_OPERATIONS] == names
    assert [row.name for row in WELL_KNOWN_OPERATIONS] == ["TEST UNIT READY", *names]
    assert not any(row.needs_medium for row in WELL_KNOWN_OPERATIONS)


def test_what_writes() -> None:
    """What a write-protected unit refuses."""
    assert {row.name for row in OPERATIONS if row.writes} == {
        "WRITE (6)", "WRITE (10)", "WRITE (12)", "WRITE (16)", "WRITE SAME (10)", "WRITE SAME (16)", "UNMAP",
        "WRITE AND VERIFY (10)", "WRITE AND VERIFY (12)", "WRITE AND VERIFY (16)", "COMPARE AND WRITE", "ORWRITE (16)",
        "WRITE ATOMIC (16)", "EXTENDED COPY (LID1)", "FORMAT UNIT", "SANITIZE, OVERWRITE", "SANITIZE, BLOCK ERASE",
        "SANITIZE, EXIT FAILURE MODE",
    }  # fmt: skip


@pytest.mark.parametrize("length", [0, 1, 4, 11, 0xFFFF])
def test_all_commands(atomic: Bench, length: int) -> None:
    """One descriptor a row."""
    rows = "".join(descriptor(row, 0) for row in OPERATIONS)
    whole = f"{len(rows) // 2:08x}" + rows
    outcome = rsoc(atomic, 0, length=length)
    assert outcome.data == bytes.fromhex(whole)[:length]
    assert outcome.transfer_bytes == len(outcome.data)


def test_all_commands_with_timeouts(atomic: Bench) -> None:
    """RCTD: CTDP in each descriptor, and twelve bytes behind it."""
    rows = "".join(descriptor(row, 2) + TIMEOUTS for row in OPERATIONS)
    assert rsoc(atomic, 0x80).data.hex() == f"{len(rows) // 2:08x}" + rows


@every_operation
def test_one_command(atomic: Bench, operation: Operation) -> None:
    """Each row by each reporting option that fits it; usage data are the row's."""
    has_actions = operation.service_action is not None
    action = operation.service_action or 0
    expected = f"0003{operation.cdb_length:04x}" + operation.usage.hex()
    for option, fits in ((1, not has_actions), (2, has_actions), (3, True)):
        outcome = rsoc(atomic, option, operation.opcode, action)
        if fits:
            assert outcome.data.hex() == expected
            with_timeouts = rsoc(atomic, option | 0x80, operation.opcode, action).data.hex()
            assert with_timeouts == "0083" + expected[4:] + TIMEOUTS
        else:
            assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (2, 2))


def test_one_command_that_is_not_there(disk: Bench) -> None:
    """SUPPORT 001b, no CDB, no timeouts."""
    for options, opcode, action in (
        (1, 0xFF, 0), (2, 0xFF, 1), (3, 0xFF, 0), (2, 0x9E, 0x13), (3, 0x9E, 0x13), (3, 0x28, 1), (0x81, 0x2C, 0),
        (2, 0xA3, 0x100C),
    ):  # fmt: skip
        assert rsoc(disk, options, opcode, action).data.hex() == "00010000"


@pytest.mark.parametrize("option", [4, 5, 6, 7])
def test_unknown_reporting_options(disk: Bench, option: int) -> None:
    """Reserved."""
    outcome = rsoc(disk, option, 0x28)
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (2, 2))


@pytest.mark.parametrize("opcode", [0x85, 0xA1, 0xA2, 0xB5, 0x4C, 0x3B, 0x3C, 0x94, 0x95, 0x7F, 0x1C])
def test_what_is_not_there_is_refused_cleanly(disk: Bench, opcode: int) -> None:
    """ATA PASS-THROUGH (16, 12), SECURITY PROTOCOL, LOG SELECT, buffers, zones, long CDBs, RECEIVE DIAGNOSTIC RESULTS:
    what smartctl, ESXi and others ask for."""
    for text in (f"{opcode:02x}", f"{opcode:02x}" + "ff" * 14 + "00"):
        assert code(disk.execute(text)) == (0x5, 0x20, 0x00)


@every_operation
def test_naca_is_refused(disk: Bench, operation: Operation) -> None:
    """No ACA here, so NACA=1 in CONTROL is an invalid field, and usage data do not have it."""
    raw = bytearray(16)
    raw[0], raw[1] = operation.opcode, operation.service_action or 0
    raw[operation.cdb_length - 1] = 0x04
    outcome = disk.execute(raw.hex())
    assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (operation.cdb_length - 1, 2))
    assert operation.usage[-1] == 0


@every_operation
def test_cdb_too_short(disk: Bench, operation: Operation) -> None:
    """A transport that brings fewer bytes than the command has."""
    whole = bytes([operation.opcode, operation.service_action or 0]).ljust(operation.cdb_length, b"\0")
    for length in range(2, operation.cdb_length):
        outcome = disk.router.execute(scsi.Command(disk.nexus, 0, whole[:length]))
        assert isinstance(outcome, scsi.Outcome)
        assert code(outcome) == INVALID_FIELD


def test_unknown_operations(disk: Bench) -> None:
    """Every opcode that is not in the table: 05/20/00. One that is, with a service action that is not: 05/24/00."""
    known = {(row.opcode, row.service_action) for row in OPERATIONS}
    opcodes = {row.opcode for row in OPERATIONS}
    for opcode in range(256):
        if (opcode, None) in known:
            continue
        for action in range(32):
            if (opcode, action) in known:
                continue
            outcome = disk.execute(f"{opcode:02x} {action:02x}")
            if opcode in opcodes:
                assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (1, 4))
            else:
                assert code(outcome) == (0x5, 0x20, 0x00)
    empty = disk.router.execute(scsi.Command(disk.nexus, 0, b""))
    assert isinstance(empty, scsi.Outcome)
    assert code(empty) == (0x5, 0x20, 0x00)


def outcome_of(raw: bytes) -> tuple[scsi.Outcome, bytes, bytes]:
    """What a fresh disk makes of a CDB that comes with more data than any command wants."""
    disk = Bench(size_bytes=1 << 16)
    disk.device.data[:4096] = bytes(range(256)) * 16
    outcome = disk.drive(disk.command(raw.hex(), 0, 1 << 16, bytes(8) + b"\x01" * 1016))
    outcome.buffer = None
    return outcome, disk.payload, bytes(disk.device.data)


@every_operation
def test_bits_that_have_no_meaning(operation: Operation) -> None:
    """CDB USAGE DATA are true: a bit that is zero there is reserved, so it changes nothing, or is refused as itself."""
    ones = bytes(byte & 0x01 if at > 1 else 0 for at, byte in enumerate(operation.usage))
    for filling in (bytes(operation.cdb_length), ones):
        base = bytearray(filling)
        base[0], base[1] = operation.opcode, operation.service_action or 0
        expected = outcome_of(base)
        for at in range(1, operation.cdb_length):
            is_last = at == operation.cdb_length - 1
            known = operation.usage[at] | (0x1F if at == 1 and operation.service_action is not None else 0)
            for bit in [bit for bit in range(8) if not known >> bit & 1 and not (is_last and bit == 2)]:  # NACA
                flipped = bytearray(base)
                flipped[at] ^= 1 << bit
                found = outcome_of(flipped)
                if found != expected:
                    assert code(found[0]) == INVALID_FIELD, flipped.hex()
                    assert field_pointer(found[0])[0] == at, flipped.hex()
