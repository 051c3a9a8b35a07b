"""The target assembled: IQNs, disks, sessions, and the volume server behind them.

Each volume is a target of its own: its IQN is the prefix and its name, LUN 0 is the disk. A session opens its volume at
login and closes it after its last task (CONTRACTS 5); handles of all sessions share one owner token, so they share one
writer's right. Who is admitted, what a new login of the same initiator port replaces, what happens when a volume comes,
grows or goes, and when the volume server dies and comes back (CONTRACTS 9): that is decided here. This file opens no
socket: net.driver and storage.service are handed in.
"""

from __future__ import annotations

import errno
import gc
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from iscsi_ovs import block, pdu, scsi
from iscsi_ovs.commands import COMMAND_SET
from iscsi_ovs.errors import LoginError
from iscsi_ovs.login.policy import OPEN, Policy
from iscsi_ovs.net.clock import Clock
from iscsi_ovs.net.driver import EDGE, Driver
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.session.session import Session
from iscsi_ovs.session.space import Space
from iscsi_ovs.session.tasks import Task
from iscsi_ovs.shm_client import DeviceHandle, Service
from shm_server.abi import control

logger = logging.getLogger("iscsi_ovs.target")

DEFAULT_IQN_PREFIX = "iqn.2016-01.com.openvstorage"
PORTAL_GROUP_TAG = 1
# What the volume server says to who may never attach: trying again would only hide its words.
REFUSALS = frozenset((errno.EPERM, errno.EACCES, errno.EPROTO, errno.ENAMETOOLONG))
RECONNECT_DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # after the volume server went away; the last one repeats
ADMISSION_LIMIT_S = 12.0  # Linux gives a login 15 s

_READ = block.Operation.READ

# Login statuses (RFC 7143 section 11.13.5)
NOT_FOUND = (0x02, 0x03)
SERVICE_UNAVAILABLE = (0x03, 0x01)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may choose. ``advertise`` replaces the address that SendTargets reports."""

    iqn_prefix: str = DEFAULT_IQN_PREFIX
    instance: str = ""
    advertise: Address | None = None
    words: str = "iscsi target"  # what others are told who want a volume that we hold

    def iqn(self, volume: str) -> str:
        """The iSCSI name of a volume's target."""
        between = f"{self.instance}." if self.instance else ""
        return f"{self.iqn_prefix}:{between}{volume}"


@dataclass(slots=True, eq=False)
class Disk:
    """A volume as a target."""

    name: str
    info: control.VolumeInfo
    unit: scsi.LogicalUnit
    router: scsi.TaskRouter
    members: list[Member] = field(default_factory=list)
    stuck: int = 0  # task management functions that passed their deadline and wait for their zombies still


@dataclass(slots=True, eq=False)
class Member:
    """A normal session, from its admission until nothing of it can reach the volume any more."""

    disk: Disk
    nexus: scsi.Nexus
    connection: Connection
    session: Session | None = None
    device: DeviceHandle | None = None
    is_opening: bool = False  # the volume server has an Open of ours that it has not answered
    is_leaving: bool = False
    is_closing: bool = False  # its handle is being closed, or was
    on_gone: list[Callable[[], None]] = field(default_factory=list)


class TargetServer:
    """All targets of one process."""

    def __init__(self, service: Service, clock: Clock, settings: Settings | None = None) -> None:
        self.service = service
        self.clock = clock
        self.settings = settings or Settings()
        self.space = Space()
        self.driver = Driver(self, service, clock)
        self.disks: dict[str, Disk] = {}  # by IQN
        self.portals: list[Address] = []
        self.on_ready: Callable[[], None] | None = None  # the volume server's disks are known, logins are accepted
        self.on_served: Callable[[str], None] | None = None  # an IQN can be logged in to
        self._owner = f"iscsi-{secrets.token_hex(8)}"
        self._discovery: set[Session] = set()
        self._tsih = 0
        self._members: dict[Session, Member] = {}
        self._pending: dict[Connection, Member] = {}  # admissions under way
        self._failures = 0
        self._on_completed = self._completed  # bound once
        self._is_known = False  # what there is to serve: attached once
        self.refusal: OSError | None = None  # run() ended because the volume server will never have us
        self._watched: tuple[int, int] = (-1, -1)
        service.on_attached = self._attached
        service.on_lost = self._lost
        service.on_event = self._storage_event

    # Running ---------------------------------------------------------------------------------------------------

    def listen(self, address: Address, inherited_fd: int | None = None) -> None:
        """Accept connections on a portal; ``inherited_fd`` is a socket that listens there already."""
        self.portals.append(self.driver.listen(address, inherited_fd))

    def run(self) -> None:
        """Serve until stop(), or until the volume server refuses us for good before we ever served (``refusal``)."""
        # Nothing on the path of a command makes cycles: the collector may look seldom, and not at what stays anyway.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        self.connect()
        self.driver.run()
        self.driver.close()
        self._watched = (-1, -1)  # what the service still calls back finds no loop to watch with
        self.service.on_lost = None  # it is we who leave
        self.service.close()

    def stop(self) -> None:
        """End run() (from a signal handler, for one)."""
        self.driver.stop()

    # The volume server -----------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Look for the volume server, now and until it is there."""
        try:
            self.service.connect()
        except OSError as error:
            self._try_again(error)
            return
        control_fd = self.service.control_fileno()
        self._watched = (control_fd, -1)
        self.driver.watch(control_fd, self._control_ready)
        self._control_ready(0)

    def _try_again(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        if error.errno in REFUSALS and not self._is_known:
            self.refusal = error
            self.stop()
            return
        delay = RECONNECT_DELAYS_S[min(self._failures, len(RECONNECT_DELAYS_S) - 1)]
        if self._failures in (0, 10):
            logger.warning("no volume server: %s; trying again", reason)
        self._failures += 1
        self.clock.call_later(delay, self.connect)

    def _control_ready(self, mask: int) -> None:
        self.service.control_ready(readable=True, writable=True)
        self._follow_control()

    def _follow_control(self) -> None:
        """Watch for what the control socket needs now."""
        control_fd = self._watched[0]
        if control_fd >= 0:
            self.driver.rewatch(control_fd, 5 if self.service.wants_write else 1)  # EPOLLIN | EPOLLOUT

    def _attached(self, infos: list[control.VolumeInfo]) -> None:
        self._failures = 0
        self._is_known = True
        doorbell = self.service.doorbell_fileno()
        self._watched = (self._watched[0], doorbell)
        self.driver.watch(doorbell, lambda mask: None, EDGE)  # collect() follows in the same turn
        self.space.attach(self.service.pool, [session.window for session in [*self._members, *self._discovery]])
        known = {info.uuid for info in infos}
        for disk in list(self.disks.values()):
            if disk.info.uuid not in known:
                self._withdraw(disk, "its volume is not there any more")
        for info in infos:
            self._serve(info)
        for disk in self.disks.values():
            self._settle(disk)
        for member in list(self._members.values()):
            if not member.is_leaving:
                self._open(member, self._reopened)
        logger.info("volume server attached: %d volumes", len(self.disks))
        if self.on_ready is not None:
            on_ready, self.on_ready = self.on_ready, None
            for iqn in sorted(self.disks):
                self._tell_served(iqn)
            on_ready()

    def _reopened(self, member: Member, error: OSError | None) -> None:
        disk = member.disk
        if error is not None:
            logger.warning("%s: not open again: %s", disk.name, error.strerror)
            generation = self.space.generation
            self.clock.call_later(1.0, lambda: self._reopen(member, generation))
            return
        assert member.device is not None
        if disk.info.uuid != member.device.info.uuid:
            self._withdraw(disk, "another volume has its name now")
        else:
            self._settle(disk)

    def _reopen(self, member: Member, generation: int) -> None:
        """Try again, unless the volume server went meanwhile: then the next attachment has seen to it."""
        if not member.is_leaving and self.space.pool is not None and self.space.generation == generation:
            self._open(member, self._reopened)

    def _settle(self, disk: Disk) -> None:
        """Is the unit BUSY? Whatever that depends on has changed."""
        if self.space.pool is None:
            disk.unit.block("the volume server is away")
        elif any(member.session and not member.is_leaving and member.device is None for member in disk.members):
            # Until every nexus has its handle: one without would hear NOT READY, which initiators don't retry.
            disk.unit.block("not every session has its volume open again")
        elif disk.stuck:
            disk.unit.block("a task that was to be aborted is still under way")
        else:
            disk.unit.unblock()

    def _lost(self, error: OSError) -> None:
        """The volume server is gone, and with it the segment. Sessions live on; commands are answered BUSY."""
        was_attached = self.service.is_attached
        if was_attached:
            logger.warning("volume server lost: %s", error.strerror)
        for fd in self._watched:
            if fd >= 0:
                self.driver.unwatch(fd)
        self._watched = (-1, -1)
        self.space.detach()
        for disk in self.disks.values():
            self._settle(disk)
        for session in [*self._members, *self._discovery]:
            session.space_lost()
        for member in list(self._members.values()):
            member.device = None
            member.nexus.devices.clear()
            if member.is_leaving:
                self._gone(member)
        for connection, member in list(self._pending.items()):
            if member.device is not None:
                member.device = None
            self._refuse(connection, "the volume server went away")
        if was_attached:
            self._failures = 0
        self._try_again(error)

    def _storage_event(self, event: control.Event) -> None:
        if isinstance(event, control.VolumeCreated):
            self._serve(event.info)
        elif isinstance(event, control.VolumeResized):
            self._resized(event.info)
        elif isinstance(event, control.VolumeRemoved):
            disk = self._disk_of(event.uuid)
            if disk is not None:
                self._withdraw(disk, "its volume was removed")
        elif isinstance(event, control.ReleaseRequested):
            disk = self._disk_of(event.uuid)
            if disk is not None:
                self._drop_members(disk, "its volume is being removed", lambda: self.service.ack(event))
                return
        self.service.ack(event)

    def _disk_of(self, uuid: str) -> Disk | None:
        return next((disk for disk in self.disks.values() if disk.info.uuid == uuid), None)

    # Disks -----------------------------------------------------------------------------------------------------

    def _serve(self, info: control.VolumeInfo) -> None:
        iqn = self.settings.iqn(info.name)
        disk = self.disks.get(iqn)
        if disk is not None and disk.info.uuid == info.uuid:
            self._resized(info)
            return
        if disk is not None:
            self._withdraw(disk, "another volume has its name now")
        identity = scsi.Identity(volume_name=info.name, uuid_hex=info.uuid)
        geometry = block.Geometry(info.size_bytes, generation=info.generation)
        unit = scsi.LogicalUnit(COMMAND_SET, identity, geometry)
        self.disks[iqn] = Disk(info.name, info, unit, scsi.TaskRouter(COMMAND_SET, {0: unit}))
        logger.info("serving %s (%d bytes) as %s", info.name, info.size_bytes, iqn)
        if self.on_ready is None:
            self._tell_served(iqn)

    def _tell_served(self, iqn: str) -> None:
        if self.on_served is not None:
            self.on_served(iqn)

    def _resized(self, info: control.VolumeInfo) -> None:
        disk = self._disk_of(info.uuid)
        if disk is None:
            return
        if disk.info.size_bytes != info.size_bytes:
            logger.info("%s has %d bytes now", info.name, info.size_bytes)
            disk.unit.resize(block.Geometry(info.size_bytes, generation=info.generation))
        disk.info = info

    def _withdraw(self, disk: Disk, reason: str) -> None:
        iqn = self.settings.iqn(disk.name)
        if self.disks.get(iqn) is disk:
            del self.disks[iqn]
        logger.info("%s is not served any more: %s", iqn, reason)
        self._drop_members(disk, reason, lambda: None)

    def _drop_members(self, disk: Disk, reason: str, done: Callable[[], None]) -> None:
        """End every session on a disk; ``done`` when all have let go of the volume."""
        members = list(disk.members)
        left = len(members)
        if not left:
            done()
            return

        def one_gone() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for member in members:
            member.on_gone.append(one_gone)
            told = member.connection.drop(reason)
            self.driver.closing(member.connection)
            self.happened(member.connection, told)

    # Surroundings of a connection ------------------------------------------------------------------------------

    def connected(self, peer: str, local: Address, now: float) -> Connection:
        """A TCP connection was accepted."""
        connection = Connection(self, PORTAL_GROUP_TAG, now, peer)
        connection.local = local
        connection.on_log = lambda message: logger.warning("%s: %s", peer, message)
        return connection

    def targets(self, connection: Connection) -> Sequence[tuple[str, Sequence[str]]]:
        """SendTargets: the address that the initiator reached us at is one it can reach (unless told otherwise)."""
        address = self.settings.advertise or connection.local
        return [(iqn, [f"{address},{PORTAL_GROUP_TAG}"]) for iqn in sorted(self.disks)]

    def check_target(self, name: str) -> None:
        if not self._is_known:
            # Not "not found": Linux gives a session up for that, and this one may have outlived our predecessor.
            raise LoginError(*SERVICE_UNAVAILABLE, "the volume server was not reached yet")
        if name not in self.disks:
            raise LoginError(*NOT_FOUND, f"no target {name!r}")

    def policy(self, initiator_name: str, target_name: str | None) -> Policy:
        """How an initiator proves itself to a target (None: in discovery)."""
        return OPEN

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def output_ready(self, connection: Connection) -> None:
        self.driver.output_ready(connection)

    # What happened on a connection -----------------------------------------------------------------------------

    def happened(self, connection: Connection, told: list[events.Event]) -> None:
        """Act on a connection's events, in order."""
        for event in told:
            if type(event) is scsi.Command:
                self._execute(event)
            elif isinstance(event, events.LoginOpened):
                self._login_opened(connection, event)
            elif isinstance(event, events.LogicalUnitResetRequested):
                self._reset(event)
            elif isinstance(event, events.TaskManagementOverdue):
                self._stuck(event)
            elif isinstance(event, events.SessionClosed):
                self._session_closed(event)
            elif isinstance(event, events.ConnectionClosed):
                self._connection_closed(connection, event)

    def turn(self) -> None:
        """Once a turn of the loop, after completions: who waits for slots has a chance."""
        if self.space.has_waiters:
            self.space.serve()

    def tick(self, now: float) -> None:
        """Once a second."""

    # Commands --------------------------------------------------------------------------------------------------

    def _execute(self, command: scsi.Command) -> None:
        task: Task = command.context
        if task.is_aborted:  # in the batch that brought it
            task.session.complete(command, scsi.Outcome())
            return
        member = self._members.get(task.session)
        router = _NO_UNITS if member is None else member.disk.router  # a discovery session has no logical units
        result = router.execute(command)
        if type(result) is scsi.Outcome:
            task.session.complete(command, result)
        else:
            self._issue(command, result)

    def _issue(self, command: scsi.Command, request: Any) -> None:
        """Send a request on its way; a read gets its buffer here, or waits for it."""
        request.context = command
        request.done = self._on_completed
        if request.operation is _READ and request.buffer is None:
            pool = self.space.pool
            if pool is None:
                self._finish(command, scsi.Outcome(status=scsi.BUSY))
                return
            if self.space.has_waiters or (buffer := pool.allocate(request.length_bytes)) is None:
                self._wait_for_buffer(command, request)
                return
            request.buffer = buffer
        device = command.device
        assert device is not None, "only what was let through to the medium makes requests"
        device.submit(request)

    def _wait_for_buffer(self, command: scsi.Command, request: block.Request) -> None:
        if request.length_bytes > self.space.largest_bytes:
            self._finish(command, scsi.Outcome(status=scsi.TASK_SET_FULL))
            return
        task: Task = command.context

        def grab() -> bool:
            pool = self.space.pool
            assert pool is not None
            request.buffer = pool.allocate(request.length_bytes)
            if request.buffer is None:
                return False
            task.waiter = None
            device = command.device
            assert device is not None
            device.submit(request)
            return True

        task.waiter = self.space.wait(grab)

    def _completed(self, completion: block.Completion) -> None:
        """The volume server has answered (or is gone)."""
        request = completion.request
        command: scsi.Command = request.context
        assert request.finish is not None
        result = request.finish(completion)
        if type(result) is scsi.Outcome:
            if request.operation is _READ and result.buffer is None and request.buffer is not None:
                request.buffer.release()
            command.context.session.complete(command, result)
        elif command.context.is_aborted:
            self._finish(command, scsi.Outcome())
        else:
            self._issue(command, result)

    def _finish(self, command: scsi.Command, outcome: scsi.Outcome) -> None:
        command.context.session.complete(command, outcome)

    # LOGICAL UNIT RESET ----------------------------------------------------------------------------------------

    def _reset(self, event: events.LogicalUnitResetRequested) -> None:
        """Abort every task of every nexus on the unit; answer when the volume server has none of them any more."""
        member = self._members.get(event.session)
        unit = None if member is None else member.disk.router.unit(event.request.lun)
        if member is None or unit is None:
            event.session.answer_task_management(event.request, pdu.LUN_DOES_NOT_EXIST)
            return
        disk = member.disk
        left = 1

        def one_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                disk.unit.reset()
                event.session.answer_task_management(event.request, pdu.FUNCTION_COMPLETE)

        for other in list(disk.members):
            if other.session is None:
                continue
            for task in other.session.tasks:
                if disk.router.unit(task.lun) is unit:  # whichever way its LUN was written
                    left += 1
                    other.session.abort(task, one_done)
            if other.device is not None and not other.is_leaving:
                left += 1
                other.device.fence(one_done)
        logger.info("%s: logical unit reset by %s", disk.name, member.nexus.initiator_name)
        one_done()

    def _stuck(self, event: events.TaskManagementOverdue) -> None:
        """CONTRACTS 2: after its deadline "the LU answers BUSY until the zombie returns"."""
        member = self._members.get(event.session)
        if member is None:
            return
        disk = member.disk

        def settled() -> None:
            disk.stuck -= 1
            self._settle(disk)

        disk.stuck += 1
        event.request.on_settled = settled
        self._settle(disk)

    # Sessions --------------------------------------------------------------------------------------------------

    def _next_tsih(self) -> int:
        """A Target Session Identifying Handle: not 0, and of no living session."""
        used = {session.tsih for session in [*self._members, *self._discovery]}
        while True:
            self._tsih = self._tsih % 0xFFFF + 1
            if self._tsih not in used:
                return self._tsih

    def _login_opened(self, connection: Connection, event: events.LoginOpened) -> None:
        parameters = event.parameters
        nexus = scsi.Nexus(
            parameters.initiator_name, parameters.isid, parameters.target_name or "", PORTAL_GROUP_TAG
        )
        if parameters.is_discovery and not self._is_known:
            self._refuse(connection, "the volume server was not reached yet")  # it would find nothing
            return
        if parameters.is_discovery:
            session, told = connection.admit(nexus, self._next_tsih(), self.clock.now())
            self._discovery.add(session)
            self.happened(connection, told)
            return
        disk = self.disks.get(parameters.target_name or "")
        if disk is None:
            self.happened(connection, connection.refuse(*NOT_FOUND, "the target has gone"))
            return
        member = Member(disk, nexus, connection)
        self._pending[connection] = member
        disk.members.append(member)
        self.clock.call_later(ADMISSION_LIMIT_S, lambda: self._admission_overdue(connection, member))
        self._reinstate(member)

    def _admission_overdue(self, connection: Connection, member: Member) -> None:
        if self._pending.get(connection) is member:
            self._refuse(connection, f"what came before it is not over after {ADMISSION_LIMIT_S:.0f} s")

    def _reinstate(self, member: Member) -> None:
        """Section 6.3.5: a login of the same initiator port ends the session it had, before it is let in.

        And whoever logs in waits for sessions that are over already but for what the volume server still has of them: a
        write of a dead initiator must not land on one of its successor's, whatever port that has (CONTRACTS 2).
        """
        nexus = member.nexus
        port = (nexus.initiator_name, nexus.isid)
        older = [
            other
            for other in member.disk.members
            if other is not member
            and (other.is_leaving or (other.nexus.initiator_name, other.nexus.isid) == port)
        ]
        left = len(older)

        def one_gone() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._open_for_login(member)

        if not older:
            self._open_for_login(member)
        for other in older:
            other.on_gone.append(one_gone)
            if not other.is_leaving:
                logger.info("%s: session of %s is reinstated", member.disk.name, nexus.initiator_name)
                told = other.connection.drop("reinstated by a new login")
                self.driver.closing(other.connection)
                if self._pending.get(other.connection) is other:
                    self._forget_pending(other.connection)
                self.happened(other.connection, told)

    def _open_for_login(self, member: Member) -> None:
        if self._pending.get(member.connection) is member:
            self._open(member, self._opened)

    def _open(self, member: Member, done: Callable[[Member, OSError | None], None]) -> None:
        """Open the member's volume for writing."""
        disk = member.disk

        def opened(answer: DeviceHandle | OSError) -> None:
            member.is_opening = False
            if not isinstance(answer, OSError):
                member.device = answer
            if member.is_leaving:
                self._leave(member)
            elif isinstance(answer, OSError):
                done(member, answer)
            else:
                member.nexus.devices[disk.unit] = answer
                done(member, None)

        member.is_opening = True
        sessions = len(disk.members)
        words = f"{self.settings.words}, {sessions} session{'s' if sessions != 1 else ''}"
        self.service.open(disk.name, "rw", self._owner, words, opened)
        self._follow_control()

    def _opened(self, member: Member, error: OSError | None) -> None:
        connection = member.connection
        if self._pending.get(connection) is not member:
            return  # refused or lost meanwhile
        if error is not None:
            self._refuse(connection, error.strerror or str(error))
            return
        del self._pending[connection]
        disk = member.disk
        disk.router.establish(member.nexus)
        session, told = connection.admit(member.nexus, self._next_tsih(), self.clock.now())
        member.session = session
        self._members[session] = member
        logger.info("%s: login of %s from %s", disk.name, member.nexus.initiator_name, connection.name)
        self.happened(connection, told)

    def _refuse(self, connection: Connection, reason: str) -> None:
        self._forget_pending(connection)
        told = connection.refuse(*SERVICE_UNAVAILABLE, reason)
        self.driver.closing(connection)
        self.happened(connection, told)

    def _forget_pending(self, connection: Connection) -> None:
        member = self._pending.pop(connection, None)
        if member is not None:
            self._leave(member)

    def _session_closed(self, event: events.SessionClosed) -> None:
        session = event.session
        if session in self._discovery:
            self._discovery.discard(session)
            session.when_idle(session.window.close)
            return
        member = self._members.get(session)
        if member is None or member.is_leaving:
            return
        logger.info("%s: session of %s ended: %s", member.disk.name, member.nexus.initiator_name, event.reason)
        if member.device is None or not len(session.tasks):
            self._leave(member)
            return
        # What the server has not started is discarded; what it has is waited for.
        member.is_leaving = True
        member.device.fence(lambda: self._leave(member))

    def _leave(self, member: Member) -> None:
        """The session is over; when its last task is, close its handle; then it is gone."""
        member.is_leaving = True
        self._settle(member.disk)
        if member.session is None:
            self._close_device(member)
        else:
            member.session.when_idle(lambda: self._close_device(member))

    def _close_device(self, member: Member) -> None:
        if member.is_opening or member.is_closing:
            return  # we come back with the answer: nobody may think that the volume is let go before
        member.is_closing = True
        if member.session is not None:
            member.session.window.close()
        device = member.device
        member.device = None
        member.nexus.devices.clear()
        if device is None:
            self._gone(member)
        else:
            device.close(lambda error: self._gone(member))
            self._follow_control()

    def _gone(self, member: Member) -> None:
        if member not in member.disk.members:
            return
        member.disk.members.remove(member)
        if member.session is not None:
            self._members.pop(member.session, None)
            member.disk.router.release(member.nexus)
        callbacks, member.on_gone = member.on_gone, []
        for callback in callbacks:
            callback()

    def _connection_closed(self, connection: Connection, event: events.ConnectionClosed) -> None:
        self._forget_pending(connection)
        level = logging.WARNING if event.is_error else logging.INFO
        logger.log(level, "%s: closed: %s", connection.name, event.reason)


_NO_UNITS = scsi.TaskRouter(COMMAND_SET)


def assemble(
    service: Service,
    settings: Settings,
    on_ready: Callable[[TargetServer], None],
    on_served: Callable[[TargetServer, str], None],
) -> TargetServer:
    """A target on a volume server. ``on_ready``: logins are accepted; ``on_served``: an IQN is there, from then on."""
    target = TargetServer(service, Clock(), settings)
    target.on_ready = lambda: on_ready(target)
    target.on_served = lambda iqn: on_served(target, iqn)
    return target
