"""A unit without a write cache (WCE 0): what a command wrote is durable before the command is answered.

An OPERATIONS row becomes one whose requests carry FUA, or, where the volume server knows no FUA for an operation, are
followed by a FLUSH. A logical unit puts such rows into its table when its cache is off: with the cache on nothing asks,
and the path of a WRITE is what it was. SBC-3 6.4.5: with WCE zero "the device server shall return GOOD status for a
WRITE command only after successfully writing all of the data to the medium".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Operation, Request

# What takes no FUA on the ring (shm_server.abi.layout), what writes nothing, and the rest.
_FLUSHED_BEHIND = frozenset((Operation.DISCARD, Operation.COPY))
_READS = frozenset((Operation.READ, Operation.COMPARE, Operation.EXTENTS, Operation.FLUSH, Operation.FENCE))
_FUA = frozenset(Operation) - _FLUSHED_BEHIND - _READS


def row(operation: scsi.Operation) -> scsi.Operation:
    """The same operation, written through; itself where it does not write."""
    if not operation.writes:
        return operation
    return replace(operation, handler=_handler(operation.handler))


def _handler(
    handler: Callable[[scsi.LogicalUnit, scsi.Command], scsi.Execution],
) -> Callable[[scsi.LogicalUnit, scsi.Command], scsi.Execution]:
    def written_through(unit: scsi.LogicalUnit, command: scsi.Command) -> scsi.Execution:
        return _through(unit, handler(unit, command), owes_flush=False)

    return written_through


def _through(unit: scsi.LogicalUnit, execution: scsi.Execution, owes_flush: bool) -> scsi.Execution:
    """One step of a command. ``owes_flush``: something before it is written and not yet durable."""
    if isinstance(execution, Request):
        operation = execution.operation
        if operation in _FUA:
            execution.fua = True
        elif operation in _FLUSHED_BEHIND:
            owes_flush = True
        if owes_flush or execution.finish is not unit.finish_write:
            assert execution.finish is not None
            execution.finish = partial(_finish, unit, execution.finish, owes_flush)
        return execution
    if owes_flush and isinstance(execution, scsi.Outcome) and execution.status == scsi.GOOD:
        return Request(Operation.FLUSH, finish=partial(_flushed, unit, execution))
    return execution


def _finish(
    unit: scsi.LogicalUnit,
    finish: Callable[[block.Completion], scsi.Execution],
    owes_flush: bool,
    completion: block.Completion,
) -> scsi.Execution:
    return _through(unit, finish(completion), owes_flush)


def _flushed(unit: scsi.LogicalUnit, outcome: scsi.Outcome, completion: block.Completion) -> scsi.Outcome:
    return outcome if completion.error is None else unit.failed(completion)
