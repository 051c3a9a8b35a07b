"""One TCP connection, without the socket: which PDU is allowed in which state, and what it leads to.

    buffers = connection.receive_buffers()      read into them, then
    events = connection.received(count, now)    what happened: commands to execute, a login to admit, the end
    pieces = connection.data_to_send()          gather them into one sendmsg, then
    connection.sent(count)

Time is handed in; sockets, stores and accounts are elsewhere. The login phase is login.Login behind an Admission,
payload and tasks are the session's. Protocol errors end here: as a Reject, a login status, or the end of the
connection, with a line for the log that names the cause; never as an exception for the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from iscsi_ovs import pdu, scsi
from iscsi_ovs.errors import ConnectionAbortError, LoginError, PduError, RedirectError
from iscsi_ovs.login.fullfeature import TextExchange
from iscsi_ovs.login.policy import Policy
from iscsi_ovs.login.text import join
from iscsi_ovs.session import events, plain, transfer
from iscsi_ovs.session.admission import Admission
from iscsi_ovs.session.digest import DigestFraming, DigestOutbox
from iscsi_ovs.session.framing import Framing, sink
from iscsi_ovs.session.liveness import Liveness, Timing
from iscsi_ovs.session.outbox import Outbox
from iscsi_ovs.session.parting import Parting
from iscsi_ovs.session.session import DiscoverySession, Session
from iscsi_ovs.session.space import Space
from iscsi_ovs.session.states import HANDLERS, State
from iscsi_ovs.session.tasks import Task
from iscsi_ovs.wire import Derived

LOGIN_DATA_SEGMENT_BYTES = 8192  # MaxRecvDataSegmentLength before it is negotiated (section 13.12)
OUTPUT_LIMIT_BYTES = 64 << 20  # a peer that does not read is not listened to, either
OUTPUT_LIMIT_PIECES = 65536  # … and small answers cost more than their bytes
UNREAD_ECHOES_LIMIT_BYTES = 1 << 20  # … nor one that has pings echoed and does not read them
UNREAD_TEXTS_LIMIT = 32  # … nor one that asks and asks, and reads nothing


INVALID_DURING_LOGIN = (2, 0x0B)  # Status-Class and Status-Detail of section 11.13.5

_SCSI_COMMAND = pdu.ScsiCommand.OPCODE
_FULL_FEATURE = State.FULL_FEATURE


class Surroundings(Protocol):
    """What a connection must know of the target that it belongs to."""

    space: Space

    def targets(self, connection: Connection) -> Sequence[tuple[str, Sequence[str]]]:
        """SendTargets: names, each with its addresses ("HOST:PORT,TAG")."""

    def check_target(self, name: str) -> None:
        """Raises LoginError where there is no such target."""

    def check_session(self, request: pdu.LoginRequest) -> bool:
        """A login names a session: is there one, with this connection? May raise LoginError (0206)."""

    def policy(self, initiator_name: str, target_name: str | None) -> Policy:
        """How this initiator proves itself to this target (None: in discovery). May raise LoginError (0202)."""

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable bytes (secrets.token_bytes), for challenges."""

    def output_ready(self, connection: Connection) -> None:
        """The connection has something to send (told once until it is sent)."""


class Connection:
    """The protocol core of one connection."""

    def __init__(
        self,
        surroundings: Surroundings,
        portal_group_tag: int,
        now: float,
        name: str = "",
        timing: Timing | None = None,
    ) -> None:
        self.timing = timing or Timing()
        self.name = name  # the peer's address, for the log
        self.local: Any = None  # our end's address, as the owner knows it
        self.surroundings = surroundings
        self.state = State.LOGIN
        self.session: Session | None = None
        self.outbox = Outbox()
        self.has_output = False
        self.owes_numbers = False  # MaxCmdSN has changed, and nothing that is queued tells it
        self.stat_sn = 1
        self.max_data_segment_bytes = LOGIN_DATA_SEGMENT_BYTES
        self.on_log: Callable[[str], None] | None = None
        self._framing = Framing(self)
        self._events: list[events.Event] = []
        self._admission = Admission(self, portal_group_tag)
        self._text: TextExchange | None = None
        self._texts = 0  # requests, since the peer has taken anything
        self._texts_at = 0  # what it had taken then, in bytes
        self._echo_bytes = 0  # of its pings, likewise
        self._echoed_at = 0
        self._header: Any = None
        self._control_data: bytearray | None = None
        self._data_task: Task | None = None  # of the Data-Out that is being received, if it is still wanted
        self._failed: PduError | None = None
        self._now = now
        self._login_deadline = now + self.timing.login_s
        self._liveness = Liveness(self, now)
        self.parting = Parting(self)

    # Bytes in and out ------------------------------------------------------------------------------------------

    @property
    def wants_read(self) -> bool:
        """False while nothing more is to be read: an admission is pending, or the peer does not read its answers."""
        state = self.state
        return (state is _FULL_FEATURE or state is State.LOGIN or state is State.LOGGING_OUT) and (
            not self.has_output or self._has_room()
        )

    def _has_room(self) -> bool:
        outbox = self.outbox
        return outbox.pending_bytes < OUTPUT_LIMIT_BYTES and outbox.pending_pieces < OUTPUT_LIMIT_PIECES

    def receive_buffers(self) -> list[memoryview]:
        """Where the next bytes go, in order."""
        return self._framing.buffers()

    def received(self, count: int, now: float) -> list[events.Event]:
        """``count`` bytes have come (0: the peer has closed). Returns what happened."""
        self._now = self._liveness.last_heard = now
        if count == 0:
            return self.lost("the initiator closed the connection")
        try:
            self._framing.received(count)
        except (LoginError, ConnectionAbortError) as error:
            self._end_by(error)
        return self._take_events()

    def _end_by(self, error: LoginError | ConnectionAbortError) -> None:
        """The one exit of protocol errors that end a connection."""
        if isinstance(error, LoginError):
            keys = [("TargetAddress", error.address)] if isinstance(error, RedirectError) else []
            self._refuse(error.status_class, error.status_detail, str(error), join(keys))
        else:
            self._end(f"protocol error: {error}", is_error=True)

    def data_to_send(self) -> list[bytes | memoryview]:
        """What to send, as one gather list; empty: nothing."""
        if self.owes_numbers and self.state is _FULL_FEATURE:
            # Section 11.19: a NOP-In is also "a means to carry a changed ExpCmdSN and/or MaxCmdSN".
            self.owes_numbers = False
            self.send_nop_in(pdu.RESERVED_TAG)
        return self.outbox.buffers()

    def sent(self, count: int) -> None:
        """``count`` bytes of data_to_send() are with the kernel."""
        self.outbox.sent(count)
        self.has_output = self.outbox.pending_bytes > 0

    @property
    def is_closed(self) -> bool:
        """True once nothing more is taken: send what is left, then close the socket."""
        return self.state is State.CLOSED

    @property
    def is_logging_in(self) -> bool:
        """True until its login is through but for the owner's word."""
        return self.state is State.LOGIN

    def lost(self, reason: str) -> list[events.Event]:
        """The socket is gone: nothing can be sent any more."""
        self._end(reason, is_error=False)
        self.outbox.discard()
        return self._take_events()

    def let_go(self) -> None:
        """The socket is closed, and we need no memory for its bytes any more."""
        self.outbox.discard()
        self._framing.let_go()
        self._control_data = None

    def tell(self, event: events.Event) -> None:
        self._events.append(event)

    def _take_events(self) -> list[events.Event]:
        told, self._events = self._events, []
        return told

    def log(self, message: str) -> None:
        if self.on_log is not None:
            self.on_log(message)

    # Sending ---------------------------------------------------------------------------------------------------

    def take_stat_sn(self) -> int:
        """The StatSN of a response that bears one."""
        stat_sn = self.stat_sn
        self.stat_sn = (stat_sn + 1) & 0xFFFFFFFF
        return stat_sn

    def send(self, header: pdu.Pdu, data: bytes | bytearray = b"") -> None:
        """Queue a PDU (``data_segment_length`` is set here) with its padding."""
        header.data_segment_length = len(data)
        outbox = self.outbox
        outbox.put(header.pack())
        if data:
            outbox.put(bytes(data))
            if len(data) & 3:
                outbox.put(bytes(-len(data) & 3))
        if not self.has_output:
            self.touch()

    def touch(self) -> None:
        """Something was put in the outbox."""
        self.has_output = True
        self.surroundings.output_ready(self)

    def owe_numbers(self) -> None:
        """Tell ExpCmdSN and MaxCmdSN with the next bytes that go out."""
        self.owes_numbers = True
        if not self.has_output:
            self.touch()

    def numbers(self) -> dict[str, int]:
        """StatSN (taken), ExpCmdSN, MaxCmdSN of a response in full feature phase."""
        assert self.session is not None
        window = self.session.window
        return {"stat_sn": self.take_stat_sn(), "exp_cmd_sn": window.exp_cmd_sn, "max_cmd_sn": window.max_cmd_sn}

    # Framing's owner -------------------------------------------------------------------------------------------

    def begin(self, header: Derived, additional: bytes) -> Sequence[memoryview]:
        """A header is here: is it known, is it allowed now, and where does its data go?"""
        self._header = header
        self._failed = None
        length: int = header.data_segment_length
        self._control_data = None
        opcode = header.opcode & pdu.OPCODE_MASK
        try:
            if opcode == _SCSI_COMMAND and self.state is _FULL_FEATURE:  # what nearly every PDU is
                return self.session.begin_command(header, additional)  # type: ignore[union-attr,arg-type]
            handler = HANDLERS.get(opcode)
            if handler is None:
                self._refuse_opcode(opcode)
                return sink(length)
            if self.state not in handler.states:
                self._refuse_during_login(type(header).__name__)
                raise ConnectionAbortError(f"{type(header).__name__} is not allowed in state {self.state.name}")
            if opcode == pdu.DataOut.OPCODE:
                self._data_task, views = transfer.data_out(self._in_session(), header)  # type: ignore[arg-type]
                return views
            if additional:
                raise PduError(pdu.REJECT_INVALID_PDU_FIELD, f"{type(header).__name__} with additional headers")
        except PduError as error:
            self._failed = error
            return sink(length)
        if not length:
            return ()
        self._control_data = bytearray(length)
        return (memoryview(self._control_data),)

    def take_commands(self, scratch: memoryview, start: int, end: int) -> tuple[int, int]:
        """Framing's owner: SCSI Commands that need nothing but to be taken."""
        session = self.session
        if self.state is not _FULL_FEATURE or session is None or session.parameters.is_discovery:
            return start, 0
        return plain.take(session, scratch, start, end)

    def _refuse_opcode(self, opcode: int) -> None:
        if self.state in (State.LOGIN, State.ADMITTING):
            self._refuse_during_login(f"opcode {opcode:#04x}")
            raise ConnectionAbortError(f"opcode {opcode:#04x} before the login")
        raise PduError(pdu.REJECT_COMMAND_NOT_SUPPORTED, f"opcode {opcode:#04x} is not an initiator's")

    def _refuse_during_login(self, what: str) -> None:
        """Section 6.3: once the Login Phase has started, a target that "receives any PDU except a Login Request …
        MUST send a Login reject (with Status "invalid during login") and then disconnect"."""
        if self._admission.is_begun and self.state is State.LOGIN:
            raise LoginError(*INVALID_DURING_LOGIN, f"{what} during the login")

    def finish(self) -> None:
        """The PDU is whole."""
        header = self._header
        try:
            if self._failed is not None:
                raise self._failed
            opcode = header.opcode & pdu.OPCODE_MASK
            if opcode == _SCSI_COMMAND:
                self.session.finish_command(header)  # type: ignore[union-attr]
            elif opcode == pdu.DataOut.OPCODE:
                task, self._data_task = self._data_task, None
                if task is not None:
                    transfer.data_out_arrived(self._in_session(), task, header)
            else:
                handler = HANDLERS[opcode]
                getattr(self, handler.method)(header, bytes(self._control_data or b""))
        except PduError as error:
            self._reject(header, error)

    def data_digest_failed(self) -> None:
        """Framing's owner: the PDU is whole, but its data is not what was sent.

        Section 7.8: "it MUST answer with a Reject PDU with a reason code of Data-Digest-Error and discard the PDU". A
        task whose data it was ends with CHECK CONDITION; for immediate data, too: left as a gap in CmdSN, as that
        section has it for higher levels, it would wait for a retry that nobody sends at ErrorRecoveryLevel 0.
        """
        header = self._header
        error = PduError(pdu.REJECT_DATA_DIGEST_ERROR, f"data digest error on {type(header).__name__}")
        task = self._data_task or self._in_session().opening
        if task is None:
            self._reject(header, error)
            return
        self.reject(header, error)
        task.damage()
        self.finish()

    def is_filling(self, task: Task) -> bool:
        """True while a Data-Out is being received into the task's buffer: the socket may write there."""
        return self._data_task is task

    def _reject(self, header: pdu.Pdu, error: PduError) -> None:
        """Section 11.17: a Reject carries the header of what it rejects; the CmdSN counts as received."""
        session = self.session
        if session is None:
            raise ConnectionAbortError(str(error))
        is_numbered = header.opcode & pdu.OPCODE_MASK in _NUMBERED and not header.opcode & pdu.IMMEDIATE
        if is_numbered and session.accepts(header):
            session.in_order(header, session.window.reopen)
        self.reject(header, error)

    def reject(self, header: pdu.Pdu, error: PduError) -> None:
        """Refuse a request whose CmdSN, if it has one, has had its turn."""
        self.log(f"rejected: {error}")
        self.send(pdu.Reject(reason=error.reason, **self.numbers()), header.pack())

    # Login phase -----------------------------------------------------------------------------------------------

    def _on_login(self, header: pdu.LoginRequest, data: bytes) -> None:
        if self._admission.receive(header, data):
            self.state = State.ADMITTING
            self._framing.is_paused = True
            self.tell(events.LoginOpened(self._admission.parameters, header.tsih))

    def admit(self, nexus: scsi.Nexus, tsih: int, now: float) -> tuple[Session, list[events.Event]]:
        """The owner lets the login in. Returns the session, and what happened since (bytes that came early)."""
        assert self.state is State.ADMITTING
        parameters = self._admission.parameters
        kind = DiscoverySession if parameters.is_discovery else Session
        session = kind(self, parameters, nexus, self.surroundings.space, tsih, self._admission.cmd_sn)
        self.session = session
        self.state = State.FULL_FEATURE
        self.max_data_segment_bytes = parameters.target_max_recv_data_segment_length
        window = session.window
        self._admission.accept(tsih, (window.exp_cmd_sn, window.max_cmd_sn))
        if parameters.header_digest or parameters.data_digest:
            # Section 13.1: from the first PDU of the full feature phase on.
            self._framing = DigestFraming(self._framing, parameters.header_digest, parameters.data_digest)
            self.outbox = DigestOutbox(self.outbox, parameters.header_digest, parameters.data_digest)
        self._text = TextExchange(parameters, lambda: self.surroundings.targets(self))
        self._liveness.last_heard = now
        self._framing.is_paused = False
        try:
            self._framing.parse()
        except (LoginError, ConnectionAbortError) as error:
            self._end_by(error)
        return session, self._take_events()

    def refuse(self, status_class: int, status_detail: int, reason: str) -> list[events.Event]:
        """The owner does not let the login in."""
        self._refuse(status_class, status_detail, reason)
        return self._take_events()

    def _refuse(self, status_class: int, status_detail: int, reason: str, text: bytes = b"") -> None:
        self._admission.refuse(self._header, (status_class, status_detail), text)
        is_redirection = status_class == 0x01
        self._end(f"login refused ({status_class:02x}{status_detail:02x}): {reason}", is_error=not is_redirection)

    # Full feature phase ----------------------------------------------------------------------------------------

    def _on_nop_out(self, header: pdu.NopOut, data: bytes) -> None:
        session = self._in_session()
        if not session.accepts(header):
            return
        if header.initiator_task_tag == pdu.RESERVED_TAG:
            # The answer to our ping, or a NOP that only brings numbers; either is immediate (section 11.18).
            if not header.opcode & pdu.IMMEDIATE:
                session.in_order(header, session.window.reopen)
            return

        def echo() -> None:
            session.release_place(header)
            self.send(
                pdu.NopIn(lun=header.lun, initiator_task_tag=header.initiator_task_tag, **self.numbers()),
                data[: session.parameters.max_recv_data_segment_length],
            )

        if data:
            # Echoes alone count: a busy reader has megabytes of answers under way, and may ping with data all the same.
            sent_bytes = self.outbox.sent_bytes
            self._echo_bytes = len(data) + (self._echo_bytes if sent_bytes == self._echoed_at else 0)
            self._echoed_at = sent_bytes
            if self._echo_bytes > UNREAD_ECHOES_LIMIT_BYTES:
                raise ConnectionAbortError("pings are sent, and their answers are not read")
        session.in_order(header, echo)

    def _on_task_management(self, header: pdu.TaskManagementRequest, data: bytes) -> None:
        session = self._in_session()
        if data:
            raise PduError(pdu.REJECT_INVALID_PDU_FIELD, "a task management request with a data segment")
        if session.accepts(header):
            session.in_order(header, lambda: session.manage(header))

    def _on_text(self, header: pdu.TextRequest, data: bytes) -> None:
        session = self._in_session()
        if not session.accepts(header):
            return
        # An initiator has one negotiation at a time. A list of a thousand targets takes its time to make: it is not
        # made a thousand times in one breath, for somebody unknown perhaps.
        sent_bytes = self.outbox.sent_bytes
        self._texts = self._texts + 1 if sent_bytes == self._texts_at else 1
        self._texts_at = sent_bytes
        if self._texts > UNREAD_TEXTS_LIMIT:
            raise ConnectionAbortError("Text Requests are sent, and the answers are not read")

        def answer() -> None:
            session.release_place(header)
            assert self._text is not None
            step = self._text.receive(header, data)
            if step.parameters is not None:
                session.parameters = step.parameters
            self.send(
                pdu.TextResponse(
                    flags=step.flags,
                    lun=header.lun,
                    initiator_task_tag=header.initiator_task_tag,
                    target_transfer_tag=step.target_transfer_tag,
                    **self.numbers(),
                ),
                step.text,
            )

        session.in_order(header, answer)

    def _on_snack(self, header: pdu.SnackRequest, data: bytes) -> None:
        # Section 11.16: SNACK is for ErrorRecoveryLevel 1 and up; we negotiate 0.
        raise PduError(pdu.REJECT_SNACK, "SNACK at ErrorRecoveryLevel 0")

    def _on_logout(self, header: pdu.LogoutRequest, data: bytes) -> None:
        session = self._in_session()
        if not session.accepts(header):
            return

        session.in_order(header, lambda: self.parting.logout(session, header))

    def begin_logout(self, session: Session) -> None:
        """Nothing new is taken from here on; the last task is waited for."""
        self.state = State.LOGGING_OUT
        self.tell(events.SessionClosed(session, "logout"))
        session.close()

    def end_logout(self, reason: str) -> None:
        """The logout is answered."""
        self._end(reason, is_error=False)

    def _in_session(self) -> Session:
        assert self.session is not None, "the table of states lets nothing through before"
        return self.session

    # Time ------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The time of the last bytes, or of the last tick."""
        return self._now

    @property
    def heard_at(self) -> float:
        """When the last bytes came."""
        return self._liveness.last_heard

    @property
    def management_deadline(self) -> float:
        """When a task management function that begins now is answered, done or not (CONTRACTS 2)."""
        return self._now + self.timing.management_s

    def tick(self, now: float) -> list[events.Event]:
        """Time has passed (call it about once a second)."""
        self._now = now
        if self.state is State.LOGIN and now > self._login_deadline:
            self._end(f"no login within {self.timing.login_s:.0f} s", is_error=True)
        elif self.state is State.FULL_FEATURE:
            reason = self._in_session().tick(now) or self._liveness.tick(now)
            if reason is not None:
                self._end(reason, is_error=True)
        elif self.state is State.LOGGING_OUT:
            self.parting.tick(now)
        return self._take_events()

    def ping(self) -> None:
        """A NOP-In that the initiator has to answer."""
        self.send_nop_in(self._in_session().next_transfer_tag())

    def send_nop_in(self, target_transfer_tag: int) -> None:
        """A ping; with the reserved tag, one that only brings numbers."""
        window = self._in_session().window
        # A NOP-In of the target's own carries the next StatSN and does not advance it (section 11.19).
        self.send(
            pdu.NopIn(
                target_transfer_tag=target_transfer_tag,
                stat_sn=self.stat_sn,
                exp_cmd_sn=window.exp_cmd_sn,
                max_cmd_sn=window.max_cmd_sn,
            )
        )

    def send_asynchronous_message(self, event: int, lun: int = 0, parameters: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Section 11.9: something happens that the initiator has not asked for."""
        self.send(
            pdu.AsynchronousMessage(
                lun=lun,
                async_event=event,
                parameter_1=parameters[0],
                parameter_2=parameters[1],
                parameter_3=parameters[2],
                **self.numbers(),
            )
        )

    # The end ---------------------------------------------------------------------------------------------------

    def drop(self, reason: str) -> list[events.Event]:
        """The owner ends the connection (the volume was removed, we are shutting down)."""
        self._end(reason, is_error=False)
        return self._take_events()

    def _end(self, reason: str, is_error: bool) -> None:
        if self.state is State.CLOSED:
            return
        was_logging_out = self.state is State.LOGGING_OUT
        self.state = State.CLOSED
        self._framing.is_paused = True
        session = self.session
        if session is not None and not was_logging_out:
            self.tell(events.SessionClosed(session, reason))
        if session is not None:
            session.close()
        self.parting.forget()
        self.tell(events.ConnectionClosed(reason, is_error))


_NUMBERED = frozenset(
    declared.OPCODE
    for declared in (pdu.NopOut, pdu.ScsiCommand, pdu.TaskManagementRequest, pdu.TextRequest, pdu.LogoutRequest)
)
