"""Members: sessions, from their admission until nothing of them can reach a volume any more.

A login that is through names its initiator port. Whoever had that port before is ended first (RFC 7143 section 6.3.5),
and whatever the volume server still has of sessions that are over is waited for; then every volume of the node's LUN
map is opened (targets.holdings), and only then is the login let in. A session's end fences its handles and nobody
else's; they are closed after its last task (CONTRACTS 2 and 5).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iscsi_ovs import scsi
from iscsi_ovs.net import portal
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.session.session import Session
from iscsi_ovs.targets.core import OUT_OF_RESOURCES, SERVICE_UNAVAILABLE, SESSION_DOES_NOT_EXIST, Core
from iscsi_ovs.targets.disks import Disk, Disks, Holding
from iscsi_ovs.targets.holdings import Holdings, all_of, countdown, devices_of
from iscsi_ovs.targets.maps import LunMap

if TYPE_CHECKING:
    from iscsi_ovs.targets.nodes import Node

logger = logging.getLogger("iscsi_ovs.target")

ADMISSION_LIMIT_S = 12.0  # Linux gives a login 15 s


@dataclass(slots=True, eq=False)
class Member:
    """A normal session of a node, or a login on its way to be one."""

    node: Node
    map: LunMap
    nexus: scsi.Nexus
    connection: Connection
    session: Session | None = None
    holdings: list[Holding] = field(default_factory=list)  # of every disk in its map
    retired: list[Holding] = field(default_factory=list)  # of disks that have left it: closed when their tasks are done
    is_leaving: bool = False
    is_closing: bool = False  # its handles are being closed, or were
    on_gone: list[Callable[[], None]] = field(default_factory=list)
    stop_waiting: Callable[[], None] = lambda: None  # for who was there before its login

    @property
    def router(self) -> scsi.TaskRouter:
        """What routes its commands."""
        return self.map.router

    @property
    def host(self) -> str:
        """Where the initiator is."""
        return portal.parse(self.connection.name).host

    @property
    def ports(self) -> tuple[str, bytes, int]:
        """Initiator port and target port: who reinstates whom (section 4.4.1: one session between the two)."""
        nexus = self.nexus
        return nexus.initiator_name, nexus.isid, nexus.portal_group_tag


class Members:
    """All sessions of a process, discovery sessions too, and the logins under way."""

    def __init__(self, core: Core, disks: Disks, holdings: Holdings) -> None:
        self._core = core
        self._disks = disks
        self._holdings = holdings
        holdings.on_leaving = self._leave
        self._by_session: dict[Session, Member] = {}
        self._pending: dict[Connection, Member] = {}  # admissions under way
        self._discovery: set[Session] = set()
        self._tsih = 0
        self.limit = 65535  # sessions: so many have a TSIH of their own

    def of(self, session: Session) -> Member | None:
        """The member behind a normal session, until it is gone."""
        return self._by_session.get(session)

    def sessions(self) -> list[Session]:
        """Every session that is not gone."""
        return [*self._by_session, *self._discovery]

    @property
    def is_empty(self) -> bool:
        return not self._by_session and not self._pending

    def _next_tsih(self) -> int:
        """A Target Session Identifying Handle: not 0, and of no living session."""
        used = {session.tsih for session in self.sessions()}
        while True:
            self._tsih = self._tsih % 0xFFFF + 1
            if self._tsih not in used:
                return self._tsih

    # Coming ----------------------------------------------------------------------------------------------------

    def login_discovery(self, connection: Connection, event: events.LoginOpened) -> None:
        """A login for discovery alone."""
        core = self._core
        if not core.is_known:  # it would find nothing
            self._refuse(connection, "the volume server was not reached yet")
            return
        if self._is_full(connection):
            return
        nexus = self._nexus(event, scsi.TargetPorts("", ()))
        session, told = connection.admit(nexus, self._next_tsih(), core.clock.now())
        self._discovery.add(session)
        core.happened(connection, told)

    def login(self, connection: Connection, event: events.LoginOpened, node: Node) -> None:
        """A login to a node: it waits for its turn here."""
        if self._core.is_stopping:
            self._refuse(connection, "the target stops")
            return
        nexus = self._nexus(event, node.ports)
        if event.tsih:
            self._replace_connection(connection, event.tsih, nexus, node)
            return
        member = Member(node, node.map_for(nexus.initiator_name), nexus, connection)
        is_back = any(other.ports == member.ports for other in node.members)  # and leaves its old place to itself
        if not is_back and self._is_full(connection):
            return
        self._holdings.hold(member)
        self._pending[connection] = member
        node.members.append(member)
        self._core.clock.call_later(ADMISSION_LIMIT_S, lambda: self._overdue(connection, member))
        self._reinstate(member)

    def _is_full(self, connection: Connection) -> bool:
        """One session more would be too many: the login is refused."""
        if len(self._by_session) + len(self._discovery) + len(self._pending) < self.limit:
            return False
        self._core.refuse(connection, OUT_OF_RESOURCES, f"there are {self.limit} sessions")
        return True

    def _replace_connection(self, connection: Connection, tsih: int, nexus: scsi.Nexus, node: Node) -> None:
        """Section 6.3.4, connection reinstatement: it "causes the implicit logging out of the connection".

        That is the session's only one, and DefaultTime2Retain is 0: the session is over with it, so there is none that
        the new connection could belong to. Who asks has proved by now who it is; another one ends nothing.
        """
        for member in list(node.members):
            session = member.session
            if session is not None and session.tsih == tsih and member.nexus.initiator_name == nexus.initiator_name:
                self._end(member, "its initiator names its connection anew")
        self._core.refuse(connection, SESSION_DOES_NOT_EXIST, f"session {tsih:#06x} ended with its connection")

    def _nexus(self, event: events.LoginOpened, ports: scsi.TargetPorts) -> scsi.Nexus:
        found = event.parameters
        tag = found.portal_group_tag
        return scsi.Nexus(found.initiator_name, found.isid, found.target_name or "", tag, tag, ports=ports)

    def _overdue(self, connection: Connection, member: Member) -> None:
        if self._pending.get(connection) is member:
            self._refuse(connection, f"what came before it is not over after {ADMISSION_LIMIT_S:.0f} s")

    def _reinstate(self, member: Member) -> None:
        """Section 6.3.5: a login of the same initiator port ends the session it had, before it is let in.

        And whoever logs in waits for sessions that are over already but for what the volume server still has of them: a
        write of a dead initiator must not land on one of its successor's, whatever port that has (CONTRACTS 2).
        """
        ended = [other for other in member.node.members if other is not member and other.ports == member.ports]
        on_its_disks = [other.member for holding in member.holdings for other in holding.disk.holdings]
        older = dict.fromkeys([*ended, *(other for other in on_its_disks if other.is_leaving)])  # each of them once
        if not older:
            self._open_for_login(member)
            return
        one_gone = countdown(len(older), lambda: self._open_for_login(member))

        def stop_waiting() -> None:
            for other in older:
                if one_gone in other.on_gone:
                    other.on_gone.remove(one_gone)

        member.stop_waiting = stop_waiting
        for other in older:
            other.on_gone.append(one_gone)
            if not other.is_leaving:
                logger.info("%s: session of %s is reinstated", member.node.iqn, member.nexus.initiator_name)
                self._end(other, "reinstated by a new login")

    def _open_for_login(self, member: Member) -> None:
        if self._pending.get(member.connection) is not member:
            return
        if all(holding.device is not None for holding in member.holdings):
            self._admit(member)
            return
        for holding in list(member.holdings):
            if holding.device is None:
                self._holdings.open(holding, self._opened)

    def _opened(self, holding: Holding, error: OSError | None) -> None:
        member = holding.member
        if self._pending.get(member.connection) is not member:
            return  # refused or lost meanwhile
        if error is not None:
            holding.reason = error.strerror or str(error)
        if any(other.is_opening for other in member.holdings):
            return
        failed = [other for other in member.holdings if other.device is None]
        # A disk that somebody else holds keeps nobody from the others; one whose reservations can't be read does.
        if len(failed) == len(member.holdings) or not all(other.disk.are_records_known for other in failed):
            self._refuse(member.connection, f"{failed[0].disk.name}: {failed[0].reason}")
        else:
            self._admit(member)

    def _admit(self, member: Member) -> None:
        if self._holdings.hold(member):  # the map has grown meanwhile
            self._open_for_login(member)
            return
        connection = member.connection
        del self._pending[connection]
        member.router.establish(member.nexus)
        session, told = connection.admit(member.nexus, self._next_tsih(), self._core.clock.now())
        member.session = session
        for holding in member.holdings:
            holding.is_needed = holding.device is not None
            if not holding.is_needed:  # NOT READY, until it can be had
                self._holdings.try_again(holding, holding.reason)
        self._by_session[session] = member
        account = session.parameters.account
        proved = "" if account is None else f" as {account!r}"
        name = member.nexus.initiator_name
        logger.info("%s: login of %s%s from %s", member.node.iqn, name, proved, connection.name)
        self._core.happened(connection, told)

    def _refuse(self, connection: Connection, reason: str) -> None:
        self.forget_pending(connection)
        self._core.refuse(connection, SERVICE_UNAVAILABLE, reason)

    def refuse_pending(self, reason: str) -> None:
        """No login that waits here is let in."""
        for connection in list(self._pending):
            self._refuse(connection, reason)

    def forget_pending(self, connection: Connection) -> None:
        """A connection ends: if its login waits here, it waits no longer."""
        member = self._pending.pop(connection, None)
        if member is not None:
            member.stop_waiting()  # an initiator tries again as long as a disk is stuck: nothing may be left of that
            self._leave(member)

    # The volume server -----------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """The volume server is there again: every living session gets its handles back."""
        for member in list(self._by_session.values()):
            if not member.is_leaving:
                for holding in list(member.holdings):
                    if not holding.is_opening:  # as what has just come into its map is
                        self._holdings.reopen(holding)

    def lost(self) -> None:
        """The volume server is gone: so are all handles, and whoever waited for nothing but zombies."""
        for session in self.sessions():
            session.space_lost()
        for member in list(self._by_session.values()):
            self._holdings.forget_devices(member)
            if member.is_leaving:
                self._gone(member)
            else:
                self._holdings.lost(member)
        for connection, member in list(self._pending.items()):
            self._holdings.forget_devices(member)
            self._refuse(connection, "the volume server went away")

    def lose(self, member: Member, disk: Disk) -> None:
        """A disk has left the map of a session, or of a login under way."""
        if self._pending.get(member.connection) is member:
            self._refuse(member.connection, "its LUN map has changed")
        else:
            self._holdings.retire(member, disk)

    def tick(self) -> None:
        """Once a second: are the tasks done that a disk waits for which has left its map?"""
        for member in list(self._by_session.values()):
            if member.retired and not member.is_leaving:
                self._holdings.close_retired(member)

    # Going -----------------------------------------------------------------------------------------------------

    def _end(self, member: Member, reason: str) -> None:
        """End a member's connection, whether it is let in or waits for that."""
        self._core.drop(member.connection, reason)
        if self._pending.get(member.connection) is member:
            self.forget_pending(member.connection)

    def drop(self, members: Iterable[Member], reason: str, done: Callable[[], None] | None = None) -> None:
        """End sessions and logins; ``done`` when all have let go of their volumes."""
        members = list(members)
        if done is not None and not members:
            done()
        one_gone = countdown(len(members), done or _nothing)
        for member in members:
            member.on_gone.append(one_gone)
            self._end(member, reason)

    def drop_by_force(self, members: Iterable[Member], reason: str, done: Callable[[], None]) -> None:
        """As drop(), and their initiators are told: AsyncEvent 3."""
        members = list(members)
        for session in [member.session for member in members if member.session is not None]:
            if not session.is_closed:
                session.connection.parting.announce_drop(session)
        self.drop(members, reason, done)

    def session_closed(self, event: events.SessionClosed) -> None:
        """A session takes no more commands."""
        session = event.session
        if session in self._discovery:
            self._discovery.discard(session)
            session.when_idle(session.window.close)
            return
        member = self._by_session.get(session)
        if member is None or member.is_leaving:
            return
        logger.info("%s: session of %s ended: %s", member.node.iqn, member.nexus.initiator_name, event.reason)
        devices = devices_of(member)
        if not devices or not len(session.tasks):
            self._leave(member)
            return
        # What the server has not started is discarded; what it has is waited for.
        member.is_leaving = True
        one_fenced = countdown(len(devices), lambda: self._leave(member))
        for device in devices:
            device.fence(one_fenced)

    def _leave(self, member: Member) -> None:
        """The session is over; when its last task is, close its handles; then it is gone."""
        member.is_leaving = True
        for holding in member.holdings:
            holding.is_needed = False
            self._disks.settle(holding.disk)
        if member.session is None:
            self._close(member)
        else:
            member.session.when_idle(lambda: self._close(member))

    def _close(self, member: Member) -> None:
        if member.is_closing or any(holding.is_opening for holding in all_of(member)):
            return  # we come back with the answer: nobody may think that the volume is let go before
        member.is_closing = True
        if member.session is not None:
            member.session.window.close()
            member.router.release(member.nexus)  # its tasks are over: what it has reserved is free for the next
        devices = devices_of(member)
        self._holdings.forget_devices(member)
        if not devices:
            self._gone(member)
            return
        one_closed = countdown(len(devices), lambda: self._gone(member))
        for device in devices:
            device.close(lambda error: one_closed())
        self._core.follow_control()

    def _gone(self, member: Member) -> None:
        if member not in member.node.members:
            return
        member.node.members.remove(member)
        for holding in all_of(member):
            holding.disk.holdings.remove(holding)
        if member.session is not None:
            self._by_session.pop(member.session, None)
            member.router.release(member.nexus)
        callbacks, member.on_gone = member.on_gone, []
        for callback in callbacks:
            callback()


def _nothing() -> None:
    """Nobody waits."""
