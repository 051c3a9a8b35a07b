"""Mode parameters (SPC-4 7.5, SBC-3 6.4): headers, block descriptors, and the pages as a table.

A page is a constant and the bits in it that an initiator may change; those are fields of ``scsi.Modes``. From this
follow what MODE SENSE says for each page control and what MODE SELECT takes (mode_select). The device-specific
parameter is honest: WP as the unit is, DPOFUA 1 because FUA is obeyed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

from construct import Bytes, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Struct

from iscsi_ovs import scsi
from iscsi_ovs.commands import vpd
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
SWP = 0x08
TCMOS = 0x04  # the timestamp has a clock of the target's
SCSIP = 0x02  # … before which SET TIMESTAMP goes
IALUAE = 0x01  # access states may change implicitly
PS = 0x80
SPF = 0x40
LBPERE = 0x80  # thresholds are reported
ENABLED = 0x80
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


class ControlExtension(Derived):
    """SPC-4 7.5.9. All commands are of one priority, and no sense data is too long."""

    declaration = Struct(
        "page_code" / Int8ub, "subpage_code" / Int8ub, "page_length" / Int16ub, "flags_4" / Int8ub,
        "initial_command_priority" / Int8ub, "maximum_sense_data_length" / Int8ub, "reserved_7" / Bytes(25),
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {"page_code": SPF | 0x0A, "subpage_code": 0x01, "page_length": 0x1C}


class LogicalBlockProvisioning(Derived):
    """SBC-3 6.4.9, with one threshold descriptor. SITUA 0: every nexus hears of it. What is left decreases (THRESHOLD
    ARMING 0) to the count of a soft threshold (THRESHOLD TYPE 0)."""

    declaration = Struct(
        "page_code" / Int8ub, "subpage_code" / Int8ub, "page_length" / Int16ub, "flags_4" / Int8ub,
        "reserved_5" / Bytes(11),
        "threshold_flags" / Int8ub, "threshold_resource" / Int8ub, "reserved_18" / Int16ub, "threshold_count" / Int32ub,
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {
        "page_code": SPF | 0x1C,
        "subpage_code": 0x02,
        "page_length": 20,
        "threshold_resource": 0x01,  # AVAILABLE LBA MAPPING RESOURCE COUNT of log page 0C
    }


class InformationalExceptions(Derived):
    """SBC-3 6.4.6. MRIE 0: no reporting."""

    declaration = Struct("page_code" / Int8ub, "page_length" / Int8ub, "parameters" / Bytes(10))
    defaults: ClassVar[dict[str, int]] = {"page_code": 0x1C, "page_length": 10}


@dataclass(frozen=True, slots=True)
class Changeable:
    """A bit that MODE SELECT may change: the field of scsi.Modes that it is."""

    field: str
    byte: int
    mask: int


@dataclass(frozen=True, slots=True)
class ModePage:
    """A row: the page as it is with all changeable bits zero, and those bits. ``of_unit``: units have different ones,
    as long as ``page``, which initiators can't change."""

    code: int
    subpage: int
    page: bytes
    changeable: tuple[Changeable, ...] = ()
    of_unit: Callable[[scsi.LogicalUnit], bytes] | None = None
    needs_thin: bool = False

    @property
    def header_bytes(self) -> int:
        """Page code and length; in the SPF format a subpage code between, and a longer length (SPC-4 7.5.7)."""
        return 4 if self.page[0] & SPF else 2

    def base(self, unit: scsi.LogicalUnit) -> bytes:
        """The page with all changeable bits zero."""
        return self.page if self.of_unit is None else self.of_unit(unit)

    def values(self, unit: scsi.LogicalUnit, modes: scsi.Modes) -> bytes:
        """The page under these modes."""
        page = bytearray(self.base(unit))
        for bit in self.changeable:
            if getattr(modes, bit.field):
                page[bit.byte] |= bit.mask
        return bytes(page)

    def changeable_values(self) -> bytes:
        """Ones where something can be changed, zeros elsewhere, behind the page's header."""
        page = bytearray(self.page[: self.header_bytes].ljust(len(self.page), b"\0"))
        for bit in self.changeable:
            page[bit.byte] |= bit.mask
        return bytes(page)


def _error_recovery(unit: scsi.LogicalUnit) -> bytes:
    page = bytearray(ReadWriteErrorRecovery().pack())
    page[7] |= LBPERE if unit.personality.is_thin else 0
    return bytes(page)


def _provisioning(unit: scsi.LogicalUnit) -> bytes:
    count = min(unit.soft_threshold_bytes // vpd.THRESHOLD_SET_BYTES, 0xFFFFFFFF)
    return LogicalBlockProvisioning(threshold_flags=ENABLED if count else 0, threshold_count=count).pack()


PAGES: tuple[ModePage, ...] = (
    ModePage(0x01, 0x00, ReadWriteErrorRecovery().pack(), of_unit=_error_recovery),
    # WCE 1: a write is acknowledged before it is durable (CONTRACTS 1), so initiators must flush. WCE 0: write_through.
    ModePage(0x08, 0x00, Caching().pack(), (Changeable("write_cache", 2, WCE),)),
    ModePage(
        0x0A,
        0x00,
        Control(flags_2=GLTSD, flags_3=UNRESTRICTED_REORDERING).pack(),
        (Changeable("descriptor_sense", 2, D_SENSE), Changeable("write_protect", 4, SWP)),
    ),
    ModePage(0x0A, 0x01, ControlExtension(flags_4=TCMOS | SCSIP | IALUAE).pack()),
    ModePage(0x1C, 0x00, InformationalExceptions().pack()),
    # The threshold is the pool's, and an operator's to choose (vpool.json): it can't be changed.
    ModePage(0x1C, 0x02, LogicalBlockProvisioning().pack(), of_unit=_provisioning, needs_thin=True),
)
assert [(row.code, row.subpage) for row in PAGES] == sorted({(row.code, row.subpage) for row in PAGES})
assert sorted(bit.field for row in PAGES for bit in row.changeable) == sorted(each.name for each in fields(scsi.Modes))


def pages(unit: scsi.LogicalUnit, code: int, subpage: int, control: int) -> bytes | None:
    """The mode pages that (code, subpage) asks for, in order; None if that is none (SPC-4 tables 393 and 394)."""
    rows = [row for row in PAGES if unit.personality.is_thin or not row.needs_thin]
    found = [row for row in rows if code in (row.code, ALL_PAGES) and subpage in (row.subpage, ALL_SUBPAGES)]
    if not found or (code == ALL_PAGES and subpage not in (0, ALL_SUBPAGES)):
        return None
    return b"".join(_values(unit, row, control) for row in found)


def _values(unit: scsi.LogicalUnit, row: ModePage, control: int) -> bytes:
    modes = {CURRENT: unit.modes, DEFAULT: unit.default_modes, SAVED: unit.saved_modes}.get(control)
    page = row.changeable_values() if modes is None else row.values(unit, modes)
    # SPC-4 7.5.7: "a PS bit set to one indicates that the mode page may be saved by the logical unit"
    if row.changeable:
        page = bytes((page[0] | PS, *page[1:]))
    return page


def device_specific(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> int:
    """SBC-3 6.4.1."""
    return (WP if unit.is_write_protected(nexus) else 0) | DPOFUA


def block_descriptor(unit: scsi.LogicalUnit, is_long: bool) -> bytes:
    """SBC-3 6.4.2."""
    if is_long:
        return LongBlockDescriptor(blocks=unit.capacity_blocks, block_bytes=unit.block_bytes).pack()
    return ShortBlockDescriptor(blocks=min(unit.capacity_blocks, 0xFFFFFFFF), block_bytes=unit.block_bytes).pack()
