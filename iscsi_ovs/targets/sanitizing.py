"""SANITIZE between SCSI and the volume server: begin it, and answer when it is over.

The operation is the volume's (commands.sanitize): its progress comes with what the volume server tells of a volume, and
Disks hands that to the unit. Here wait the commands that asked for one without IMMED. They wait for nothing that is
theirs, so one that is aborted, or whose session ends, is gone at once, and the operation goes on.
"""

from __future__ import annotations

import errno
from functools import partial

from iscsi_ovs import scsi
from iscsi_ovs.session.space import Waiter
from iscsi_ovs.targets.commands import Commands
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disks
from shm_server.abi import control


class Sanitizing:
    """The sanitize operations of every disk."""

    def __init__(self, core: Core, disks: Disks, commands: Commands) -> None:
        self._core = core
        self._disks = disks
        self._commands = commands
        self._waiting: dict[str, list[tuple[scsi.Command, scsi.SanitizeRequest, Waiter]]] = {}  # by UUID
        commands.performers[scsi.SanitizeRequest] = self._begin

    def _begin(self, command: scsi.Command, request: scsi.SanitizeRequest) -> None:
        router = command.nexus.router
        unit = None if router is None else router.unit(command.lun)
        disk = None if unit is None else self._disks.of(unit)
        if disk is None:
            self._commands.proceed(command, request.finish(OSError(errno.ENOENT, "the volume has gone")))
            return
        message = control.Sanitize(0, disk.name, request.kind.value, request.patterns, request.may_exit_failure)
        self._core.service.sanitize(message, partial(self._begun, command, request))
        self._core.follow_control()

    def _begun(
        self, command: scsi.Command, request: scsi.SanitizeRequest, answer: control.VolumeInfo | OSError
    ) -> None:
        if isinstance(answer, OSError):
            self._commands.proceed(command, request.finish(answer))
            return
        self._disks.changed(answer, is_rolled_back=False)
        if request.is_immediate or answer.sanitize is None or command.context.is_aborted:
            self._commands.proceed(command, request.finish(_outcome(answer)))
            return
        waiter = command.context.waiter = Waiter(_never)
        self._waiting.setdefault(answer.uuid, []).append((command, request, waiter))

    def changed(self, info: control.VolumeInfo) -> None:
        """The volume server tells of a volume: is it over?"""
        if info.sanitize is not None:
            return
        for command, request, waiter in self._waiting.pop(info.uuid, []):
            if command.context.waiter is waiter:
                command.context.waiter = None
                self._commands.proceed(command, request.finish(_outcome(info)))

    def lost(self) -> None:
        """The volume server is gone, and goes on when it is back. Who waited is answered BUSY by its session."""
        self._waiting.clear()


def _outcome(info: control.VolumeInfo) -> OSError | None:
    return OSError(errno.EIO, "it failed") if info.sanitize_failed else None


def _never() -> bool:
    """It is not slots that the command waits for."""
    return False
