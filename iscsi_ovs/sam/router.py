"""LUNs, and the maps from them to units (SAM-5 4.6.4, 4.7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from iscsi_ovs import block
from iscsi_ovs.sam.attentions import REPORTED_LUNS_DATA_HAS_CHANGED
from iscsi_ovs.sam.command import Command, Execution
from iscsi_ovs.sam.identity import Identity
from iscsi_ovs.sam.nexus import Nexus
from iscsi_ovs.sam.operations import CommandSet
from iscsi_ovs.sam.unit import ABSENT, DISK, WELL_KNOWN, LogicalUnit

# LUNs (SAM-5 4.7): eight bytes; the first two are the whole of it for single-level units.
REPORT_LUNS_WELL_KNOWN_LUN = 0xC101 << 48
_FLAT = 0x4000
MAX_LUN_NUMBER = 0x3FFF


def encode_lun(number: int) -> int:
    """The LUN field for a LUN number: peripheral device addressing up to 255, flat space above."""
    assert 0 <= number <= MAX_LUN_NUMBER
    return (number if number < 256 else _FLAT | number) << 48


class TaskRouter:
    """A LUN map: logical units by LUN, and what answers where there is none (SAM-5 4.6.4, SPC-4 6.4.2).

    A unit stands once in a map, and may stand in others.
    """

    def __init__(self, command_set: CommandSet, units: Mapping[int, LogicalUnit] | None = None) -> None:
        self.units: dict[int, LogicalUnit] = {}
        self._nexuses: dict[int, Nexus] = {}
        nobody = Identity("", "0" * 32)
        nothing = block.Geometry(0)
        self._absent = LogicalUnit(command_set, nobody, nothing, peripheral=ABSENT, operations=command_set.absent)
        well_known = LogicalUnit(command_set, nobody, nothing, peripheral=WELL_KNOWN, operations=command_set.well_known)
        self._by_lun: dict[int, LogicalUnit] = {REPORT_LUNS_WELL_KNOWN_LUN: well_known}
        for number, unit in (units or {}).items():
            self.add(number, unit)

    def execute(self, command: Command) -> Execution:
        """Find the logical unit and execute."""
        return self._by_lun.get(command.lun, self._absent).execute(command)

    def unit(self, lun: int) -> LogicalUnit | None:
        """The disk behind a 64-bit LUN field, whichever way it is written."""
        unit = self._by_lun.get(lun)
        return unit if unit is not None and unit.peripheral == DISK else None

    def add(self, number: int, unit: LogicalUnit) -> None:
        """Serve a unit under a LUN number; sessions that live already hear that the inventory has changed."""
        assert number not in self.units
        assert unit not in self.units.values()
        assert 0 <= number <= MAX_LUN_NUMBER
        self._tell_inventory()
        self.units[number] = unit
        for lun in _fields_of(number):
            self._by_lun[lun] = unit
        for nexus in self._nexuses.values():
            unit.establish(nexus)

    def remove(self, number: int) -> LogicalUnit:
        """Serve a unit no longer."""
        unit = self.units.pop(number)
        for lun in _fields_of(number):
            del self._by_lun[lun]
        for nexus in self._nexuses.values():
            unit.release(nexus)
        self._tell_inventory()
        return unit

    def _tell_inventory(self) -> None:
        for nexus in self._nexuses.values():
            for unit in self.units.values():
                unit.attend(nexus, REPORTED_LUNS_DATA_HAS_CHANGED)

    def establish(self, nexus: Nexus) -> None:
        """A session came: every unit gets to know it."""
        self._nexuses[id(nexus)] = nexus
        nexus.router = self
        nexus.ports.nexuses[id(nexus)] = nexus
        for unit in self.units.values():
            unit.establish(nexus)

    def release(self, nexus: Nexus) -> None:
        """A session went."""
        self._nexuses.pop(id(nexus), None)
        nexus.ports.nexuses.pop(id(nexus), None)
        for unit in self.units.values():
            unit.release(nexus)


def _fields_of(number: int) -> Iterable[int]:
    """Every LUN field that means this number."""
    if number < 256:
        yield number << 48
    yield (_FLAT | number) << 48
