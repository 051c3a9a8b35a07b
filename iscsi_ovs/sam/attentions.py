"""Unit attention conditions (SAM-5 5.14): what a unit tells unasked, as additional sense code and qualifier."""

from __future__ import annotations

import enum

# Unit attentions (ASC, ASCQ)
MEDIUM_MAY_HAVE_CHANGED = (0x28, 0x00)  # NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED
POWER_ON_OCCURRED = (0x29, 0x00)  # POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: what a new nexus hears
BUS_DEVICE_RESET_OCCURRED = (0x29, 0x03)  # what SAM gives every nexus after LOGICAL UNIT RESET
I_T_NEXUS_LOSS_OCCURRED = (0x29, 0x07)
MODE_PARAMETERS_CHANGED = (0x2A, 0x01)
ASYMMETRIC_ACCESS_STATE_CHANGED = (0x2A, 0x06)
TIMESTAMP_CHANGED = (0x2A, 0x10)
CAPACITY_DATA_HAS_CHANGED = (0x2A, 0x09)
COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = (0x2F, 0x00)
REPORTED_LUNS_DATA_HAS_CHANGED = (0x3F, 0x0E)


class Reset(enum.Enum):
    """What resets a unit, and the unit attention that every nexus hears of it (SAM-5 6.3)."""

    POWER_ON = (0x29, 0x01)  # POWER ON OCCURRED
    HARD = (0x29, 0x02)  # SCSI BUS RESET OCCURRED
    LOGICAL_UNIT = BUS_DEVICE_RESET_OCCURRED
