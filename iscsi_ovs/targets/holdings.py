"""Holdings: the volumes that sessions have open, one handle for each disk of their LUN map.

What a volume keeps of its unit is read with the opening, before anybody is served. What can't be opened for a session
that lives is tried again once a second. A disk that comes into a map is opened before the session can see it; one that
leaves is closed when the tasks on it are done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from iscsi_ovs import scsi
from iscsi_ovs.session.tasks import Task
from iscsi_ovs.shm_client import DeviceHandle
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disk, Disks, Holding
from iscsi_ovs.targets.records import Records

if TYPE_CHECKING:
    from iscsi_ovs.targets.members import Member

logger = logging.getLogger("iscsi_ovs.target")

REOPEN_DELAY_S = 1.0

Opened = Callable[[Holding, "OSError | None"], None]


class Holdings:
    """Opens and closes volumes for the members of all nodes."""

    on_leaving: Callable[[Member], None]  # an opening has ended for one that leaves: targets.members

    def __init__(self, core: Core, disks: Disks, records: Records) -> None:
        self._core = core
        self._disks = disks
        self._records = records

    def hold(self, member: Member) -> bool:
        """A holding for every disk of the member's map. False: there was one for each already."""
        held = {holding.disk.unit for holding in member.holdings}
        for number, unit in member.router.units.items():
            if unit not in held:
                disk = self._disks.of(unit)
                assert disk is not None, "who is withdrawn leaves the map first"
                self._add(member, disk, member.map.wanted[number].is_read_only)
        return len(member.holdings) > len(held)

    def _add(self, member: Member, disk: Disk, is_read_only: bool) -> Holding:
        is_read_only = is_read_only or disk.info.is_read_only
        holding = Holding(member, disk, is_read_only)
        member.holdings.append(holding)
        disk.holdings.append(holding)
        if is_read_only:
            member.nexus.write_protected.add(disk.unit)
        return holding

    def open(self, holding: Holding, done: Opened) -> None:
        """Open a volume; what it keeps of its unit is read before anybody is served."""
        member, disk, core = holding.member, holding.disk, self._core

        def opened(answer: DeviceHandle | OSError) -> None:
            if isinstance(answer, OSError):
                self._records.load(disk, lambda _: ended(None, answer))  # its unit may be seen all the same
            else:
                self._records.load(disk, lambda error: ended(answer, error))

        def ended(device: DeviceHandle | None, error: OSError | None) -> None:
            holding.is_opening = False
            if member.is_leaving:
                holding.device = device
                self.on_leaving(member)
            elif holding in member.retired:
                holding.device = device
                self.close_retired(member)
            elif device is not None and error is None:
                holding.device = member.nexus.devices[disk.unit] = device
                done(holding, None)
            else:
                assert error is not None
                if device is not None:
                    device.close(lambda _: None)
                done(holding, error)

        holding.is_opening = True
        sessions = len(disk.holdings)
        words = f"{core.settings.words}, {sessions} session{'s' if sessions != 1 else ''}"
        access = "r" if holding.is_read_only else "rw"
        core.service.open(disk.name, access, core.owner, words, opened)
        core.follow_control()

    def reopen(self, holding: Holding) -> None:
        """Get a living session its handle back."""
        self.open(holding, self._reopened)

    def _reopened(self, holding: Holding, error: OSError | None) -> None:
        disk = holding.disk
        if error is not None:
            self.try_again(holding, error.strerror or str(error))
            return
        assert holding.device is not None
        holding.is_told = False
        if disk.info.uuid != holding.device.info.uuid:
            self._disks.withdraw(disk, "another volume has its name now")
            return
        if not holding.is_needed:
            holding.is_needed = True
            disk.unit.attend(holding.member.nexus, scsi.MEDIUM_MAY_HAVE_CHANGED)  # NOT READY TO READY CHANGE
        self._disks.settle(disk)

    def try_again(self, holding: Holding, reason: str) -> None:
        """A volume of a living session can't be opened: once a second, and told once."""
        if not holding.is_told:
            logger.warning("%s: can't be opened, and is tried again: %s", holding.disk.name, reason)
        holding.is_told = True
        generation = self._core.space.generation
        self._core.clock.call_later(REOPEN_DELAY_S, lambda: self._retry(holding, generation))

    def _retry(self, holding: Holding, generation: int) -> None:
        """Once more, unless the volume server went meanwhile: then the next attachment has seen to it."""
        space = self._core.space
        is_wanted = not holding.member.is_leaving and holding in holding.member.holdings
        if is_wanted and space.pool is not None and space.generation == generation:
            self.reopen(holding)

    def forget_devices(self, member: Member) -> None:
        """The volume server is gone, or is told to close them."""
        for holding in all_of(member):
            holding.device = None
        member.nexus.devices.clear()

    def lost(self, member: Member) -> None:
        """The volume server is gone: what had left the map of a session is closed, what was to come has not come."""
        self.close_retired(member)
        for holding in list(member.holdings):
            if holding.disk.unit not in member.router.units.values():
                self._forget(holding)

    # What a map gains and loses --------------------------------------------------------------------------------

    def gain(self, member: Member, disk: Disk, is_read_only: bool, done: Callable[[OSError | None], None]) -> None:
        """A disk is to come into the map of a session: open it, before the session hears of it."""

        def opened(holding: Holding, error: OSError | None) -> None:
            if error is not None and holding in member.holdings:
                self._forget(holding)
            done(error)

        self.open(self._add(member, disk, is_read_only), opened)

    def retire(self, member: Member, disk: Disk) -> None:
        """A disk has left the map of a session: what is under way on it ends as it would have, then it is closed."""
        for holding in [holding for holding in member.holdings if holding.disk is disk]:
            member.holdings.remove(holding)
            member.retired.append(holding)
            holding.is_needed = False
            member.nexus.devices.pop(disk.unit, None)
            member.nexus.write_protected.discard(disk.unit)
        self.close_retired(member)

    def close_retired(self, member: Member) -> None:
        """Close what has left its map, as far as its tasks are done."""
        for holding in list(member.retired):
            device, session = holding.device, member.session
            if holding.is_opening:
                continue
            tasks: Iterable[Task] = () if session is None or device is None else session.tasks
            if any(task.command is not None and task.command.device is device for task in tasks):
                continue
            self._forget(holding)
            if device is not None:
                device.close(_no_matter)
                self._core.follow_control()

    def _forget(self, holding: Holding) -> None:
        """A member has nothing of the disk any more."""
        member = holding.member
        (member.retired if holding in member.retired else member.holdings).remove(holding)
        holding.disk.holdings.remove(holding)


def countdown(count: int, done: Callable[[], None]) -> Callable[[], None]:
    """Something to call ``count`` times; ``done`` is called at the last."""
    left = count

    def one() -> None:
        nonlocal left
        left -= 1
        if not left:
            done()

    return one


def all_of(member: Member) -> list[Holding]:
    """Of its map, and what has left that."""
    return [*member.holdings, *member.retired]


def devices_of(member: Member) -> list[DeviceHandle]:
    """Every handle that it has."""
    return [holding.device for holding in all_of(member) if holding.device is not None]


def _no_matter(error: OSError | None) -> None:
    """It was closed, or is gone with the volume server."""
