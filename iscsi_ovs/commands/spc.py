"""Primary commands (SPC-4): who are you, what can you do, how are you.

Answers are small bytes, cut at the allocation length (SPC-4 4.2.5.6: cutting is no error), and never touch storage.
"""

from __future__ import annotations

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import cdb, mode_pages, sbc, sense, vpd
from iscsi_ovs.commands.parameters import answer
from iscsi_ovs.scsi import Command, Execution, LogicalUnit, Operation, Outcome, Sense, invalid_field

_REPORT_LUNS_LEAST_BYTES = 16


def test_unit_ready(unit: LogicalUnit, command: Command) -> Execution:
    """Ready, or a gate would have said otherwise."""
    return Outcome()


def inquiry(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.Inquiry.unpack_from(command.cdb)
    if fields.flags & cdb.CMDDT:
        raise invalid_field(1, 1)
    if fields.flags & cdb.EVPD:
        data = vpd.page(unit, command.nexus, fields.page_code)
        if data is None:
            raise invalid_field(2)
    else:
        # SPC-4 6.6.1: "If the EVPD bit is set to zero and the PAGE CODE field is not set to zero … CHECK CONDITION"
        if fields.page_code:
            raise invalid_field(2)
        data = vpd.standard(unit)
    return answer(data, fields.allocation_length)


def report_luns(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ReportLuns.unpack_from(command.cdb)
    if fields.select_report > 2:
        raise invalid_field(2)
    # SPC-3 6.21 makes this an error, SPC-4 "should"; libiscsi's suite holds targets to SPC-3.
    if fields.allocation_length < _REPORT_LUNS_LEAST_BYTES:
        raise invalid_field(6)
    router = command.nexus.router
    units = router.units if router is not None and fields.select_report != 1 else {}
    luns = [scsi.encode_lun(number) for number in sorted(units)]
    if fields.select_report:
        luns.append(scsi.REPORT_LUNS_WELL_KNOWN_LUN)
    # SPC-4 6.33.1: the command clears REPORTED LUNS DATA HAS CHANGED for this nexus, on every unit.
    for pending in command.nexus.attentions.values():
        if scsi.REPORTED_LUNS_DATA_HAS_CHANGED in pending:
            pending.remove(scsi.REPORTED_LUNS_DATA_HAS_CHANGED)
    header = cdb.ReportLunsHeader(lun_list_length=8 * len(luns))
    return answer(header.pack() + b"".join(lun.to_bytes(8, "big") for lun in luns), fields.allocation_length)


def request_sense(unit: LogicalUnit, command: Command) -> Execution:
    """A pending unit attention is told, and cleared, as parameter data with GOOD (SPC-4 6.39)."""
    fields = cdb.RequestSense.unpack_from(command.cdb)
    pending = command.nexus.attentions.get(unit)
    if unit.peripheral == scsi.ABSENT:
        code = sense.LOGICAL_UNIT_NOT_SUPPORTED
    elif pending:
        code = Sense(sense.UNIT_ATTENTION_KEY, *pending.pop(0))
    else:
        code = sense.NO_SENSE
    return answer(sense.build(code, None, None, bool(fields.flags & cdb.DESC)), fields.allocation_length)


def start_stop_unit(unit: LogicalUnit, command: Command) -> Execution:
    """A stop flushes, unless NO_FLUSH, and the unit stays ready: other initiators share it. LOEJ takes the medium of a
    removable unit out, for everybody, or puts it in again. IMMED is answered when it is done, too."""
    fields = cdb.StartStopUnit.unpack_from(command.cdb)
    if fields.action & cdb.POWER_CONDITION:
        raise invalid_field(4, 7)  # no power condition mode page, so no conditions but ACTIVE
    is_eject = bool(fields.action & cdb.LOEJ)
    if is_eject and not unit.personality.is_removable:
        raise invalid_field(4, 1)
    if fields.action & cdb.START:
        if is_eject:
            unit.load(command.nexus)
        return Outcome()
    if not unit.has_medium:
        return Outcome()  # it is out already, and stopped
    if (refusal := unit.reach_medium(command)) is not None:
        return refusal
    if not is_eject:
        return Outcome() if fields.action & cdb.NO_FLUSH else sbc.flush(unit)
    # SBC-3 5.25: the medium is not to be removed before what is cached is on it, NO_FLUSH or not.
    flush = sbc.flush(unit)

    def finish(completion: block.Completion) -> Outcome:
        if completion.error is not None:
            return unit.failed(completion)
        unit.eject()
        return Outcome()

    flush.finish = finish
    return flush


# MODE SENSE -----------------------------------------------------------------------------------------------------


def mode_sense_6(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ModeSense6.unpack_from(command.cdb)
    pages = _mode_pages(unit, fields.page, fields.subpage)
    descriptor = b"" if fields.flags & cdb.DBD else mode_pages.block_descriptor(unit, is_long=False)
    header = mode_pages.Header6(
        mode_data_length=mode_pages.Header6.SIZE - 1 + len(descriptor) + len(pages),
        device_specific=mode_pages.device_specific(unit, command.nexus),
        block_descriptor_length=len(descriptor),
    )
    return answer(header.pack() + descriptor + pages, fields.allocation_length)


def mode_sense_10(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ModeSense10.unpack_from(command.cdb)
    pages = _mode_pages(unit, fields.page, fields.subpage)
    is_long = bool(fields.flags & cdb.LLBAA)
    descriptor = b"" if fields.flags & cdb.DBD else mode_pages.block_descriptor(unit, is_long)
    header = mode_pages.Header10(
        mode_data_length=mode_pages.Header10.SIZE - 2 + len(descriptor) + len(pages),
        device_specific=mode_pages.device_specific(unit, command.nexus),
        flags_4=mode_pages.LONGLBA if is_long and descriptor else 0,
        block_descriptor_length=len(descriptor),
    )
    return answer(header.pack() + descriptor + pages, fields.allocation_length)


def _mode_pages(unit: LogicalUnit, page: int, subpage: int) -> bytes:
    control = page >> 6
    pages = mode_pages.pages(unit, page & mode_pages.ALL_PAGES, subpage, control)
    if pages is None:
        raise invalid_field(2, 5) if subpage in (0, mode_pages.ALL_SUBPAGES) else invalid_field(3)
    return pages


# REPORT SUPPORTED OPERATION CODES -------------------------------------------------------------------------------


def report_supported_operation_codes(unit: LogicalUnit, command: Command) -> Execution:
    """Generated from the unit's operations: what is in the table is what is said."""
    fields = cdb.ReportSupportedOperationCodes.unpack_from(command.cdb)
    with_timeouts = bool(fields.options & cdb.RCTD)
    option = fields.options & 0x07
    if option == 0:
        data = _all_commands(unit.operations, with_timeouts)
    elif option <= 3:
        operation = _requested(unit.operations, option, fields.requested_opcode, fields.requested_service_action)
        data = _one_command(operation, with_timeouts)
    else:
        raise invalid_field(2, 2)
    return answer(data, fields.allocation_length)


def _all_commands(operations: tuple[Operation, ...], with_timeouts: bool) -> bytes:
    pieces = []
    for operation in operations:
        flags = cdb.CTDP if with_timeouts else 0
        if operation.service_action is not None:
            flags |= cdb.SERVACTV
        descriptor = cdb.CommandDescriptor(
            opcode=operation.opcode,
            service_action=operation.service_action or 0,
            flags=flags,
            cdb_length=operation.cdb_length,
        )
        pieces.append(descriptor.pack())
        if with_timeouts:
            pieces.append(cdb.Timeouts().pack())
    data = b"".join(pieces)
    return len(data).to_bytes(4, "big") + data


def _requested(operations: tuple[Operation, ...], option: int, opcode: int, service_action: int) -> Operation | None:
    """The one command that is asked for, None if it is not supported (SPC-4 table 247)."""
    of_opcode = [operation for operation in operations if operation.opcode == opcode]
    has_actions = any(operation.service_action is not None for operation in of_opcode)
    if option == 1 and has_actions:
        raise invalid_field(2, 2)
    if option == 2 and of_opcode and not has_actions:
        raise invalid_field(2, 2)
    wanted = service_action if has_actions else None
    if option == 3 and not has_actions and service_action:
        return None
    return next((operation for operation in of_opcode if operation.service_action == wanted), None)


def _one_command(operation: Operation | None, with_timeouts: bool) -> bytes:
    if operation is None:
        return cdb.OneCommand(support=cdb.NOT_SUPPORTED).pack()
    support = cdb.SUPPORTED | (cdb.ONE_COMMAND_CTDP if with_timeouts else 0)
    header = cdb.OneCommand(support=support, cdb_size=operation.cdb_length)
    return header.pack() + operation.usage + (cdb.Timeouts().pack() if with_timeouts else b"")
