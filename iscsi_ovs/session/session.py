"""A session: an I_T nexus with its command window and its tasks (RFC 7143 sections 4.2, 4.3; ErrorRecoveryLevel 0).

One connection a session, so the session ends with its connection. What ends later are its zombies: tasks whose buffers
the volume server still has. Whoever must know that nothing of this session can reach a volume any more (a logout, the
next session of the same initiator port, a reset) waits for ``when_idle`` (CONTRACTS 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from iscsi_ovs import pdu, scsi
from iscsi_ovs.errors import PduError
from iscsi_ovs.login.keys import Parameters
from iscsi_ovs.session import events, overdue, serial, transfer
from iscsi_ovs.session.framing import sink
from iscsi_ovs.session.management import TaskManagement
from iscsi_ovs.session.space import Space
from iscsi_ovs.session.tasks import State, Task, TaskTable
from iscsi_ovs.session.window import IMMEDIATE_LIMIT, CommandWindow

if TYPE_CHECKING:
    from iscsi_ovs.session.connection import Connection


class Session:
    """One I_T nexus. Its owner executes the commands that ``connection.received`` reports, and calls ``complete``."""

    def __init__(
        self, connection: Connection, parameters: Parameters, nexus: scsi.Nexus, space: Space, tsih: int, cmd_sn: int
    ) -> None:
        self.connection = connection
        self.parameters = parameters
        self.nexus = nexus
        self.space = space
        self.tsih = tsih
        self.tasks = TaskTable()
        self.management = TaskManagement(self)
        unsolicited = parameters.first_burst_length
        if parameters.initial_r2t:
            # Immediate data only: at most one data segment.
            unsolicited = min(unsolicited, parameters.target_max_recv_data_segment_length)
            if not parameters.immediate_data:
                unsolicited = 0
        if parameters.is_discovery:
            unsolicited = 0
        slot_bytes = space.pool.slot_bytes if space.pool is not None else 65536
        self.window = CommandWindow(space, cmd_sn, -(-unsolicited // slot_bytes))
        self.is_closed = False
        self.data_seen_at = 0.0  # when Data-Out had come, the last time that it was looked at
        self._held: dict[int, tuple[pdu.Pdu, Callable[[], None]]] = {}  # commands ahead of ExpCmdSN
        self._idle_callbacks: list[Callable[[], None]] = []
        self._transfer_tag = 0
        self._opening: Task | None = None  # between begin and finish of its PDU

    # Commands --------------------------------------------------------------------------------------------------

    def accepts(self, header: pdu.Pdu) -> bool:
        """CmdSN inside the window (and not here already)? Immediate requests have their own limit."""
        if header.opcode & pdu.IMMEDIATE:
            return True
        return self.window.accepts(header.cmd_sn) and header.cmd_sn not in self._held

    @property
    def holds_commands(self) -> bool:
        """True while a command waits for one with a lower CmdSN."""
        return bool(self._held)

    @property
    def opening(self) -> Task | None:
        """The task whose command PDU is being received."""
        return self._opening

    def in_order(self, header: pdu.Pdu, action: Callable[[], None]) -> None:
        """Act on a request when its CmdSN is due: now, nearly always."""
        if header.opcode & pdu.IMMEDIATE:
            action()
            return
        window = self.window
        if header.cmd_sn != window.exp_cmd_sn:
            self._held[header.cmd_sn] = header, action
            return
        held = self._held
        due: tuple[pdu.Pdu, Callable[[], None]] | None = (header, action)
        while due is not None:
            window.take()
            try:
                due[1]()
            except PduError as error:  # this one, not the one that brought its turn
                self.connection.reject(due[0], error)
            due = held.pop(window.exp_cmd_sn, None) if held else None

    def begin_command(self, header: pdu.ScsiCommand, additional: bytes) -> Sequence[memoryview]:
        """A SCSI Command header: make its task, say where its immediate data goes."""
        self._opening = None
        length: int = header.data_segment_length
        opcode: int = header.opcode
        cmd_sn: int = header.cmd_sn
        window = self.window
        is_next = cmd_sn == window.exp_cmd_sn and window.taken < window.places
        if not is_next and not opcode & pdu.IMMEDIATE and not self.accepts(header):
            # Section 4.2.2.1: "The target MUST silently ignore any non-immediate command outside of this range".
            return sink(length)
        self._check_command(header)
        flags: int = header.flags
        tag: int = header.initiator_task_tag
        tasks = self.tasks
        is_read = flags & pdu.READ
        is_write = flags & pdu.WRITE
        task = Task(tag, header.lun, header.expected_data_transfer_length)
        if opcode & pdu.IMMEDIATE:
            if tasks.immediate >= IMMEDIATE_LIMIT:
                raise PduError(pdu.REJECT_IMMEDIATE_COMMAND, f"more than {IMMEDIATE_LIMIT} immediate commands")
            task.is_immediate = True
        task.session = self
        if is_read:
            task.is_read = True
        elif is_write:
            task.is_write = True
        cdb: bytes = header.cdb
        if additional:
            cdb = extended_cdb(cdb, additional)
        expected = task.expected_bytes
        task.command = scsi.Command(
            self.nexus,
            task.lun,
            cdb,
            expected if is_read else 0,
            expected if is_write else 0,
            None,
            flags & pdu.ATTRIBUTE_MASK,
            task,
        )
        self._opening = task
        tasks.by_tag[tag] = task
        if task.is_immediate:
            tasks.immediate += 1
        if flags & pdu.ATTRIBUTE_MASK > pdu.ATTRIBUTE_SIMPLE:
            task.is_special = True
            if flags & pdu.ATTRIBUTE_MASK > pdu.ATTRIBUTE_HEAD_OF_QUEUE:
                # No ACA condition is ever established here, so no command can belong to one; the rest is reserved.
                self.fail(task, transfer.check_condition(*transfer.INVALID_MESSAGE))
                return sink(length) if length else ()
        if is_write:
            return transfer.open_write(self, task, header)
        if length:
            self.fail(task, transfer.aborted(transfer.UNEXPECTED_UNSOLICITED_DATA))
        return sink(length) if length else ()

    def _check_command(self, header: pdu.ScsiCommand) -> None:
        """What a SCSI Command must not be. Raises PduError."""
        tag: int = header.initiator_task_tag
        if tag == pdu.RESERVED_TAG:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, "SCSI Command with the reserved Initiator Task Tag")
        if tag in self.tasks.by_tag:
            raise PduError(pdu.REJECT_TASK_IN_PROGRESS, f"Initiator Task Tag {tag:#x} is in use")
        direction = header.flags & (pdu.READ | pdu.WRITE)
        if direction == pdu.READ | pdu.WRITE:
            raise PduError(pdu.REJECT_COMMAND_NOT_SUPPORTED, "bidirectional SCSI commands are not supported")
        if not direction and header.expected_data_transfer_length:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, "Expected Data Transfer Length without R or W")

    def finish_command(self, header: pdu.ScsiCommand) -> None:
        """The command and its immediate data are here."""
        task = self._opening
        if task is None:
            return
        self._opening = None
        if task.is_write and task.early_outcome is None:
            task.received_bytes = header.data_segment_length
            if task.unsolicited_end and task.received_bytes >= task.unsolicited_end:
                # F=0 announced more, and there is no more to come within FirstBurstLength.
                self.fail(task, transfer.aborted(transfer.INCORRECT_AMOUNT_OF_DATA))
        window = self.window
        if header.opcode & pdu.IMMEDIATE or header.cmd_sn != window.exp_cmd_sn or self._held:
            self.in_order(header, lambda: self._admit(task))
        elif (
            task.early_outcome is not None
            or task.received_bytes < task.data_out_bytes
            or task.unsolicited_end
            or task.is_special
        ):
            window.take()
            self._admit(task)
        else:  # what nearly every command is: in its turn, and nothing more to come for it
            window.take()
            task.is_admitted = True
            task.state = State.EXECUTING
            command = task.command
            assert command is not None
            command.data_out = task.buffer
            self.connection.tell(command)

    def _admit(self, task: Task) -> None:
        """The task's CmdSN has its turn: it enters the task set."""
        task.is_admitted = True
        if task.is_aborted:
            self._bury(task)
        elif task.early_outcome is not None:
            self._end(task, task.early_outcome)
        else:
            if task.is_special:
                assert task.command is not None
                self.connection.tell(events.OrderedCommandAdmitted(task.command))
            if task.is_write and task.data_out_bytes:
                transfer.proceed(self, task)
            else:
                self.ready(task)

    def ready(self, task: Task) -> None:
        """Everything that a command needs is here: tell the owner."""
        task.state = State.EXECUTING
        command = task.command
        assert command is not None
        command.data_out = task.buffer
        self.connection.tell(command)

    def fail(self, task: Task, outcome: scsi.Outcome) -> None:
        """The transport itself ends a task, before SCSI heard of it."""
        outcome.transfer_bytes = task.expected_bytes if outcome.status != scsi.CHECK_CONDITION else 0
        if task.is_admitted:
            self._end(task, outcome)
        else:
            task.early_outcome = outcome

    def complete(self, command: scsi.Command, outcome: scsi.Outcome) -> None:
        """What became of a command that was reported (by its owner, once)."""
        task: Task = command.context
        if task.is_aborted:
            if outcome.buffer is not None:
                outcome.buffer.release()
            self._bury(task)
            return
        self._let_go(task)
        transfer.respond(self, task, outcome)
        if self._idle_callbacks:
            self._check_idle()

    def _end(self, task: Task, outcome: scsi.Outcome) -> None:
        self._let_go(task)
        transfer.respond(self, task, outcome)
        if self._idle_callbacks:
            self._check_idle()

    def _let_go(self, task: Task) -> None:
        """The task leaves the table; its slots and its place are free again."""
        task.state = State.ENDED
        task.command = None  # they know each other: without this only the garbage collector would find them
        buffer = task.buffer
        if buffer is not None:
            task.buffer = None
            if task.generation == self.space.generation:
                buffer.release(task.kept_slots)
            else:
                buffer.release()  # of a segment that is gone, and the grant with it
        if task.waiter is not None:
            task.waiter.cancel()
            task.waiter = None
        tasks = self.tasks
        del tasks.by_tag[task.initiator_task_tag]
        if task.is_immediate:
            tasks.immediate -= 1
        else:
            self.window.reopen()

    def next_transfer_tag(self) -> int:
        self._transfer_tag = transfer.next_tag(self._transfer_tag)
        return self._transfer_tag

    def tick(self, now: float) -> str | None:
        """Once a second: whoever has waited too long. Returns why the connection is to be given up, or None."""
        self.management.tick(now)
        return overdue.give_up(self, now)

    def held_slots(self) -> int:
        """See space.Holder: buffers of tasks beyond their grants, and answers that are not sent yet."""
        pool = self.space.pool
        if pool is None:
            return 0
        outbox = self.connection.outbox
        held = max(outbox.pending_bytes // pool.slot_bytes, outbox.pending_marks)
        for task in self.tasks.by_tag.values():
            if task.buffer is not None:
                held += max(0, pool.slots_for(task.buffer.length_bytes) - task.kept_slots)
            elif task.is_read and task.state is State.EXECUTING and task.waiter is None:
                held += pool.slots_for(min(task.expected_bytes, transfer.MAX_TRANSFER_BYTES))
        return held

    def log(self, message: str) -> None:
        self.connection.log(message)

    # The volume server comes and goes ---------------------------------------------------------------------------

    def space_lost(self) -> None:
        """The segment is gone: tasks that wait for slots would wait for ever."""
        for task in self.tasks:
            if task.waiter is not None:
                task.waiter = None
                if task.is_aborted:
                    self._bury(task)
                else:
                    self.fail(task, scsi.Outcome(status=scsi.BUSY))

    # Aborting --------------------------------------------------------------------------------------------------

    def abort(self, task: Task, done: Callable[[], None]) -> None:
        """End a task without an answer; ``done`` when nothing of it can happen any more (CONTRACTS 2)."""
        task.is_aborted = True
        if task.state is State.EXECUTING and task.waiter is None:
            # The volume server has it: a zombie.
            if task.on_dead is None:
                task.on_dead = []
            task.on_dead.append(done)
            return
        # It will never be executed. But its buffer is not free while the socket may still write there, and its place
        # not before its CmdSN has had its turn: such a task is buried by drained() or _admit().
        if task.is_admitted and task.state is not State.ENDED and not self.connection.is_filling(task):
            self._bury(task)
        done()

    def abort_when_drained(self, task: Task, done: Callable[[], None]) -> None:
        """The same for a task whose R2Ts are to be answered before ``done`` (section 4.2.3.3)."""
        task.is_aborted = True
        task.on_dead = [*(task.on_dead or ()), done]

    def drained(self, task: Task, transfer_tag: int | None = None) -> None:
        """A data segment that an aborted task was receiving is whole; with a tag, that R2T's sequence is."""
        if transfer_tag is not None:
            task.transfers = [each for each in task.transfers if each.target_transfer_tag != transfer_tag]
        if task.is_admitted and not (task.on_dead and task.transfers):
            self._bury(task)

    def give_up_draining(self, task: Task) -> None:
        """The rest of an aborted task's data has not come in time; should it come, it is drained all the same."""
        task.transfers = ()
        if task.state is State.RECEIVING and not self.connection.is_filling(task):
            self.drained(task)

    def _bury(self, task: Task) -> None:
        self._let_go(task)
        if not task.is_immediate and not self.is_closed:
            # Its place is open again, and no status says so: to an initiator that waits for the window, nothing would.
            self.connection.owe_numbers()
        if task.on_dead:
            for callback in task.on_dead:
                callback()
        if self._idle_callbacks:
            self._check_idle()

    # Numbers ---------------------------------------------------------------------------------------------------

    def manage(self, header: pdu.TaskManagementRequest) -> None:
        """A task management request, in its turn."""
        self.release_place(header)
        self.management.begin(header)

    def is_unseen(self, cmd_sn: int) -> bool:
        """True for a number inside the window whose command has not come."""
        return self.window.accepts(cmd_sn) and cmd_sn not in self._held

    def plug(self, cmd_sn: int) -> None:
        """Count an unseen command as received: should it still come, it is ignored."""
        self.in_order(pdu.NopOut(cmd_sn=cmd_sn), self.window.reopen)

    def count_as_received(self, end: int) -> None:
        """Plug every number before ``end``."""
        missing = [sn for sn in self.window.open_numbers if serial.is_before(sn, end) and sn not in self._held]
        for cmd_sn in missing:
            self.plug(cmd_sn)

    def release_place(self, header: pdu.Pdu) -> None:
        """A request that is no task gives its place back at once."""
        if not header.opcode & pdu.IMMEDIATE:
            self.window.reopen()

    # The end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """No more commands; what waits is dropped, what the volume server has becomes zombies."""
        if self.is_closed:
            return
        self.is_closed = True
        self._held.clear()
        self._opening = None
        for task in self.tasks:
            task.is_aborted = True
            if task.state is State.RECEIVING or task.waiter is not None:
                self._bury(task)  # nothing is received any more that could be written into its buffer

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call when no task is left (now, if there is none)."""
        self._idle_callbacks.append(callback)
        self._check_idle()

    def _check_idle(self) -> None:
        if len(self.tasks):
            return
        callbacks, self._idle_callbacks = self._idle_callbacks, []
        for callback in callbacks:
            callback()


class DiscoverySession(Session):
    """A session for discovery alone: it moves no data and keeps no slots.

    Section 4.3: "The target MUST ONLY accept Text Requests with the SendTargets key and a Logout Request with the
    reason "close the session". All other requests MUST be rejected." (Pings are let pass: they keep it alive.)
    """

    def begin_command(self, header: pdu.ScsiCommand, additional: bytes) -> Sequence[memoryview]:
        raise PduError(pdu.REJECT_COMMAND_NOT_SUPPORTED, "a SCSI Command in a discovery session")

    def manage(self, header: pdu.TaskManagementRequest) -> None:
        self.release_place(header)
        raise PduError(pdu.REJECT_COMMAND_NOT_SUPPORTED, "a task management request in a discovery session")


def extended_cdb(cdb: bytes, additional: bytes) -> bytes:
    """The CDB with what an Extended CDB AHS adds (section 11.2.2.3). Raises PduError."""
    position = 0
    while position < len(additional):
        if len(additional) - position < pdu.AdditionalHeader.SIZE:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, "an additional header segment is cut off")
        head = pdu.AdditionalHeader.unpack_from(additional, position)
        end = position + 3 + head.ahs_length
        if end > len(additional) or head.ahs_length == 0:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, f"AHSLength {head.ahs_length} leaves its segment")
        if head.ahs_type & 0x3F == pdu.AHS_EXTENDED_CDB:
            cdb += additional[position + pdu.AdditionalHeader.SIZE : end]
        else:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, f"AHSType {head.ahs_type & 0x3F} is not supported")
        position = end + (-end & 3)
    return cdb
