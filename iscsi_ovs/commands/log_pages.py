"""LOG SENSE (SPC-4 6.9 and 7.3, SBC-3 6.3): the supported pages, logical block provisioning, informational exceptions.
Nothing in them can be set or saved, so there is no LOG SELECT.

Page 0C says what a thin unit takes in its store, and what is left there, which it shares with others; in threshold sets
of a mebibyte (VPD page B2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from construct import Int8ub, Int16ub, Int24ub, Int32ub, Struct

from iscsi_ovs import scsi
from iscsi_ovs.commands import cdb, parameters, vpd
from iscsi_ovs.scsi import Command, Execution, LogicalUnit, Outcome, invalid_field
from iscsi_ovs.wire import Derived

DS = 0x80  # the page is not saved
SPF = 0x40
ALL_SUBPAGES = 0xFF
PAGE_CODE = 0x3F
BINARY_LIST = 0x03  # FORMAT AND LINKING: a parameter that is a list, in binary
NO_TEMPERATURE = 0xFF

LOGICAL_BLOCK_PROVISIONING = 0x0C
AVAILABLE = 0x0001  # AVAILABLE LBA MAPPING RESOURCE COUNT
USED = 0x0002  # USED LBA MAPPING RESOURCE COUNT
DEDICATED, SHARED = 0x01, 0x02  # SCOPE: of this unit alone, or not


class PageHeader(Derived):
    """SPC-4 7.3.2."""

    declaration = Struct("page_code" / Int8ub, "subpage_code" / Int8ub, "page_length" / Int16ub)


class InformationalExceptions(Derived):
    """SPC-4 7.3.8: the one parameter. All zeros: nothing to report."""

    declaration = Struct(
        "parameter_code" / Int16ub, "control" / Int8ub, "parameter_length" / Int8ub,
        "asc" / Int8ub, "ascq" / Int8ub, "temperature" / Int8ub, "vendor_specific" / Int8ub,
    )  # fmt: skip


class ResourceCount(Derived):
    """SBC-3 6.3.4.2, in threshold sets. SCOPE: whose resources they are."""

    declaration = Struct(
        "parameter_code" / Int16ub, "control" / Int8ub, "parameter_length" / Int8ub,
        "resource_count" / Int32ub, "scope" / Int8ub, "reserved_9" / Int24ub,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogPage:
    """A row: the page's parameters by their codes, ascending, from the bytes that the volume takes in its store, and
    those that are left there (where ``needs_usage``). The two pages that list others have none."""

    code: int
    subpage: int
    parameters: Callable[[int, int | None], dict[int, bytes]]
    needs_usage: bool = False


def _no_parameters(used_bytes: int, available_bytes: int | None) -> dict[int, bytes]:
    return {}


def _logical_block_provisioning(used_bytes: int, available_bytes: int | None) -> dict[int, bytes]:
    found = {}
    if available_bytes is not None:
        found[AVAILABLE] = _count(AVAILABLE, available_bytes // vpd.THRESHOLD_SET_BYTES, SHARED)
    found[USED] = _count(USED, -(-used_bytes // vpd.THRESHOLD_SET_BYTES), DEDICATED)
    return found


def _count(code: int, sets: int, scope: int) -> bytes:
    return ResourceCount(
        parameter_code=code,
        control=BINARY_LIST,
        parameter_length=8,
        resource_count=min(sets, 0xFFFFFFFF),
        scope=scope,
    ).pack()


def _informational_exceptions(used_bytes: int, available_bytes: int | None) -> dict[int, bytes]:
    return {
        0x0000: InformationalExceptions(control=BINARY_LIST, parameter_length=4, temperature=NO_TEMPERATURE).pack(),
    }


PAGES: tuple[LogPage, ...] = (
    LogPage(0x00, 0x00, _no_parameters),
    LogPage(0x00, ALL_SUBPAGES, _no_parameters),
    LogPage(LOGICAL_BLOCK_PROVISIONING, 0x00, _logical_block_provisioning, needs_usage=True),
    LogPage(0x2F, 0x00, _informational_exceptions),
)
assert [(row.code, row.subpage) for row in PAGES] == sorted({(row.code, row.subpage) for row in PAGES})


def _pages_of(unit: LogicalUnit) -> list[LogPage]:
    return [row for row in PAGES if unit.personality.is_thin or row.code != LOGICAL_BLOCK_PROVISIONING]


def log_sense(unit: LogicalUnit, command: Command) -> Execution:
    """PC chooses between kinds of values of *counters*; there are none, and for lists it "shall be ignored"."""
    fields = cdb.LogSense.unpack_from(command.cdb)
    if fields.flags & cdb.PPC:
        raise invalid_field(1, 1)
    if fields.flags & cdb.SP:
        raise invalid_field(1, 0)
    code, pages = fields.page & PAGE_CODE, _pages_of(unit)
    row = next((row for row in pages if (row.code, row.subpage) == (code, fields.subpage)), None)
    if row is None:
        raise invalid_field(3) if any(code == each.code for each in pages) else invalid_field(2, 5)
    # SPC-4 6.9: a PARAMETER POINTER beyond the last parameter is an invalid field in the CDB.
    if fields.parameter_pointer > max(row.parameters(0, None), default=0):
        raise invalid_field(5)

    def finish(used_bytes: int | None, available_bytes: int | None) -> Outcome:
        if used_bytes is None:
            return Outcome(scsi.BUSY)
        page = _page(row, pages, row.parameters(used_bytes, available_bytes), fields.parameter_pointer)
        return parameters.answer(page, fields.allocation_length)

    return scsi.UsageQuery(finish) if row.needs_usage else finish(0, None)


def _page(row: LogPage, pages: list[LogPage], found: dict[int, bytes], pointer: int) -> bytes:
    flags = (DS if found else 0) | (SPF if row.subpage else 0)
    body = b"".join(data for code, data in found.items() if code >= pointer) or _list(row, pages)
    return PageHeader(page_code=flags | row.code, subpage_code=row.subpage, page_length=len(body)).pack() + body


def _list(row: LogPage, pages: list[LogPage]) -> bytes:
    """The pages, or (FFh) pages with subpages."""
    if row.subpage == ALL_SUBPAGES:
        return b"".join(bytes((each.code, each.subpage)) for each in pages)
    return bytes(each.code for each in pages if not each.subpage)
