"""SCSI commands on their way to storage and back: what nearly all time is spent in.

A command goes through its nexus' LUN map; what comes back at once is its outcome, or a request for its device. A READ
gets its buffer here, or waits for it in order of arrival (CONTRACTS 3). A completion leads to the outcome, or to the
next request. What SCSI asks for beside data (``performers``, by type) other rooms do, and come back to ``proceed``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iscsi_ovs import block, scsi
from iscsi_ovs.session.space import Space
from iscsi_ovs.session.tasks import Task

_READ = block.Operation.READ
_Request = block.Request


class Commands:
    """Executes the commands of all sessions."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._on_completed = self._completed  # bound once
        self.performers: dict[type, Callable[[scsi.Command, Any], None]] = {}  # of Executions but Outcome and Request

    def execute(self, command: scsi.Command) -> None:
        """A command is whole: do it, or say what is wrong with it."""
        task: Task = command.context
        if task.is_aborted:  # in the batch that brought it
            task.session.complete(command, scsi.Outcome())
            return
        result = command.nexus.router.execute(command)  # type: ignore[union-attr] # a session in which commands come
        if type(result) is _Request:
            self._issue(command, result)
        elif type(result) is scsi.Outcome:
            task.session.complete(command, result)
        else:
            self.performers[type(result)](command, result)

    def proceed(self, command: scsi.Command, result: scsi.Execution) -> None:
        """A step of a command is done; this came of it."""
        if command.context.is_aborted:
            self._finish(command, scsi.Outcome())
        elif isinstance(result, scsi.Outcome):
            self._finish(command, result)
        elif isinstance(result, block.Request):
            self._issue(command, result)
        else:
            self.performers[type(result)](command, result)

    def _issue(self, command: scsi.Command, request: Any) -> None:
        """Send a request on its way; a read gets its buffer here, or waits for it."""
        request.context = command
        request.done = self._on_completed
        if request.operation is _READ and request.buffer is None:
            pool = self._space.pool
            if pool is None:
                self._finish(command, scsi.Outcome(status=scsi.BUSY))
                return
            if (
                pool.free_slots < self._space.tight_below_slots
                or (buffer := pool.allocate(request.length_bytes)) is None
            ):
                self._wait_for_buffer(command, request)
                return
            request.buffer = buffer
        device = command.device
        assert device is not None, "only what was let through to the medium makes requests"
        device.submit(request)

    def _wait_for_buffer(self, command: scsi.Command, request: block.Request) -> None:
        if request.length_bytes > self._space.largest_bytes:
            self._finish(command, scsi.Outcome(status=scsi.TASK_SET_FULL))
            return
        task: Task = command.context

        def grab() -> bool:
            pool = self._space.pool
            assert pool is not None
            request.buffer = pool.allocate(request.length_bytes)
            if request.buffer is None:
                return False
            task.waiter = None
            device = command.device
            assert device is not None
            device.submit(request)
            return True

        pool = self._space.pool
        assert pool is not None
        task.waiter = self._space.wait(grab, pool.slots_for(request.length_bytes), task.session)

    def _completed(self, completion: block.Completion) -> None:
        """The volume server has answered (or is gone)."""
        request = completion.request
        command: scsi.Command = request.context
        assert request.finish is not None
        result = request.finish(completion)
        if type(result) is scsi.Outcome:
            if request.operation is _READ and result.buffer is None and request.buffer is not None:
                request.buffer.release()
            command.context.session.complete(command, result)
        else:
            self.proceed(command, result)

    def _finish(self, command: scsi.Command, outcome: scsi.Outcome) -> None:
        command.context.session.complete(command, outcome)
