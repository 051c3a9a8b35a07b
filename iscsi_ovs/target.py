"""The target assembled: the rooms of ``iscsi_ovs.targets`` around one loop, and what a connection asks of them.

Each volume is a target of its own: its IQN is the prefix and its name, LUN 0 is the disk. A session opens its volume at
login and closes it after its last task (CONTRACTS 5); handles of all sessions share one owner token, so they share one
writer's right. This file opens no socket: net.driver and storage.service are handed in.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

from iscsi_ovs import scsi
from iscsi_ovs.config.configuration import Configuration
from iscsi_ovs.config.sections import DEFAULT_IQN_PREFIX
from iscsi_ovs.net.clock import Clock
from iscsi_ovs.net.driver import Driver
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.shm_client import Service
from iscsi_ovs.targets.commands import Commands
from iscsi_ovs.targets.core import (
    NOT_FOUND,
    Core,
    Settings,
)
from iscsi_ovs.targets.disks import Disks
from iscsi_ovs.targets.holdings import Holdings
from iscsi_ovs.targets.members import Members
from iscsi_ovs.targets.nodes import Node, Nodes
from iscsi_ovs.targets.ordering import Ordering
from iscsi_ovs.targets.portals import Portals
from iscsi_ovs.targets.reception import Reception
from iscsi_ovs.targets.records import Records
from iscsi_ovs.targets.resets import Resets
from iscsi_ovs.targets.sanitizing import Sanitizing
from iscsi_ovs.targets.shutdown import Shutdown
from iscsi_ovs.targets.snapshots import Snapshots
from iscsi_ovs.targets.usage import Usage
from iscsi_ovs.targets.volume_server import VolumeServer

__all__ = ["DEFAULT_IQN_PREFIX", "Settings", "TargetServer", "assemble"]

logger = logging.getLogger("iscsi_ovs.target")


class TargetServer:
    """All targets of one process."""

    def __init__(self, service: Service, clock: Clock, settings: Settings | None = None) -> None:
        self.core = core = Core(service, clock, settings or Settings())
        core.driver = Driver(self, service, clock)
        core.happened = self.happened
        self.space = core.space
        self.timing = core.settings.timing  # of the connections that come from now on
        self._portals = Portals(core)
        self.disks = Disks(core)
        commands = Commands(core.space)
        records = Records(core, self.disks, commands)
        holdings = Holdings(core, self.disks, records)
        self.members = Members(core, self.disks, holdings)
        self.nodes = Nodes(core, self.disks, self.members, holdings)
        self.resets = Resets(self.disks, self.members, commands)
        self.resets.may_reset_target = self.nodes.may_reset
        self.shutdown = Shutdown(core, self.members, self.stop)
        sanitizing = Sanitizing(core, self.disks, commands)
        Usage(core, self.disks, commands)
        self.snapshots = Snapshots(core, self.disks)
        self.snapshots.want(core.settings.snapshots)
        self.volume_server = VolumeServer(core, self.disks, self.snapshots, self.members, records, sanitizing)
        self.ordering = Ordering(core, self.disks, commands, self._reroute)
        self._execute: Callable[[scsi.Command], None] = commands.execute  # bound once: on the path of every command

    # Running ---------------------------------------------------------------------------------------------------

    def listen(self, address: Address, inherited_fd: int | None = None) -> None:
        """Accept connections on a portal; ``inherited_fd`` is a socket that listens there already."""
        self._portals.add(address, inherited_fd)

    @property
    def portals(self) -> list[Address]:
        """Where connections are accepted."""
        return self._portals.addresses

    def urls_of(self, node: Node) -> list[str]:
        """A node's LUNs as initiators in user space name them."""
        portal = self._portals.first_of(node.wanted.groups)
        return [f"iscsi://{portal}/{node.iqn}/{lun}" for lun in sorted(node.router.units)]

    def configure(self, configuration: Configuration) -> list[str]:
        """Serve this from now on; what is different is applied to living sessions. Returns it, for people.

        Raises ConfigurationError where a portal can't be had: then all is as before.
        """
        changes = self._portals.configure(configuration.groups)
        changes += self.nodes.configure(configuration.targets, configuration.groups)
        self.snapshots.want(configuration.volumes)
        self.members.limit = configuration.max_sessions
        self.timing = configuration.timing
        for warning in configuration.warnings:
            logger.warning("%s", warning)
        return changes

    def run(self) -> None:
        """Serve until stop(), or until the volume server refuses us for good before we ever served (``refusal``)."""
        # Nothing on the path of a command makes cycles: the collector may look seldom, and not at what stays anyway.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        driver = self.core.driver
        self.volume_server.connect()
        driver.run()
        driver.close()
        self.volume_server.leave()

    def stop(self) -> None:
        """End run() (from a signal handler, for one)."""
        self.core.driver.stop()

    def shut_down(self) -> None:
        """End run() in good order: ask initiators to log out, then stop (from a signal handler, for one)."""
        self.call_soon(self.shutdown.begin)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call back in the loop (from a signal handler, for one)."""
        self.core.clock.call_later(0.0, callback)
        self.core.driver.wake()

    @property
    def refusal(self) -> OSError | None:
        """Why run() ended, where the volume server will never have us."""
        return self.volume_server.refusal

    # What happens on connections -------------------------------------------------------------------------------

    def connected(self, peer: str, local: Address, now: float, at: Address) -> Connection:
        """A TCP connection was accepted ``at`` a portal."""
        reception = Reception(self.core, self.nodes, self._portals, at, peer)
        connection = Connection(reception, reception.tag, now, peer, self.timing)
        connection.local = local
        connection.on_log = lambda message: logger.warning("%s: %s", peer, message)
        return connection

    def happened(self, connection: Connection, told: list[events.Event]) -> None:
        """Act on a connection's events, in order."""
        for event in told:
            if type(event) is scsi.Command:
                self._execute(event)
            elif isinstance(event, events.LoginOpened):
                self._login_opened(connection, event)
            elif isinstance(event, events.OrderedCommandAdmitted):
                self.ordering.admitted(event.command)
            elif isinstance(event, events.TaskManagementRequested):
                self.resets.requested(event)
            elif isinstance(event, events.TaskManagementOverdue):
                self.resets.overdue(event)
            elif isinstance(event, events.SessionClosed):
                self.members.session_closed(event)
            elif isinstance(event, events.ConnectionClosed):
                self._connection_closed(connection, event)

    def turn(self) -> bool:
        """In each turn of the loop, after completions and after sending: who waits for slots has a chance."""
        has_waiters = self.space.has_waiters
        if has_waiters:
            self.space.serve()
        if self.ordering.sets:
            self.ordering.serve()
        return has_waiters

    def tick(self, now: float) -> None:
        """Once a second."""
        self.members.tick()

    def _reroute(self, execute: Callable[[scsi.Command], None]) -> None:
        """Commands are executed so, from now on."""
        self._execute = execute

    def _login_opened(self, connection: Connection, event: events.LoginOpened) -> None:
        if event.parameters.is_discovery:
            self.members.login_discovery(connection, event)
            return
        node = self.nodes.find(event.parameters.target_name or "")
        if node is None:
            self.happened(connection, connection.refuse(*NOT_FOUND, "the target has gone"))
            return
        self.members.login(connection, event, node)

    def _connection_closed(self, connection: Connection, event: events.ConnectionClosed) -> None:
        self.members.forget_pending(connection)
        level = logging.WARNING if event.is_error else logging.INFO
        logger.log(level, "%s: closed: %s", connection.name, event.reason)


def assemble(
    service: Service,
    settings: Settings,
    on_ready: Callable[[TargetServer], None],
    on_served: Callable[[TargetServer, Node], None],
) -> TargetServer:
    """A target on a volume server. ``on_ready``: logins are accepted; ``on_served``: a node is there, from then on."""
    target = TargetServer(service, Clock(), settings)

    def ready() -> None:
        target.nodes.tell_served()
        on_ready(target)

    target.volume_server.on_ready = ready
    target.nodes.on_served = lambda node: on_served(target, node)
    return target
