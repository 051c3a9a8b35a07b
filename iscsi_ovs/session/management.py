"""Task management functions of one session (RFC 7143 sections 4.2.3, 11.5, 11.6; RFC 7144 section 5; SAM-5 7).

What concerns one task of this session (ABORT TASK, QUERY TASK) is done here; what speaks of logical units is told to
the owner, who knows them, and who calls ``answer`` when it is done. Every function under way has a deadline. It is
answered *complete* only when nothing of the tasks that it ends can happen any more in the volume server; at its
deadline it is answered *rejected*, and goes on to be waited for (CONTRACTS 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from iscsi_ovs import pdu
from iscsi_ovs.errors import PduError
from iscsi_ovs.session import events, serial
from iscsi_ovs.session.tasks import Task

if TYPE_CHECKING:
    from iscsi_ovs.session.session import Session

MANAGEMENT_LIMIT = 64  # functions under way in a session
DATA_GRACE_S = 2.0  # how long an abort waits for data that R2Ts of ours have asked for
FAST_ABORT = "FastAbort"  # TaskReporting, section 13.23
NO_INFORMATION = bytes(3)


class Management:
    """A task management function under way. Its tag may be used anew once it is answered; it itself is not."""

    __slots__ = ("cmd_sn", "deadline", "function", "initiator_task_tag", "is_answered", "lun", "on_settled")

    def __init__(self, header: pdu.TaskManagementRequest, function: int, deadline: float) -> None:
        self.initiator_task_tag: int = header.initiator_task_tag
        self.function = function
        self.lun: int = header.lun
        self.cmd_sn: int = header.cmd_sn
        self.deadline = deadline
        self.is_answered = False  # by its deadline; what it waits for is still under way
        self.on_settled: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A row: who does a function, from which iSCSIProtocolLevel on, and what it waits for first."""

    code: int
    name: str
    handler: str | None = None  # a method of TaskManagement; None: the owner's
    level: int = 1
    refusal: int | None = None
    waits_for_commands: bool = False  # that were numbered before it
    counts_commands_as_received: bool = False


_ROWS = (
    Function(pdu.ABORT_TASK, "ABORT TASK", "_abort_task"),
    Function(pdu.ABORT_TASK_SET, "ABORT TASK SET", waits_for_commands=True),
    # No ACA condition is ever established here: NACA is refused, and MODE SENSE says so.
    Function(pdu.CLEAR_ACA, "CLEAR ACA", refusal=pdu.FUNCTION_NOT_SUPPORTED),
    Function(pdu.CLEAR_TASK_SET, "CLEAR TASK SET", waits_for_commands=True),
    Function(pdu.LOGICAL_UNIT_RESET, "LOGICAL UNIT RESET", waits_for_commands=True),
    # Section 4.2.3.3: "the entire CmdSN space up to the CmdSN of the task management function can be plugged".
    Function(pdu.TARGET_WARM_RESET, "TARGET WARM RESET", counts_commands_as_received=True),
    Function(pdu.TARGET_COLD_RESET, "TARGET COLD RESET", counts_commands_as_received=True),
    # Section 11.5.1: for sessions of ErrorRecoveryLevel 2 only; we negotiate 0.
    Function(pdu.TASK_REASSIGN, "TASK REASSIGN", refusal=pdu.REASSIGNMENT_NOT_SUPPORTED),
    Function(pdu.QUERY_TASK, "QUERY TASK", "_query_task", level=2),
    Function(pdu.QUERY_TASK_SET, "QUERY TASK SET", level=2),
    Function(pdu.I_T_NEXUS_RESET, "I_T NEXUS RESET", level=2, waits_for_commands=True),
    Function(pdu.QUERY_ASYNCHRONOUS_EVENT, "QUERY ASYNCHRONOUS EVENT", level=2),
)
FUNCTIONS: dict[int, Function] = {row.code: row for row in _ROWS}

assert len(FUNCTIONS) == len(_ROWS)


class TaskManagement:
    """The functions of one session: those under way, and the data that aborted tasks still expect."""

    def __init__(self, session: Session) -> None:
        self.under_way: list[Management] = []
        self._session = session
        self._waiting: list[tuple[Management, Function]] = []  # for commands that were numbered before them
        self._draining: list[tuple[float, Task]] = []  # aborted, while R2Ts of theirs are not answered

    def begin(self, header: pdu.TaskManagementRequest) -> None:
        """A task management request, in its turn. Raises PduError."""
        self._check(header)
        code = header.flags & 0x7F
        row = FUNCTIONS.get(code)
        if row is None or row.level > self._session.parameters.protocol_level:
            self._send(header.initiator_task_tag, pdu.FUNCTION_NOT_SUPPORTED)
        elif row.refusal is not None:
            self._send(header.initiator_task_tag, row.refusal)
        elif row.handler is not None:
            getattr(self, row.handler)(header)
        elif (request := self._watch(header, code)) is not None:
            if row.counts_commands_as_received:
                self._session.count_as_received(header.cmd_sn)
            if row.waits_for_commands and not self._have_come_before(request):
                self._waiting.append((request, row))
            else:
                self._tell(request)

    def _check(self, header: pdu.TaskManagementRequest) -> None:
        tag: int = header.initiator_task_tag
        if tag == pdu.RESERVED_TAG:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, "task management with the reserved Initiator Task Tag")
        if tag in self._session.tasks.by_tag or self._is_function(tag):
            raise PduError(pdu.REJECT_TASK_IN_PROGRESS, f"Initiator Task Tag {tag:#x} is in use")

    def _is_function(self, tag: int) -> bool:
        return any(request.initiator_task_tag == tag and not request.is_answered for request in self.under_way)

    def _watch(self, header: pdu.TaskManagementRequest, function: int) -> Management | None:
        """From here on the function has its deadline. None: there are too many, and it was rejected."""
        session = self._session
        if len(self.under_way) >= MANAGEMENT_LIMIT:
            session.log(f"more than {MANAGEMENT_LIMIT} task management functions under way: rejected")
            self._send(header.initiator_task_tag, pdu.FUNCTION_REJECTED)
            return None
        request = Management(header, function, session.connection.management_deadline)
        self.under_way.append(request)
        return request

    def _have_come_before(self, request: Management) -> bool:
        """Section 4.2.3.3: wait "for all commands of the affected tasks to be received based on the CmdSN ordering"."""
        return not serial.is_before(self._session.window.exp_cmd_sn, request.cmd_sn)

    def _tell(self, request: Management) -> None:
        self._session.connection.tell(events.TaskManagementRequested(self._session, request, request.function))

    # One task --------------------------------------------------------------------------------------------------

    def _abort_task(self, header: pdu.TaskManagementRequest) -> None:
        session = self._session
        tag: int = header.initiator_task_tag
        referenced: int = header.referenced_task_tag
        task = session.tasks.find(referenced)
        if task is None:
            self._send(tag, self._abort_unknown(header))
        elif task.lun != header.lun:
            self._send(tag, pdu.FUNCTION_REJECTED)
        elif (request := self._watch(header, pdu.ABORT_TASK)) is not None:
            session.abort(task, partial(self.answer, request, pdu.FUNCTION_COMPLETE))

    def _abort_unknown(self, header: pdu.TaskManagementRequest) -> int:
        """ABORT TASK for a task that is not here (section 11.6.1)."""
        session = self._session
        if header.referenced_task_tag == header.initiator_task_tag or self._is_function(header.referenced_task_tag):
            # Section 11.5.1: "an ABORT TASK function MUST NOT be executed on a Task Management Request; such a request
            # MUST result in Task Management Response of "Function rejected"".
            return pdu.FUNCTION_REJECTED
        reference: int = header.ref_cmd_sn
        if session.is_unseen(reference) and serial.is_before(reference, header.cmd_sn):
            # "… then targets must consider the CmdSN as received and return the "Function complete" response."
            session.plug(reference)
            return pdu.FUNCTION_COMPLETE
        return pdu.TASK_DOES_NOT_EXIST

    def _query_task(self, header: pdu.TaskManagementRequest) -> None:
        """SAM-5 7.10: FUNCTION SUCCEEDED says that the command is there, FUNCTION COMPLETE that it is not."""
        task = self._session.tasks.find(header.referenced_task_tag)
        is_there = task is not None and task.lun == header.lun and not task.is_aborted
        self._send(header.initiator_task_tag, pdu.FUNCTION_SUCCEEDED if is_there else pdu.FUNCTION_COMPLETE)

    # Many tasks ------------------------------------------------------------------------------------------------

    @property
    def is_fast(self) -> bool:
        """TaskReporting=FastAbort: the initiator sends no more data for tasks that a function of its own ends."""
        return self._session.parameters.task_reporting == FAST_ABORT

    def abort(self, task: Task, done: Callable[[], None], *, is_own: bool) -> None:
        """End a task of this session as part of a function over many; ``is_own``: this session has asked for it.

        Section 4.2.3.3: the target "MUST wait for responses on currently valid Target Transfer Tags of the affected
        tasks from the issuing initiator". Linux stops to send without having negotiated FastAbort, so that wait is
        bounded: nothing depends on it, because what still comes is drained.
        """
        session = self._session
        assert task.session is session
        if is_own and not self.is_fast and task.transfers and not session.is_closed:
            self._draining.append((session.connection.now + DATA_GRACE_S, task))
            session.abort_when_drained(task, done)
        else:
            session.abort(task, done)

    def tell_termination(self, lun: int) -> None:
        """Section 4.2.3.4: a function of another session ended tasks of this one on a logical unit."""
        if self.is_fast and not self._session.is_closed:
            self._session.connection.send_asynchronous_message(pdu.ASYNC_TASK_TERMINATION, lun=lun)

    # Time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Once a second: whoever has waited long enough."""
        session = self._session
        for entry in [entry for entry in self._waiting if self._have_come_before(entry[0])]:
            self._waiting.remove(entry)
            self._tell(entry[0])
        if self._draining:
            overdue = [task for deadline, task in self._draining if now > deadline]
            self._draining = [entry for entry in self._draining if now <= entry[0]]
            for task in overdue:
                session.give_up_draining(task)
        for request in list(self.under_way):
            if now > request.deadline and not request.is_answered:
                self._reject_overdue(request)

    def _reject_overdue(self, request: Management) -> None:
        """A function that is not done at its deadline is answered *rejected*, never *complete* (CONTRACTS 2)."""
        session = self._session
        name = FUNCTIONS[request.function].name
        session.log(f"{name} {request.initiator_task_tag:#x} is not done at its deadline: rejected")
        waiting = next((entry for entry in self._waiting if entry[0] is request), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self.answer(request, pdu.FUNCTION_REJECTED)
            return
        request.is_answered = True
        self._send(request.initiator_task_tag, pdu.FUNCTION_REJECTED)
        session.connection.tell(events.TaskManagementOverdue(session, request))

    # Answers ---------------------------------------------------------------------------------------------------

    def answer(self, request: Management, response: int, information: bytes = NO_INFORMATION) -> None:
        """A function is done: answer, unless its deadline already has."""
        self.under_way.remove(request)
        if request.on_settled is not None:
            request.on_settled()
        if not request.is_answered:
            self._send(request.initiator_task_tag, response, information)

    def _send(self, initiator_task_tag: int, response: int, information: bytes = NO_INFORMATION) -> None:
        session = self._session
        if session.is_closed:
            return
        connection = session.connection
        connection.send(
            pdu.TaskManagementResponse(
                response=response,
                additional_response_information=information,
                initiator_task_tag=initiator_task_tag,
                **connection.numbers(),
            )
        )
        connection.owes_numbers = False
