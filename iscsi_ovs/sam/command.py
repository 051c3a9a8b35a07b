"""Commands, what may come of them, and how they end (SAM-5 5).

A command leads to an Outcome, or to something that must be done first: a block.Request, or what is neither data nor an
answer and is asked of the target in the same way.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iscsi_ovs import block

if TYPE_CHECKING:
    from iscsi_ovs.sam.nexus import Nexus

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
    ``context`` belongs to the transport, and says whether that has aborted the command (``is_aborted``). ``device`` is
    where its requests go: set by the unit that lets it through to the medium.
    """

    nexus: Nexus
    lun: int
    cdb: bytes
    data_in_bytes: int = 0
    data_out_bytes: int = 0
    data_out: block.Buffer | None = None
    attribute: int = 0
    context: Any = None
    device: block.Device | None = None


@dataclass(slots=True)
class Outcome:
    """How a command ended.

    ``transfer_bytes`` is what SCSI has, or wanted, to move: data-in where the command reads (the transport cuts it at
    the initiator's room and reports the residual), data-out where it writes. Data-in lies in ``data`` (small answers)
    or at the start of ``buffer`` (payload; it belongs to the transport from here on). A READ that failed brings its
    buffer too, with ``transfer_bytes`` 0, so that one place releases it.
    """

    status: int = GOOD
    sense: bytes = b""
    data: bytes = b""
    buffer: block.Buffer | None = None
    transfer_bytes: int = 0


@dataclass(slots=True)
class RecordUpdate:
    """Replace one of the volume's durable records (CONTRACTS 6), then ``finish(error)``.

    Updates of one unit's record are done one after the other: a command that asks for one while another is under way
    is executed again, from its first gate on, when that is over. So whoever returns a RecordUpdate has changed nothing
    yet, and takes the new state over in ``finish`` when ``error`` is None; anything else is BUSY to the initiator.
    """

    record: str
    data: bytes
    finish: Callable[[OSError | None], Execution]
    context: Any = None


@dataclass(slots=True)
class AbortTasks:
    """Abort every task that these nexuses have on the unit (but the asking one), then ``finish()``."""

    nexuses: tuple[Nexus, ...]
    finish: Callable[[], Execution]
    context: Any = None


class Sanitize(enum.Enum):
    """How a volume is sanitized, or that a failure to do so is to be left behind (SBC-3 5.24)."""

    OVERWRITE = "overwrite"
    BLOCK_ERASE = "block erase"
    EXIT_FAILURE_MODE = "exit failure mode"


@dataclass(slots=True)
class SanitizeRequest:
    """Sanitize the whole volume (SBC-3 4.11), then ``finish(error)``; with ``is_immediate`` as soon as it has begun for
    good. From then on it goes on to its end, whatever becomes of the command, its session, the target or the server.

    OVERWRITE fills every block with each of ``patterns`` in turn, one block long each. ``may_exit_failure``: should it
    fail, EXIT_FAILURE_MODE is allowed.
    """

    kind: Sanitize
    finish: Callable[[OSError | None], Execution]
    is_immediate: bool = False
    may_exit_failure: bool = False
    patterns: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class UsageQuery:
    """How many bytes does the unit's volume take in its store, and how many are left there? Then ``finish(used,
    available)``; None: that can't be told now, or of what is left not at all."""

    finish: Callable[[int | None, int | None], Execution]


Execution = Outcome | block.Request | RecordUpdate | AbortTasks | SanitizeRequest | UsageQuery
