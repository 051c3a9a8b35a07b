"""Task management over logical units: what reaches beyond the session that asked for it (RFC 7143 section 11.5).

A function is answered when the volume server has nothing any more of what it ends (CONTRACTS 2).
"""

from __future__ import annotations

import logging

from iscsi_ovs import pdu
from iscsi_ovs.session import events
from iscsi_ovs.targets.disks import Disks
from iscsi_ovs.targets.members import Members

logger = logging.getLogger("iscsi_ovs.target")


class Resets:
    """LOGICAL UNIT RESET, and units whose disks are stuck."""

    def __init__(self, disks: Disks, members: Members) -> None:
        self._disks = disks
        self._members = members

    def reset(self, event: events.LogicalUnitResetRequested) -> None:
        """Abort every task of every nexus on the unit; answer when the volume server has none of them any more."""
        member = self._members.of(event.session)
        unit = None if member is None else member.node.router.unit(event.request.lun)
        disk = None if unit is None else self._disks.of(unit)
        if member is None or disk is None:
            event.session.answer_task_management(event.request, pdu.LUN_DOES_NOT_EXIST)
            return
        left = 1

        def one_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                disk.unit.reset()
                event.session.answer_task_management(event.request, pdu.FUNCTION_COMPLETE)

        for holding in list(disk.holdings):
            session = holding.member.session
            if session is None:
                continue
            router = holding.member.node.router
            for task in session.tasks:
                if router.unit(task.lun) is unit:  # whichever way its LUN was written
                    left += 1
                    session.abort(task, one_done)
            if holding.device is not None and not holding.member.is_leaving:
                left += 1
                holding.device.fence(one_done)
        logger.info("%s: logical unit reset by %s", disk.name, member.nexus.initiator_name)
        one_done()

    def stuck(self, event: events.TaskManagementOverdue) -> None:
        """CONTRACTS 2: after its deadline "the LU answers BUSY until the zombie returns"."""
        member = self._members.of(event.session)
        unit = None if member is None else member.node.router.unit(event.request.lun)
        disk = None if unit is None else self._disks.of(unit)
        if disk is None:
            return

        def settled() -> None:
            disk.stuck -= 1
            self._disks.settle(disk)

        disk.stuck += 1
        event.request.on_settled = settled
        self._disks.settle(disk)
