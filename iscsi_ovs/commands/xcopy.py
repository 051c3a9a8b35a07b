"""EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 5.16, 6.4, 6.18): copies inside the volume server.

No data comes through here: each segment is one COPY request between two open devices. A target descriptor names a unit
by its NAA designator, and it is looked for among the devices that *this nexus* holds, nowhere else: what is not in the
initiator's LUN map, or not open for it, is not reachable (two targets had a CVE each for looking further). The whole
parameter list is checked before the first segment is copied; a bad one copies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from iscsi_ovs import block
from iscsi_ovs.block import Operation, Request
from iscsi_ovs.commands import cdb, sense, vpd
from iscsi_ovs.commands import copy_descriptors as descriptors
from iscsi_ovs.scsi import (
    BUSY,
    CHECK_CONDITION,
    GOOD,
    CheckCondition,
    Command,
    Execution,
    FieldPointer,
    LogicalUnit,
    Nexus,
    Outcome,
    Sense,
    invalid_field,
)

_HEADER_BYTES = descriptors.ParameterListHeader.SIZE
_TARGET_BYTES = descriptors.IdentificationTarget.SIZE
_SEGMENT_BYTES = descriptors.BlockToBlock.SIZE
_READ_16, _WRITE_16 = 0x88, 0x8A  # what a segment is, to its source and to its destination

# COPY STATUS (SPC-4 6.18.2)
IN_PROGRESS, COMPLETED, FAILED = 0x00, 0x01, 0x02
_KIBIBYTES = 0x01  # TRANSFER COUNT UNITS


class _Target(NamedTuple):
    """A unit that a target descriptor names."""

    unit: LogicalUnit
    device: block.Device
    is_write_protected: bool


class _Segment(NamedTuple):
    """One copy, in bytes."""

    source: _Target
    source_offset_bytes: int
    destination: _Target
    destination_offset_bytes: int
    length_bytes: int


@dataclass(slots=True)
class Copy:
    """One EXTENDED COPY, for RECEIVE COPY RESULTS; the nexus keeps it by unit and list identifier."""

    command: Command | None  # until it is over: they would know each other through the nexus
    segments: list[_Segment]
    done: int = 0  # segments
    copied_bytes: int = 0
    status: int = IN_PROGRESS

    @property
    def is_under_way(self) -> bool:
        """One that was aborted between two segments will never say that it is not."""
        if self.command is None:
            return False
        context = self.command.context
        return context is None or not context.is_aborted

    def end(self, status: int) -> None:
        self.status = status
        self.command = None


# EXTENDED COPY --------------------------------------------------------------------------------------------------


def extended_copy(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ExtendedCopy.unpack_from(command.cdb)
    length = fields.parameter_list_length
    if length == 0:
        return Outcome()  # "This condition shall not be considered as an error."
    if length < _HEADER_BYTES or command.data_out is None or command.data_out_bytes < length:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    header, data = _parameter_list(command.data_out, length)
    copies = command.nexus.copies
    key = (unit, header.list_identifier)
    usage = header.flags & descriptors.LIST_ID_USAGE
    if usage == descriptors.LIST_ID_RESERVED or (usage == descriptors.NO_LIST_ID and header.list_identifier):
        raise _invalid_parameter(1, 4)
    if usage != descriptors.NO_LIST_ID and key in copies and copies[key].is_under_way:
        raise CheckCondition(sense.OPERATION_IN_PROGRESS)
    targets = _targets(command.nexus, data[: header.target_list_length])
    start = header.target_list_length
    segments = _segments(command.nexus, targets, data[start:], _HEADER_BYTES + start)
    copy = Copy(command, segments)
    if usage != descriptors.NO_LIST_ID:
        copies[key] = copy
    return _next_segment(unit, command, copy, length)


def _parameter_list(buffer: block.Buffer, length: int) -> tuple[descriptors.ParameterListHeader, bytes]:
    """The header, and both lists of descriptors. Looks at each byte of shared memory once."""
    header = descriptors.ParameterListHeader.unpack_from(b"".join(buffer.views(0, _HEADER_BYTES)))
    lists_bytes = header.target_list_length + header.segment_list_length
    if lists_bytes > descriptors.MAX_DESCRIPTOR_LIST_BYTES or _HEADER_BYTES + lists_bytes > length:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    if header.inline_data_length:
        raise CheckCondition(sense.INLINE_DATA_LENGTH_EXCEEDED)
    return header, b"".join(buffer.views(_HEADER_BYTES, _HEADER_BYTES + lists_bytes))


def _targets(nexus: Nexus, data: bytes) -> list[_Target]:
    if len(data) % _TARGET_BYTES:
        raise _invalid_parameter(2)
    if len(data) > descriptors.MAX_TARGET_DESCRIPTORS * _TARGET_BYTES:
        raise CheckCondition(sense.TOO_MANY_TARGET_DESCRIPTORS)
    known = {
        vpd.naa(unit): _Target(unit, device, unit.is_write_protected(nexus)) for unit, device in nexus.devices.items()
    }
    targets = []
    for at in range(0, len(data), _TARGET_BYTES):
        descriptor = descriptors.IdentificationTarget.unpack_from(data, at)
        pointer = FieldPointer(_HEADER_BYTES + at, is_cdb=False)
        if descriptor.descriptor_type != descriptors.IDENTIFICATION_TARGET:
            raise CheckCondition(sense.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE, pointer)
        # LU ID TYPE and NUL, beside the device type, are obsolete in SPC-4.
        if descriptor.device_type & 0x1F:
            raise CheckCondition(sense.INCORRECT_COPY_TARGET_DEVICE_TYPE, pointer)
        if descriptor.designator_length > len(descriptor.designator):
            raise _invalid_parameter(_HEADER_BYTES + at + 7)
        target = known.get(descriptor.designator[: descriptor.designator_length])
        names_a_unit = descriptor.association_and_type & 0x3F == vpd.NAA and descriptor.code_set & 0x0F == vpd.BINARY
        if target is None or not names_a_unit:
            raise CheckCondition(sense.COPY_TARGET_DEVICE_NOT_REACHABLE, pointer)
        if descriptor.block_bytes != target.unit.block_bytes:
            raise _invalid_parameter(_HEADER_BYTES + at + 29)
        targets.append(target)
    return targets


def _segments(nexus: Nexus, targets: list[_Target], data: bytes, start: int) -> list[_Segment]:
    """``start``: where in the parameter list the segment descriptors begin."""
    segments: list[_Segment] = []
    at = 0
    while at < len(data):
        if len(segments) == descriptors.MAX_SEGMENT_DESCRIPTORS:
            raise CheckCondition(sense.TOO_MANY_SEGMENT_DESCRIPTORS)
        if len(data) - at < descriptors.SegmentHeader.SIZE:
            raise _invalid_parameter(8)
        header = descriptors.SegmentHeader.unpack_from(data, at)
        if header.descriptor_type != descriptors.BLOCK_TO_BLOCK:
            pointer = FieldPointer(start + at, is_cdb=False)
            raise CheckCondition(sense.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE, pointer)
        if header.length != _SEGMENT_BYTES - descriptors.SegmentHeader.SIZE or len(data) - at < _SEGMENT_BYTES:
            raise _invalid_parameter(start + at + 2)
        segments.append(_segment(nexus, targets, descriptors.BlockToBlock.unpack_from(data, at), start + at))
        at += _SEGMENT_BYTES
    return segments


def _segment(nexus: Nexus, targets: list[_Target], descriptor: descriptors.BlockToBlock, at: int) -> _Segment:
    for index in (descriptor.source_index, descriptor.destination_index):
        if index >= len(targets):
            raise CheckCondition(sense.UNREACHABLE_COPY_TARGET)
    source, destination = targets[descriptor.source_index], targets[descriptor.destination_index]
    counted = destination if descriptor.flags & descriptors.DESTINATION_COUNT else source
    length_bytes = descriptor.blocks * counted.unit.block_bytes
    if length_bytes > descriptors.MAX_SEGMENT_BYTES:
        raise _invalid_parameter(at + 10)
    # CAT and PAD say what becomes of a piece of a block: there is none to pad with here, so whole blocks it must be.
    if length_bytes % source.unit.block_bytes or length_bytes % destination.unit.block_bytes:
        raise CheckCondition(sense.UNEXPECTED_INEXACT_SEGMENT)
    offsets = []
    for target, lba in ((source, descriptor.source_lba), (destination, descriptor.destination_lba)):
        block_bytes = target.unit.block_bytes
        if lba + length_bytes // block_bytes > target.unit.capacity_blocks:
            raise CheckCondition(sense.COPY_ABORTED)
        offsets.append(lba * block_bytes)
    if destination.is_write_protected:
        raise CheckCondition(Sense(sense.COPY_ABORTED_KEY, *sense.WRITE_PROTECTED[1:]))
    for target, opcode in ((source, _READ_16), (destination, _WRITE_16)):
        unit = target.unit
        is_obstructed = unit.blocked_because is not None or unit.not_ready(nexus) is not None
        # SPC-4 5.16.7: a copy manager reaches for a target as the initiator itself would.
        if is_obstructed or unit.is_reserved_against(nexus, opcode):
            raise CheckCondition(sense.COPY_TARGET_DEVICE_NOT_REACHABLE)
    return _Segment(source, offsets[0], destination, offsets[1], length_bytes)


def _is_fenced(segment: _Segment, nexus: Nexus) -> bool:
    """A reservation came between two segments: who is kept from an end of the copy is kept from going on with it."""
    source, destination = segment.source.unit, segment.destination.unit
    return source.is_reserved_against(nexus, _READ_16) or destination.is_reserved_against(nexus, _WRITE_16)


def _next_segment(unit: LogicalUnit, command: Command, copy: Copy, transfer_bytes: int) -> Execution:
    """The next segment that moves something, or the end."""
    while copy.done < len(copy.segments) and copy.segments[copy.done].length_bytes == 0:
        copy.done += 1
    if copy.done == len(copy.segments):
        copy.end(COMPLETED)
        return Outcome(transfer_bytes=transfer_bytes)
    segment = copy.segments[copy.done]
    if copy.copied_bytes and _is_fenced(segment, command.nexus):
        copy.end(FAILED)
        condition = CheckCondition(sense.COPY_TARGET_DEVICE_NOT_REACHABLE)
        return Outcome(CHECK_CONDITION, unit.build_sense(condition))

    def finish(completion: block.Completion) -> Execution:
        if completion.error is not None:
            copy.end(FAILED)
            return _failed(unit, copy, completion)
        # The destination has a write cache, or it has none, whatever the unit that the command came to has.
        if completion.request.operation is Operation.COPY and not segment.destination.unit.modes.write_cache:
            return Request(Operation.FLUSH, finish=finish)
        copy.done += 1
        copy.copied_bytes += segment.length_bytes
        return _next_segment(unit, command, copy, transfer_bytes)

    command.device = segment.destination.device
    return Request(
        Operation.COPY,
        segment.destination_offset_bytes,
        segment.length_bytes,
        source=segment.source.device,
        source_offset_bytes=segment.source_offset_bytes,
        finish=finish,
    )


def _failed(unit: LogicalUnit, copy: Copy, completion: block.Completion) -> Outcome:
    """What storage said, as COPY ABORTED. BUSY, "try again", only while nothing is copied: a segment may read what
    one before it wrote, so the list must not be begun a second time."""
    outcome = unit.failed(completion)
    assert completion.error is not None
    failure = unit.command_set.failures[completion.error]
    if failure is None:
        if outcome.status == BUSY and copy.done == 0:
            return outcome
        condition = CheckCondition(sense.ABORTED_COMMAND)
    elif failure == sense.ABORTED_COMMAND:
        return outcome
    else:
        condition = CheckCondition(Sense(sense.COPY_ABORTED_KEY, *failure[1:]))
    return Outcome(CHECK_CONDITION, unit.build_sense(condition))


def _invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    return CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(byte, bit, is_cdb=False))


# RECEIVE COPY RESULTS -------------------------------------------------------------------------------------------


def copy_status(unit: LogicalUnit, command: Command) -> Execution:
    """Of a copy that is over it is told once (SPC-4 6.18.2: it "may be discarded" then)."""
    fields = cdb.ReceiveCopyResults.unpack_from(command.cdb)
    copies = command.nexus.copies
    copy = copies.get((unit, fields.list_identifier))
    if copy is None:
        raise invalid_field(2)
    if not copy.is_under_way:
        del copies[unit, fields.list_identifier]
    status = FAILED if copy.status == IN_PROGRESS and not copy.is_under_way else copy.status
    data = descriptors.CopyStatus(
        available_data=descriptors.CopyStatus.SIZE - 4,
        status=descriptors.HELD_DATA_DISCARDED | status,
        segments_processed=copy.done,
        transfer_count_units=_KIBIBYTES,
        transfer_count=copy.copied_bytes >> 10,
    ).pack()
    return _answer(data, fields.allocation_length)


def operating_parameters(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.ReceiveCopyResults.unpack_from(command.cdb)
    size = descriptors.OperatingParameters.SIZE + len(descriptors.IMPLEMENTED)
    data = descriptors.OperatingParameters(
        available_data=size - 4,
        snlid=descriptors.SNLID,
        maximum_targets=descriptors.MAX_TARGET_DESCRIPTORS,
        maximum_segments=descriptors.MAX_SEGMENT_DESCRIPTORS,
        maximum_descriptor_list_length=descriptors.MAX_DESCRIPTOR_LIST_BYTES,
        maximum_segment_length=descriptors.MAX_SEGMENT_BYTES,
        total_concurrent_copies=0xFF,
        maximum_concurrent_copies=0xFF,
        data_segment_granularity=unit.block_bytes.bit_length() - 1,
        implemented_descriptors_length=len(descriptors.IMPLEMENTED),
    ).pack()
    return _answer(data + descriptors.IMPLEMENTED, fields.allocation_length)


def _answer(data: bytes, allocation_length: int) -> Outcome:
    data = data[:allocation_length]
    return Outcome(GOOD, data=data, transfer_bytes=len(data))
