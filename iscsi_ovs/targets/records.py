"""Durable records of units (CONTRACTS 6): read before a unit is served, replaced when SCSI asks, followed when others
replace them.

Reservations and saved mode pages are state that several initiators share, and perhaps several target processes: the
volume server keeps it by version. What an update leads to is taken over by the unit only when it is durable. Updates of
one record are done one after the other; a command that comes meanwhile is executed anew behind the one under way,
because that may have changed what it is allowed to do.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial

from iscsi_ovs import scsi
from iscsi_ovs.targets.commands import Commands
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disk, Disks
from shm_server.abi import control

logger = logging.getLogger("iscsi_ovs.target")

Loaded = Callable[["OSError | None"], None]


class Records:
    """The records of every disk."""

    def __init__(self, core: Core, disks: Disks, commands: Commands) -> None:
        self._core = core
        self._disks = disks
        self._commands = commands
        self._loading: dict[Disk, list[Loaded]] = {}  # who waits; the same volume may be another disk meanwhile
        self._updating: dict[tuple[str, str], list[scsi.Command]] = {}  # by UUID and record: commands that wait
        commands.performers[scsi.RecordUpdate] = self._update

    # Reading ---------------------------------------------------------------------------------------------------

    def load(self, disk: Disk, done: Loaded) -> None:
        """Hand the unit its records, unless it has them already."""
        if disk.are_records_known:
            done(None)
            return
        waiting = self._loading.setdefault(disk, [])
        waiting.append(done)
        if len(waiting) > 1:
            return
        left = set(disk.unit.command_set.records)
        errors: list[OSError] = []

        def read(record: str, answer: control.Record | OSError) -> None:
            left.discard(record)
            try:
                self._take_over(disk, record, answer)
            except OSError as error:
                errors.append(error)
            if not left:
                self._loaded(disk, errors[0] if errors else None)

        if not left:
            self._loaded(disk, None)
        for record in list(left):
            self._core.service.get_record(disk.name, record, partial(read, record))
        self._core.follow_control()

    def _take_over(self, disk: Disk, record: str, answer: control.Record | OSError) -> None:
        if isinstance(answer, OSError):
            raise answer
        try:
            disk.unit.load_record(record, answer.version, answer.data)
        except ValueError as error:
            logger.error("%s: its record of %s can't be read: %s", disk.name, record, error)
            raise OSError(errno.EIO, f"its record of {record} can't be read: {error}") from None

    def _loaded(self, disk: Disk, error: OSError | None) -> None:
        disk.are_records_known = error is None
        for done in self._loading.pop(disk):
            done(error)

    def changed(self, event: control.RecordChanged) -> None:
        """Another process has replaced a record; one that we have never read is read when it is needed."""
        disk = self._disks.find(event.uuid)
        if disk is None or event.version <= disk.unit.record_versions.get(event.record, event.version):
            return
        try:
            self._take_over(disk, event.record, control.Record(0, event.record, event.version, event.data))
        except OSError:
            disk.are_records_known = False  # nobody is let in any more; who is in goes by what was known

    def lost(self) -> None:
        """The volume server is gone: whether the last update was kept is seen when it is back."""
        for disk in self._disks:
            disk.are_records_known = False

    # Replacing -------------------------------------------------------------------------------------------------

    def _update(self, command: scsi.Command, update: scsi.RecordUpdate) -> None:
        router = command.nexus.router
        unit = None if router is None else router.unit(command.lun)
        disk = None if unit is None else self._disks.of(unit)
        if disk is None:
            self._commands.proceed(command, update.finish(OSError(errno.ENOENT, "the volume has gone")))
            return
        key = disk.info.uuid, update.record
        waiting = self._updating.get(key)
        if waiting is not None:
            waiting.append(command)
            return
        self._updating[key] = []
        version = disk.unit.record_versions.get(update.record, 0)

        def put(answer: control.Record | OSError) -> None:
            if isinstance(answer, OSError):
                logger.warning("%s: its %s could not be replaced: %s", disk.name, update.record, answer.strerror)
                if answer.errno == errno.ESTALE:  # what the unit knows is not what is there: read it again
                    disk.are_records_known = False
                    self.load(disk, _no_matter)
                result = update.finish(answer)
            else:
                disk.unit.record_versions[update.record] = answer.version
                who = command.nexus.initiator_name
                logger.info("%s: %s changed by %s (version %d)", disk.name, update.record, who, answer.version)
                result = update.finish(None)
            self._commands.proceed(command, result)
            for other in self._updating.pop(key):
                self._commands.execute(other)

        self._core.service.put_record(disk.name, update.record, version, update.data, put)
        self._core.follow_control()


def _no_matter(error: OSError | None) -> None:
    """Whoever tries again hears of it."""
