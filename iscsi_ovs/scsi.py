"""SAM: commands, outcomes, nexuses, logical units. The seam between iSCSI and SCSI.

iSCSI never reads a CDB; SCSI never reads a PDU. A transport makes a Command (for a write: when all its data has
arrived), the task router finds the logical unit and executes it, and what comes back is an Outcome, or a block.Request
that must complete first: its ``finish(completion)`` gives the Outcome, or the next Request.
This module opens nothing and waits for nothing; it imports no command set (target.py hands ``commands.OPERATIONS`` in).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iscsi_ovs import block

# Status codes (SAM-5 5.3.1)
GOOD = 0x00
CHECK_CONDITION = 0x02
CONDITION_MET = 0x04
BUSY = 0x08
RESERVATION_CONFLICT = 0x18
TASK_SET_FULL = 0x28
ACA_ACTIVE = 0x30
TASK_ABORTED = 0x40


@dataclass(slots=True)
class Command:
    """One SCSI command as the transport received it (SAM-5: Execute Command).

    ``lun`` is the 64-bit LUN field. ``data_in_bytes`` is the room that the initiator has for data-in,
    ``data_out_bytes`` what it said it would send; ``data_out`` holds min(that, MAXIMUM TRANSFER LENGTH) bytes.
    ``context`` belongs to the transport.
    """

    nexus: Nexus
    lun: int
    cdb: bytes
    data_in_bytes: int = 0
    data_out_bytes: int = 0
    data_out: block.Buffer | None = None
    attribute: int = 0
    context: Any = None


@dataclass(slots=True)
class Outcome:
    """How a command ended.

    ``transfer_bytes`` is what SCSI has, or wanted, to move: data-in where the command reads (the transport cuts it at
    the initiator's room and reports the residual), data-out where it writes. Data-in lies in ``data`` (small answers)
    or at the start of ``buffer`` (payload; it belongs to the transport from here on).
    """

    status: int = GOOD
    sense: bytes = b""
    data: bytes = b""
    buffer: block.Buffer | None = None
    transfer_bytes: int = 0


Execution = Outcome | block.Request


@dataclass(slots=True)
class Nexus:
    """An I_T nexus: one initiator port talking to one target port, for as long as its session lives."""

    initiator_name: str
    isid: bytes
    target_name: str
    portal_group_tag: int
    relative_port: int = 1
    devices: dict[int, block.Device] = field(default_factory=dict)  # by LUN number, while the session holds them
    # by LUN number: pending unit attentions (ASC, ASCQ), first in first out; filled by LogicalUnit.establish
    attentions: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
