"""How much of its store a volume takes: SCSI asks (LOG SENSE), the volume server knows."""

from __future__ import annotations

from iscsi_ovs import scsi
from iscsi_ovs.targets.commands import Commands
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disks
from shm_server.abi import control


class Usage:
    """Asks for every disk."""

    def __init__(self, core: Core, disks: Disks, commands: Commands) -> None:
        self._core = core
        self._disks = disks
        self._commands = commands
        commands.performers[scsi.UsageQuery] = self._ask

    def _ask(self, command: scsi.Command, query: scsi.UsageQuery) -> None:
        router = command.nexus.router
        unit = None if router is None else router.unit(command.lun)
        disk = None if unit is None else self._disks.of(unit)
        if disk is None:
            self._commands.proceed(command, query.finish(None, None))
            return

        def told(answer: control.VolumeInfo | OSError) -> None:
            used_bytes = None if isinstance(answer, OSError) else answer.allocated_bytes
            self._core.service.stat_pool(lambda pool: finish(used_bytes, pool))
            self._core.follow_control()

        def finish(used_bytes: int | None, pool: control.PoolInfo | OSError) -> None:
            available_bytes = None if isinstance(pool, OSError) or not pool.size_bytes else pool.available_bytes
            self._commands.proceed(command, query.finish(used_bytes, available_bytes))

        self._core.service.stat(disk.name, told)
        self._core.follow_control()
