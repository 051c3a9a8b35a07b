"""Layouts: construct, the derived codec and the bare tuples of the hot path agree on any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.commands import cdb, copy_descriptors, log_pages, mode_pages, sense, third_party_copy, vpd
from iscsi_ovs.wire import Derived

LAYOUTS = [
    value
    for module in (cdb, copy_descriptors, log_pages, mode_pages, sense, third_party_copy, vpd)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Derived) and value.declaration is not None
]

SIZES = {
    "ResourceCount": 12,
    "Timestamp": 12,
    "TimestampData": 12,
    "SetTimestampData": 12,
    "ReportSupportedTaskManagementFunctions": 12,
    "TargetPortGroups": 12,
    "SendDiagnostic": 6,
    "PreventAllow": 6,
    "LogSense": 10,
    "TaskManagementTimeouts": 16,
    "ExtendedTargetPortGroupsHeader": 8,
    "TargetPortGroupDescriptor": 12,
    "SetTargetPortGroup": 4,
    "DescriptorHeader": 4,
    "ParameterData": 28,
    "GeneralCopyOperations": 32,
    "ExtendedInquiry": 60,
    "ModePagePolicy": 4,
    "ScsiPort": 12,
    "Transfer6": 6,
    "Transfer10": 10,
    "Transfer12": 12,
    "Transfer16": 16,
    "Inquiry": 6,
    "ModeSense6": 6,
    "ModeSense10": 10,
    "RequestSense": 6,
    "ReportLuns": 12,
    "ReportSupportedOperationCodes": 12,
    "StartStopUnit": 6,
    "ReadCapacity10": 10,
    "ReadCapacity16": 16,
    "GetLbaStatus": 16,
    "Sanitize": 10,
    "FormatUnit": 6,
    "SanitizeOverwrite": 4,
    "FormatHeaderShort": 4,
    "FormatHeaderLong": 8,
    "ExtendedCopy": 16,
    "ReceiveCopyResults": 16,
    "ParameterListHeader": 16,
    "IdentificationTarget": 32,
    "SegmentHeader": 4,
    "BlockToBlock": 28,
    "CopyStatus": 12,
    "OperatingParameters": 44,
    "CompareAndWrite": 16,
    "WriteAtomic16": 16,
    "ReadDefectData10": 10,
    "ReadDefectData12": 12,
    "LbaStatusHeader": 8,
    "LbaStatusDescriptor": 16,
    "DefectListHeader10": 4,
    "DefectListHeader12": 8,
    "Unmap": 10,
    "UnmapHeader": 8,
    "UnmapDescriptor": 16,
    "ReadCapacity10Data": 8,
    "ReadCapacity16Data": 32,
    "ReportLunsHeader": 8,
    "CommandDescriptor": 8,
    "OneCommand": 4,
    "Timeouts": 12,
    "Header6": 4,
    "Header10": 8,
    "ShortBlockDescriptor": 8,
    "LongBlockDescriptor": 16,
    "ReadWriteErrorRecovery": 12,
    "Caching": 20,
    "Control": 12,
    "InformationalExceptions": 12,
    "FixedSense": 18,
    "DescriptorSense": 8,
    "InformationDescriptor": 12,
    "SenseKeySpecificDescriptor": 8,
    "StandardInquiry": 96,
    "PageHeader": 4,
    "DesignatorHeader": 4,
    "BlockLimits": 60,
    "BlockDeviceCharacteristics": 60,
    "LogicalBlockProvisioning": 4,
    "ModeSelect6": 6,
    "ModeSelect10": 10,
    "ControlExtension": 32,
}


def test_sizes_are_the_standards() -> None:
    """Every layout is as long as its standard says, and none is untested."""
    assert {layout.__name__: layout.SIZE for layout in LAYOUTS} == SIZES


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@given(data=st.data())
def test_derived_is_construct(layout: type[Derived], data: st.DataObject) -> None:
    """Decoding any bytes gives the same fields by either road, and encoding gives the bytes back."""
    raw = data.draw(st.binary(min_size=layout.SIZE, max_size=layout.SIZE))
    derived = layout.unpack_from(raw)
    interpreted = layout.declaration.parse(raw)
    assert derived.as_dict() == {name: interpreted[name] for name in layout.FIELDS}
    assert derived.pack() == raw == layout.declaration.build(derived.as_dict())


@given(raw=st.binary(min_size=16, max_size=16))
def test_bare_tuples_are_the_declarations(raw: bytes) -> None:
    """The hot path's unpacking sees the fields of the declared layouts."""
    for unpack, layout in (
        (cdb.unpack_transfer_10, cdb.Transfer10),
        (cdb.unpack_transfer_12, cdb.Transfer12),
        (cdb.unpack_transfer_16, cdb.Transfer16),
    ):
        assert unpack(raw) == tuple(layout.unpack_from(raw).as_dict().values())
    word, blocks, control = cdb.unpack_transfer_6(raw)
    six = cdb.Transfer6.unpack_from(raw)
    assert (word >> 24, word & 0xFFFFFF, blocks, control) == (six.opcode, six.lba, six.blocks, six.control)
