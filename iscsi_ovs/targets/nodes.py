"""Nodes: the iSCSI names that can be logged in to, with who gets in where, and the LUN maps behind them
(RFC 7143 section 4.1).

They are those of the configuration. Without one each volume is a node of its own: its name is the prefix and the
volume's name, LUN 0 is the disk; it comes and goes with its volume, and its sessions end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from iscsi_ovs import scsi
from iscsi_ovs.config import sections
from iscsi_ovs.config.configuration import Lun, Target, is_among
from iscsi_ovs.config.configuration import LunMap as WantedMap
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disk, Disks
from iscsi_ovs.targets.maps import LunMap, Maps
from iscsi_ovs.targets.members import Member, Members

logger = logging.getLogger("iscsi_ovs.target")


@dataclass(slots=True, eq=False)
class Node:
    """An iSCSI target. ``wanted`` is what the configuration says of it."""

    wanted: Target
    maps: list[LunMap]
    members: list[Member] = field(default_factory=list)

    @property
    def iqn(self) -> str:
        return self.wanted.iqn

    def map_for(self, initiator_name: str) -> LunMap:
        """What an initiator sees: the first map that names it, else the one for everybody."""
        named = (lun_map for lun_map in self.maps if is_among(initiator_name, lun_map.initiators))
        return next(named, self.maps[-1])

    @property
    def router(self) -> scsi.TaskRouter:
        """The LUN map for everybody: the LUNs that are there."""
        return self.maps[-1].router


class Nodes:
    """Every node of this process, by name."""

    def __init__(self, core: Core, disks: Disks, members: Members) -> None:
        self._core = core
        self._disks = disks
        self._members = members
        self._maps = Maps(core, disks, members)
        self._by_iqn: dict[str, Node] = {}
        self._is_automatic = True  # each volume is a node
        self.on_served: Callable[[Node], None] | None = None  # a node can be logged in to, from now on
        disks.on_served = self._disk_served
        disks.on_withdrawn = self._disk_withdrawn

    def __iter__(self) -> Iterator[Node]:
        """In the order of their names."""
        return iter([self._by_iqn[iqn] for iqn in sorted(self._by_iqn)])

    def find(self, iqn: str) -> Node | None:
        return self._by_iqn.get(iqn)

    def tell_served(self) -> None:
        """Logins are accepted from now on: tell of what is there."""
        for node in self:
            self._tell_served(node)

    def _tell_served(self, node: Node) -> None:
        if self._core.is_known and self.on_served is not None:
            self.on_served(node)

    # Nodes of a configuration ----------------------------------------------------------------------------------

    def configure(self, targets: Mapping[str, Target]) -> None:
        """Before the volume server is looked for: these, and no others."""
        self._is_automatic = False
        personalities = {
            lun.volume: lun.personality
            for target in targets.values()
            for wanted in target.maps
            for lun in wanted.luns.values()
        }
        self._disks.personality = lambda volume: personalities.get(volume, scsi.Personality())
        for target in targets.values():
            self._serve(target)

    def _serve(self, target: Target) -> None:
        node = Node(target, [LunMap(wanted.luns, wanted.initiators) for wanted in target.maps])
        self._by_iqn[target.iqn] = node
        for lun_map in node.maps:
            self._maps.fill(node, lun_map)
        self._tell_served(node)

    def _withdraw(self, node: Node, reason: str) -> None:
        del self._by_iqn[node.iqn]
        node.maps = []  # nothing comes into them any more
        logger.info("%s is not served any more: %s", node.iqn, reason)
        self._members.drop(node.members, reason)

    # Volumes come and go ---------------------------------------------------------------------------------------

    def _disk_served(self, disk: Disk) -> None:
        if self._is_automatic:
            iqn = self._core.settings.iqn(disk.name)
            logger.info("serving %s (%d bytes) as %s", disk.name, disk.info.size_bytes, iqn)
            self._serve(Target(iqn, (sections.DEFAULT_PORTAL_GROUP,), (WantedMap({0: Lun(disk.name)}),)))
            return
        for node in self:
            for lun_map in node.maps:
                for number, lun in lun_map.wanted.items():
                    if lun.volume == disk.name:
                        self._maps.offer(node, lun_map, number)

    def _disk_withdrawn(self, disk: Disk, reason: str) -> None:
        for node in [node for node in self if any(disk.unit in found.router.units.values() for found in node.maps)]:
            if self._is_automatic:
                self._withdraw(node, reason)
            else:
                self._maps.withdraw_disk(node, disk)
