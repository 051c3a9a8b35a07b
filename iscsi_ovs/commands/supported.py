"""What is supported: REPORT SUPPORTED OPERATION CODES, generated from the unit's operations, and REPORT SUPPORTED TASK
MANAGEMENT FUNCTIONS (SPC-4 6.35, 6.36)."""

from __future__ import annotations

from iscsi_ovs.commands import alua, atomics, cdb
from iscsi_ovs.commands.parameters import answer
from iscsi_ovs.scsi import Command, Execution, LogicalUnit, Nexus, Operation, invalid_field


def report_supported_operation_codes(unit: LogicalUnit, command: Command) -> Execution:
    """Generated from the unit's operations: what is in the table is what is said."""
    fields = cdb.ReportSupportedOperationCodes.unpack_from(command.cdb)
    with_timeouts = bool(fields.options & cdb.RCTD)
    option = fields.options & 0x07
    operations = _operations(unit, command.nexus)
    if option == 0:
        data = _all_commands(operations, with_timeouts)
    elif option <= 3:
        operation = _requested(operations, option, fields.requested_opcode, fields.requested_service_action)
        data = _one_command(operation, with_timeouts)
    else:
        raise invalid_field(2, 2)
    return answer(data, fields.allocation_length)


def _operations(unit: LogicalUnit, nexus: Nexus) -> tuple[Operation, ...]:
    """What this nexus can have done here: no setting of port groups that are not its to set, no atomic writes on a
    store that has none."""
    rows = alua.operations(unit, nexus)
    if atomics.max_atomic_write_bytes(unit, nexus):
        return rows
    return tuple(row for row in rows if row.handler is not atomics.write_atomic_16)


def _all_commands(operations: tuple[Operation, ...], with_timeouts: bool) -> bytes:
    pieces = []
    for operation in operations:
        flags = cdb.CTDP if with_timeouts else 0
        if operation.service_action is not None:
            flags |= cdb.SERVACTV
        descriptor = cdb.CommandDescriptor(
            opcode=operation.opcode,
            service_action=operation.service_action or 0,
            flags=flags,
            cdb_length=operation.cdb_length,
        )
        pieces.append(descriptor.pack())
        if with_timeouts:
            pieces.append(cdb.Timeouts().pack())
    data = b"".join(pieces)
    return len(data).to_bytes(4, "big") + data


def _requested(operations: tuple[Operation, ...], option: int, opcode: int, service_action: int) -> Operation | None:
    """The one command that is asked for, None if it is not supported (SPC-4 table 247)."""
    of_opcode = [operation for operation in operations if operation.opcode == opcode]
    has_actions = any(operation.service_action is not None for operation in of_opcode)
    if option == 1 and has_actions:
        raise invalid_field(2, 2)
    if option == 2 and of_opcode and not has_actions:
        raise invalid_field(2, 2)
    wanted = service_action if has_actions else None
    if option == 3 and not has_actions and service_action:
        return None
    return next((operation for operation in of_opcode if operation.service_action == wanted), None)


def _one_command(operation: Operation | None, with_timeouts: bool) -> bytes:
    if operation is None:
        return cdb.OneCommand(support=cdb.NOT_SUPPORTED).pack()
    support = cdb.SUPPORTED | (cdb.ONE_COMMAND_CTDP if with_timeouts else 0)
    header = cdb.OneCommand(support=support, cdb_size=operation.cdb_length)
    return header.pack() + operation.usage + (cdb.Timeouts().pack() if with_timeouts else b"")


# ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK, TARGET RESET; QUERY ASYNCHRONOUS EVENT,
# QUERY TASK SET, I_T NEXUS RESET. CLEAR ACA is not: there is no ACA.
_FUNCTIONS = bytes((0x80 | 0x40 | 0x10 | 0x08 | 0x04 | 0x02, 0x04 | 0x02 | 0x01))
_TIMEOUT_100_MS = 100  # CONTRACTS 2: a function that passes its deadline is answered all the same


def report_supported_task_management_functions(unit: LogicalUnit, command: Command) -> Execution:
    """All that the sessions serve (session.management). REPD adds how long they may take."""
    fields = cdb.ReportSupportedTaskManagementFunctions.unpack_from(command.cdb)
    data = _FUNCTIONS + bytes(2)
    if fields.flags & cdb.REPD:
        data = cdb.TaskManagementTimeouts(functions=_FUNCTIONS, long_timeout_100_ms=_TIMEOUT_100_MS).pack()
    return answer(data, fields.allocation_length)
