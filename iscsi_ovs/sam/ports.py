"""SCSI target ports and the groups they stand in, with how a group reaches its units (SPC-4 5.15, asymmetric access).

An iSCSI target port is the target's name and a portal group tag (RFC 7143 section 4.2.7.1), so a target port group has
one port here, and its number is the tag. States belong to the target device: the same for every unit behind it. Who
changes them (an operator, or an initiator where that is allowed) is not this file's to know.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class AccessState(enum.IntEnum):
    """ASYMMETRIC ACCESS STATE (SPC-4 table 263): those that can be here."""

    ACTIVE_OPTIMIZED = 0x0
    ACTIVE_NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")


class StatusCode(enum.IntEnum):
    """Why a group is in its state (SPC-4 table 264)."""

    NONE = 0x00
    SET = 0x01  # by SET TARGET PORT GROUPS
    IMPLICIT = 0x02  # by the target itself


@dataclass(slots=True, eq=False)
class PortGroup:
    """A target port group, with its one port. ``tag`` is the portal group tag."""

    tag: int
    relative_port: int
    state: AccessState = AccessState.ACTIVE_OPTIMIZED
    is_preferred: bool = False
    status: StatusCode = StatusCode.NONE

    @property
    def is_restricted(self) -> bool:
        """The medium is not reached through this group."""
        return self.state >= AccessState.STANDBY


class TargetPorts:
    """The ports of a target device. ``can_set``: initiators may change states (explicit, beside implicit, changes)."""

    def __init__(self, name: str, groups: Iterable[PortGroup], *, can_set: bool = False) -> None:
        self.name = name
        self.can_set = can_set
        self.groups = {group.tag: group for group in sorted(groups, key=lambda group: group.tag)}
        self.nexuses: dict[int, Any] = {}  # every scsi.Nexus through one of these ports, by id(); by TaskRouter

    def port_name(self, group: PortGroup) -> str:
        """The SCSI name string of a port."""
        return f"{self.name},t,0x{group.tag:04x}"
