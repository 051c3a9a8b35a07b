"""Nodes: the iSCSI names that can be logged in to, and the LUN map behind each (RFC 7143 section 4.1).

Each volume is a node of its own: its name is the prefix and the volume's name, LUN 0 is the disk. A node goes with its
volume, and its sessions end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from iscsi_ovs import scsi
from iscsi_ovs.commands import COMMAND_SET
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disk, Disks
from iscsi_ovs.targets.members import Member, Members

logger = logging.getLogger("iscsi_ovs.target")


@dataclass(slots=True, eq=False)
class Node:
    """An iSCSI target."""

    iqn: str
    router: scsi.TaskRouter
    members: list[Member] = field(default_factory=list)


class Nodes:
    """Every node of this process, by name."""

    def __init__(self, core: Core, disks: Disks, members: Members) -> None:
        self._core = core
        self._members = members
        self._by_iqn: dict[str, Node] = {}
        self.on_served: Callable[[str], None] | None = None  # an IQN can be logged in to, from now on
        disks.on_served = self._disk_served
        disks.on_withdrawn = self._disk_withdrawn

    def find(self, iqn: str) -> Node | None:
        return self._by_iqn.get(iqn)

    def names(self) -> list[str]:
        return sorted(self._by_iqn)

    def tell_served(self) -> None:
        """Logins are accepted from now on: tell of what is there."""
        for iqn in self.names():
            self._tell_served(iqn)

    def _tell_served(self, iqn: str) -> None:
        if self.on_served is not None:
            self.on_served(iqn)

    def _disk_served(self, disk: Disk) -> None:
        iqn = self._core.settings.iqn(disk.name)
        self._by_iqn[iqn] = Node(iqn, scsi.TaskRouter(COMMAND_SET, {0: disk.unit}))
        logger.info("serving %s (%d bytes) as %s", disk.name, disk.info.size_bytes, iqn)
        if self._core.is_known:
            self._tell_served(iqn)

    def _disk_withdrawn(self, disk: Disk, reason: str) -> None:
        iqn = self._core.settings.iqn(disk.name)
        node = self._by_iqn.get(iqn)
        if node is not None and disk.unit in node.router.units.values():
            del self._by_iqn[iqn]
            logger.info("%s is not served any more: %s", iqn, reason)
            self._members.drop(node.members, reason)
