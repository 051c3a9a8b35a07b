"""The deadline of data that is due, asked for by R2Ts or announced: who sends none holds slots that others wait for
(CONTRACTS 3).

It is the session's silence that counts, because a slow line may serve one R2T after the other; but none waits ten times
as long. Nothing of it is on the path of a command: what has come is compared with what had, once a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi_ovs.session import transfer

if TYPE_CHECKING:
    from iscsi_ovs.session.session import Session


def give_up(session: Session, now: float) -> str | None:
    """Look once a second. Returns why the connection is to be given up: silence in the middle of a data segment, where
    the socket may still write into the task's buffer."""
    connection = session.connection
    limit_s = connection.timing.transfer_s
    waiting = [
        task
        for task in session.tasks
        if (task.transfers or task.unsolicited_end) and not task.is_aborted and task.early_outcome is None
    ]
    for task in waiting:
        is_filled_now = connection.is_filling(task) and connection.heard_at > task.seen_at
        if task.received_bytes != task.seen_bytes or is_filled_now:
            task.seen_bytes = task.received_bytes
            task.seen_at = session.data_seen_at = now
    overdue_s = limit_s if session.data_seen_at + limit_s < now else 10 * limit_s
    overdue = [task for task in waiting if task.seen_at + overdue_s < now]
    if any(connection.is_filling(task) for task in overdue):
        return f"no data in {overdue_s:.0f} s, in the middle of a data segment"
    for task in overdue:
        session.fail(task, transfer.aborted(transfer.INITIATOR_RESPONSE_TIMEOUT))
    if overdue:
        session.log(f"no data for {len(overdue)} tasks in {overdue_s:.0f} s: they are aborted")
    return None
