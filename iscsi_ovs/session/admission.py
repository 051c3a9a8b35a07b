"""The login of one connection, from its first Login Request to the owner's word (RFC 7143 sections 6.3, 11.12, 11.13).

login.Login says what each request leads to; here is what that needs of the connection: what can be offered now, the
numbers of a Login Response, and the request that an admission or a refusal answers. This file knows no session yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iscsi_ovs import pdu
from iscsi_ovs.login.keys import Offer, Parameters
from iscsi_ovs.login.stages import Login

if TYPE_CHECKING:
    from iscsi_ovs.session.connection import Connection


class Admission:
    """A refusal may come before the first request, and then there is nothing to answer."""

    def __init__(self, connection: Connection, portal_group_tag: int) -> None:
        self._connection = connection
        self._portal_group_tag = portal_group_tag
        self._login: Login | None = None
        self._request: Any = None  # the last Login Request
        self._step: Any = None  # what the last one of a login that is through has led to

    @property
    def is_begun(self) -> bool:
        """A Login Request has come."""
        return self._login is not None

    @property
    def parameters(self) -> Parameters:
        """What was negotiated, once the login is through."""
        parameters: Parameters = self._step.finished
        return parameters

    @property
    def cmd_sn(self) -> int:
        """Of the login's requests, which is where the session's commands begin."""
        return int(self._request.cmd_sn)

    def receive(self, header: pdu.LoginRequest, data: bytes) -> bool:
        """Answer a request; True: it was the last, and the owner's word, accept() or refuse(), is its answer.

        Raises LoginError.
        """
        if self._login is None:
            self._login = self._begin()
        self._request = header
        step = self._login.receive(header, data)
        if step.finished is None:
            self._respond(step.flags, step.text, tsih=0, window=(header.cmd_sn, header.cmd_sn))
            return False
        self._step = step
        return True

    def _begin(self) -> Login:
        surroundings = self._connection.surroundings
        login = Login(self._portal_group_tag, self._offer())
        login.check_target = surroundings.check_target
        login.check_session = surroundings.check_session
        login.policy = surroundings.policy
        login.random_bytes = surroundings.random_bytes
        return login

    def _offer(self) -> Offer:
        """What we offer in a login that begins now: unsolicited data only as far as there is space (CONTRACTS 3)."""
        first_burst = self._connection.surroundings.space.first_burst_bytes(Offer().first_burst_length)
        if first_burst:
            return Offer(first_burst_length=first_burst)
        return Offer(initial_r2t=True, immediate_data=False)

    def accept(self, tsih: int, window: tuple[int, int]) -> None:
        """The last Login Response. ``window``: ExpCmdSN and MaxCmdSN."""
        step, self._step = self._step, None
        self._respond(step.flags, step.text, tsih, window)

    def refuse(self, header: Any, status: tuple[int, int], text: bytes) -> None:
        """``status``: Status-Class and Status-Detail. ``header``: what has come, if it was no Login Request yet."""
        request = self._request or header
        if isinstance(request, pdu.LoginRequest):
            self._request = request
            self._respond(0, text, 0, (request.cmd_sn, request.cmd_sn), status)

    def _respond(
        self, flags: int, text: bytes, tsih: int, window: tuple[int, int], status: tuple[int, int] = (0, 0)
    ) -> None:
        request = self._request
        self._connection.send(
            pdu.LoginResponse(
                flags=flags,
                isid=request.isid,
                tsih=tsih,
                initiator_task_tag=request.initiator_task_tag,
                stat_sn=self._connection.take_stat_sn() if status == (0, 0) else 0,
                exp_cmd_sn=window[0],
                max_cmd_sn=window[1],
                status_class=status[0],
                status_detail=status[1],
            ),
            text,
        )
