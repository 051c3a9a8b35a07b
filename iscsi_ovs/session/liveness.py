"""Is the initiator still there? Pings, silence, answers that nobody reads (RFC 7143 sections 11.18, 11.19).

Time is handed in by ``tick``, about once a second. Nothing here ends a connection: it says why one is to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iscsi_ovs.session.connection import Connection


@dataclass(frozen=True, slots=True)
class Timing:
    """How long we wait for what, in seconds; 0 for ``nop_interval_s``: no pings."""

    login_s: float = 15.0
    nop_interval_s: float = 30.0  # silence after which we ping
    nop_timeout_s: float = 30.0  # … and after which, unanswered, the connection is given up
    management_s: float = 10.0  # Linux waits 15 s for an abort: say "rejected" before that, never "complete"
    logout_s: float = 10.0  # Linux waits 15 s for a logout: say "cleanup failed" before that
    transfer_s: float = 30.0  # for data that R2Ts of ours have asked for, while none comes
    stall_s: float = 60.0  # after which a peer that takes no byte of its answers is given up: they hold slots


class Liveness:
    """What a connection knows of its peer's life."""

    def __init__(self, connection: Connection, now: float) -> None:
        self.last_heard = now
        self._connection = connection
        self._timing = connection.timing
        self._ping_deadline: float | None = None
        self._progress_bytes = 0  # sent when it was last looked at
        self._progress_at = now

    def tick(self, now: float) -> str | None:
        """Ping if it is time to. Returns why the connection is to be given up, or None."""
        return self._watch_progress(now) or self._keep_alive(now)

    def _watch_progress(self, now: float) -> str | None:
        connection = self._connection
        sent_bytes = connection.outbox.sent_bytes
        if not connection.has_output or sent_bytes != self._progress_bytes:
            self._progress_bytes = sent_bytes
            self._progress_at = now
        elif now - self._progress_at > self._timing.stall_s:
            return f"it took no byte of its answers in {self._timing.stall_s:.0f} s"
        return None

    def _keep_alive(self, now: float) -> str | None:
        timing = self._timing
        if self._ping_deadline is not None and self.last_heard >= self._ping_deadline - timing.nop_timeout_s:
            self._ping_deadline = None  # anything that comes says that it is there
        if not self._connection.wants_read:
            self._ping_deadline = None  # its answer could not be heard
        elif self._ping_deadline is not None:
            if now > self._ping_deadline:
                return f"no answer to a NOP-In within {timing.nop_timeout_s:.0f} s"
        elif timing.nop_interval_s and now - self.last_heard > timing.nop_interval_s:
            self._ping_deadline = now + timing.nop_timeout_s
            self._connection.ping()
        return None
