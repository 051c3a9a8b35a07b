"""Which operations reservations refuse: SPC-4 table 63 and SBC-3 table 13, with SPC-2's RESERVE beside them.

A persistent reservation of another nexus refuses in one of three ways: never (what looks at the unit), where it is
for exclusive access (what reads), or always (what writes). The table names those of the first two kinds; whatever it
does not name is taken to write, so that a forgotten command is refused rather than let through. operations.py puts this
into its rows. What PERSISTENT RESERVE OUT, RESERVE and RELEASE may do is theirs to decide (reservations.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from iscsi_ovs.commands import cdb
from iscsi_ovs.scsi import Conflict, Operation

_PREVENT = 0x03  # PREVENT ALLOW MEDIUM REMOVAL


def _start_stop_unit(data: bytes) -> Conflict:
    """Allowed: "START STOP UNIT with START bit set to one and POWER CONDITION field set to 0h"."""
    starts = len(data) > 4 and data[4] & cdb.START and not data[4] & cdb.POWER_CONDITION
    return Conflict.LOOKS if starts else Conflict.WRITES


def _prevent_allow(data: bytes) -> Conflict:
    """Allowed, by RESERVE too: to let the medium be removed."""
    return Conflict.WRITES if len(data) > 4 and data[4] & _PREVENT else Conflict.NEVER


_NEVER, _LOOKS, _READS = Conflict.NEVER, Conflict.LOOKS, Conflict.READS
_Conflicts = Conflict | Callable[[bytes], Conflict]

# By opcode and service action (None: whatever it is).
CONFLICTS: dict[tuple[int, int | None], _Conflicts] = {
    (0x00, None): _LOOKS,  # TEST UNIT READY
    (0x03, None): _NEVER,  # REQUEST SENSE
    (0x08, None): _READS,  # READ (6)
    (0x12, None): _NEVER,  # INQUIRY
    (0x16, None): _NEVER,  # RESERVE (6): its own rules
    (0x17, None): _NEVER,  # RELEASE (6): its own rules
    (0x1A, None): _READS,  # MODE SENSE (6)
    (0x1B, None): _start_stop_unit,
    (0x1E, None): _prevent_allow,
    (0x25, None): _LOOKS,  # READ CAPACITY (10)
    (0x28, None): _READS,  # READ (10)
    (0x2F, None): _READS,  # VERIFY (10)
    (0x34, None): _READS,  # PRE-FETCH (10)
    (0x37, None): _READS,  # READ DEFECT DATA (10)
    (0x3C, None): _READS,  # READ BUFFER
    (0x4D, None): _NEVER,  # LOG SENSE
    (0x56, None): _NEVER,  # RESERVE (10): its own rules
    (0x57, None): _NEVER,  # RELEASE (10): its own rules
    (0x5A, None): _READS,  # MODE SENSE (10)
    (0x5E, None): _LOOKS,  # PERSISTENT RESERVE IN
    (0x5F, None): _LOOKS,  # PERSISTENT RESERVE OUT: its own rules
    (0x84, None): _READS,  # RECEIVE COPY RESULTS
    (0x88, None): _READS,  # READ (16)
    (0x8F, None): _READS,  # VERIFY (16)
    (0x90, None): _READS,  # PRE-FETCH (16)
    (0x9E, 0x10): _LOOKS,  # READ CAPACITY (16)
    (0x9E, 0x12): _READS,  # GET LBA STATUS
    (0xA0, None): _NEVER,  # REPORT LUNS
    (0xA3, 0x0A): _NEVER,  # REPORT TARGET PORT GROUPS: without it no path is found
    (0xA3, 0x0C): _READS,  # REPORT SUPPORTED OPERATION CODES
    (0xA3, 0x0D): _READS,  # REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
    (0xA3, 0x0F): _LOOKS,  # REPORT TIMESTAMP
    (0xA8, None): _READS,  # READ (12)
    (0xAF, None): _READS,  # VERIFY (12)
    (0xB7, None): _READS,  # READ DEFECT DATA (12)
}


def with_conflicts(row: Operation) -> Operation:
    """The row, with the reservations that refuse it."""
    of_opcode = CONFLICTS.get((row.opcode, None), Conflict.WRITES)
    return replace(row, conflicts=CONFLICTS.get((row.opcode, row.service_action), of_opcode))
