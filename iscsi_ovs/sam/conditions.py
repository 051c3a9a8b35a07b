"""How SCSI says no, and where: sense, field pointers, CHECK CONDITION (SPC-4 4.5).

Named here is what the gates themselves say; everything else is in commands.sense.
"""

from __future__ import annotations

from typing import NamedTuple

from iscsi_ovs import errors


class Sense(NamedTuple):
    """Sense key, additional sense code and qualifier. ``commands.sense`` has the table of those in use."""

    key: int
    asc: int
    ascq: int


NOT_READY = Sense(0x02, 0x04, 0x00)  # LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE
TARGET_PORT_IN_STANDBY_STATE = Sense(0x02, 0x04, 0x0B)
TARGET_PORT_IN_UNAVAILABLE_STATE = Sense(0x02, 0x04, 0x0C)
SANITIZE_IN_PROGRESS = Sense(0x02, 0x04, 0x1B)
SANITIZE_COMMAND_FAILED = Sense(0x03, 0x31, 0x03)
MEDIUM_NOT_PRESENT = Sense(0x02, 0x3A, 0x00)
INVALID_COMMAND_OPERATION_CODE = Sense(0x05, 0x20, 0x00)
INVALID_FIELD_IN_CDB = Sense(0x05, 0x24, 0x00)
LOGICAL_UNIT_NOT_SUPPORTED = Sense(0x05, 0x25, 0x00)
WRITE_PROTECTED = Sense(0x07, 0x27, 0x00)
UNIT_ATTENTION_KEY = 0x06


class FieldPointer(NamedTuple):
    """Which field is wrong (SPC-4 4.5.2.4.2): a byte of the CDB or of the parameter list, and its leftmost bit."""

    byte: int
    bit: int | None = None
    is_cdb: bool = True


class Progress(NamedTuple):
    """How far something long has come (SPC-4 4.5.2.4.4): 0 to 65535."""

    value: int


SenseKeySpecific = FieldPointer | Progress


class CheckCondition(errors.Error):
    """SCSI says no. Leaves at LogicalUnit.execute as CHECK CONDITION with this sense."""

    def __init__(self, sense: Sense, pointer: SenseKeySpecific | None = None, information: int | None = None) -> None:
        super().__init__(sense)
        self.sense = sense
        self.pointer = pointer
        self.information = information


def invalid_field(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN CDB, and which."""
    return CheckCondition(INVALID_FIELD_IN_CDB, FieldPointer(byte, bit))
