"""What all rooms of a target process share: settings, the volume server's client, the clock, the slots, the loop."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from iscsi_ovs.config.sections import DEFAULT_IQN_PREFIX
from iscsi_ovs.net.clock import Clock
from iscsi_ovs.net.driver import Driver
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.session.space import Space
from iscsi_ovs.shm_client import Service
from shm_server.abi import names

# Login statuses (RFC 7143 section 11.13.5)
NOT_FOUND = (0x02, 0x03)
AUTHORIZATION_FAILURE = (0x02, 0x02)
TOO_MANY_CONNECTIONS = (0x02, 0x06)
SESSION_DOES_NOT_EXIST = (0x02, 0x0A)
SERVICE_UNAVAILABLE = (0x03, 0x01)
OUT_OF_RESOURCES = (0x03, 0x02)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose. ``advertise`` replaces the address that SendTargets reports."""

    iqn_prefix: str = DEFAULT_IQN_PREFIX
    instance: str = ""
    snapshots: tuple[str, ...] = ()  # VOLUME@SNAPSHOT: targets of their own, beside those of the volumes
    advertise: Address | None = None
    words: str = "iscsi target"  # what others are told who want a volume that we hold
    timing: Timing = field(default_factory=Timing)
    drain_s: float = 3.0  # how long initiators have to log out when the target stops

    def iqn(self, volume: str) -> str:
        """The iSCSI name of a volume's target; of a snapshot's, with a colon, which no volume's name has, for the @."""
        between = f"{self.instance}." if self.instance else ""
        return f"{self.iqn_prefix}:{between}{volume.replace(names.SEPARATOR, ':')}"


class Core:
    """One target process."""

    driver: Driver  # it knows its owner, who makes it
    happened: Callable[[Connection, list[events.Event]], None]  # what a connection tells, wherever it was made to

    def __init__(self, service: Service, clock: Clock, settings: Settings) -> None:
        self.service = service
        self.clock = clock
        self.settings = settings
        self.space = Space()
        self.owner = f"iscsi-{secrets.token_hex(8)}"  # all our handles share one writer's right (CONTRACTS 5)
        self.is_known = False  # what there is to serve: attached once
        self.is_stopping = False  # nobody is let in any more
        self.control_fd = -1  # of the volume server, while it is watched

    def follow_control(self) -> None:
        """Watch for what the control socket needs now."""
        if self.control_fd >= 0:
            self.driver.rewatch(self.control_fd, 5 if self.service.wants_write else 1)  # EPOLLIN | EPOLLOUT

    def drop(self, connection: Connection, reason: str) -> None:
        """End a connection of ours."""
        told = connection.drop(reason)
        self.driver.closing(connection)
        self.happened(connection, told)

    def refuse(self, connection: Connection, status: tuple[int, int], reason: str) -> None:
        """Refuse a login that is through but for our word."""
        told = connection.refuse(*status, reason)
        self.driver.closing(connection)
        self.happened(connection, told)
