"""MODE SELECT (SPC-4 6.11, 6.12) and what becomes of it: new modes, told to the other initiators, and kept if asked.

The whole parameter list is checked before anything changes. What is in it must be what MODE SENSE says, but for the
bits that can be changed. Saved modes are a record of the volume, so they outlive every process here; this file knows
what is in the record, and not who keeps it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Request
from iscsi_ovs.commands import cdb, mode_pages, parameters, sense
from iscsi_ovs.scsi import CheckCondition, Command, Execution, FieldPointer, LogicalUnit, Modes, Outcome, invalid_field

RECORD = "modes"
_PAGES = {(row.code, row.subpage): row for row in mode_pages.PAGES}
_MAXIMUM_BLOCKS = {8: 0xFFFFFFFF, 16: (1 << 64) - 1}  # all ones, by the descriptor's length: "the maximum"


def mode_select_6(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ModeSelect6.unpack_from(command.cdb)
    return _mode_select(unit, command, fields.flags, fields.parameter_list_length, mode_pages.Header6)


def mode_select_10(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ModeSelect10.unpack_from(command.cdb)
    return _mode_select(unit, command, fields.flags, fields.parameter_list_length, mode_pages.Header10)


def _mode_select(
    unit: LogicalUnit,
    command: Command,
    flags: int,
    length: int,
    header: type[mode_pages.Header6 | mode_pages.Header10],
) -> Execution:
    if flags & cdb.RTD:
        raise invalid_field(1, 1)  # SPC-5, and there RTD_SUP is zero
    is_saved = bool(flags & cdb.SP)
    modes = unit.modes
    if length:  # "zero … shall not be considered an error"
        if not flags & cdb.PF:
            raise invalid_field(1, 4)  # pages of a vendor's own format: there are none
        modes = _modes(unit, parameters.received(command, length, header.SIZE), header)
    return _write_out(unit, command, modes, is_saved, length)


# The parameter list ---------------------------------------------------------------------------------------------


def _refused(byte: int, bit: int | None = None) -> CheckCondition:
    return CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(byte, bit, is_cdb=False))


def _modes(unit: LogicalUnit, data: bytes, header: type[mode_pages.Header6 | mode_pages.Header10]) -> Modes:
    """The modes that a parameter list asks for. Raises for the first thing in it that is not so."""
    fields = header.unpack_from(data)
    # MODE DATA LENGTH is reserved here, and the device-specific parameter of a disk is not looked at (SBC-3 6.4.1).
    if fields.medium_type:
        raise _refused(1 if header is mode_pages.Header6 else 2)
    is_long = header is mode_pages.Header10 and bool(fields.flags_4 & mode_pages.LONGLBA)
    at = header.SIZE
    if fields.block_descriptor_length:
        at += _check_block_descriptor(unit, data, at, fields.block_descriptor_length, is_long)
    modes = unit.modes
    while at < len(data):
        row = _row(unit, data, at)
        modes = _changed(row, row.base(unit), modes, data, at)
        at += len(row.page)
    return modes


def _check_block_descriptor(unit: LogicalUnit, data: bytes, at: int, length: int, is_long: bool) -> int:
    """One descriptor that changes nothing: neither capacity nor block length are the initiator's to choose."""
    descriptor = mode_pages.LongBlockDescriptor if is_long else mode_pages.ShortBlockDescriptor
    if length != descriptor.SIZE:
        raise _refused(at - (1 if at == mode_pages.Header6.SIZE else 2))
    if at + length > len(data):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    fields = descriptor.unpack_from(data, at)
    # SBC-3 6.4.2.2: zero leaves the number of blocks as it is, all ones is the maximum: both are what there is.
    if fields.blocks not in (0, _MAXIMUM_BLOCKS[length], unit.capacity_blocks):
        raise _refused(at)
    if fields.block_bytes != unit.block_bytes:
        raise _refused(at + (12 if is_long else 5))
    return length


def _row(unit: LogicalUnit, data: bytes, at: int) -> mode_pages.ModePage:
    """The page that starts here; all of it is there, and as long as it is."""
    code, has_subpage = data[at] & 0x3F, bool(data[at] & mode_pages.SPF)
    if at + (4 if has_subpage else 2) > len(data):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    row = _PAGES.get((code, data[at + 1] if has_subpage else 0))
    if row is None or (row.needs_thin and not unit.personality.is_thin):
        known = any(code == each for each, _ in _PAGES)
        raise _refused(at + 1) if known and has_subpage else _refused(at, 5)
    header_bytes = row.header_bytes
    if bool(row.page[0] & mode_pages.SPF) is not has_subpage:
        raise _refused(at, 6)
    # SPC-4 7.5.7: a PAGE LENGTH that is not the page's own is an invalid field, whatever else the list holds
    length_at = header_bytes // 2
    if data[at + length_at : at + header_bytes] != row.page[length_at:header_bytes]:
        raise _refused(at + length_at)
    if at + len(row.page) > len(data):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    return row


def _changed(row: mode_pages.ModePage, base: bytes, modes: Modes, data: bytes, at: int) -> Modes:
    """The modes with what this page changes. PS is reserved here, but initiators send back what they were sent."""
    page = data[at : at + len(row.page)]
    masks = row.changeable_values()
    for byte in range(row.header_bytes, len(page)):
        wrong = (page[byte] ^ base[byte]) & ~masks[byte]
        if wrong:
            raise _refused(at + byte, wrong.bit_length() - 1)
    return replace(modes, **{bit.field: bool(page[bit.byte] & bit.mask) for bit in row.changeable})


# What becomes of it ---------------------------------------------------------------------------------------------


def _write_out(unit: LogicalUnit, command: Command, modes: Modes, is_saved: bool, transfer_bytes: int) -> Execution:
    """A cache that goes is written out first: what it holds was acknowledged under another promise."""
    if modes.write_cache or not unit.modes.write_cache:
        return _save(unit, command, modes, is_saved, transfer_bytes)
    if (refusal := unit.reach_medium(command)) is not None:
        return refusal

    def finish(completion: block.Completion) -> Execution:
        if completion.error is not None:
            return unit.failed(completion)
        return _save(unit, command, modes, is_saved, transfer_bytes)

    return Request(block.Operation.FLUSH, finish=finish)


def _save(unit: LogicalUnit, command: Command, modes: Modes, is_saved: bool, transfer_bytes: int) -> Execution:
    if not is_saved:
        return _set(unit, command, modes, transfer_bytes)

    def finish(error: OSError | None) -> Execution:
        if error is not None:
            return Outcome(scsi.BUSY)
        unit.saved_modes = modes
        return _set(unit, command, modes, transfer_bytes)

    return scsi.RecordUpdate(RECORD, _record(unit, modes), finish)


def _record(unit: LogicalUnit, modes: Modes) -> bytes:
    """What initiators have made different: the rest stays the operator's to choose."""
    defaults = asdict(unit.default_modes)
    return json.dumps({name: value for name, value in asdict(modes).items() if value != defaults[name]}).encode()


def _set(unit: LogicalUnit, command: Command, modes: Modes, transfer_bytes: int) -> Outcome:
    # SPC-4 6.11: "for the initiator port associated with every I_T nexus except the I_T nexus on which the MODE SELECT
    # command was received"
    _change(unit, modes, command.nexus)
    return Outcome(transfer_bytes=transfer_bytes)


def _change(unit: LogicalUnit, modes: Modes, by: scsi.Nexus | None) -> None:
    if modes != unit.modes:
        unit.set_modes(modes)
        unit.raise_attention(scsi.MODE_PARAMETERS_CHANGED, but=by)


def load(unit: LogicalUnit, data: bytes) -> None:
    """Saved modes, as the volume kept them. A record of another version of us, or a damaged one, is not guessed at."""
    kept = json.loads(data) if data else {}
    names = {each.name for each in fields(Modes)}
    if not isinstance(kept, dict) or not kept.keys() <= names or not all(isinstance(it, bool) for it in kept.values()):
        raise ValueError(f"{data!r} has other fields than {sorted(names)}, or other values than yes and no")
    unit.saved_modes = replace(unit.default_modes, **kept)
    _change(unit, unit.saved_modes, None)
