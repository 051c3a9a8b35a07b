"""The states of a connection, and which request is allowed in which (RFC 7143 sections 4.2.3, 8.1, as tables)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from iscsi_ovs import pdu


class State(enum.IntEnum):
    """Where a connection is. Section 8.1.1's names behind each."""

    LOGIN = 0  # S3 XPT_UP, S4 IN_LOGIN: only Login Requests
    ADMITTING = 1  # S4 IN_LOGIN: the owner decides; nothing is read
    FULL_FEATURE = 2  # S5 LOGGED_IN
    LOGGING_OUT = 3  # S6 IN_LOGOUT: nothing new is taken, the rest is drained
    CLOSED = 4  # S1 FREE, once what is queued is sent


@dataclass(frozen=True, slots=True)
class Handler:
    """What a request leads to: a method of Connection, in these states only."""

    method: str
    states: frozenset[State]


_FULL = frozenset({State.FULL_FEATURE})
# An initiator that has sent a Logout Request sends nothing more but the data that it owes.
_FULL_OR_LOGGING_OUT = frozenset({State.FULL_FEATURE, State.LOGGING_OUT})

HANDLERS: dict[int, Handler] = {
    pdu.NopOut.OPCODE: Handler("_on_nop_out", _FULL_OR_LOGGING_OUT),
    pdu.ScsiCommand.OPCODE: Handler("finish_command", _FULL),
    pdu.TaskManagementRequest.OPCODE: Handler("_on_task_management", _FULL),
    pdu.LoginRequest.OPCODE: Handler("_on_login", frozenset({State.LOGIN})),
    pdu.TextRequest.OPCODE: Handler("_on_text", _FULL),
    pdu.DataOut.OPCODE: Handler("data_out", _FULL_OR_LOGGING_OUT),
    pdu.LogoutRequest.OPCODE: Handler("_on_logout", _FULL),
    pdu.SnackRequest.OPCODE: Handler("_on_snack", _FULL),
}

assert set(HANDLERS) == set(pdu.REQUESTS)
