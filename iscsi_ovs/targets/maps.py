"""LUN maps: what some initiators see of a node, as the configuration wants it and as it is.

A LUN whose volume is not there is not in the map; it comes when the volume does. A LUN that comes into the map of
living sessions is opened for each of them first: not before can they see it, and hear REPORTED LUNS DATA HAS CHANGED.
One that goes is out of the map at once; what is under way on it ends as it would have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iscsi_ovs import scsi
from iscsi_ovs.commands import COMMAND_SET
from iscsi_ovs.config.configuration import Lun
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disk, Disks

if TYPE_CHECKING:
    from iscsi_ovs.targets.holdings import Holdings
    from iscsi_ovs.targets.members import Member, Members
    from iscsi_ovs.targets.nodes import Node

logger = logging.getLogger("iscsi_ovs.target")

RETRY_DELAY_S = 1.0


@dataclass(slots=True, eq=False)
class LunMap:
    """LUNs by number: ``wanted`` by the configuration, ``router`` has those that are there."""

    wanted: Mapping[int, Lun]
    initiators: tuple[str, ...] = ()  # empty: for whoever no other map of the node is
    router: scsi.TaskRouter = field(default_factory=lambda: scsi.TaskRouter(COMMAND_SET))
    waiting: set[int] = field(default_factory=set)  # LUNs that are looked at again a moment later
    told: set[int] = field(default_factory=set)  # … of which the log says why they are not there


class Maps:
    """Changes of LUN maps, under living sessions or without any."""

    def __init__(self, core: Core, disks: Disks, members: Members, holdings: Holdings) -> None:
        self._core = core
        self._disks = disks
        self._members = members
        self._holdings = holdings

    def fill(self, node: Node, lun_map: LunMap) -> None:
        """Every LUN that is wanted, and whose volume is there."""
        for number in lun_map.wanted:
            self.offer(node, lun_map, number)

    def offer(self, node: Node, lun_map: LunMap, number: int) -> None:
        """Put a LUN into the map, as soon as every session that has the map has opened its volume."""
        lun = lun_map.wanted.get(number)
        disk = None if lun is None else self._disks.named(lun.volume)
        if lun is None or disk is None or number in lun_map.router.units or lun_map not in node.maps:
            return

        def opened(error: OSError | None) -> None:
            if error is None:
                self.offer(node, lun_map, number)
            elif number not in lun_map.told:
                lun_map.told.add(number)
                logger.warning("%s: LUN %d is not there yet: %s", node.iqn, number, error.strerror or error)

        living = self._living(node, lun_map)
        is_there = self._core.space.pool is not None  # the volume server
        is_complete = is_there or not living
        for member in living if is_there else ():
            holding = next((holding for holding in member.holdings if holding.disk is disk), None)
            if holding is None or holding.device is None:
                is_complete = False
            if holding is None:
                self._holdings.gain(member, disk, lun.is_read_only, opened)
        if is_complete:
            self._add(node, lun_map, number, disk)
        else:  # whatever becomes of the sessions that it waits for
            self._offer_later(node, lun_map, number)

    def _offer_later(self, node: Node, lun_map: LunMap, number: int) -> None:
        if number in lun_map.waiting:
            return
        lun_map.waiting.add(number)

        def again() -> None:
            lun_map.waiting.discard(number)
            self.offer(node, lun_map, number)

        self._core.clock.call_later(RETRY_DELAY_S, again)

    def _add(self, node: Node, lun_map: LunMap, number: int, disk: Disk) -> None:
        lun_map.told.discard(number)
        lun_map.router.add(number, disk.unit)
        for member in self._living(node, lun_map):
            for holding in member.holdings:
                holding.is_needed = holding.is_needed or holding.disk is disk
        logger.info("%s: LUN %d is %s (%d bytes)", node.iqn, number, disk.name, disk.info.size_bytes)

    def withdraw(self, node: Node, lun_map: LunMap, number: int) -> None:
        """A LUN is not wanted any more: take it out of the map, or give up what was to come into it."""
        disk = self._disks.named(lun_map.wanted[number].volume)
        if disk is not None:
            self._take_out(node, lun_map, disk)

    def withdraw_disk(self, node: Node, disk: Disk) -> None:
        """Take a disk out of all maps of a node."""
        for lun_map in node.maps:
            self._take_out(node, lun_map, disk)

    def _take_out(self, node: Node, lun_map: LunMap, disk: Disk) -> None:
        for number, unit in list(lun_map.router.units.items()):
            if unit is disk.unit:
                lun_map.router.remove(number)
                logger.info("%s: LUN %d is gone", node.iqn, number)
        for member in [member for member in node.members if member.map is lun_map and not member.is_leaving]:
            if any(holding.disk is disk for holding in member.holdings):
                self._members.lose(member, disk)

    def _living(self, node: Node, lun_map: LunMap) -> list[Member]:
        """Sessions that see the map. Logins under way look at it when they are let in."""
        return [
            member
            for member in node.members
            if member.map is lun_map and member.session is not None and not member.is_leaving
        ]
