"""SAM: commands, outcomes, nexuses, logical units. The seam between iSCSI and SCSI.

iSCSI never reads a CDB; SCSI never reads a PDU. A transport makes a Command (for a write: when all its data has
arrived), the task router finds the logical unit and executes it, and what comes back is an Outcome, or a block.Request
that must complete first: its ``finish(completion)`` gives the Outcome, or the next Request. ``finish`` is always set.
What is neither data nor an answer is asked of the target in the same way (RecordUpdate, AbortTasks).
Who submits a Request goes by ``command.device``, which the unit that executed it has set.
This module opens nothing and waits for nothing; it imports no command set: target.py hands ``commands.COMMAND_SET`` in.
"""

from __future__ import annotations

from iscsi_ovs.sam.attentions import (
    ASYMMETRIC_ACCESS_STATE_CHANGED,
    BUS_DEVICE_RESET_OCCURRED,
    CAPACITY_DATA_HAS_CHANGED,
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
    I_T_NEXUS_LOSS_OCCURRED,
    MEDIUM_MAY_HAVE_CHANGED,
    MODE_PARAMETERS_CHANGED,
    POWER_ON_OCCURRED,
    REPORTED_LUNS_DATA_HAS_CHANGED,
    TIMESTAMP_CHANGED,
    Reset,
)
from iscsi_ovs.sam.command import (
    ACA_ACTIVE,
    BUSY,
    CHECK_CONDITION,
    CONDITION_MET,
    GOOD,
    RESERVATION_CONFLICT,
    TASK_ABORTED,
    TASK_SET_FULL,
    AbortTasks,
    Command,
    Execution,
    Outcome,
    RecordUpdate,
    Sanitize,
    SanitizeRequest,
)
from iscsi_ovs.sam.conditions import (
    INVALID_COMMAND_OPERATION_CODE,
    INVALID_FIELD_IN_CDB,
    LOGICAL_UNIT_NOT_SUPPORTED,
    MEDIUM_NOT_PRESENT,
    NOT_READY,
    SANITIZE_COMMAND_FAILED,
    SANITIZE_IN_PROGRESS,
    TARGET_PORT_IN_STANDBY_STATE,
    TARGET_PORT_IN_UNAVAILABLE_STATE,
    UNIT_ATTENTION_KEY,
    WRITE_PROTECTED,
    CheckCondition,
    FieldPointer,
    Progress,
    Sense,
    SenseKeySpecific,
    invalid_field,
)
from iscsi_ovs.sam.identity import (
    Identity,
    Limits,
    Modes,
    Personality,
)
from iscsi_ovs.sam.nexus import (
    Nexus,
)
from iscsi_ovs.sam.operations import (
    CommandSet,
    Conflict,
    Direction,
    Operation,
    ReservationGate,
)
from iscsi_ovs.sam.ports import (
    AccessState,
    PortGroup,
    StatusCode,
    TargetPorts,
)
from iscsi_ovs.sam.router import (
    MAX_LUN_NUMBER,
    REPORT_LUNS_WELL_KNOWN_LUN,
    TaskRouter,
    encode_lun,
)
from iscsi_ovs.sam.unit import (
    ABSENT,
    DISK,
    WELL_KNOWN,
    LogicalUnit,
)

__all__ = [
    "ABSENT",
    "ACA_ACTIVE",
    "ASYMMETRIC_ACCESS_STATE_CHANGED",
    "BUSY",
    "BUS_DEVICE_RESET_OCCURRED",
    "CAPACITY_DATA_HAS_CHANGED",
    "CHECK_CONDITION",
    "COMMANDS_CLEARED_BY_ANOTHER_INITIATOR",
    "CONDITION_MET",
    "DISK",
    "GOOD",
    "INVALID_COMMAND_OPERATION_CODE",
    "INVALID_FIELD_IN_CDB",
    "I_T_NEXUS_LOSS_OCCURRED",
    "LOGICAL_UNIT_NOT_SUPPORTED",
    "MAX_LUN_NUMBER",
    "MEDIUM_MAY_HAVE_CHANGED",
    "MEDIUM_NOT_PRESENT",
    "MODE_PARAMETERS_CHANGED",
    "NOT_READY",
    "POWER_ON_OCCURRED",
    "REPORTED_LUNS_DATA_HAS_CHANGED",
    "REPORT_LUNS_WELL_KNOWN_LUN",
    "RESERVATION_CONFLICT",
    "SANITIZE_COMMAND_FAILED",
    "SANITIZE_IN_PROGRESS",
    "TARGET_PORT_IN_STANDBY_STATE",
    "TARGET_PORT_IN_UNAVAILABLE_STATE",
    "TASK_ABORTED",
    "TASK_SET_FULL",
    "TIMESTAMP_CHANGED",
    "UNIT_ATTENTION_KEY",
    "WELL_KNOWN",
    "WRITE_PROTECTED",
    "AbortTasks",
    "AccessState",
    "CheckCondition",
    "Command",
    "CommandSet",
    "Conflict",
    "Direction",
    "Execution",
    "FieldPointer",
    "Identity",
    "Limits",
    "LogicalUnit",
    "Modes",
    "Nexus",
    "Operation",
    "Outcome",
    "Personality",
    "PortGroup",
    "Progress",
    "RecordUpdate",
    "ReservationGate",
    "Reset",
    "Sanitize",
    "SanitizeRequest",
    "Sense",
    "SenseKeySpecific",
    "StatusCode",
    "TargetPorts",
    "TaskRouter",
    "encode_lun",
    "invalid_field",
]
