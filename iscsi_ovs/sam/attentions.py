"""Unit attention conditions (SAM-5 5.14): their codes, which of them cover others, and who hears which first.

What waits for one nexus at one unit is a list of (ASC, ASCQ), the first of them told first; each stands in it once, so
it is never longer than there are codes. Who raises a condition, and what for, is not this file's to know.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence

Code = tuple[int, int]

MEDIUM_MAY_HAVE_CHANGED: Code = (0x28, 0x00)  # NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED
POWER_ON_OCCURRED: Code = (0x29, 0x00)  # POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: what a new nexus hears
BUS_DEVICE_RESET_OCCURRED: Code = (0x29, 0x03)  # what SAM gives every nexus after LOGICAL UNIT RESET
I_T_NEXUS_LOSS_OCCURRED: Code = (0x29, 0x07)
MODE_PARAMETERS_CHANGED: Code = (0x2A, 0x01)
RESERVATIONS_PREEMPTED: Code = (0x2A, 0x03)
RESERVATIONS_RELEASED: Code = (0x2A, 0x04)
REGISTRATIONS_PREEMPTED: Code = (0x2A, 0x05)
ASYMMETRIC_ACCESS_STATE_CHANGED: Code = (0x2A, 0x06)
CAPACITY_DATA_HAS_CHANGED: Code = (0x2A, 0x09)
TIMESTAMP_CHANGED: Code = (0x2A, 0x10)
SOFT_THRESHOLD_REACHED: Code = (0x38, 0x07)  # THIN PROVISIONING SOFT THRESHOLD REACHED
COMMANDS_CLEARED_BY_ANOTHER_INITIATOR: Code = (0x2F, 0x00)
INQUIRY_DATA_HAS_CHANGED: Code = (0x3F, 0x03)
REPORTED_LUNS_DATA_HAS_CHANGED: Code = (0x3F, 0x0E)


# SBC-3 4.7.3.7: the INFORMATION field is the byte offset, in the Logical Block Provisioning mode page, of the threshold
# descriptor that the notification is of. We have one.
INFORMATION = {SOFT_THRESHOLD_REACHED: 16}


class Reset(enum.Enum):
    """What resets a unit, and the unit attention that every nexus hears of it (SAM-5 6.3)."""

    POWER_ON = (0x29, 0x01)  # POWER ON OCCURRED
    HARD = (0x29, 0x02)  # SCSI BUS RESET OCCURRED
    LOGICAL_UNIT = BUS_DEVICE_RESET_OCCURRED


# SAM-5 table 55, from the highest precedence down; everything else comes behind, in the order in which it happened.
_PRECEDENCE = (
    POWER_ON_OCCURRED,
    Reset.POWER_ON.value,
    Reset.HARD.value,
    Reset.LOGICAL_UNIT.value,
    I_T_NEXUS_LOSS_OCCURRED,
)
_LOWEST = len(_PRECEDENCE)
_RANKS = {code: rank for rank, code in enumerate(_PRECEDENCE)}


def establish(pending: list[Code], code: Code) -> None:
    """Establish a condition. One that is pending already stays single; a reset covers the weaker ones before it, which
    mean less to an initiator than it does, and is told before anything else."""
    rank = _RANKS.get(code, _LOWEST)
    if rank == _LOWEST:
        if code not in pending:
            pending.append(code)
    elif not pending or _RANKS.get(pending[0], _LOWEST) > rank:
        pending[:] = [code, *(other for other in pending if other not in _RANKS)]


class Departed:
    """The ports whose nexus was lost, up to the next reset. Who comes back hears I_T NEXUS LOSS OCCURRED, or the reset
    that it has not heard of, and then what came of the medium meanwhile; whoever was never here, or is not remembered,
    the code that covers everything."""

    LIMIT = 256

    def __init__(self) -> None:
        self._codes: dict[Hashable, list[Code]] = {}

    def went(self, port: Hashable, pending: Sequence[Code]) -> None:
        """A nexus was lost, with so much unheard; the longest gone is forgotten for it."""
        self._codes.pop(port, None)
        self._codes[port] = [pending[0] if pending and pending[0] in _RANKS else I_T_NEXUS_LOSS_OCCURRED]
        if len(self._codes) > self.LIMIT:
            del self._codes[next(iter(self._codes))]

    def missed(self, code: Code) -> None:
        """What those who were here and come back are to hear, too."""
        for codes in self._codes.values():
            establish(codes, code)

    def came(self, port: Hashable) -> list[Code]:
        """A nexus is there: what it hears first."""
        return self._codes.pop(port, [POWER_ON_OCCURRED])

    def reset(self) -> None:
        """The unit was reset: that is what they have to hear."""
        self._codes.clear()
