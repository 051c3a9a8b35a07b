"""Task management over logical units: what reaches beyond the session that asked for it (RFC 7143 11.5, SAM-5 7).

A function ends tasks (of one nexus on a unit, or of all; on one unit, or on each of the requester's LUN map), and is
answered when the volume server has nothing of them any more (CONTRACTS 2). Other initiators' tasks end silently
(TAS=0): they hear a unit attention instead of an answer. What a unit itself forgets by a reset is the unit's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session import events
from iscsi_ovs.session.session import Session
from iscsi_ovs.session.tasks import Task
from iscsi_ovs.targets.commands import Commands
from iscsi_ovs.targets.disks import Disk, Disks, Holding
from iscsi_ovs.targets.holdings import countdown
from iscsi_ovs.targets.members import Member, Members

logger = logging.getLogger("iscsi_ovs.target")

_ONE_ATTENTION, _MORE_ATTENTIONS = 0x10, 0x20  # UADE DEPTH (SAM-5 7.9)


class Resets:
    """The functions that sessions ask for, and units whose disks are stuck.

    ``may_reset_target(nexus)`` decides on TARGET WARM and COLD RESET.
    """

    def __init__(self, disks: Disks, members: Members, commands: Commands) -> None:
        self._disks = disks
        self._members = members
        self._commands = commands
        commands.performers[scsi.AbortTasks] = self._abort_for
        self.may_reset_target: Callable[[scsi.Nexus], bool] = lambda nexus: True

    def requested(self, event: events.TaskManagementRequested) -> None:
        """A session asks for a function that is not its own to do."""
        member = self._members.of(event.session)
        if member is None:  # it is a session no more
            _answer(event, pdu.FUNCTION_REJECTED)
        elif event.function in _OF_A_UNIT:
            unit = member.router.unit(event.request.lun)
            disk = None if unit is None else self._disks.of(unit)
            if disk is None:
                _answer(event, pdu.LUN_DOES_NOT_EXIST)
            else:
                _OF_A_UNIT[event.function](self, event, member, disk)
        else:
            _OF_THE_TARGET[event.function](self, event, member)

    # One unit --------------------------------------------------------------------------------------------------

    def _abort_task_set(self, event: events.TaskManagementRequested, member: Member, disk: Disk) -> None:
        """SAM-5 7.3: the tasks of this nexus."""
        own = [holding for holding in disk.holdings if holding.member is member]
        self._abort(event.session, own, partial(_answer, event, pdu.FUNCTION_COMPLETE))

    def _clear_task_set(self, event: events.TaskManagementRequested, member: Member, disk: Disk) -> None:
        """SAM-5 7.5: the tasks of every nexus (there is one task set for all of them, TST=000b)."""
        victims = self._abort(event.session, disk.holdings, partial(_answer, event, pdu.FUNCTION_COMPLETE))
        logger.info("%s: task set cleared by %s", disk.name, member.nexus.initiator_name)
        for victim in victims:
            if victim is not member:
                disk.unit.attend(victim.nexus, scsi.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)

    def _reset_unit(self, event: events.TaskManagementRequested, member: Member, disk: Disk) -> None:
        """SAM-5 7.7: every task, and what the unit keeps no longer than to its next reset."""
        self._reset(event, member, [disk], scsi.Reset.LOGICAL_UNIT, partial(_answer, event, pdu.FUNCTION_COMPLETE))

    def _query_task_set(self, event: events.TaskManagementRequested, member: Member, disk: Disk) -> None:
        """SAM-5 7.11: is there any task of this nexus?"""
        is_any = any(not task.is_aborted for task in _tasks_of(member, disk.unit))
        _answer(event, pdu.FUNCTION_SUCCEEDED if is_any else pdu.FUNCTION_COMPLETE)

    def _query_asynchronous_event(self, event: events.TaskManagementRequested, member: Member, disk: Disk) -> None:
        """SAM-5 7.9: does a unit attention wait, and which?"""
        pending = member.nexus.attentions.get(disk.unit)
        if not pending:
            _answer(event, pdu.FUNCTION_COMPLETE)
            return
        depth = _ONE_ATTENTION if len(pending) == 1 else _MORE_ATTENTIONS
        information = bytes((depth | scsi.UNIT_ATTENTION_KEY, *pending[0]))
        event.session.management.answer(event.request, pdu.FUNCTION_SUCCEEDED, information)

    # The target ------------------------------------------------------------------------------------------------

    def _reset_nexus(self, event: events.TaskManagementRequested, member: Member) -> None:
        """SAM-5 7.6: each unit does as if the nexus had been lost; the session itself lives on."""

        def lost() -> None:
            for holding in member.holdings:
                holding.disk.unit.nexus_lost(member.nexus)
            _answer(event, pdu.FUNCTION_COMPLETE)

        self._abort(event.session, member.holdings, lost)

    def _reset_warm(self, event: events.TaskManagementRequested, member: Member) -> None:
        """Section 11.5.1: "the target cancels all pending operations on all LUs known by the issuing initiator"."""
        if self._may_reset(event, member):
            disks = [holding.disk for holding in member.holdings]
            self._reset(event, member, disks, scsi.Reset.HARD, partial(_answer, event, pdu.FUNCTION_COMPLETE))

    def _reset_cold(self, event: events.TaskManagementRequested, member: Member) -> None:
        """Section 11.5.1: "the target MUST treat the TARGET COLD RESET function as a power-on event, thus terminating
        all of its TCP connections to all initiators": all that share a unit with who asks."""
        if not self._may_reset(event, member):
            return
        disks = [holding.disk for holding in member.holdings]

        def ended() -> None:
            _answer(event, pdu.FUNCTION_COMPLETE)
            sharing = dict.fromkeys(holding.member for disk in disks for holding in disk.holdings)
            self._members.drop([member, *sharing], "the target was reset")

        self._reset(event, member, disks, scsi.Reset.POWER_ON, ended)

    def _may_reset(self, event: events.TaskManagementRequested, member: Member) -> bool:
        if self.may_reset_target(member.nexus):
            return True
        logger.warning("%s: target reset by %s refused", member.node.iqn, member.nexus.initiator_name)
        _answer(event, pdu.FUNCTION_AUTHORIZATION_FAILED)
        return False

    # What they are made of -------------------------------------------------------------------------------------

    def _reset(
        self,
        event: events.TaskManagementRequested,
        member: Member,
        disks: list[Disk],
        kind: scsi.Reset,
        done: Callable[[], None],
    ) -> None:
        """Abort every task of every nexus on these units, reset them, go on."""

        def reset() -> None:
            for disk in disks:
                disk.unit.reset(kind)
            done()

        names = ", ".join(disk.name for disk in disks)
        logger.info("%s: %s reset by %s", names, kind.name.lower().replace("_", " "), member.nexus.initiator_name)
        self._abort(event.session, [holding for disk in disks for holding in disk.holdings], reset)

    def _abort(self, issuer: Session, holdings: Iterable[Holding], done: Callable[[], None]) -> list[Member]:
        """End all tasks of these nexuses on these units. Returns whose tasks were among them."""
        victims: list[Member] = []
        waits: list[Callable[[Callable[[], None]], None]] = []
        for holding in holdings:
            session = holding.member.session
            if session is None:
                continue
            management = session.management
            is_own = session is issuer
            luns = set()
            for task in _tasks_of(holding.member, holding.disk.unit):
                luns.add(task.lun)
                waits.append(partial(management.abort, task, is_own=is_own))
            if luns and holding.member not in victims:
                victims.append(holding.member)
            if not is_own:
                for lun in luns:
                    management.tell_termination(lun)
            if holding.device is not None and not holding.member.is_leaving:
                waits.append(holding.device.fence)  # what the volume server has not started, it never starts
        one_done = countdown(len(waits) + 1, done)
        for wait in waits:
            wait(one_done)
        one_done()
        return victims

    def _abort_for(self, command: scsi.Command, asked: scsi.AbortTasks) -> None:
        """A command asks for tasks to be ended (PREEMPT AND ABORT): all but its own."""
        unit = command.nexus.router.unit(command.lun) if command.nexus.router is not None else None
        assert unit is not None, "it executed the command"

        def done() -> None:
            self._commands.proceed(command, asked.finish())

        self.abort_tasks_of(unit, asked.nexuses, done, spared=command.context)

    def abort_tasks_of(
        self,
        unit: scsi.LogicalUnit,
        nexuses: Iterable[scsi.Nexus],
        done: Callable[[], None],
        spared: Task | None = None,
    ) -> None:
        """End the tasks that some nexuses have on a unit, but one. Others than whose that one is hear that commands of
        theirs were cleared."""
        disk = self._disks.of(unit)
        wanted = {id(nexus) for nexus in nexuses}
        holdings = [] if disk is None else [each for each in disk.holdings if id(each.member.nexus) in wanted]
        tasks = [
            (holding.member.session, task)
            for holding in holdings
            for task in _tasks_of(holding.member, unit)
            if holding.member.session is not None and task is not spared
        ]
        one_done = countdown(len(tasks) + 1, done)
        for session, task in tasks:
            session.management.abort(task, one_done, is_own=False)
            session.management.tell_termination(task.lun)
        asking = None if spared is None else spared.session
        ended = {id(session) for session, _ in tasks if session is not asking}
        for holding in holdings:
            if id(holding.member.session) in ended:
                unit.attend(holding.member.nexus, scsi.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
        one_done()

    # Stuck disks -----------------------------------------------------------------------------------------------

    def overdue(self, event: events.TaskManagementOverdue) -> None:
        """CONTRACTS 2: after its deadline "the LU answers BUSY until the zombie returns"."""
        member = self._members.of(event.session)
        if member is None:
            return
        if event.request.function in _OF_THE_TARGET:
            disks = [holding.disk for holding in member.holdings]
        else:
            unit = member.router.unit(event.request.lun)
            disk = None if unit is None else self._disks.of(unit)
            disks = [] if disk is None else [disk]

        def settled() -> None:
            for disk in disks:
                disk.stuck -= 1
                self._disks.settle(disk)

        for disk in disks:
            disk.stuck += 1
            self._disks.settle(disk)
        event.request.on_settled = settled


_OF_A_UNIT: dict[int, Callable[[Resets, events.TaskManagementRequested, Member, Disk], None]] = {
    pdu.ABORT_TASK_SET: Resets._abort_task_set,
    pdu.CLEAR_TASK_SET: Resets._clear_task_set,
    pdu.LOGICAL_UNIT_RESET: Resets._reset_unit,
    pdu.QUERY_TASK_SET: Resets._query_task_set,
    pdu.QUERY_ASYNCHRONOUS_EVENT: Resets._query_asynchronous_event,
}
_OF_THE_TARGET: dict[int, Callable[[Resets, events.TaskManagementRequested, Member], None]] = {
    pdu.TARGET_WARM_RESET: Resets._reset_warm,
    pdu.TARGET_COLD_RESET: Resets._reset_cold,
    pdu.I_T_NEXUS_RESET: Resets._reset_nexus,
}


def _answer(event: events.TaskManagementRequested, response: int) -> None:
    event.session.management.answer(event.request, response)


def _tasks_of(member: Member, unit: scsi.LogicalUnit) -> Iterator[Task]:
    """A member's tasks on a unit, whichever way their LUN was written."""
    router = member.router
    for task in member.session.tasks if member.session is not None else ():
        if router.unit(task.lun) is unit:
            yield task
