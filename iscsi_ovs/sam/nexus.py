"""An I_T nexus, and what units keep of it (SAM-5 4.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iscsi_ovs import block
from iscsi_ovs.sam.ports import PortGroup, TargetPorts

if TYPE_CHECKING:
    from iscsi_ovs.sam.router import TaskRouter
    from iscsi_ovs.sam.unit import LogicalUnit


@dataclass(slots=True)
class Nexus:
    """An I_T nexus: one initiator port talking to one target port, for as long as its session lives.

    Its state is kept by unit, not by LUN: one unit may stand under several numbers, in one LUN map each.
    """

    initiator_name: str
    isid: bytes
    target_name: str
    portal_group_tag: int
    relative_port: int = 1
    router: TaskRouter | None = None  # the LUN map that it sees; set by TaskRouter.establish
    devices: dict[LogicalUnit, block.Device] = field(default_factory=dict)  # while the session holds them
    write_protected: set[LogicalUnit] = field(default_factory=set)  # by its LUN map: others may write there
    # pending unit attentions (ASC, ASCQ), first in first out; filled by LogicalUnit.establish
    attentions: dict[LogicalUnit, list[tuple[int, int]]] = field(default_factory=dict)
    # what became of its EXTENDED COPYs, by list identifier (commands.xcopy)
    copies: dict[tuple[LogicalUnit, int], Any] = field(default_factory=dict)
    ports: TargetPorts = field(default_factory=lambda: TargetPorts("", ()))  # of its target; not told: this one only
    port_group: PortGroup = field(init=False)  # where it comes in

    def __post_init__(self) -> None:
        if self.portal_group_tag not in self.ports.groups:
            self.ports = TargetPorts(self.target_name, [PortGroup(self.portal_group_tag, self.relative_port)])
        self.port_group = self.ports.groups[self.portal_group_tag]

    @property
    def name(self) -> tuple[str, bytes, str, int]:
        """The two ports by name: what is the same when a session comes back."""
        return self.initiator_name, self.isid, self.target_name, self.portal_group_tag
