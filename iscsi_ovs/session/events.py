"""What a connection tells its owner: things that have happened, in order.

A SCSI command that is ready to execute is told as the scsi.Command itself (its ``context`` is the Task), because it is
what nearly every event is. Everything else is one of the classes below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iscsi_ovs import scsi
from iscsi_ovs.login.keys import Parameters

if TYPE_CHECKING:
    from iscsi_ovs.session.management import Management
    from iscsi_ovs.session.session import Session


@dataclass(frozen=True, slots=True)
class LoginOpened:
    """The login phase is through but for its last response: admit() or refuse() the connection.

    With a ``tsih`` it names a session that there was when it began (surroundings.check_session).
    """

    parameters: Parameters
    tsih: int = 0


@dataclass(frozen=True, slots=True)
class OrderedCommandAdmitted:
    """An ORDERED or HEAD OF QUEUE command is in its task set. When its data is there it is told as every command is."""

    command: scsi.Command


@dataclass(frozen=True, slots=True)
class TaskManagementRequested:
    """A function for ``request.lun``, or for the target: call session.management.answer(request, …) when it is done."""

    session: Session
    request: Management
    function: int


@dataclass(frozen=True, slots=True)
class TaskManagementOverdue:
    """A function has passed its deadline and was answered *rejected*; ``request.on_settled`` is called at its end."""

    session: Session
    request: Management


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The session takes no more commands; ``session.when_idle`` tells when the last of its tasks has ended."""

    session: Session
    reason: str


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """Send what is left, then close the socket. ``reason`` is for the log."""

    reason: str
    is_error: bool


Event = (
    scsi.Command
    | LoginOpened
    | OrderedCommandAdmitted
    | TaskManagementRequested
    | TaskManagementOverdue
    | SessionClosed
    | ConnectionClosed
)
