"""Nodes: the iSCSI names that can be logged in to, with who gets in where, and the LUN maps behind them
(RFC 7143 section 4.1).

They are those of the configuration. Without one each volume is a node of its own: its name is the prefix and the
volume's name, LUN 0 is the disk; it comes and goes with its volume, and its sessions end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from iscsi_ovs import scsi
from iscsi_ovs.commands import alua
from iscsi_ovs.config import sections
from iscsi_ovs.config.configuration import Lun, PortalGroup, Target, is_among
from iscsi_ovs.config.configuration import LunMap as WantedMap
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disk, Disks
from iscsi_ovs.targets.holdings import Holdings
from iscsi_ovs.targets.maps import LunMap, Maps
from iscsi_ovs.targets.members import Member, Members

logger = logging.getLogger("iscsi_ovs.target")


@dataclass(slots=True, eq=False)
class Node:
    """An iSCSI target. ``wanted`` is what the configuration says of it; ``ports`` are its portal groups."""

    wanted: Target
    maps: list[LunMap]
    ports: scsi.TargetPorts
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

    def __init__(self, core: Core, disks: Disks, members: Members, holdings: Holdings) -> None:
        self._core = core
        self._disks = disks
        self._members = members
        self._maps = Maps(core, disks, members, holdings)
        self._by_iqn: dict[str, Node] = {}
        self._is_automatic = True  # each volume is a node
        self._groups: Mapping[str, PortalGroup] = {}
        self._personalities: dict[str, scsi.Personality] = {}  # by volume
        self.on_served: Callable[[Node], None] | None = None  # a node can be logged in to, from now on
        disks.personality = lambda volume: self._personalities.get(volume, scsi.Personality())
        disks.on_served = self._disk_served
        disks.on_withdrawn = self._disk_withdrawn

    def __iter__(self) -> Iterator[Node]:
        """In the order of their names."""
        return iter([self._by_iqn[iqn] for iqn in sorted(self._by_iqn)])

    def find(self, iqn: str) -> Node | None:
        return self._by_iqn.get(iqn)

    def may_reset(self, nexus: scsi.Nexus) -> bool:
        """May it ask for TARGET WARM RESET and TARGET COLD RESET?"""
        node = self._by_iqn.get(nexus.target_name)
        return node is not None and node.wanted.access.allows_target_reset

    def tell_served(self) -> None:
        """Logins are accepted from now on: tell of what is there."""
        for node in self:
            self._tell_served(node)

    def _tell_served(self, node: Node) -> None:
        if self._core.is_known and self.on_served is not None:
            self.on_served(node)

    # Nodes of a configuration ----------------------------------------------------------------------------------

    def configure(self, targets: Mapping[str, Target], groups: Mapping[str, PortalGroup]) -> list[str]:
        """These nodes from now on, and no others. Returns what is different, for people.

        Sessions are touched only where what they have is gone: their target, their portal group, their right to be
        there, or the LUN map that was theirs.
        """
        self._is_automatic = False
        old_groups, self._groups = self._groups, groups
        changes: list[str] = []
        for node in [node for node in self if node.iqn not in targets]:
            self._withdraw(node, "it is not configured any more")
            changes.append(f"target {node.iqn} removed")
        self._personalities = _personalities(targets)
        for volume, personality in self._personalities.items():
            disk = self._disks.named(volume)
            if disk is not None and disk.unit.personality != personality:
                self._disks.renew(disk, "it is another kind of disk now")
                changes.append(f"volume {volume} is another kind of disk now")
        for target in targets.values():
            known = self._by_iqn.get(target.iqn)
            if known is None:
                self._serve(target)
                changes.append(f"target {target.iqn} added")
            elif known.wanted != target:
                changes += self._change(known, target)
            if known is not None:
                changes += self._set_ports(known, old_groups)
        return changes

    def _set_ports(self, node: Node, old_groups: Mapping[str, PortalGroup]) -> list[str]:
        """A node's portal groups are others, or have another access state: its initiators hear of that. What they have
        set themselves stays, where the configuration says nothing new."""
        ports, changes = node.ports, []
        was = ports.can_set, list(ports.groups)
        ports.can_set = node.wanted.may_set_access
        states: dict[int, scsi.AccessState] = {}
        known, ports.groups = ports.groups, {}
        for group in sorted((self._groups[name] for name in node.wanted.groups), key=lambda group: group.tag):
            old = old_groups.get(group.name)
            port_group = ports.groups[group.tag] = known.get(group.tag) or _port_group(group)
            port_group.is_preferred = group.is_preferred
            if old is not None and old.access is not group.access and port_group.state is not group.access:
                states[group.tag] = group.access
                changes.append(f"portal group {group.name} of {node.iqn} is {group.access.words} now")
        alua.change(ports, states, scsi.StatusCode.IMPLICIT)
        if was != (ports.can_set, list(ports.groups)):  # TPGS, MULTIP, VPD page 88
            alua.tell(ports, scsi.INQUIRY_DATA_HAS_CHANGED)
        return changes

    def _change(self, node: Node, target: Target) -> list[str]:
        """A node is to be different: its sessions first, then its LUNs."""
        node.wanted = target
        node.maps = _maps_for(target.maps, node.maps)
        changes = [f"target {node.iqn} changed"]
        for member in list(node.members):
            reason = None if member.is_leaving else self._objection(node, member)
            if reason is not None:
                changes.append(f"session of {member.nexus.initiator_name} with {node.iqn} ended: {reason}")
                self._members.drop([member], reason)
        for lun_map, wanted in zip(node.maps, target.maps, strict=True):
            for number, lun in lun_map.wanted.items():
                if not _is_same(lun, wanted.luns.get(number)):
                    self._maps.withdraw(node, lun_map, number)
                    changes.append(f"LUN {number} of {node.iqn} removed: {lun.volume}")
            added = [number for number, lun in wanted.luns.items() if not _is_same(lun, lun_map.wanted.get(number))]
            lun_map.wanted = wanted.luns
            self._maps.fill(node, lun_map)
            changes += [f"LUN {number} of {node.iqn} added: {wanted.luns[number].volume}" for number in added]
        return changes

    def _objection(self, node: Node, member: Member) -> str | None:
        """Why a session can't stay as it is."""
        nexus, wanted = member.nexus, node.wanted
        groups = [self._groups[name] for name in wanted.groups]
        if nexus.portal_group_tag not in [group.tag for group in groups]:
            return "the target is not there any more at its portal group"
        if wanted.policy is None or not wanted.access.allows(nexus.initiator_name, member.host):
            return "it is not allowed any more"
        if node.map_for(nexus.initiator_name) is not member.map:
            return "it has another LUN map now"
        return None

    def _serve(self, target: Target) -> None:
        groups = [_port_group(self._groups[name]) for name in target.groups if name in self._groups]
        if self._is_automatic:
            groups = [scsi.PortGroup(1, 1)]
        ports = scsi.TargetPorts(target.iqn, groups, can_set=target.may_set_access)
        node = Node(target, [LunMap(wanted.luns, wanted.initiators) for wanted in target.maps], ports)
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
            lun = Lun(disk.name, disk.unit.personality, disk.info.is_read_only)
            self._serve(Target(iqn, (sections.DEFAULT_PORTAL_GROUP,), (WantedMap({0: lun}),)))
            return
        for node in self:
            for lun_map in node.maps:
                for number, lun in lun_map.wanted.items():
                    if lun.volume == disk.name:
                        self._maps.offer(node, lun_map, number)

    def _disk_withdrawn(self, disk: Disk, reason: str) -> None:
        for node in self:
            if not self._is_automatic:
                self._maps.withdraw_disk(node, disk)
            elif disk.unit in node.router.units.values():
                self._withdraw(node, reason)


def _port_group(group: PortalGroup) -> scsi.PortGroup:
    """The tag is the target port group's number, and, there being one port in each, that port's."""
    return scsi.PortGroup(group.tag, group.tag, group.access, group.is_preferred)


def _maps_for(wanted: Sequence[WantedMap], known: Sequence[LunMap]) -> list[LunMap]:
    """The known maps, as those that are wanted now: a map stays one where an initiator of it stays, so that others may
    come to it and go. The last one, for everybody, is always the same."""
    left = list(known[:-1])
    maps: list[LunMap] = []
    for each in wanted[:-1]:
        same = next((old for old in left if old.initiators == each.initiators), None)
        same = same or next((old for old in left if not set(old.initiators).isdisjoint(each.initiators)), None)
        if same is None:
            maps.append(LunMap({}, each.initiators))
        else:
            left.remove(same)
            same.initiators = each.initiators
            maps.append(same)
    return [*maps, known[-1]]


def _personalities(targets: Mapping[str, Target]) -> dict[str, scsi.Personality]:
    """What kind of disk each volume is; the configuration sees to it that each is one."""
    return {
        lun.volume: lun.personality
        for target in targets.values()
        for wanted in target.maps
        for lun in wanted.luns.values()
    }


def _is_same(lun: Lun, other: Lun | None) -> bool:
    """The same volume, to be used in the same way; what kind of disk it is, is the disk's."""
    return other is not None and (lun.volume, lun.is_read_only) == (other.volume, other.is_read_only)
