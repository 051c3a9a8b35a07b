"""Asymmetric access: REPORT and SET TARGET PORT GROUPS (SPC-4 5.15, 6.37, 6.45), and what a change of state brings.

States are those of the target device (ports.TargetPorts). Implicit changes, by an operator, are always possible; an
initiator may make them only where the target device says so, and where it may not, the command is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

from iscsi_ovs import scsi
from iscsi_ovs.commands import cdb, parameters, sense
from iscsi_ovs.scsi import (
    AccessState,
    CheckCondition,
    Command,
    Execution,
    FieldPointer,
    LogicalUnit,
    Nexus,
    Operation,
    Outcome,
    PortGroup,
    StatusCode,
    TargetPorts,
)

PREF = 0x80
# AO_SUP, AN_SUP, S_SUP, U_SUP; no T_SUP (a change is done when it is answered), O_SUP, LBD_SUP
SUPPORTED = 0x01 | 0x02 | 0x04 | 0x08
EXTENDED = 0x20  # PARAMETER DATA FORMAT, in byte 1 of the CDB
EXTENDED_HEADER = 0x10  # RETURN DATA FORMAT, in the header
_DATA_FORMAT = 0xE0

IMPLICIT, EXPLICIT = 0x10, 0x20  # TPGS, in the standard INQUIRY data


def tpgs(nexus: Nexus) -> int:
    """TPGS (SPC-4 table 142): how access states change."""
    return IMPLICIT | (EXPLICIT if nexus.ports.can_set else 0)


def operations(unit: LogicalUnit, nexus: Nexus) -> tuple[Operation, ...]:
    """The unit's operations as this nexus has them."""
    return tuple(row for row in unit.operations if row.handler is not set_target_port_groups or nexus.ports.can_set)


def report_target_port_groups(unit: LogicalUnit, command: Command) -> Execution:
    fields = cdb.TargetPortGroups.unpack_from(command.cdb)
    data_format = fields.flags & _DATA_FORMAT
    if data_format not in (0, EXTENDED):
        raise scsi.invalid_field(1, 7)
    groups = b"".join(_descriptor(group) for group in command.nexus.ports.groups.values())
    if data_format == EXTENDED:
        header = cdb.ExtendedTargetPortGroupsHeader(length=len(groups) + 4, data_format=EXTENDED_HEADER).pack()
    else:
        header = len(groups).to_bytes(4, "big")
    return parameters.answer(header + groups, fields.allocation_length)


def _descriptor(group: PortGroup) -> bytes:
    return cdb.TargetPortGroupDescriptor(
        state=(PREF if group.is_preferred else 0) | group.state,
        supported=SUPPORTED,
        target_port_group=group.tag,
        status_code=group.status,
        port_count=1,
        relative_port=group.relative_port,
    ).pack()


def set_target_port_groups(unit: LogicalUnit, command: Command) -> Execution:
    """All descriptors are checked before the first group changes."""
    ports = command.nexus.ports
    if not ports.can_set:
        raise CheckCondition(sense.INVALID_COMMAND_OPERATION_CODE)
    length = cdb.TargetPortGroups.unpack_from(command.cdb).allocation_length
    if not length:
        return Outcome()
    data = parameters.received(command, length, 4)
    change(ports, _wanted(ports, data), StatusCode.SET, command.nexus)
    return Outcome(transfer_bytes=length)


def _wanted(ports: TargetPorts, data: bytes) -> dict[int, AccessState]:
    """States by tag. The list: four reserved bytes, then descriptors."""
    wanted: dict[int, AccessState] = {}
    size = cdb.SetTargetPortGroup.SIZE
    for at in range(4, len(data), size):
        if at + size > len(data):
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
        descriptor = cdb.SetTargetPortGroup.unpack_from(data, at)
        if descriptor.state & 0x0F not in list(AccessState):
            raise CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(at, 3, is_cdb=False))
        tag = descriptor.target_port_group
        if tag not in ports.groups or tag in wanted:
            raise CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(at + 2, is_cdb=False))
        wanted[tag] = AccessState(descriptor.state & 0x0F)
    return wanted


def change(ports: TargetPorts, states: Mapping[int, AccessState], status: StatusCode, by: Nexus | None = None) -> None:
    """Port groups get other states, at once. Every nexus of the target device hears of it on every unit, but the one
    that did it."""
    changed = [ports.groups[tag] for tag, state in states.items() if ports.groups[tag].state != state]
    for group in changed:
        group.state, group.status = states[group.tag], status
    if not changed:
        return
    for nexus in ports.nexuses.values():
        for unit in nexus.router.units.values():
            unit.access_changed()
    tell(ports, scsi.ASYMMETRIC_ACCESS_STATE_CHANGED, by)


def tell(ports: TargetPorts, code: scsi.Code, but: Nexus | None = None) -> None:
    """A unit attention for every nexus of the target device, on every unit that it sees."""
    for nexus in ports.nexuses.values():
        if nexus is not but:
            for unit in nexus.router.units.values():
                unit.attend(nexus, code)
