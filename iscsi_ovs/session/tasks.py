"""One SCSI command from its PDU to its status, and the table of them (RFC 7143 sections 4.2.2, 11.2.1.8).

A task owns its place in the command window and its buffer. Aborting it while the volume server has the buffer makes it
a *zombie*: it stays in the books, answers nothing, and lets go of its buffer only with its completion (CONTRACTS 2).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from iscsi_ovs import block, scsi
from iscsi_ovs.session.space import Waiter

if TYPE_CHECKING:
    from iscsi_ovs.session.session import Session


_NEVER = 1 << 62  # more bytes than any task gets


class State(enum.IntEnum):
    """Where a task is."""

    RECEIVING = 0  # data-out is on its way
    EXECUTING = 1  # SCSI or the volume server has it
    ENDED = 2  # answered, or aborted and gone


class Transfer:
    """An R2T that we have sent: the range that its Data-Out PDUs fill, in order (DataPDUInOrder=Yes)."""

    __slots__ = ("data_sn", "end", "position", "target_transfer_tag")

    def __init__(self, target_transfer_tag: int, start: int, end: int) -> None:
        self.target_transfer_tag = target_transfer_tag
        self.position = start
        self.end = end
        self.data_sn = 0


class Task:
    """A SCSI command in a session.

    What most commands never change stands in the class: making one is on the path of every command.
    """

    session: Session
    is_immediate = False
    is_read = False
    is_write = False
    is_special = False  # ORDERED or HEAD OF QUEUE
    state = State.RECEIVING
    command: scsi.Command | None = None
    buffer: block.Buffer | None = None
    kept_slots = 0  # slots of the window's grant that the buffer stands on
    generation = 0  # of the pool that the buffer came from
    data_out_bytes = 0  # how much data-out we take: min(expected, MAXIMUM TRANSFER LENGTH)
    received_bytes = 0
    unsolicited_end = 0  # unsolicited data may come up to here; 0: none (any more)
    unsolicited_data_sn = 0
    next_offset = 0  # where the next R2T begins
    r2t_sn = 0
    transfers: Sequence[Transfer] = ()  # outstanding R2Ts, oldest first
    waiter: Waiter | None = None
    seen_bytes = -1  # what had been received when it was last looked at
    seen_at = 0.0
    is_admitted = False  # its CmdSN has had its turn
    early_outcome: scsi.Outcome | None = None  # decided before that
    is_aborted = False
    is_damaged = False  # a data digest of its was wrong
    on_dead: list[Callable[[], None]] | None = None  # told when a zombie has returned

    def __init__(self, initiator_task_tag: int, lun: int, expected_bytes: int) -> None:
        self.initiator_task_tag = initiator_task_tag
        self.lun = lun
        self.expected_bytes = expected_bytes  # Expected Data Transfer Length

    @property
    def is_data_complete(self) -> bool:
        return self.received_bytes >= self.data_out_bytes and not self.unsolicited_end

    def damage(self) -> None:
        """A data digest was wrong: its data will never be complete. It ends when all that was asked for has come."""
        self.is_damaged = True
        self.data_out_bytes = _NEVER


class TaskTable:
    """The tasks of one session by Initiator Task Tag, and the outstanding target transfer tags."""

    def __init__(self) -> None:
        self.by_tag: dict[int, Task] = {}  # Session puts them in and takes them out: on the path of every command
        self.immediate = 0

    def __len__(self) -> int:
        return len(self.by_tag)

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self.by_tag.values()))

    def find(self, initiator_task_tag: int) -> Task | None:
        return self.by_tag.get(initiator_task_tag)
