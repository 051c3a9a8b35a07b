"""REPORT and SET TIMESTAMP (SPC-4 5.3, 6.38, 6.46): the target's clock, unless an initiator has set the unit's own.

The clock is handed to the unit. What is set lasts as long as the process that serves the unit.
"""

from __future__ import annotations

from iscsi_ovs import scsi
from iscsi_ovs.commands import cdb, parameters
from iscsi_ovs.scsi import Command, Execution, LogicalUnit, Outcome

# TIMESTAMP ORIGIN (SPC-4 table 50)
SET_BY_COMMAND, SET_BY_OTHER_MEANS = 0x2, 0x3
_TIMESTAMP = (1 << 48) - 1  # milliseconds since 1970 in six bytes


def report_timestamp(unit: LogicalUnit, command: Command) -> Execution:
    length = cdb.Timestamp.unpack_from(command.cdb).allocation_length
    offset_ms = unit.timestamp_offset_ms
    data = cdb.TimestampData(
        origin=SET_BY_OTHER_MEANS if offset_ms is None else SET_BY_COMMAND,
        timestamp=(unit.now_ms() + (offset_ms or 0) & _TIMESTAMP).to_bytes(6, "big"),
    )
    return parameters.answer(data.pack(), length)


def set_timestamp(unit: LogicalUnit, command: Command) -> Execution:
    length = cdb.Timestamp.unpack_from(command.cdb).allocation_length
    if not length:
        return Outcome()
    data = parameters.received(command, length, cdb.SetTimestampData.SIZE)
    wanted = int.from_bytes(cdb.SetTimestampData.unpack_from(data).timestamp, "big")
    unit.timestamp_offset_ms = wanted - unit.now_ms()
    unit.raise_attention(scsi.TIMESTAMP_CHANGED, but=command.nexus)
    return Outcome(transfer_bytes=length)
