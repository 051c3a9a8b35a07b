"""CDBs and the small parameter data that goes with them, byte by byte (SPC-4 clause 6, SBC-3 clauses 5).

Each layout is declared once, flat; READ and WRITE share theirs with every command of the same shape. The four
``unpack_transfer_*`` are the same layouts as bare tuples, for the hot path (tests prove them equal to the others).
VPD pages, mode pages and sense data have files of their own. What a field means is not this file's to know.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from construct import Bytes, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Struct

from iscsi_ovs.wire import Derived

# Byte 1 of READ and WRITE
PROTECT = 0xE0  # RDPROTECT or WRPROTECT
DPO = 0x10
FUA = 0x08
LBA_MASK_6 = 0x1FFFFF  # READ (6): 21 bits of LBA; above them was once a LUN

# Byte 1 of VERIFY and WRITE AND VERIFY
BYTCHK = 0x06

# Byte 1 of WRITE SAME and UNMAP
ANCHOR = 0x10
UNMAP = 0x08
PBDATA_LBDATA = 0x06  # obsolete
NDOB = 0x01  # WRITE SAME (16)
UNMAP_ANCHOR = 0x01

# Byte 1 of SANITIZE, beside the service action; the first byte of the parameter list of OVERWRITE
SANITIZE_IMMED = 0x80
ZNR = 0x40  # for zoned devices
AUSE = 0x20
INVERT = 0x80
SANITIZE_TEST = 0x60  # vendor specific
OVERWRITE_COUNT = 0x1F

# Byte 1 of FORMAT UNIT, and its parameter list
FMTPINFO = 0xC0
LONGLIST = 0x20
FMTDATA = 0x10
PROTECTION_FIELD_USAGE = 0x07
FOV = 0x80
FORMAT_OPTIONS = 0x78  # DPRY, DCRT, STPF, IP: of which IP asks for something
IP = 0x08

DEFECT_LIST = 0x1F  # READ DEFECT DATA: which lists, in which format

EVPD = 0x01
CMDDT = 0x02  # obsolete
DESC = 0x01  # REQUEST SENSE: descriptor format
PMI = 0x01  # READ CAPACITY, obsolete
DBD = 0x08  # MODE SENSE: no block descriptors
LLBAA = 0x10  # MODE SENSE (10): long LBAs accepted
PF = 0x10  # MODE SELECT: pages as the standard has them
RTD = 0x02  # … revert to defaults (SPC-5)
SP = 0x01  # … save pages
PPC = 0x02  # LOG SENSE, obsolete
PREVENT = 0x03
SELF_TEST_CODE = 0xE0  # SEND DIAGNOSTIC
SELFTEST = 0x04
REPD = 0x80  # REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: with timeouts
RCTD = 0x80  # REPORT SUPPORTED OPERATION CODES: with timeouts
START = 0x01
LOEJ = 0x02
NO_FLUSH = 0x04
POWER_CONDITION = 0xF0

LBPME = 0x8000  # READ CAPACITY (16): thin provisioning
LBPRZ = 0x4000  # … unmapped blocks read as zeros
CTDP = 0x02  # a timeouts descriptor follows
SERVACTV = 0x01
ONE_COMMAND_CTDP = 0x80
NOT_SUPPORTED = 0x01
SUPPORTED = 0x03  # in conformance with a standard


class Transfer6(Derived):
    """READ, WRITE (6). ``lba`` is 21 bits."""

    declaration = Struct("opcode" / Int8ub, "lba" / Int24ub, "blocks" / Int8ub, "control" / Int8ub)


class Transfer10(Derived):
    """READ, WRITE, VERIFY, WRITE SAME, SYNCHRONIZE CACHE, PRE-FETCH (10) and their kind."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "lba" / Int32ub, "group" / Int8ub, "blocks" / Int16ub, "control" / Int8ub
    )


class Transfer12(Derived):
    """READ, WRITE, VERIFY, WRITE AND VERIFY (12)."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "lba" / Int32ub, "blocks" / Int32ub, "group" / Int8ub, "control" / Int8ub
    )


class Transfer16(Derived):
    """READ, WRITE, VERIFY, ORWRITE, WRITE SAME, SYNCHRONIZE CACHE, PRE-FETCH (16) and their kind."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "lba" / Int64ub, "blocks" / Int32ub, "group" / Int8ub, "control" / Int8ub
    )


unpack_transfer_6 = struct.Struct(">IBB").unpack_from  # opcode and LBA in one word
unpack_transfer_10 = struct.Struct(">BBIBHB").unpack_from
unpack_transfer_12 = struct.Struct(">BBIIBB").unpack_from
unpack_transfer_16 = struct.Struct(">BBQIBB").unpack_from


class Inquiry(Derived):
    """SPC-4 6.6."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "page_code" / Int8ub, "allocation_length" / Int16ub, "control" / Int8ub
    )


class ModeSense6(Derived):
    """SPC-4 6.13. The two high bits of ``page`` are PC."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "page" / Int8ub, "subpage" / Int8ub, "allocation_length" / Int8ub,
        "control" / Int8ub,
    )  # fmt: skip


class ModeSense10(Derived):
    """SPC-4 6.14."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "page" / Int8ub, "subpage" / Int8ub, "reserved_4" / Bytes(3),
        "allocation_length" / Int16ub, "control" / Int8ub,
    )  # fmt: skip


class ModeSelect6(Derived):
    """SPC-4 6.11."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Int16ub, "parameter_list_length" / Int8ub,
        "control" / Int8ub,
    )  # fmt: skip


class ModeSelect10(Derived):
    """SPC-4 6.12."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Bytes(5), "parameter_list_length" / Int16ub,
        "control" / Int8ub,
    )  # fmt: skip


class RequestSense(Derived):
    """SPC-4 6.39."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Int16ub, "allocation_length" / Int8ub, "control" / Int8ub
    )


class ReportLuns(Derived):
    """SPC-4 6.33."""

    declaration = Struct(
        "opcode" / Int8ub, "reserved_1" / Int8ub, "select_report" / Int8ub, "reserved_3" / Bytes(3),
        "allocation_length" / Int32ub, "reserved_10" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class ReportSupportedOperationCodes(Derived):
    """SPC-4 6.35."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "options" / Int8ub, "requested_opcode" / Int8ub,
        "requested_service_action" / Int16ub, "allocation_length" / Int32ub, "reserved_10" / Int8ub,
        "control" / Int8ub,
    )  # fmt: skip


class ReportSupportedTaskManagementFunctions(Derived):
    """SPC-4 6.36."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "flags" / Int8ub, "reserved_3" / Bytes(3),
        "allocation_length" / Int32ub, "reserved_10" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class TargetPortGroups(Derived):
    """REPORT (SPC-4 6.37) and SET TARGET PORT GROUPS (6.45), where the length is that of the parameter list. The high
    bits of ``flags`` are the PARAMETER DATA FORMAT, the low ones the service action."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Int32ub, "allocation_length" / Int32ub,
        "reserved_10" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class PreventAllow(Derived):
    """SPC-4 6.14."""

    declaration = Struct("opcode" / Int8ub, "reserved_1" / Bytes(3), "prevent" / Int8ub, "control" / Int8ub)


class LogSense(Derived):
    """SPC-4 6.9. The two high bits of ``page`` are PC."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "page" / Int8ub, "subpage" / Int8ub, "reserved_4" / Int8ub,
        "parameter_pointer" / Int16ub, "allocation_length" / Int16ub, "control" / Int8ub,
    )  # fmt: skip


class Timestamp(Derived):
    """REPORT (SPC-4 6.38) and SET TIMESTAMP (6.46), where the length is that of the parameter list."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "reserved_2" / Int32ub, "allocation_length" / Int32ub,
        "reserved_10" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class SendDiagnostic(Derived):
    """SPC-4 6.42."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Int8ub, "parameter_list_length" / Int16ub,
        "control" / Int8ub,
    )  # fmt: skip


class StartStopUnit(Derived):
    """SBC-3 5.25. Byte 4: POWER CONDITION, NO_FLUSH, LOEJ, START."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Int8ub, "power_condition_modifier" / Int8ub,
        "action" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class ReadCapacity10(Derived):
    """SBC-3 5.15."""

    declaration = Struct(
        "opcode" / Int8ub, "reserved_1" / Int8ub, "lba" / Int32ub, "reserved_6" / Int16ub, "flags" / Int8ub,
        "control" / Int8ub,
    )  # fmt: skip


class ReadCapacity16(Derived):
    """SBC-3 5.16."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "lba" / Int64ub, "allocation_length" / Int32ub,
        "flags" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class GetLbaStatus(Derived):
    """SBC-3 5.4."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "lba" / Int64ub, "allocation_length" / Int32ub,
        "reserved_14" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class CompareAndWrite(Derived):
    """SBC-3 5.2. Byte 1 as in WRITE (16)."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "lba" / Int64ub, "reserved_10" / Bytes(3), "blocks" / Int8ub,
        "group" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class WriteAtomic16(Derived):
    """SBC-4, WRITE ATOMIC (16). Byte 1 as in WRITE (16)."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "lba" / Int64ub, "atomic_boundary" / Int16ub, "blocks" / Int16ub,
        "group" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class ReadDefectData10(Derived):
    """SBC-3 5.17. ``format``: REQ_PLIST, REQ_GLIST, DEFECT LIST FORMAT."""

    declaration = Struct(
        "opcode" / Int8ub, "reserved_1" / Int8ub, "format" / Int8ub, "reserved_3" / Bytes(4),
        "allocation_length" / Int16ub, "control" / Int8ub,
    )  # fmt: skip


class ReadDefectData12(Derived):
    """SBC-3 5.18."""

    declaration = Struct(
        "opcode" / Int8ub, "format" / Int8ub, "address_descriptor_index" / Int32ub, "allocation_length" / Int32ub,
        "reserved_10" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class Sanitize(Derived):
    """SBC-3 5.24. IMMED, ZNR (SBC-4) and AUSE stand above the service action."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "reserved_2" / Bytes(5), "parameter_list_length" / Int16ub,
        "control" / Int8ub,
    )  # fmt: skip


class FormatUnit(Derived):
    """SBC-3 5.3."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "vendor_specific_2" / Int8ub, "obsolete_3" / Int16ub, "control" / Int8ub
    )


class ExtendedCopy(Derived):
    """SPC-4 6.4 (LID1)."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "reserved_2" / Bytes(8), "parameter_list_length" / Int32ub,
        "reserved_14" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class ReceiveCopyResults(Derived):
    """SPC-4 6.18 (LID1)."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "list_identifier" / Int8ub, "reserved_3" / Bytes(7),
        "allocation_length" / Int32ub, "reserved_14" / Int8ub, "control" / Int8ub,
    )  # fmt: skip


class Unmap(Derived):
    """SBC-3 5.28."""

    declaration = Struct(
        "opcode" / Int8ub, "flags" / Int8ub, "reserved_2" / Int32ub, "group" / Int8ub,
        "parameter_list_length" / Int16ub, "control" / Int8ub,
    )  # fmt: skip


# Parameter data -------------------------------------------------------------------------------------------------


class UnmapHeader(Derived):
    """SBC-3 5.28.2: UNMAP DATA LENGTH counts what follows it."""

    declaration = Struct("data_length" / Int16ub, "descriptors_length" / Int16ub, "reserved_4" / Int32ub)


class UnmapDescriptor(Derived):
    """SBC-3 5.28.2."""

    declaration = Struct("lba" / Int64ub, "blocks" / Int32ub, "reserved_12" / Int32ub)


class SanitizeOverwrite(Derived):
    """SBC-3 5.24.2.2: the pattern follows."""

    declaration = Struct("flags" / Int8ub, "reserved_1" / Int8ub, "pattern_length" / Int16ub)


class FormatHeaderShort(Derived):
    """SBC-3 5.3.2.2."""

    declaration = Struct("protection" / Int8ub, "flags" / Int8ub, "defect_list_length" / Int16ub)


class FormatHeaderLong(Derived):
    """SBC-3 5.3.2.2, with LONGLIST."""

    declaration = Struct(
        "protection" / Int8ub, "flags" / Int8ub, "reserved_2" / Int8ub, "protection_interval" / Int8ub,
        "defect_list_length" / Int32ub,
    )  # fmt: skip


class LbaStatusHeader(Derived):
    """SBC-3 5.4.2: PARAMETER DATA LENGTH counts what follows it."""

    declaration = Struct("data_length" / Int32ub, "reserved_4" / Int32ub)


class LbaStatusDescriptor(Derived):
    """SBC-3 5.4.3. The status is in the low four bits of its byte."""

    declaration = Struct("lba" / Int64ub, "blocks" / Int32ub, "provisioning_status" / Int8ub, "reserved_13" / Bytes(3))


class DefectListHeader10(Derived):
    """SBC-3 5.17.2. ``format``: PLISTV, GLISTV, DEFECT LIST FORMAT."""

    declaration = Struct("reserved_0" / Int8ub, "format" / Int8ub, "length" / Int16ub)


class DefectListHeader12(Derived):
    """SBC-3 5.18.2."""

    declaration = Struct("reserved_0" / Int8ub, "format" / Int8ub, "generation" / Int16ub, "length" / Int32ub)


class ReadCapacity10Data(Derived):
    """SBC-3 5.15.2."""

    declaration = Struct("last_lba" / Int32ub, "block_bytes" / Int32ub)


class ReadCapacity16Data(Derived):
    """SBC-3 5.16.2. ``exponent``: logical blocks per physical block; ``provisioning``: LBPME, LBPRZ, lowest aligned."""

    declaration = Struct(
        "last_lba" / Int64ub, "block_bytes" / Int32ub, "protection" / Int8ub, "exponent" / Int8ub,
        "provisioning" / Int16ub, "reserved_16" / Bytes(16),
    )  # fmt: skip


class ReportLunsHeader(Derived):
    """SPC-4 6.33.2."""

    declaration = Struct("lun_list_length" / Int32ub, "reserved_4" / Int32ub)


class CommandDescriptor(Derived):
    """SPC-4 6.35.2: a row of the list of all commands."""

    declaration = Struct(
        "opcode" / Int8ub, "reserved_1" / Int8ub, "service_action" / Int16ub, "reserved_4" / Int8ub,
        "flags" / Int8ub, "cdb_length" / Int16ub,
    )  # fmt: skip


class OneCommand(Derived):
    """SPC-4 6.35.3: its header; the CDB usage data follows."""

    declaration = Struct("reserved_0" / Int8ub, "support" / Int8ub, "cdb_size" / Int16ub)


class Timeouts(Derived):
    """SPC-4 6.35.4. Zero: no indication."""

    declaration = Struct(
        "descriptor_length" / Int16ub, "reserved_2" / Int8ub, "command_specific" / Int8ub,
        "nominal_s" / Int32ub, "recommended_s" / Int32ub,
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"descriptor_length": 0x0A}


class TaskManagementTimeouts(Derived):
    """SPC-4 6.36.3, REPD=1. ``functions``: two bytes of bits; ``short``: those whose timeout is the short one."""

    declaration = Struct(
        "functions" / Bytes(2), "reserved_2" / Int8ub, "additional_length" / Int8ub,
        "timeouts_valid" / Int8ub, "reserved_5" / Int8ub, "short" / Bytes(2),
        "long_timeout_100_ms" / Int32ub, "short_timeout_100_ms" / Int32ub,
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"additional_length": 0x0C, "timeouts_valid": 0x01}


class ExtendedTargetPortGroupsHeader(Derived):
    """SPC-4 table 259."""

    declaration = Struct(
        "length" / Int32ub, "data_format" / Int8ub, "implicit_transition_time" / Int8ub, "reserved_6" / Int16ub
    )


class TargetPortGroupDescriptor(Derived):
    """SPC-4 tables 260 and 265: a group, with its one port."""

    declaration = Struct(
        "state" / Int8ub, "supported" / Int8ub, "target_port_group" / Int16ub, "reserved_4" / Int8ub,
        "status_code" / Int8ub, "vendor_specific" / Int8ub, "port_count" / Int8ub,
        "obsolete_8" / Int16ub, "relative_port" / Int16ub,
    )  # fmt: skip


class SetTargetPortGroup(Derived):
    """SPC-4 table 299: a descriptor."""

    declaration = Struct("state" / Int8ub, "reserved_1" / Int8ub, "target_port_group" / Int16ub)


class TimestampData(Derived):
    """SPC-4 table 270."""

    declaration = Struct(
        "length" / Int16ub, "origin" / Int8ub, "reserved_3" / Int8ub, "timestamp" / Bytes(6), "reserved_10" / Int16ub
    )
    defaults: ClassVar[dict[str, int]] = {"length": 0x0A}


class SetTimestampData(Derived):
    """SPC-4 table 302."""

    declaration = Struct("reserved_0" / Int32ub, "timestamp" / Bytes(6), "reserved_10" / Int16ub)
