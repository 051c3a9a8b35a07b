"""How a target process ends when it is asked to: initiators are asked to log out, then told that they are dropped.

No login is let in any more (they hear "service unavailable", which initiators try again). Who has not logged out within
``Settings.drain_s`` is dropped, with an Asynchronous Message in front (RFC 7143 section 11.9); then the loop stops, at
once where nothing is left, and after a moment where a disk is stuck.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from iscsi_ovs.session.session import DiscoverySession, Session
from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.members import Members

logger = logging.getLogger("iscsi_ovs.target")

_LOOK_S = 0.02  # how often it is looked whether all have gone
_LAST_S = 1.0  # for what the volume server still has, and for what is still to be sent


class Shutdown:
    """The end of a process, in steps."""

    def __init__(self, core: Core, members: Members, stop: Callable[[], None]) -> None:
        self._core = core
        self._members = members
        self._stop = stop
        self._drop_at = 0.0

    @property
    def is_begun(self) -> bool:
        return self._core.is_stopping

    def begin(self) -> None:
        """Ask every initiator to log out."""
        if self._core.is_stopping:
            return
        self._core.is_stopping = True
        drain_s = self._core.settings.drain_s
        self._drop_at = self._core.clock.now() + drain_s
        self._members.refuse_pending("the target stops")
        sessions = self._members.sessions()
        for session in sessions:
            if isinstance(session, DiscoverySession):
                self._core.drop(session.connection, "the target stops")
            elif not session.is_closed:
                session.connection.parting.request_logout(math.ceil(drain_s))
        logger.info("stopping: %d sessions are asked to log out", len(sessions))
        self._look()

    def _look(self) -> None:
        now = self._core.clock.now()
        if self._members.is_empty and not self._core.driver.has_unsent:
            self._stop()
        elif now < self._drop_at:
            self._core.clock.call_later(_LOOK_S, self._look)
        else:
            for session in self._members.sessions():
                self._drop(session)
            self._drop_at = math.inf
            self._core.clock.call_later(_LAST_S, self._stop)
            self._core.clock.call_later(_LOOK_S, self._look)

    def _drop(self, session: Session) -> None:
        connection = session.connection
        if not session.is_closed:
            connection.parting.announce_drop(session)
            self._core.drop(connection, "the target stops")
