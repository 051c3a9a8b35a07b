"""PERSISTENT RESERVE IN (SPC-4 6.15): what registrations.py knows, as parameter data.

Cut at the allocation length, which is no error; the lengths inside say what there is. What it looks at is durable
already: an answer never tells of a registration that a crash could take back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from construct import Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from iscsi_ovs.commands import transport_id
from iscsi_ovs.commands.registrations import Registrations
from iscsi_ovs.commands.reservations import state_of
from iscsi_ovs.scsi import Command, Execution, LogicalUnit, Outcome
from iscsi_ovs.wire import Derived

# REPORT CAPABILITIES
_CRH_SIP_ATP_PTPL = 0x1D  # RESERVE/RELEASE exceptions, SPEC_I_PT, ALL_TG_PT, APTPL: all of them
_TMV = 0x80  # the type mask is valid
_ALLOW_COMMANDS = 0x30  # 011b: MODE SENSE and its like are allowed by Write Exclusive, and not by Exclusive Access
_PTPL_A = 0x01
_TYPE_MASK = 0xEA01

_R_HOLDER = 0x01  # READ FULL STATUS


class In(Derived):
    """SPC-4 6.15.1."""

    declaration = Struct(
        "opcode" / Int8ub, "service_action" / Int8ub, "reserved_2" / Bytes(5), "allocation_length" / Int16ub,
        "control" / Int8ub,
    )  # fmt: skip


class InHeader(Derived):
    """What all but REPORT CAPABILITIES begin with."""

    declaration = Struct("generation" / Int32ub, "additional_length" / Int32ub)


class Reservation(Derived):
    """SPC-4 6.15.3.3."""

    declaration = Struct(
        "key" / Int64ub, "obsolete_8" / Int32ub, "reserved_12" / Int8ub, "scope_type" / Int8ub, "obsolete_14" / Int16ub
    )


class Capabilities(Derived):
    """SPC-4 6.15.4."""

    declaration = Struct(
        "length" / Int16ub, "handling" / Int8ub, "commands" / Int8ub, "type_mask" / Int16ub, "reserved_6" / Int16ub
    )
    defaults: ClassVar[dict[str, int]] = {"length": 8}


class FullStatus(Derived):
    """SPC-4 6.15.5: its TransportID follows. ALL_TG_PT is never set: a registration for all ports is one for each."""

    declaration = Struct(
        "key" / Int64ub, "reserved_8" / Int32ub, "flags" / Int8ub, "scope_type" / Int8ub, "reserved_14" / Int32ub,
        "relative_port" / Int16ub, "additional_length" / Int32ub,
    )  # fmt: skip


def _answer(
    make: Callable[[Registrations], bytes],
) -> Callable[[LogicalUnit, Command], Execution]:
    def handler(unit: LogicalUnit, command: Command) -> Execution:
        state = state_of(unit)
        if isinstance(state, Outcome):
            return state
        data = make(state)[: In.unpack_from(command.cdb).allocation_length]
        return Outcome(data=data, transfer_bytes=len(data))

    return handler


def _with_header(state: Registrations, data: bytes) -> bytes:
    return InHeader(generation=state.generation, additional_length=len(data)).pack() + data


def _keys(state: Registrations) -> bytes:
    return _with_header(state, b"".join(key.to_bytes(8, "big") for key in state.keys.values()))


def _reservation(state: Registrations) -> bytes:
    if state.type is None:
        return _with_header(state, b"")
    return _with_header(state, Reservation(key=state.holder_key, scope_type=state.type).pack())


def _capabilities(state: Registrations) -> bytes:
    commands = _TMV | _ALLOW_COMMANDS | (_PTPL_A if state.aptpl else 0)
    return Capabilities(handling=_CRH_SIP_ATP_PTPL, commands=commands, type_mask=_TYPE_MASK).pack()


def _full_status(state: Registrations) -> bytes:
    pieces = []
    for who, key in state.keys.items():
        identifier = transport_id.encode(who.initiator_name, who.isid)
        descriptor = FullStatus(key=key, relative_port=who.relative_port, additional_length=len(identifier))
        if state.holds(who):
            descriptor.flags = _R_HOLDER
            descriptor.scope_type = state.type
        pieces += [descriptor.pack(), identifier]
    return _with_header(state, b"".join(pieces))


read_keys = _answer(_keys)
read_reservation = _answer(_reservation)
report_capabilities = _answer(_capabilities)
read_full_status = _answer(_full_status)
