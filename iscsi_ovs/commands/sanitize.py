"""What wipes a whole unit: SANITIZE (SBC-3 4.11, 5.24) and FORMAT UNIT (SBC-3 5.3).

A sanitize operation belongs to the volume, not to the command: the volume server carries it to its end, whatever
becomes of the command, its session or either process, and the unit says 02/04/1B with the progress until then. So SCSI
asks for it with a SanitizeRequest. There is no cryptographic erase: nothing here is encrypted. FORMAT UNIT is an
ordinary discard of every block, with neither defects nor protection information nor another block length.
"""

from __future__ import annotations

import errno
from functools import partial

from iscsi_ovs import block
from iscsi_ovs.block import Operation, Request
from iscsi_ovs.commands import cdb, sbc, sense
from iscsi_ovs.scsi import (
    BUSY,
    CHECK_CONDITION,
    CheckCondition,
    Command,
    Execution,
    FieldPointer,
    LogicalUnit,
    Outcome,
    Sanitize,
    SanitizeRequest,
    invalid_field,
)

_OVERWRITE_HEADER_BYTES = 4
# The volume server has gone, or somebody else begins one, or writes: whoever tries again hears how that stands.
_TRY_AGAIN = frozenset((errno.ECONNRESET, errno.EBUSY))

# SANITIZE -------------------------------------------------------------------------------------------------------


def overwrite(unit: LogicalUnit, command: Command) -> Execution:
    """The pattern of the parameter list in every block, as often as it says."""
    fields = _checked(command)
    length = fields.parameter_list_length
    # SBC-3 table 98: "Greater than 0004h and less than logical block length + 5", else INVALID FIELD IN CDB.
    if not _OVERWRITE_HEADER_BYTES < length < unit.block_bytes + 5:
        raise invalid_field(7)
    if command.data_out is None or command.data_out_bytes < length:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    data = b"".join(command.data_out.views(0, length))
    header = cdb.SanitizeOverwrite.unpack_from(data)
    if header.flags & cdb.SANITIZE_TEST:
        raise _invalid_parameter(0, 6)
    passes = header.flags & cdb.OVERWRITE_COUNT
    if passes == 0:
        raise _invalid_parameter(0, 4)  # "A value of 00h is reserved."
    pattern_bytes = header.pattern_length
    if not 0 < pattern_bytes <= unit.block_bytes:
        raise _invalid_parameter(2)
    if _OVERWRITE_HEADER_BYTES + pattern_bytes > length:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    # "This data pattern is repeated as necessary to fill each logical block."
    pattern = data[_OVERWRITE_HEADER_BYTES : _OVERWRITE_HEADER_BYTES + pattern_bytes]
    pattern = (pattern * -(-unit.block_bytes // pattern_bytes))[: unit.block_bytes]
    request = _request(unit, fields, Sanitize.OVERWRITE, length)
    request.patterns = _patterns(pattern, passes, bool(header.flags & cdb.INVERT))
    return request


def _patterns(pattern: bytes, passes: int, inverts: bool) -> list[bytes]:
    """One a pass. "If the INVERT bit is set to one and the OVERWRITE COUNT field is an even number, then the pattern
    used for the first write pass shall consist of … the inversion": the last one is always the pattern as it is."""
    inverted = bytes(byte ^ 0xFF for byte in pattern)
    return [inverted if inverts and left % 2 else pattern for left in range(passes - 1, -1, -1)]


def block_erase(unit: LogicalUnit, command: Command) -> Execution:
    """Every block is unmapped, and reads as zeros (WABEREQ 01b)."""
    fields = _checked(command)
    if fields.parameter_list_length:
        raise invalid_field(7)
    return _request(unit, fields, Sanitize.BLOCK_ERASE, 0)


def exit_failure_mode(unit: LogicalUnit, command: Command) -> Execution:
    """Back to ordinary work after a sanitize operation that failed, if that was started with AUSE (SBC-3 4.11.3).
    Without a failure there is nothing to leave, and no error in that."""
    fields = _checked(command)
    if fields.parameter_list_length:
        raise invalid_field(7)
    if not unit.has_failed_to_sanitize:
        return Outcome()
    return _request(unit, fields, Sanitize.EXIT_FAILURE_MODE, 0)


def _checked(command: Command) -> cdb.Sanitize:
    """The CDB's fields. What is reserved must be zero: of a command that destroys everything, nothing is guessed."""
    fields = cdb.Sanitize.unpack_from(command.cdb)
    if fields.service_action & cdb.ZNR:
        raise invalid_field(1, 6)
    if any(fields.reserved_2):
        raise invalid_field(2 + next(at for at, byte in enumerate(fields.reserved_2) if byte))
    return fields


def _request(unit: LogicalUnit, fields: cdb.Sanitize, kind: Sanitize, transfer_bytes: int) -> SanitizeRequest:
    return SanitizeRequest(
        kind,
        is_immediate=bool(fields.service_action & cdb.SANITIZE_IMMED),
        may_exit_failure=bool(fields.service_action & cdb.AUSE),
        finish=partial(_sanitized, unit, transfer_bytes),
    )


def _sanitized(unit: LogicalUnit, transfer_bytes: int, error: OSError | None) -> Outcome:
    """It is done, or with IMMED begun for good. The volume server going away in the middle does not end it: BUSY, and
    what the initiator hears next is how far it has come."""
    if error is None:
        return Outcome(transfer_bytes=transfer_bytes)
    if error.errno in _TRY_AGAIN:
        return Outcome(BUSY)
    if error.errno == errno.EPERM:
        # After a failure without AUSE: neither EXIT FAILURE MODE nor a SANITIZE with AUSE (SBC-3 5.24.1).
        return Outcome(CHECK_CONDITION, unit.build_sense(invalid_field(1)))
    return Outcome(CHECK_CONDITION, unit.build_sense(CheckCondition(sense.SANITIZE_COMMAND_FAILED)))


# FORMAT UNIT ----------------------------------------------------------------------------------------------------


def format_unit(unit: LogicalUnit, command: Command) -> Execution:
    """Every block reads as zeros afterwards, durably; a thin unit has none mapped. IMMED is answered then, too."""
    fields = cdb.FormatUnit.unpack_from(command.cdb)
    if fields.flags & cdb.FMTPINFO:
        raise invalid_field(1, 7)  # no protection information here
    transfer_bytes = 0
    if fields.flags & cdb.FMTDATA:
        transfer_bytes = _check_format_list(command, is_long=bool(fields.flags & cdb.LONGLIST))
    size_bytes = unit.capacity_blocks * unit.block_bytes
    if size_bytes == 0:
        return Outcome(transfer_bytes=transfer_bytes)

    def wiped(completion: block.Completion) -> Execution:
        if completion.error is not None:
            return unit.failed(completion)
        return Request(Operation.FLUSH, finish=partial(sbc.finish_moved, unit, transfer_bytes))

    if unit.personality.is_thin:
        return Request(Operation.DISCARD, 0, size_bytes, finish=wiped)
    return Request(Operation.WRITE_ZEROES, 0, size_bytes, no_unmap=True, finish=wiped)


def _check_format_list(command: Command, is_long: bool) -> int:
    """The header of the parameter list (SBC-3 5.3.2): what it may ask for that is true of us. Returns its length."""
    layout = cdb.FormatHeaderLong if is_long else cdb.FormatHeaderShort
    if command.data_out is None or command.data_out_bytes < layout.SIZE:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    header = layout.unpack_from(b"".join(command.data_out.views(0, layout.SIZE)))
    if header.protection & cdb.PROTECTION_FIELD_USAGE:
        raise _invalid_parameter(0, 2)
    if header.flags & cdb.IP:
        raise _invalid_parameter(1, 3)  # no initialization pattern but zeros
    # "If the FOV bit is set to zero … the application client shall set the … DPRY, DCRT, STPF, IP … to zero."
    if not header.flags & cdb.FOV and header.flags & cdb.FORMAT_OPTIONS:
        raise _invalid_parameter(1, 7)
    if is_long and header.protection_interval:
        raise _invalid_parameter(3)
    if header.defect_list_length:
        raise _invalid_parameter(4 if is_long else 2)  # no block of a volume can be taken out of use
    return layout.SIZE


def _invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    return CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(byte, bit, is_cdb=False))
