"""Mode parameters (SPC-4 7.5, SBC-3 6.4): headers, block descriptors, and the pages as a table.

Nothing can be changed yet (there is no MODE SELECT), so changeable values are all zeros, and nothing can be saved. The
device-specific parameter is honest: WP as the unit is, DPOFUA 1 because FUA is obeyed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from construct import Bytes, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Struct

from iscsi_ovs import scsi
from iscsi_ovs.wire import Derived

# Page control
CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)

ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF

WP = 0x80
DPOFUA = 0x10
LONGLBA = 0x01
WCE = 0x04
D_SENSE = 0x04
GLTSD = 0x02  # log parameters are not saved
UNRESTRICTED_REORDERING = 0x10


class Header6(Derived):
    """SPC-4 7.5.5. MODE DATA LENGTH counts what follows it."""

    declaration = Struct(
        "mode_data_length" / Int8ub, "medium_type" / Int8ub, "device_specific" / Int8ub,
        "block_descriptor_length" / Int8ub,
    )  # fmt: skip


class Header10(Derived):
    """SPC-4 7.5.5."""

    declaration = Struct(
        "mode_data_length" / Int16ub, "medium_type" / Int8ub, "device_specific" / Int8ub, "flags_4" / Int8ub,
        "reserved_5" / Int8ub, "block_descriptor_length" / Int16ub,
    )  # fmt: skip


class ShortBlockDescriptor(Derived):
    """SBC-3 6.4.2.2."""

    declaration = Struct("blocks" / Int32ub, "reserved_4" / Int8ub, "block_bytes" / Int24ub)


class LongBlockDescriptor(Derived):
    """SBC-3 6.4.2.3."""

    declaration = Struct("blocks" / Int64ub, "reserved_8" / Int32ub, "block_bytes" / Int32ub)


class ReadWriteErrorRecovery(Derived):
    """SBC-3 6.4.8."""

    declaration = Struct("page_code" / Int8ub, "page_length" / Int8ub, "parameters" / Bytes(10))
    defaults: ClassVar[dict[str, int]] = {"page_code": 0x01, "page_length": 10}


class Caching(Derived):
    """SBC-3 6.4.5."""

    declaration = Struct("page_code" / Int8ub, "page_length" / Int8ub, "flags_2" / Int8ub, "parameters" / Bytes(17))
    defaults: ClassVar[dict[str, int]] = {"page_code": 0x08, "page_length": 18}


class Control(Derived):
    """SPC-4 7.5.8."""

    declaration = Struct(
        "page_code" / Int8ub, "page_length" / Int8ub, "flags_2" / Int8ub, "flags_3" / Int8ub, "flags_4" / Int8ub,
        "flags_5" / Int8ub, "obsolete_6" / Int16ub, "busy_timeout_period" / Int16ub,
        "extended_self_test_completion_time" / Int16ub,
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"page_code": 0x0A, "page_length": 10}


class InformationalExceptions(Derived):
    """SBC-3 6.4.6. MRIE 0: no reporting."""

    declaration = Struct("page_code" / Int8ub, "page_length" / Int8ub, "parameters" / Bytes(10))
    defaults: ClassVar[dict[str, int]] = {"page_code": 0x1C, "page_length": 10}


def _read_write_error_recovery(unit: scsi.LogicalUnit, control: int) -> bytes:
    return ReadWriteErrorRecovery().pack()


def _caching(unit: scsi.LogicalUnit, control: int) -> bytes:
    """WCE=1: a write is acknowledged before it is durable (CONTRACTS 1), so initiators must flush. WCE=0: never."""
    is_on = control != CHANGEABLE and unit.write_cache
    return Caching(flags_2=WCE if is_on else 0).pack()


def _control(unit: scsi.LogicalUnit, control: int) -> bytes:
    if control == CHANGEABLE:
        return Control().pack()
    descriptor_sense = unit.descriptor_sense and control == CURRENT
    return Control(flags_2=GLTSD | (D_SENSE if descriptor_sense else 0), flags_3=UNRESTRICTED_REORDERING).pack()


def _informational_exceptions(unit: scsi.LogicalUnit, control: int) -> bytes:
    return InformationalExceptions().pack()


@dataclass(frozen=True, slots=True)
class ModePage:
    """A row: ``build(unit, page_control)`` gives the page, changeable values too."""

    code: int
    subpage: int
    build: Callable[[scsi.LogicalUnit, int], bytes]


PAGES: tuple[ModePage, ...] = (
    ModePage(0x01, 0x00, _read_write_error_recovery),
    ModePage(0x08, 0x00, _caching),
    ModePage(0x0A, 0x00, _control),
    ModePage(0x1C, 0x00, _informational_exceptions),
)
assert [(row.code, row.subpage) for row in PAGES] == sorted({(row.code, row.subpage) for row in PAGES})


def pages(unit: scsi.LogicalUnit, code: int, subpage: int, control: int) -> bytes | None:
    """The mode pages that (code, subpage) asks for, in order; None if that is none (SPC-4 tables 393 and 394)."""
    found = [
        row
        for row in PAGES
        if code in (row.code, ALL_PAGES) and (subpage == ALL_SUBPAGES or subpage == row.subpage == 0)
    ]
    return b"".join(row.build(unit, control) for row in found) if found else None


def device_specific(unit: scsi.LogicalUnit) -> int:
    """SBC-3 6.4.1."""
    return (WP if unit.is_read_only else 0) | DPOFUA


def block_descriptor(unit: scsi.LogicalUnit, is_long: bool) -> bytes:
    """SBC-3 6.4.2."""
    if is_long:
        return LongBlockDescriptor(blocks=unit.capacity_blocks, block_bytes=unit.block_bytes).pack()
    return ShortBlockDescriptor(blocks=min(unit.capacity_blocks, 0xFFFFFFFF), block_bytes=unit.block_bytes).pack()
