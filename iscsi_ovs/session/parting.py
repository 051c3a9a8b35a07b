"""How a session ends in good order: logout, and what we ask for or announce ourselves (RFC 7143 11.9, 11.14, 11.15).

A Logout Response says that nothing of the session can happen any more, so it waits for what the volume server still
has; at its deadline it says "cleanup failed" instead, and the connection ends all the same. What is left then is what
the next login waits for (CONTRACTS 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi_ovs import pdu
from iscsi_ovs.errors import PduError

if TYPE_CHECKING:
    from iscsi_ovs.session.connection import Connection
    from iscsi_ovs.session.session import Session

_REASONS = (pdu.CLOSE_SESSION, pdu.CLOSE_CONNECTION, pdu.REMOVE_FOR_RECOVERY)


class Parting:
    """The end of one connection, as far as somebody asks for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._request: pdu.LogoutRequest | None = None  # the one that waits for the last task
        self._deadline = 0.0

    # The initiator asks ----------------------------------------------------------------------------------------

    def logout(self, session: Session, header: pdu.LogoutRequest) -> None:
        """A Logout Request, in its turn. Raises PduError."""
        session.release_place(header)
        reason = header.flags & 0x7F
        is_ours = header.cid == session.parameters.cid
        if reason not in _REASONS:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, f"logout reason {reason}")
        if session.parameters.is_discovery and reason != pdu.CLOSE_SESSION:
            # Section 4.3: of Logout Requests only those "with the reason "close the session"".
            raise PduError(pdu.REJECT_PROTOCOL_ERROR, f"logout reason {reason} in a discovery session")
        if reason == pdu.REMOVE_FOR_RECOVERY:
            # Section 11.14.1: for sessions of ErrorRecoveryLevel 2; we negotiate 0.
            self._answer(header, pdu.RECOVERY_NOT_SUPPORTED)
        elif reason == pdu.CLOSE_CONNECTION and not is_ours:
            self._answer(header, pdu.CID_NOT_FOUND)
        else:
            self._request = header
            self._deadline = self._connection.now + self._connection.timing.logout_s
            self._connection.begin_logout(session)
            session.when_idle(self._cleaned_up)

    def _cleaned_up(self) -> None:
        if self._request is not None:
            self._finish(self._request, pdu.LOGOUT_SUCCESS, "logged out")

    def tick(self, now: float) -> None:
        """The last task may be with a stuck disk."""
        if self._request is not None and now > self._deadline:
            reason = f"logged out, but tasks are still under way after {self._connection.timing.logout_s:.0f} s"
            self._finish(self._request, pdu.CLEANUP_FAILED, reason)

    def _finish(self, header: pdu.LogoutRequest, response: int, reason: str) -> None:
        self._request = None
        self._answer(header, response)
        self._connection.end_logout(reason)

    def _answer(self, header: pdu.LogoutRequest, response: int) -> None:
        connection = self._connection
        connection.send(
            pdu.LogoutResponse(response=response, initiator_task_tag=header.initiator_task_tag, **connection.numbers())
        )

    def forget(self) -> None:
        """The connection has ended: nobody is there to be answered."""
        self._request = None

    # We ask ----------------------------------------------------------------------------------------------------

    def request_logout(self, within_s: int) -> None:
        """AsyncEvent 1: the initiator is to log out, and may come back later."""
        self._connection.send_asynchronous_message(pdu.ASYNC_LOGOUT_REQUEST, parameters=(0, 0, within_s))

    def announce_drop(self, parameters_of: Session) -> None:
        """AsyncEvent 3: all connections of the session (there is one) end now."""
        parameters = parameters_of.parameters
        times = (0, parameters.default_time2wait, parameters.default_time2retain)
        self._connection.send_asynchronous_message(pdu.ASYNC_DROP_SESSION, parameters=times)
