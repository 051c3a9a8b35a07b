"""What a connection may ask of the target that it has reached: which targets there are for it, and how it gets in.

One for each connection: it knows where the initiator came in, and from where. Checks come in this order: is the target
there, at this portal → may this initiator (02/02) → is it to go elsewhere (01/01) → how must it prove itself.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from iscsi_ovs import pdu
from iscsi_ovs.config.configuration import PortalGroup
from iscsi_ovs.errors import LoginError, RedirectError
from iscsi_ovs.login.policy import Policy
from iscsi_ovs.net import portal
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.targets.core import AUTHORIZATION_FAILURE, NOT_FOUND, SERVICE_UNAVAILABLE, TOO_MANY_CONNECTIONS, Core
from iscsi_ovs.targets.nodes import Node, Nodes
from iscsi_ovs.targets.portals import Portals


class Reception:
    """The surroundings of one connection (session.connection.Surroundings)."""

    def __init__(self, core: Core, nodes: Nodes, portals: Portals, at: Address, peer: str) -> None:
        self._core = core
        self._nodes = nodes
        self._portals = portals
        self._at = at
        self._host = portal.parse(peer).host
        self._came_in = portals.group_at(at)
        self._initiator_name = ""
        self.space = core.space
        self.output_ready = core.driver.output_ready
        self.random_bytes = secrets.token_bytes

    @property
    def tag(self) -> int:
        """The tag of the portal group where the connection came in; it has it for life."""
        return 0 if self._came_in is None else self._came_in.tag

    def _group(self) -> PortalGroup | None:
        """That group as it is now. One that has its tag since is another one: nobody came in there."""
        if self._came_in is None:
            return None
        group = self._portals.groups.get(self._came_in.name)
        return group if group is not None and group.tag == self._came_in.tag else None

    @property
    def host(self) -> str:
        """Where the initiator is."""
        return self._host

    def targets(self, connection: Connection) -> Sequence[tuple[str, Sequence[str]]]:
        """SendTargets: who is let in here is told of all portals of the target."""
        group = self._group()
        if group is None:
            return []
        return [
            (node.iqn, self._portals.told(node.wanted.groups, self._at, connection.local))
            for node in self._nodes
            if group.name in node.wanted.groups and self._is_welcome(node)
        ]

    def check_target(self, name: str) -> None:
        """Is it there, at this portal?"""
        if self._core.is_stopping:
            raise LoginError(*SERVICE_UNAVAILABLE, "the target stops")
        if not self._core.is_known:
            # Not "not found": Linux gives a session up for that, and this one may have outlived our predecessor.
            raise LoginError(*SERVICE_UNAVAILABLE, "the volume server was not reached yet")
        group = self._group()
        node = self._nodes.find(name)
        if node is None or group is None or group.name not in node.wanted.groups:
            raise LoginError(*NOT_FOUND, f"no target {name!r}")

    def check_session(self, request: pdu.LoginRequest) -> bool:
        """Is there such a session? Only its one connection (the same CID) may be named anew: MaxConnections is 1."""
        sessions = (member.session for node in self._nodes for member in node.members)
        session = next((each for each in sessions if each is not None and each.tsih == request.tsih), None)
        if session is None or session.parameters.isid != request.isid:
            return False
        if session.parameters.cid != request.cid:
            raise LoginError(*TOO_MANY_CONNECTIONS, f"session {request.tsih:#06x} has its one connection")
        return True

    def policy(self, initiator_name: str, target_name: str | None) -> Policy:
        """May this initiator log in here, and how must it prove itself? Raises LoginError."""
        self._initiator_name = initiator_name
        group = self._group()
        if target_name is None:
            if group is None or group.discovery is None:
                raise LoginError(*AUTHORIZATION_FAILURE, f"{initiator_name} may not discover here")
            return group.discovery
        node = self._nodes.find(target_name)
        assert node is not None, "check_target comes first"
        if not self._is_welcome(node):
            raise LoginError(*AUTHORIZATION_FAILURE, f"{initiator_name} at {self._host} may not log in to {node.iqn}")
        elsewhere = node.wanted.redirect or (group.redirect if group is not None else None)
        if elsewhere is not None:
            raise RedirectError(str(elsewhere), f"{initiator_name} is sent to {elsewhere}")
        assert node.wanted.policy is not None
        return node.wanted.policy

    def _is_welcome(self, node: Node) -> bool:
        return node.wanted.policy is not None and node.wanted.access.allows(self._initiator_name, self._host)
