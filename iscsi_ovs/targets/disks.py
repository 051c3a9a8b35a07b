"""Disks: volumes as logical units, and what sessions hold of them.

A volume is one logical unit, whichever LUN maps it stands in. Its unit is BUSY while the volume server is away, while a
session that needs it has not opened it again, and while a task that could not be aborted is still under way. What it
means for targets that a volume comes or goes is told to ``on_served`` and ``on_withdrawn`` (targets.nodes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import COMMAND_SET
from iscsi_ovs.net.clock import wall_ms
from iscsi_ovs.shm_client import DeviceHandle
from iscsi_ovs.targets.core import Core
from shm_server.abi import control

if TYPE_CHECKING:
    from iscsi_ovs.targets.members import Member

logger = logging.getLogger("iscsi_ovs.target")


@dataclass(slots=True, eq=False)
class Holding:
    """What a session has of a disk: a handle, or the way to one or from it."""

    member: Member
    disk: Disk
    is_read_only: bool = False  # as its LUN map says
    device: DeviceHandle | None = None
    is_opening: bool = False  # the volume server has an Open of ours that it has not answered
    is_needed: bool = False  # the session serves commands: without a handle the unit is BUSY
    reason: str = ""  # why it could not be opened at the login
    is_told: bool = False  # … or since; it is in the log


@dataclass(slots=True, eq=False)
class Disk:
    """A volume as a logical unit."""

    info: control.VolumeInfo
    unit: scsi.LogicalUnit
    holdings: list[Holding] = field(default_factory=list)
    are_records_known: bool = False  # the unit has what the volume server keeps of it (targets.records)
    stuck: int = 0  # task management functions that passed their deadline and wait for their zombies still

    @property
    def name(self) -> str:
        return self.info.name


class Disks:
    """Every volume of the volume server, by UUID."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._by_uuid: dict[str, Disk] = {}
        self._by_unit: dict[scsi.LogicalUnit, Disk] = {}
        self._pool: control.PoolInfo | None = None
        self.personality: Callable[[str], scsi.Personality] = _plain  # by the volume's name
        self.on_served: Callable[[Disk], None] = _nobody
        self.on_withdrawn: Callable[[Disk, str], None] = _nobody_either

    def __iter__(self) -> Iterator[Disk]:
        return iter(list(self._by_uuid.values()))

    def __len__(self) -> int:
        return len(self._by_uuid)

    def find(self, uuid: str) -> Disk | None:
        return self._by_uuid.get(uuid)

    def named(self, name: str) -> Disk | None:
        """The disk of the volume that has this name now."""
        return next((disk for disk in self._by_uuid.values() if disk.name == name), None)

    def of(self, unit: scsi.LogicalUnit) -> Disk | None:
        """The disk behind a unit; None once it is withdrawn."""
        return self._by_unit.get(unit)

    def serve(self, info: control.VolumeInfo) -> None:
        """A volume is there (or still there)."""
        if (known := self._by_uuid.get(info.uuid)) is not None:
            if known.name == info.name:
                self.changed(info, is_rolled_back=True)  # for all we know, if we were away
                return
            self.withdraw(known, f"it is called {info.name} now")
        namesake = self.named(info.name)
        if namesake is not None:
            self.withdraw(namesake, "another volume has its name now")
        identity = scsi.Identity(volume_name=info.name, uuid_hex=info.uuid)
        geometry = block.Geometry(info.size_bytes, generation=info.generation)
        personality = self.personality(info.name)
        if info.is_read_only:
            personality = replace(personality, is_read_only=True)
        unit = scsi.LogicalUnit(COMMAND_SET, identity, geometry, personality=personality)
        unit.power_on = self._core.owner
        unit.now_ms = wall_ms
        self._limit_transfers(unit)
        self._tell_pool(unit)
        disk = Disk(info, unit)
        _tell_sanitize(disk)
        self._by_uuid[info.uuid] = self._by_unit[unit] = disk
        self.on_served(disk)

    def changed(self, info: control.VolumeInfo, *, is_rolled_back: bool) -> None:
        """A volume has another size, or something else is new of it; another generation may mean other data."""
        disk = self._by_uuid.get(info.uuid)
        if disk is None:
            return
        if is_rolled_back and disk.info.generation != info.generation:
            logger.info("%s was rolled back: it has %d bytes", info.name, info.size_bytes)
            disk.unit.change_medium(block.Geometry(info.size_bytes, generation=info.generation))
        elif disk.info.size_bytes != info.size_bytes:
            logger.info("%s has %d bytes now", info.name, info.size_bytes)
            disk.unit.resize(block.Geometry(info.size_bytes, generation=info.generation))
        disk.info = info
        _tell_sanitize(disk)

    def pool_changed(self, info: control.PoolInfo) -> None:
        """How full the pool is: whoever sees a thin unit hears that its soft threshold was passed."""
        is_new = info.is_threshold_reached and not (self._pool is not None and self._pool.is_threshold_reached)
        self._pool = info
        for disk in self:
            self._tell_pool(disk.unit)
            if is_new and disk.unit.personality.is_thin:
                disk.unit.raise_attention(scsi.SOFT_THRESHOLD_REACHED)

    def _tell_pool(self, unit: scsi.LogicalUnit) -> None:
        if self._pool is not None:
            left_percent = 100 - self._pool.soft_threshold_percent if self._pool.soft_threshold_percent else 0
            unit.soft_threshold_bytes = self._pool.size_bytes * left_percent // 100

    def withdraw(self, disk: Disk, reason: str) -> None:
        """A volume is not there any more."""
        if self._by_uuid.get(disk.info.uuid) is disk:
            del self._by_uuid[disk.info.uuid]
            del self._by_unit[disk.unit]
            self.on_withdrawn(disk, reason)

    def renew(self, disk: Disk, reason: str) -> None:
        """The same volume as another logical unit."""
        self.withdraw(disk, reason)
        self.serve(disk.info)
        logger.info("%s: %s", disk.name, reason)

    def limit_transfers(self) -> None:
        """A (new) segment is there: what it can't hold at once no unit may promise."""
        for disk in self:
            self._limit_transfers(disk.unit)

    def _limit_transfers(self, unit: scsi.LogicalUnit) -> None:
        largest_bytes = self._core.space.largest_bytes
        if largest_bytes:  # else the volume server is away, and says when it is back
            unit.limit_transfers(largest_bytes)

    def settle(self, disk: Disk) -> None:
        """Is the unit BUSY? Whatever that depends on has changed."""
        if self._core.space.pool is None:
            disk.unit.block("the volume server is away")
        elif any(holding.is_needed and holding.device is None for holding in disk.holdings):
            # Until every nexus has its handle: one without would hear NOT READY, which initiators don't retry.
            disk.unit.block("not every session has its volume open again")
        elif disk.stuck:
            disk.unit.block("a task that was to be aborted is still under way")
        else:
            disk.unit.unblock()

    def settle_all(self) -> None:
        for disk in self:
            self.settle(disk)


def _plain(volume: str) -> scsi.Personality:
    return scsi.Personality()


def _tell_sanitize(disk: Disk) -> None:
    """The unit says how far a sanitize operation has come, or that one failed."""
    disk.unit.sanitize_progress = disk.info.sanitize
    disk.unit.has_failed_to_sanitize = disk.info.sanitize_failed


def _nobody(disk: Disk) -> None:
    """Nobody has asked to be told."""


def _nobody_either(disk: Disk, reason: str) -> None:
    """Nor here."""
