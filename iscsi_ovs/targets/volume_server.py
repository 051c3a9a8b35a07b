"""The volume server's coming, going and news (CONTRACTS 9).

The target looks for it until it is there. When it goes, the segment goes with it: sessions live on, commands are
answered BUSY, and everything is opened again when its successor has come. Its events say which volumes come, grow and
go; each is acknowledged when it was acted on.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from iscsi_ovs import block, scsi
from iscsi_ovs.net.driver import EDGE
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disks
from iscsi_ovs.targets.members import Members
from iscsi_ovs.targets.records import Records
from iscsi_ovs.targets.sanitizing import Sanitizing
from iscsi_ovs.targets.snapshots import Snapshots
from shm_server.abi import control, names

logger = logging.getLogger("iscsi_ovs.target")

# What the volume server says to who may never attach: trying again would only hide its words.
REFUSALS = frozenset((errno.EPERM, errno.EACCES, errno.EPROTO, errno.ENAMETOOLONG))
RECONNECT_DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # after the volume server went away; the last one repeats


class VolumeServer:
    """Our end of the link to the volume server."""

    def __init__(
        self,
        core: Core,
        disks: Disks,
        snapshots: Snapshots,
        members: Members,
        records: Records,
        sanitizing: Sanitizing,
    ) -> None:
        self._core = core
        self._disks = disks
        self._snapshots = snapshots
        self._members = members
        self._records = records
        self._sanitizing = sanitizing
        self._failures = 0
        self._doorbell_fd = -1
        self.refusal: OSError | None = None  # it will never have us
        self.on_ready: Callable[[], None] | None = None  # its volumes are known for the first time
        core.service.on_attached = self._attached
        core.service.on_lost = self._lost
        core.service.on_event = self._happened
        core.service.on_mistake = self._mistaken

    def connect(self) -> None:
        """Look for it, now and until it is there."""
        core = self._core
        try:
            core.service.connect()
        except OSError as error:
            self._try_again(error)
            return
        core.control_fd = core.service.control_fileno()
        core.driver.watch(core.control_fd, self._control_ready)
        self._control_ready(0)

    def leave(self) -> None:
        """The process ends: it is we who leave. The loop is closed, so nothing is watched any more."""
        service = self._core.service
        self._core.control_fd = self._doorbell_fd = -1
        service.on_lost = None
        service.close()

    def _try_again(self, error: OSError) -> None:
        if error.errno in REFUSALS and not self._core.is_known:
            self.refusal = error
            self._core.driver.stop()
            return
        delay = RECONNECT_DELAYS_S[min(self._failures, len(RECONNECT_DELAYS_S) - 1)]
        if self._failures in (0, 10):
            logger.warning("no volume server: %s; trying again", error.strerror or error)
        self._failures += 1
        self._core.clock.call_later(delay, self.connect)

    def _control_ready(self, mask: int) -> None:
        self._core.service.control_ready(readable=True, writable=True)
        self._core.follow_control()

    def _mistaken(self, request: block.Request, error: Exception) -> None:
        """What was to become of a completion raised: that costs the session whose command it was, and no other."""
        logger.error("a mistake of ours behind %s: a session ends", request.operation.name, exc_info=error)
        command = request.context
        if not isinstance(command, scsi.Command):
            return
        session = command.context.session
        try:
            self._core.drop(session.connection, "a mistake of ours")
            if command.context.is_aborted:  # its zombie has come back, if not as it should
                is_read = request.operation is block.Operation.READ
                session.complete(command, scsi.Outcome(buffer=request.buffer if is_read else None))
        except Exception:
            logger.exception("and ending it was another")

    def _attached(self, infos: list[control.VolumeInfo]) -> None:
        core, disks = self._core, self._disks
        self._failures = 0
        self._doorbell_fd = core.service.doorbell_fileno()
        core.driver.watch(self._doorbell_fd, lambda mask: None, EDGE)  # collect() follows in the same turn
        core.space.attach(core.service.pool, [session.window for session in self._members.sessions()])
        disks.limit_transfers()
        known = {info.uuid for info in infos}
        for disk in disks:
            if disk.info.uuid not in known and not names.is_snapshot(disk.name):
                disks.withdraw(disk, "its volume is not there any more")
        for info in infos:
            disks.serve(info)
        disks.settle_all()
        self._members.reopen()
        logger.info("volume server attached: %d volumes", len(disks))
        core.service.stat_pool(self._pool_told)
        self._snapshots.look(self._looked)

    def _pool_told(self, answer: control.PoolInfo | OSError) -> None:
        if not isinstance(answer, OSError):
            self._disks.pool_changed(answer)

    def _looked(self) -> None:
        """All that is to be served is known, as far as it is there."""
        core = self._core
        if core.service.is_attached and not core.is_known:
            core.is_known = True
            if self.on_ready is not None:
                self.on_ready()

    def _lost(self, error: OSError) -> None:
        """It is gone, and with it the segment. Sessions live on; commands are answered BUSY."""
        core = self._core
        was_attached = core.service.is_attached
        if was_attached:
            logger.warning("volume server lost: %s", error.strerror)
        for fd in (core.control_fd, self._doorbell_fd):
            if fd >= 0:
                core.driver.unwatch(fd)
        core.control_fd = self._doorbell_fd = -1
        core.space.detach()
        self._disks.settle_all()
        self._records.lost()
        self._sanitizing.lost()
        self._members.lost()
        if was_attached:
            self._failures = 0
        self._try_again(error)

    def _happened(self, event: control.Event) -> None:
        """Something is new of a volume."""
        disks, service = self._disks, self._core.service
        if isinstance(event, control.VolumeCreated):
            if self._snapshots.is_wanted(event.info.name):
                disks.serve(event.info)
        elif isinstance(event, control.VolumeResized | control.VolumeChanged):
            disks.changed(event.info, is_rolled_back=isinstance(event, control.VolumeChanged))
            self._sanitizing.changed(event.info)
        elif isinstance(event, control.PoolChanged):
            disks.pool_changed(event.info)
        elif isinstance(event, control.VolumeRenamed):
            disks.serve(event.info)
            self._snapshots.renamed(event.old_name, event.info.name)
        elif isinstance(event, control.RecordChanged):
            self._records.changed(event)
        elif isinstance(event, (control.VolumeRemoved, control.ReleaseRequested)):
            disk = disks.find(event.uuid)
            if isinstance(event, control.VolumeRemoved):
                if disk is not None:
                    disks.withdraw(disk, "its volume was removed")
                self._snapshots.gone_with(event.name)
            elif disk is not None:
                holders = [holding.member for holding in disk.holdings]
                self._members.drop_by_force(holders, "its volume is to be let go", lambda: service.ack(event))
                return
        service.ack(event)
