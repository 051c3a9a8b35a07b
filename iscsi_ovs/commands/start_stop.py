"""START STOP UNIT (SBC-3 5.25) and PREVENT ALLOW MEDIUM REMOVAL (SPC-4 6.14): a disk that does not spin, whose medium
may come out unless somebody prevents it."""

from __future__ import annotations

from iscsi_ovs import block
from iscsi_ovs.commands import cdb, sbc, sense
from iscsi_ovs.scsi import CheckCondition, Command, Execution, LogicalUnit, Outcome, invalid_field

# POWER CONDITIONs before which SBC-3 wants the cache written out: IDLE, STANDBY, FORCE_IDLE_0, FORCE_STANDBY_0.
_QUIET = frozenset((0x2, 0x3, 0xA, 0xB))


def start_stop_unit(unit: LogicalUnit, command: Command) -> Execution:
    """A stop flushes, unless NO_FLUSH, and the unit stays ready: other initiators share it. LOEJ takes the medium of a
    removable unit out, for everybody, or puts it in again. IMMED is answered when it is done, too.

    With a POWER CONDITION "the START bit and the LOEJ bit shall be ignored". Any condition is left again with the next
    command, so each is as good as ACTIVE; reserved ones are, too: libiscsi's suite sends all fifteen.
    """
    fields = cdb.StartStopUnit.unpack_from(command.cdb)
    if unit.sanitize_progress is not None and (refusal := unit.reach_medium(command)) is not None:
        return refusal
    condition = (fields.action & cdb.POWER_CONDITION) >> 4
    if condition:
        return _flush(unit, command, fields.action) if condition in _QUIET else Outcome()
    if not fields.action & cdb.LOEJ:
        return Outcome() if fields.action & cdb.START else _flush(unit, command, fields.action)
    if not unit.personality.is_removable:
        raise invalid_field(4, 1)
    # SBC-3 5.25 of LOEJ, either way: "if … medium removal is prevented … MEDIUM REMOVAL PREVENTED"
    if unit.preventers:
        raise CheckCondition(sense.MEDIUM_REMOVAL_PREVENTED)
    if fields.action & cdb.START:
        unit.load(command.nexus)
        return Outcome()
    return _eject(unit, command)


def _flush(unit: LogicalUnit, command: Command, action: int) -> Execution:
    if action & cdb.NO_FLUSH or not unit.has_medium:
        return Outcome()
    if (refusal := unit.reach_medium(command)) is not None:
        return refusal
    return sbc.flush(unit)


def _eject(unit: LogicalUnit, command: Command) -> Execution:
    """What is cached is on the medium before it is out, NO_FLUSH or not."""
    if not unit.has_medium:
        return Outcome()
    if (refusal := unit.reach_medium(command)) is not None:
        return refusal

    def finish(completion: block.Completion) -> Outcome:
        if completion.error is not None:
            return unit.failed(completion)
        unit.eject()
        return Outcome()

    return block.Request(block.Operation.FLUSH, finish=finish)


def prevent_allow_medium_removal(unit: LogicalUnit, command: Command) -> Execution:
    """Each nexus prevents for itself, until it allows, is lost, or the unit is reset. A disk whose medium is fixed
    takes note and has nothing to prevent."""
    prevent = cdb.PreventAllow.unpack_from(command.cdb).prevent & cdb.PREVENT
    if prevent > 1:
        raise invalid_field(4, 1)  # obsolete: it was for media changers
    if prevent:
        unit.preventers.add(id(command.nexus))
    else:
        unit.preventers.discard(id(command.nexus))
    return Outcome()
