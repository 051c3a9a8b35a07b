"""Primary commands (SPC-4): who are you, what can you do, how are you.

Answers are small bytes, cut at the allocation length (SPC-4 4.2.5.6: cutting is no error), and never touch storage.
"""

from __future__ import annotations

from iscsi_ovs import scsi
from iscsi_ovs.commands import cdb, mode_pages, sense, vpd
from iscsi_ovs.commands.parameters import answer
from iscsi_ovs.scsi import Command, Execution, LogicalUnit, Outcome, Sense, invalid_field

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
        data = vpd.standard(unit, command.nexus)
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
    """A pending unit attention is told, and cleared, as parameter data with GOOD (SPC-4 6.39); else why the unit is not
    ready, with the progress of what makes it so."""
    fields = cdb.RequestSense.unpack_from(command.cdb)
    pending = command.nexus.attentions.get(unit)
    specific = None
    if unit.peripheral == scsi.ABSENT:
        code = sense.LOGICAL_UNIT_NOT_SUPPORTED
    elif pending:
        code = Sense(sense.UNIT_ATTENTION_KEY, *pending.pop(0))
    elif (condition := unit.not_ready(command.nexus)) is not None:
        code, specific = condition.sense, condition.pointer
    else:
        code = sense.NO_SENSE
    return answer(sense.build(code, specific, None, bool(fields.flags & cdb.DESC)), fields.allocation_length)


def send_diagnostic(unit: LogicalUnit, command: Command) -> Execution:
    """The default self-test passes: what could fail here, the medium, is found out by reaching for it. No other test,
    and no diagnostic pages."""
    fields = cdb.SendDiagnostic.unpack_from(command.cdb)
    if fields.flags & cdb.SELF_TEST_CODE:
        raise invalid_field(1, 7)
    if fields.parameter_list_length:
        raise invalid_field(3)
    if fields.flags & cdb.SELFTEST and (refusal := unit.reach_medium(command)) is not None:
        return refusal
    return Outcome()


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
