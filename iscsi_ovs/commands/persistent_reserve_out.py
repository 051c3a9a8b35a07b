"""PERSISTENT RESERVE OUT (SPC-4 6.16): parameter lists, checked to the last byte, become changes of the registrations.

What an action does is registrations.py's; here its arguments are taken from the CDB and the list, and its Change
becomes an update of the volume's record: GOOD comes when that is durable (CONTRACTS 6) and, for PREEMPT AND ABORT,
when the tasks are gone.
"""

from __future__ import annotations

from collections.abc import Callable

from construct import Int8ub, Int16ub, Int32ub, Int64ub, Struct

from iscsi_ovs import scsi
from iscsi_ovs.commands import registrations, reservations, sense, transport_id
from iscsi_ovs.commands.registrations import Change, Registrant, Registrations, Type
from iscsi_ovs.commands.transport_id import InitiatorPort
from iscsi_ovs.scsi import CheckCondition, Command, Execution, FieldPointer, LogicalUnit, Nexus, Outcome, invalid_field
from iscsi_ovs.wire import Derived

_SPEC_I_PT = 0x08
_ALL_TG_PT = 0x04
_UNREG = 0x02
_APTPL = 0x01
_MAX_LIST_BYTES = 64 << 10  # more than can be registered; megabytes of TransportIDs would hold everybody up
_FLAGS, _RELATIVE_PORT, _TRANSPORT_ID_LENGTH = 20, 18, 20  # where they are


class Out(Derived):
    """SPC-4 6.16.1."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "scope_type" / Int8ub, "reserved_3" / Int16ub,
        "parameter_list_length" / Int32ub, "control" / Int8ub,
    )  # fmt: skip


class PlainList(Derived):
    """SPC-4 6.16.3: of all actions but REGISTER AND MOVE. With SPEC_I_PT, a length and TransportIDs follow."""

    declaration = Struct(
        "key" / Int64ub, "action_key" / Int64ub, "obsolete_16" / Int32ub, "flags" / Int8ub, "reserved_21" / Int8ub,
        "obsolete_22" / Int16ub,
    )  # fmt: skip


class TransportIds(Derived):
    """What follows is so many bytes of TransportIDs."""

    declaration = Struct("length" / Int32ub)


class MoveList(Derived):
    """SPC-4 6.16.4: of REGISTER AND MOVE. A TransportID follows."""

    declaration = Struct(
        "key" / Int64ub, "action_key" / Int64ub, "reserved_16" / Int8ub, "flags" / Int8ub, "relative_port" / Int16ub,
        "transport_id_length" / Int32ub,
    )  # fmt: skip


# Parameter lists -----------------------------------------------------------------------------------------------


def _wrong(byte: int, bit: int | None = None) -> CheckCondition:
    return CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(byte, bit, is_cdb=False))


def _parameter_list(command: Command) -> bytes:
    """As long as the CDB says; it has come whole. A copy: shared memory is looked at once."""
    length = Out.unpack_from(command.cdb).parameter_list_length
    buffer = command.data_out
    if length < PlainList.SIZE or buffer is None or length > min(command.data_out_bytes, buffer.length_bytes):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    return b"".join(buffer.views(0, length))


def _plain_list(command: Command) -> PlainList:
    data = _parameter_list(command)
    # "If the SPEC_I_PT bit is set to zero, the service action is not REGISTER AND MOVE, and the parameter list length
    # is not 24, then … PARAMETER LIST LENGTH ERROR."
    if len(data) != PlainList.SIZE:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    return PlainList.unpack_from(data)


def _type_of(command: Command) -> Type:
    scope_type = Out.unpack_from(command.cdb).scope_type
    if scope_type >> 4:
        raise invalid_field(2, 7)  # the logical unit is the only scope
    try:
        return Type(scope_type)
    except ValueError:
        raise invalid_field(2, 3) from None


def _transport_ids(data: bytes) -> list[InitiatorPort]:
    """The TransportIDs behind a plain list: at least one, and nothing left over."""
    start = PlainList.SIZE + TransportIds.SIZE
    if len(data) < start:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    end = start + TransportIds.unpack_from(data, PlainList.SIZE).length
    if end != len(data):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    if end > _MAX_LIST_BYTES:
        raise CheckCondition(sense.INSUFFICIENT_REGISTRATION_RESOURCES)
    ports = []
    at = start
    while at < end:
        port, at = transport_id.decode(data, at, end)
        ports.append(port)
    if not ports:
        raise _wrong(PlainList.SIZE)
    return list(dict.fromkeys(ports))


# Who is meant --------------------------------------------------------------------------------------------------


def _target_ports(nexus: Nexus) -> list[tuple[int, int]]:
    """(portal group tag, relative port) of every port of the target, this nexus' first."""
    mine = nexus.portal_group_tag, nexus.relative_port
    others = [(group.tag, group.relative_port) for group in nexus.ports.groups.values() if group.tag != mine[0]]
    return [mine, *others]


def _known_isids(unit: LogicalUnit, state: Registrations, name: str) -> set[bytes]:
    """The ports of an initiator that we know: those that are here, and those that are registered."""
    known = [*map(Registrant.of, unit.nexuses), *state.keys]
    return {registrant.isid for registrant in known if registrant.initiator_name == name}


def _named(
    unit: LogicalUnit, state: Registrations, who: Registrant, named: list[InitiatorPort], ports: list[tuple[int, int]]
) -> list[Registrant]:
    """SPC-4 7.6.4.6: "If an iSCSI TransportID with the TPID FORMAT field set to 00b appears in a PERSISTENT RESERVE OUT
    parameter list, all initiator ports known to the device server with an iSCSI node name matching the one in the
    TransportID shall be registered." One that names nobody is refused: nothing would be taken for a registration."""
    registrants = []
    for name, isid in named:
        isids = _known_isids(unit, state, name) if isid is None else {isid}
        if not isids:
            raise _wrong(PlainList.SIZE + TransportIds.SIZE)
        for one in sorted(isids):
            registrants += [Registrant(name, one, who.target_name, *port) for port in ports]
    return registrants


# The actions ---------------------------------------------------------------------------------------------------

_Plan = Callable[[LogicalUnit, Command, Registrations], "Change | None"]


def _action(plan: _Plan, *, aborts: bool = False) -> Callable[[LogicalUnit, Command], Execution]:
    """A handler: what ``plan`` makes of the present state becomes durable, then holds, then is answered."""

    def handler(unit: LogicalUnit, command: Command) -> Execution:
        state = reservations.state_of(unit)
        if isinstance(state, Outcome):
            return state
        planned = plan(unit, command, state)
        if planned is None:
            return Outcome(scsi.RESERVATION_CONFLICT)
        change = planned

        def done() -> Execution:
            return Outcome(transfer_bytes=Out.unpack_from(command.cdb).parameter_list_length)

        def kept(error: OSError | None) -> Execution:
            if error is not None:
                return Outcome(scsi.BUSY)
            reservations.of(unit).take_over(change)
            victims = tuple(nexus for nexus in unit.nexuses if aborts and Registrant.of(nexus) in change.preempted)
            return scsi.AbortTasks(victims, done) if victims else done()

        if change.state is state:
            return done()  # nothing has changed
        return scsi.RecordUpdate(reservations.RECORD, registrations.encode(change, unit.power_on), kept)

    return handler


def _register(unit: LogicalUnit, command: Command, state: Registrations) -> Change | None:
    data = _parameter_list(command)
    fields = PlainList.unpack_from(data)
    who = Registrant.of(command.nexus)
    if not fields.flags & _SPEC_I_PT:
        if len(data) != PlainList.SIZE:
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
        return _registered(unit, command, state, fields, [], fields.key)
    named = _transport_ids(data)
    if state.keys.get(who, 0) != fields.key:
        return None
    if who in state.keys:
        raise _wrong(_FLAGS, 3)  # SPC-4 table 47: only who registers anew can register others
    return _registered(unit, command, state, fields, named, fields.key)


def _register_and_ignore(unit: LogicalUnit, command: Command, state: Registrations) -> Change | None:
    fields = _plain_list(command)
    if fields.flags & _SPEC_I_PT:
        raise _wrong(_FLAGS, 3)
    return _registered(unit, command, state, fields, [], None)


def _registered(
    unit: LogicalUnit,
    command: Command,
    state: Registrations,
    fields: PlainList,
    named: list[InitiatorPort],
    key: int | None,
) -> Change | None:
    who = Registrant.of(command.nexus)
    ports = _target_ports(command.nexus)
    if not fields.flags & _ALL_TG_PT:
        ports = ports[:1]
    me = InitiatorPort(who.initiator_name, who.isid)
    return registrations.register(
        state,
        _named(unit, state, who, [me], ports),
        key,
        fields.action_key,
        others=_named(unit, state, who, named, ports),
        aptpl=bool(fields.flags & _APTPL),
    )


def _reserve(unit: LogicalUnit, command: Command, state: Registrations) -> Change | None:
    wanted = _type_of(command)
    return registrations.reserve(state, Registrant.of(command.nexus), _plain_list(command).key, wanted)


def _release(unit: LogicalUnit, command: Command, state: Registrations) -> Change | None:
    scope_type = Out.unpack_from(command.cdb).scope_type
    return registrations.release(state, Registrant.of(command.nexus), _plain_list(command).key, scope_type)


def _clear(unit: LogicalUnit, command: Command, state: Registrations) -> Change | None:
    return registrations.clear(state, Registrant.of(command.nexus), _plain_list(command).key)


def _preempt(unit: LogicalUnit, command: Command, state: Registrations) -> Change | None:
    wanted = _type_of(command)
    fields = _plain_list(command)
    return registrations.preempt(state, Registrant.of(command.nexus), fields.key, fields.action_key, wanted)


def _register_and_move(unit: LogicalUnit, command: Command, state: Registrations) -> Change | None:
    data = _parameter_list(command)
    fields = MoveList.unpack_from(data)
    if len(data) != MoveList.SIZE + fields.transport_id_length:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    who = Registrant.of(command.nexus)
    if state.keys.get(who) != fields.key or state.holder != who:
        return None
    if not fields.action_key:
        raise _wrong(8)
    port, end = transport_id.decode(data, MoveList.SIZE, len(data))
    if end != len(data):
        raise _wrong(_TRANSPORT_ID_LENGTH)
    target_ports = [one for one in _target_ports(command.nexus) if one[1] == fields.relative_port]
    if not target_ports:
        raise _wrong(_RELATIVE_PORT)
    isids = _known_isids(unit, state, port.initiator_name) if port.isid is None else {port.isid}
    if len(isids) != 1:
        raise _wrong(MoveList.SIZE)  # it must be one port
    to = Registrant(port.initiator_name, isids.pop(), who.target_name, *target_ports[0])
    if to == who:
        raise _wrong(MoveList.SIZE)
    is_leaving, aptpl = bool(fields.flags & _UNREG), bool(fields.flags & _APTPL)
    return registrations.move(state, who, fields.key, fields.action_key, to, unregister=is_leaving, aptpl=aptpl)


register = _action(_register)
reserve = _action(_reserve)
release = _action(_release)
clear = _action(_clear)
preempt = _action(_preempt)
preempt_and_abort = _action(_preempt, aborts=True)
register_and_ignore = _action(_register_and_ignore)
register_and_move = _action(_register_and_move)
