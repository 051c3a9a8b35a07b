"""Who may use a unit: what the reservation gate asks, and RESERVE and RELEASE of SPC-2.

Each unit has one Reservations: the persistent state (registrations.py) as its record says, and the nexus that has
reserved it the old way, which is forgotten with that nexus, and at every reset. The two don't mix: while RESERVE holds,
PERSISTENT RESERVE conflicts; while anybody is registered, RESERVE and RELEASE conflict, but for the exceptions of SPC-4
5.13.3 ("compatible reservation handling": CRH is 1). The gate is looked at only while the unit is reserved.
"""

from __future__ import annotations

from iscsi_ovs import scsi
from iscsi_ovs.commands import registrations
from iscsi_ovs.commands.registrations import Change, Registrant, Registrations
from iscsi_ovs.scsi import Command, Conflict, Execution, LogicalUnit, Nexus, Operation, Outcome, invalid_field

RECORD = "reservations"
CONFLICT = scsi.RESERVATION_CONFLICT
_THIRD_PARTY_6 = 0x1F  # third party, its identifier, and extents, in byte 1: obsolete
_THIRD_PARTY_10 = 0x13


class Reservations:
    """Of one unit; also its ``scsi.ReservationGate``."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self.state = Registrations()
        self.is_loaded = False
        self.reserved_by: Nexus | None = None  # RESERVE of SPC-2
        self._refused: dict[int, Conflict] = {}  # by id() of a nexus: what it may not do, as long as nothing changes
        unit.on_nexus_lost.append(self._lost)
        unit.on_reset.append(self._reset)

    # The gate --------------------------------------------------------------------------------------------------

    def refuses(self, nexus: Nexus, operation: Operation | None, cdb: bytes) -> bool:
        if operation is None:
            return False
        refused = self._refused.get(id(nexus))
        if refused is None:
            refused = self._refused[id(nexus)] = self._refused_to(nexus)
        return refused is not Conflict.NEVER and bool(refused & operation.conflicts_of(cdb))

    def _refused_to(self, nexus: Nexus) -> Conflict:
        if self.reserved_by is not None:
            return Conflict.NEVER if self.reserved_by is nexus else Conflict.RESERVED
        kind = self.state.type
        if kind is None or self.state.has_access(Registrant.of(nexus)):
            return Conflict.NEVER
        return kind.refuses

    def _changed(self) -> None:
        self._refused.clear()
        is_reserved = self.reserved_by is not None or self.state.type is not None
        self._unit.reservation = self if is_reserved else None

    # Changes ---------------------------------------------------------------------------------------------------

    def take_over(self, change: Change) -> None:
        """A change is durable: it holds, and those whom it concerns hear of it."""
        self.state = change.state
        self._changed()
        if change.attentions:
            codes = dict(change.attentions)
            for nexus in self._unit.nexuses:
                code = codes.get(Registrant.of(nexus))
                if code is not None:
                    self._unit.attend(nexus, code)

    def load(self, data: bytes) -> None:
        """What the volume keeps. At first only what outlives a power loss; afterwards what another process has put."""
        if self.is_loaded:
            self.take_over(registrations.decode(data, None))
        else:
            self.take_over(Change(registrations.decode(data, self._unit.power_on).state))
            self.is_loaded = True

    def reserve(self, nexus: Nexus | None) -> None:
        """Reserve for a nexus, as SPC-2 does; None: for nobody any more."""
        if nexus is not self.reserved_by:
            self.reserved_by = nexus
            self._changed()

    def _lost(self, nexus: Nexus) -> None:
        """I_T nexus loss ends what RESERVE has reserved, and no registration."""
        self._refused.pop(id(nexus), None)
        if self.reserved_by is nexus:
            self.reserve(None)

    def _reset(self, kind: scsi.Reset) -> None:
        """So does every reset; what counts as power on ends what was not to persist, too."""
        self.reserve(None)
        if kind is scsi.Reset.POWER_ON:
            self.take_over(Change(self.state.after_power_loss()))


def of(unit: LogicalUnit) -> Reservations:
    """A unit's reservations."""
    if unit.reservations is None:
        unit.reservations = Reservations(unit)
    assert isinstance(unit.reservations, Reservations)
    return unit.reservations


def load(unit: LogicalUnit, data: bytes) -> None:
    """The record was read, or replaced by another process."""
    of(unit).load(data)


def state_of(unit: LogicalUnit) -> Registrations | Outcome:
    """What PERSISTENT RESERVE speaks of, or why it can't."""
    mine = of(unit)
    if mine.reserved_by is not None:
        return Outcome(CONFLICT)  # whoever asks, and whoever reserved (SPC-2 5.5.1): the two ways don't mix
    if not mine.is_loaded:
        return Outcome(scsi.BUSY)  # the volume was not opened yet
    return mine.state


# RESERVE and RELEASE (SPC-2 7.16, 7.17, 7.21, 7.22) ------------------------------------------------------------


def reserve_6(unit: LogicalUnit, command: Command) -> Execution:
    _check_obsolete(command, _THIRD_PARTY_6)
    return _reserve(unit, command)


def reserve_10(unit: LogicalUnit, command: Command) -> Execution:
    _check_obsolete(command, _THIRD_PARTY_10)
    return _reserve(unit, command)


def release_6(unit: LogicalUnit, command: Command) -> Execution:
    _check_obsolete(command, _THIRD_PARTY_6)
    return _release(unit, command)


def release_10(unit: LogicalUnit, command: Command) -> Execution:
    _check_obsolete(command, _THIRD_PARTY_10)
    return _release(unit, command)


def _check_obsolete(command: Command, bits: int) -> None:
    wrong = command.cdb[1] & bits
    if wrong:
        raise invalid_field(1, wrong.bit_length() - 1)


def _reserve(unit: LogicalUnit, command: Command) -> Outcome:
    mine = of(unit)
    persistent = _beside_registrations(mine.state, command.nexus)
    if persistent is not None:
        return persistent
    if mine.reserved_by not in (None, command.nexus):
        return Outcome(CONFLICT)
    mine.reserve(command.nexus)
    return Outcome()


def _release(unit: LogicalUnit, command: Command) -> Outcome:
    """Of a reservation of one's own; else GOOD, and nothing happens."""
    mine = of(unit)
    persistent = _beside_registrations(mine.state, command.nexus)
    if persistent is not None:
        return persistent
    if mine.reserved_by is command.nexus:
        mine.reserve(None)
    return Outcome()


def _beside_registrations(state: Registrations, nexus: Nexus) -> Outcome | None:
    """Where anybody is registered: GOOD without any effect "if the command is received from a) an I_T nexus that is a
    persistent reservation holder; or b) an I_T nexus that is registered if a registrants only or all registrants type
    persistent reservation is present"; a conflict for everybody else."""
    if not state.keys:
        return None
    is_excepted = state.type is not None and state.has_access(Registrant.of(nexus))
    return Outcome() if is_excepted else Outcome(CONFLICT)
