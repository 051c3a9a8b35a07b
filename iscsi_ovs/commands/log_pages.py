"""LOG SENSE (SPC-4 6.9 and 7.3): the supported pages, and informational exceptions. No counter can be set or saved, so
there is no LOG SELECT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from construct import Int8ub, Int16ub, Struct

from iscsi_ovs.commands import cdb, parameters
from iscsi_ovs.scsi import Command, Execution, LogicalUnit, invalid_field
from iscsi_ovs.wire import Derived

DS = 0x80  # the page is not saved
SPF = 0x40
ALL_SUBPAGES = 0xFF
PAGE_CODE = 0x3F
BINARY_LIST = 0x03  # FORMAT AND LINKING: a parameter that is a list, in binary
NO_TEMPERATURE = 0xFF


class PageHeader(Derived):
    """SPC-4 7.3.2."""

    declaration = Struct("page_code" / Int8ub, "subpage_code" / Int8ub, "page_length" / Int16ub)


class InformationalExceptions(Derived):
    """SPC-4 7.3.8: the one parameter. All zeros: nothing to report."""

    declaration = Struct(
        "parameter_code" / Int16ub, "control" / Int8ub, "parameter_length" / Int8ub,
        "asc" / Int8ub, "ascq" / Int8ub, "temperature" / Int8ub, "vendor_specific" / Int8ub,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogPage:
    """A row: the page's parameters by their codes, ascending. The two pages that list others have none."""

    code: int
    subpage: int
    parameters: Callable[[LogicalUnit], dict[int, bytes]]


def _no_parameters(unit: LogicalUnit) -> dict[int, bytes]:
    return {}


def _informational_exceptions(unit: LogicalUnit) -> dict[int, bytes]:
    return {
        0x0000: InformationalExceptions(control=BINARY_LIST, parameter_length=4, temperature=NO_TEMPERATURE).pack(),
    }


PAGES: tuple[LogPage, ...] = (
    LogPage(0x00, 0x00, _no_parameters),
    LogPage(0x00, ALL_SUBPAGES, _no_parameters),
    LogPage(0x2F, 0x00, _informational_exceptions),
)
assert [(row.code, row.subpage) for row in PAGES] == sorted({(row.code, row.subpage) for row in PAGES})


def log_sense(unit: LogicalUnit, command: Command) -> Execution:
    """PC chooses between kinds of values of *counters*; there are none, and for lists it "shall be ignored"."""
    fields = cdb.LogSense.unpack_from(command.cdb)
    if fields.flags & cdb.PPC:
        raise invalid_field(1, 1)
    if fields.flags & cdb.SP:
        raise invalid_field(1, 0)
    code = fields.page & PAGE_CODE
    row = next((row for row in PAGES if (row.code, row.subpage) == (code, fields.subpage)), None)
    if row is None:
        raise invalid_field(3) if any(code == each.code for each in PAGES) else invalid_field(2, 5)
    return parameters.answer(_page(unit, row, fields.parameter_pointer), fields.allocation_length)


def _page(unit: LogicalUnit, row: LogPage, pointer: int) -> bytes:
    found = row.parameters(unit)
    # SPC-4 6.9: a PARAMETER POINTER beyond the last parameter is an invalid field in the CDB.
    if pointer > max(found, default=0):
        raise invalid_field(5)
    flags = (DS if found else 0) | (SPF if row.subpage else 0)
    body = b"".join(data for code, data in found.items() if code >= pointer) or _list(row)
    return PageHeader(page_code=flags | row.code, subpage_code=row.subpage, page_length=len(body)).pack() + body


def _list(row: LogPage) -> bytes:
    """The pages, or (FFh) pages with subpages."""
    if row.subpage == ALL_SUBPAGES:
        return b"".join(bytes((each.code, each.subpage)) for each in PAGES)
    return bytes(each.code for each in PAGES if not each.subpage)
