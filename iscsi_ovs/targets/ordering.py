"""Task attributes: what ORDERED and HEAD OF QUEUE ask for (SAM-5 8.6), on the one task set of each unit (TST=000b).

SIMPLE commands are started as they come. So there is nothing to do until a command of another kind enters a task set:
from then until the last such command has ended, the unit's commands pass here. HEAD OF QUEUE starts at once; ORDERED
starts when every older command has ended; SIMPLE starts when all HEAD OF QUEUE and older ORDERED commands have. Whoever
must wait keeps its data. When slots run short it would keep them from older commands: then it ends TASK SET FULL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.space import Waiter
from iscsi_ovs.session.tasks import State, Task
from iscsi_ovs.targets.commands import Commands
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disks

Execute = Callable[[scsi.Command], None]


@dataclass(slots=True, eq=False)
class Special:
    """An ORDERED or HEAD OF QUEUE command that has not ended."""

    task: Task
    is_ordered: bool
    older: list[Task]  # what must end before an ORDERED one starts


@dataclass(slots=True, eq=False)
class TaskSet:
    """A unit whose commands are not all SIMPLE."""

    specials: list[Special] = field(default_factory=list)
    waiting: list[tuple[scsi.Command, Waiter]] = field(default_factory=list)  # in order of arrival


class Ordering:
    """The task sets that need it. ``reroute`` says who executes commands from now on."""

    def __init__(self, core: Core, disks: Disks, commands: Commands, reroute: Callable[[Execute], None]) -> None:
        self._core = core
        self._disks = disks
        self._commands = commands
        self._reroute = reroute
        self.sets: dict[scsi.LogicalUnit, TaskSet] = {}

    def admitted(self, command: scsi.Command) -> None:
        """A command that is not SIMPLE has entered its task set; it may still wait for its data."""
        unit = _unit_of(command)
        disk = None if unit is None else self._disks.of(unit)
        if unit is None or disk is None:
            return
        task: Task = command.context
        is_ordered = command.attribute == pdu.ATTRIBUTE_ORDERED
        older: list[Task] = []
        if is_ordered:
            sessions = [holding.member.session for holding in disk.holdings if holding.member.session is not None]
            older = [other for session in sessions for other in _before(task, session.tasks) if _is_on(other, unit)]
        self.sets.setdefault(unit, TaskSet()).specials.append(Special(task, is_ordered, older))
        self._reroute(self.execute)

    def execute(self, command: scsi.Command) -> None:
        """A command is whole: start it, or let it wait for its turn."""
        unit = _unit_of(command)
        found = self.sets.get(unit) if unit is not None else None
        if found is None or command.context.is_aborted or _may_start(found, command.context):
            self._commands.execute(command)
        else:
            waiter = command.context.waiter = Waiter(_never)  # so it is not the volume server's, for who aborts it
            found.waiting.append((command, waiter))

    def serve(self) -> None:
        """Once a turn while there are such sets: whoever's turn has come is started."""
        for unit, found in list(self.sets.items()):
            waiting, found.waiting = found.waiting, []
            for command, waiter in waiting:
                task: Task = command.context
                if task.waiter is not waiter:
                    continue  # aborted, or ended with the segment or its session
                if _may_start(found, task):
                    task.waiter = None
                    self._commands.execute(command)
                elif self._core.space.has_waiters:
                    task.waiter = None
                    self._commands.proceed(command, scsi.Outcome(status=scsi.TASK_SET_FULL))
                else:
                    found.waiting.append((command, waiter))
            found.specials = [each for each in found.specials if each.task.state is not State.ENDED]
            if not found.specials and not found.waiting:
                del self.sets[unit]
        if not self.sets:
            self._reroute(self._commands.execute)


def _may_start(found: TaskSet, task: Task) -> bool:
    """SAM-5 8.6: is it its turn?"""
    living = [each for each in found.specials if each.task.state is not State.ENDED]
    own = next((each for each in living if each.task is task), None)
    if own is not None and not own.is_ordered:
        return True  # HEAD OF QUEUE waits for nobody
    if any(not each.is_ordered for each in living):
        return False  # … and all others for it
    if own is not None:
        return all(other.state is State.ENDED for other in own.older)
    return all(task in each.older for each in living)


def _unit_of(command: scsi.Command) -> scsi.LogicalUnit | None:
    router = command.nexus.router
    return None if router is None else router.unit(command.lun)


def _before(task: Task, tasks: Iterable[Task]) -> Iterator[Task]:
    """The tasks of a session, up to this one if it is of the session: what came with it may be behind it."""
    for other in tasks:
        if other is task:
            return
        if other.is_admitted:
            yield other


def _is_on(task: Task, unit: scsi.LogicalUnit) -> bool:
    return task.command is not None and _unit_of(task.command) is unit


def _never() -> bool:
    """It is not slots that the command waits for."""
    return False
