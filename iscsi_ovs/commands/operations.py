"""The table of operations: an opcode, its policy, its CDB usage data, its handler; one row a line, in order.

What is not here is INVALID COMMAND OPERATION CODE. REPORT SUPPORTED OPERATION CODES is generated from this table.
Usage data (SPC-4 6.35.3): a bit is set where the device server looks at it; the first byte is the opcode, service
actions stand in the low bits of the second. DPO is looked at (and taken as advice); GROUP NUMBER and CONTROL are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from iscsi_ovs.commands import (
    alua,
    atomics,
    log_pages,
    medium,
    mode_select,
    provisioning,
    reservations,
    sanitize,
    sbc,
    sense,
    spc,
    start_stop,
    supported,
    timestamp,
    verify,
    write_through,
    xcopy,
)
from iscsi_ovs.commands import persistent_reserve_in as pr_in
from iscsi_ovs.commands import persistent_reserve_out as pr_out
from iscsi_ovs.commands.conflicts import with_conflicts
from iscsi_ovs.scsi import Command, CommandSet, Direction, Execution, LogicalUnit, Operation

_NONE, _IN, _OUT = Direction.NONE, Direction.IN, Direction.OUT
_MEDIUM = True
_Handler = Callable[[LogicalUnit, Command], Execution]


def _always(row: Operation) -> Operation:
    """SAM-5 5.14.3: INQUIRY, REPORT LUNS and REQUEST SENSE are answered whatever unit attention is pending; they are
    what LUNs without a unit answer, too."""
    return replace(row, allowed_under_unit_attention=True, allowed_while_unavailable=True)


def _about_paths(row: Operation) -> Operation:
    """What is done through a port group in unavailable state, too."""
    return replace(row, allowed_while_unavailable=True)


def _thin(row: Operation) -> Operation:
    """LBPU (SBC-3 6.5.4): what a fully provisioned unit does not have."""
    return replace(row, needs_thin=True)


def _compares(row: Operation) -> Operation:
    """Data goes out to the medium, and is only held against it: a write-protected unit does it, too."""
    return replace(row, changes_medium=False)


_hex = bytes.fromhex


def _at_lba_10(opcode: int, flags: int) -> bytes:
    """Usage of a ten-byte CDB with LBA and number of blocks; ``flags``: the bits of byte 1 that are looked at."""
    return _hex(f"{opcode:02x} {flags:02x} ffffffff 00 ffff 00")


def _at_lba_12(opcode: int, flags: int) -> bytes:
    return _hex(f"{opcode:02x} {flags:02x} ffffffff ffffffff 00 00")


def _at_lba_16(opcode: int, flags: int) -> bytes:
    return _hex(f"{opcode:02x} {flags:02x} ffffffffffffffff ffffffff 00 00")


def _sanitize(service_action: int, name: str, direction: Direction, handler: _Handler) -> Operation:
    """It changes the medium whether or not data goes out, and is what helps after a sanitize operation that failed."""
    return Operation(
        0x48, service_action, name, direction, _hex(f"48 {0xA0 | service_action:02x} 0000000000 ffff 00"), handler,
        _MEDIUM, changes_medium=True, ends_sanitize_failure=True,
    )  # fmt: skip


def _receive_copy(service_action: int) -> bytes:
    return _hex(f"84 {service_action:02x} ff 00000000000000 ffffffff 00 00")


_READ_CAPACITY_10 = _hex("25 00 ffffffff 0000 01 00")
_READ_CAPACITY_16 = _hex("9e 10 ffffffffffffffff ffffffff 01 00")
_GET_LBA_STATUS = _hex("9e 12 ffffffffffffffff ffffffff 00 00")
_EXTENDED_COPY = _hex("83 00 0000000000000000 ffffffff 00 00")
_COMPARE_AND_WRITE = _hex("89 18 ffffffffffffffff 000000 ff 00 00")
_WRITE_ATOMIC_16 = _hex("9c 18 ffffffffffffffff ffff ffff 00 00")
_READ_DEFECT_DATA_10 = _hex("37 00 1f 00000000 ffff 00")
_READ_DEFECT_DATA_12 = _hex("b7 1f ffffffff ffffffff 00 00")
_UNMAP = _hex("42 00 00000000 00 ffff 00")
_PREVENT_ALLOW = "PREVENT ALLOW MEDIUM REMOVAL"
_PREVENT_USAGE = _hex("1e 000000 03 00")
_RTPG = _hex("a3 ea 00000000 ffffffff 00 00")
_STPG = _hex("a4 0a 00000000 ffffffff 00 00")
_TIMESTAMP = _hex("a3 0f 00000000 ffffffff 00 00")
_SET_TIMESTAMP = _hex("a4 0f 00000000 ffffffff 00 00")
_RSTMF = "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS"
_RSTMF_USAGE = _hex("a3 0d 80 000000 ffffffff 00 00")
_RSOC = "REPORT SUPPORTED OPERATION CODES"
_RSOC_USAGE = _hex("a3 0c 87 ff ffff ffffffff 00 00")


def _reserve_in(service_action: int, name: str, handler: _Handler) -> Operation:
    usage = _hex(f"5e {service_action:02x} 0000000000 ffff 00")
    return Operation(0x5E, service_action, f"PERSISTENT RESERVE IN, {name}", _IN, usage, handler)


def _reserve_out(service_action: int, name: str, handler: _Handler, scope_type: int = 0) -> Operation:
    usage = _hex(f"5f {service_action:02x} {scope_type:02x} 0000 ffffffff 00")
    return Operation(0x5F, service_action, f"PERSISTENT RESERVE OUT, {name}", _OUT, usage, handler)


# fmt: off
OPERATIONS: tuple[Operation, ...] = (
    Operation(0x00, None, "TEST UNIT READY",      _NONE, _hex("00 00 00000000"), spc.test_unit_ready, _MEDIUM),
    _always(Operation(0x03, None, "REQUEST SENSE", _IN,  _hex("03 01 0000ff00"), spc.request_sense)),
    Operation(0x04, None, "FORMAT UNIT",          _OUT,  _hex("04 f0 00 0000 00"), sanitize.format_unit, _MEDIUM),
    Operation(0x08, None, "READ (6)",             _IN,   _hex("08 1fffff ff00"), sbc.read_6, _MEDIUM),
    Operation(0x0A, None, "WRITE (6)",            _OUT,  _hex("0a 1fffff ff00"), sbc.write_6, _MEDIUM),
    _always(Operation(0x12, None, "INQUIRY",      _IN,   _hex("12 01 ffffff 00"), spc.inquiry)),
    Operation(0x15, None, "MODE SELECT (6)",      _OUT,  _hex("15 11 0000 ff 00"), mode_select.mode_select_6),
    Operation(0x16, None, "RESERVE (6)",          _NONE, _hex("16 1f 000000 00"), reservations.reserve_6),
    Operation(0x17, None, "RELEASE (6)",          _NONE, _hex("17 1f 000000 00"), reservations.release_6),
    Operation(0x1A, None, "MODE SENSE (6)",       _IN,   _hex("1a 08 ffffff 00"), spc.mode_sense_6),
    Operation(0x1B, None, "START STOP UNIT",      _NONE, _hex("1b 01 0000f7 00"), start_stop.start_stop_unit),
    Operation(0x1D, None, "SEND DIAGNOSTIC",      _NONE, _hex("1d e4 00 ffff 00"), spc.send_diagnostic),
    Operation(0x1E, None, _PREVENT_ALLOW,         _NONE, _PREVENT_USAGE, start_stop.prevent_allow_medium_removal),
    Operation(0x25, None, "READ CAPACITY (10)",   _IN,   _READ_CAPACITY_10, medium.read_capacity_10, _MEDIUM),
    Operation(0x28, None, "READ (10)",            _IN,   _at_lba_10(0x28, 0x18), sbc.read_10, _MEDIUM),
    Operation(0x2A, None, "WRITE (10)",           _OUT,  _at_lba_10(0x2A, 0x18), sbc.write_10, _MEDIUM),
    Operation(0x2E, None, "WRITE AND VERIFY (10)", _OUT, _at_lba_10(0x2E, 0x16), verify.write_and_verify_10, _MEDIUM),
    _compares(Operation(0x2F, None, "VERIFY (10)", _OUT, _at_lba_10(0x2F, 0x16), verify.verify_10, _MEDIUM)),
    Operation(0x34, None, "PRE-FETCH (10)",       _NONE, _at_lba_10(0x34, 0x02), medium.pre_fetch_10, _MEDIUM),
    Operation(0x35, None, "SYNCHRONIZE CACHE (10)", _NONE, _at_lba_10(0x35, 0x02), sbc.synchronize_cache_10, _MEDIUM),
    Operation(0x37, None, "READ DEFECT DATA (10)", _IN,  _READ_DEFECT_DATA_10, medium.read_defect_data_10, _MEDIUM),
    Operation(0x41, None, "WRITE SAME (10)",      _OUT,  _at_lba_10(0x41, 0x08), provisioning.write_same_10, _MEDIUM),
    _thin(Operation(0x42, None, "UNMAP",          _OUT,  _UNMAP, provisioning.unmap, _MEDIUM)),
    _sanitize(0x01, "SANITIZE, OVERWRITE",       _OUT,  sanitize.overwrite),
    _thin(_sanitize(0x02, "SANITIZE, BLOCK ERASE", _NONE, sanitize.block_erase)),
    _sanitize(0x1F, "SANITIZE, EXIT FAILURE MODE", _NONE, sanitize.exit_failure_mode),
    Operation(0x4D, None, "LOG SENSE",            _IN,   _hex("4d 03 ff ff 00 ffff ffff 00"), log_pages.log_sense),
    Operation(0x55, None, "MODE SELECT (10)",     _OUT,  _hex("55 11 0000000000 ffff 00"), mode_select.mode_select_10),
    Operation(0x56, None, "RESERVE (10)",         _NONE, _hex("56 13 0000000000 0000 00"), reservations.reserve_10),
    Operation(0x57, None, "RELEASE (10)",         _NONE, _hex("57 13 0000000000 0000 00"), reservations.release_10),
    Operation(0x5A, None, "MODE SENSE (10)",      _IN,   _hex("5a 18 ffff 000000 ffff 00"), spc.mode_sense_10),
    _reserve_in(0x00, "READ KEYS", pr_in.read_keys),
    _reserve_in(0x01, "READ RESERVATION", pr_in.read_reservation),
    _reserve_in(0x02, "REPORT CAPABILITIES", pr_in.report_capabilities),
    _reserve_in(0x03, "READ FULL STATUS", pr_in.read_full_status),
    _reserve_out(0x00, "REGISTER", pr_out.register),
    _reserve_out(0x01, "RESERVE", pr_out.reserve, 0xFF),
    _reserve_out(0x02, "RELEASE", pr_out.release, 0xFF),
    _reserve_out(0x03, "CLEAR", pr_out.clear),
    _reserve_out(0x04, "PREEMPT", pr_out.preempt, 0xFF),
    _reserve_out(0x05, "PREEMPT AND ABORT", pr_out.preempt_and_abort, 0xFF),
    _reserve_out(0x06, "REGISTER AND IGNORE EXISTING KEY", pr_out.register_and_ignore),
    _reserve_out(0x07, "REGISTER AND MOVE", pr_out.register_and_move),
    Operation(0x83, 0x00, "EXTENDED COPY (LID1)", _OUT,  _EXTENDED_COPY, xcopy.extended_copy, _MEDIUM),
    Operation(0x84, 0x00, "RECEIVE COPY STATUS (LID1)", _IN, _receive_copy(0x00), xcopy.copy_status),
    Operation(0x84, 0x03, "RECEIVE COPY OPERATING PARAMETERS", _IN, _receive_copy(0x03), xcopy.operating_parameters),
    Operation(0x88, None, "READ (16)",            _IN,   _at_lba_16(0x88, 0x18), sbc.read_16, _MEDIUM),
    Operation(0x89, None, "COMPARE AND WRITE",    _OUT,  _COMPARE_AND_WRITE, atomics.compare_and_write, _MEDIUM),
    Operation(0x8A, None, "WRITE (16)",           _OUT,  _at_lba_16(0x8A, 0x18), sbc.write_16, _MEDIUM),
    Operation(0x8B, None, "ORWRITE (16)",         _OUT,  _at_lba_16(0x8B, 0x18), atomics.orwrite_16, _MEDIUM),
    Operation(0x8E, None, "WRITE AND VERIFY (16)", _OUT, _at_lba_16(0x8E, 0x16), verify.write_and_verify_16, _MEDIUM),
    _compares(Operation(0x8F, None, "VERIFY (16)", _OUT, _at_lba_16(0x8F, 0x16), verify.verify_16, _MEDIUM)),
    Operation(0x90, None, "PRE-FETCH (16)",       _NONE, _at_lba_16(0x90, 0x02), medium.pre_fetch_16, _MEDIUM),
    Operation(0x91, None, "SYNCHRONIZE CACHE (16)", _NONE, _at_lba_16(0x91, 0x02), sbc.synchronize_cache_16, _MEDIUM),
    Operation(0x93, None, "WRITE SAME (16)",      _OUT,  _at_lba_16(0x93, 0x09), provisioning.write_same_16, _MEDIUM),
    Operation(0x9C, None, "WRITE ATOMIC (16)",    _OUT,  _WRITE_ATOMIC_16, atomics.write_atomic_16, _MEDIUM),
    Operation(0x9E, 0x10, "READ CAPACITY (16)",   _IN,   _READ_CAPACITY_16, medium.read_capacity_16, _MEDIUM),
    Operation(0x9E, 0x12, "GET LBA STATUS",       _IN,   _GET_LBA_STATUS, medium.get_lba_status, _MEDIUM),
    _always(Operation(0xA0, None, "REPORT LUNS",  _IN,   _hex("a0 00 ff 000000 ffffffff 00 00"), spc.report_luns)),
    _about_paths(Operation(0xA3, 0x0A, "REPORT TARGET PORT GROUPS", _IN, _RTPG, alua.report_target_port_groups)),
    Operation(0xA3, 0x0C, _RSOC,              _IN,   _RSOC_USAGE, supported.report_supported_operation_codes),
    Operation(0xA3, 0x0D, _RSTMF, _IN, _RSTMF_USAGE, supported.report_supported_task_management_functions),
    Operation(0xA3, 0x0F, "REPORT TIMESTAMP",     _IN,   _TIMESTAMP, timestamp.report_timestamp),
    _about_paths(Operation(0xA4, 0x0A, "SET TARGET PORT GROUPS", _OUT, _STPG, alua.set_target_port_groups)),
    Operation(0xA4, 0x0F, "SET TIMESTAMP",        _OUT,  _SET_TIMESTAMP, timestamp.set_timestamp),
    Operation(0xA8, None, "READ (12)",            _IN,   _at_lba_12(0xA8, 0x18), sbc.read_12, _MEDIUM),
    Operation(0xAA, None, "WRITE (12)",           _OUT,  _at_lba_12(0xAA, 0x18), sbc.write_12, _MEDIUM),
    Operation(0xAE, None, "WRITE AND VERIFY (12)", _OUT, _at_lba_12(0xAE, 0x16), verify.write_and_verify_12, _MEDIUM),
    _compares(Operation(0xAF, None, "VERIFY (12)", _OUT, _at_lba_12(0xAF, 0x16), verify.verify_12, _MEDIUM)),
    Operation(0xB7, None, "READ DEFECT DATA (12)", _IN,  _READ_DEFECT_DATA_12, medium.read_defect_data_12, _MEDIUM),
)
# fmt: on
OPERATIONS = tuple(map(with_conflicts, OPERATIONS))

_CDB_LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}  # by the opcode's group (SPC-4 4.2.5.1)

_keys = [(row.opcode, -1 if row.service_action is None else row.service_action) for row in OPERATIONS]
assert _keys == sorted(set(_keys)), "OPERATIONS is ordered, and no operation is there twice"
for _row in OPERATIONS:
    assert _row.usage[0] == _row.opcode, _row.name
    assert _row.cdb_length == _CDB_LENGTHS[_row.opcode >> 5], _row.name
    assert _row.service_action is None or _row.usage[1] & 0x1F == _row.service_action, _row.name

ABSENT_OPERATIONS = tuple(row for row in OPERATIONS if row.allowed_under_unit_attention)
# SPC-4 9.3: the REPORT LUNS well known logical unit is always ready
WELL_KNOWN_OPERATIONS = (replace(OPERATIONS[0], needs_medium=False), *ABSENT_OPERATIONS)

COMMAND_SET = CommandSet(
    operations=OPERATIONS,
    absent=ABSENT_OPERATIONS,
    well_known=WELL_KNOWN_OPERATIONS,
    build_sense=sense.build,
    failures=sense.FAILURES,
    write_through=write_through.row,
    records={mode_select.RECORD: mode_select.load, reservations.RECORD: reservations.load},
)
