"""An iSCSI initiator for conversations with a target: bytes in, bytes out, no socket (RFC 7143, ErrorRecoveryLevel 0).

    initiator = Initiator()
    initiator.login("iqn.2016-01.com.openvstorage:demo")
    … give initiator.to_send() to the target, and what the target says to initiator.feed(), until is_logged_in …
    itt = initiator.command(read_10(0, 8), read=4096)
    … and again …
    initiator.results[itt].data

It does what a correct initiator does: numbers commands and waits for the window, sends immediate and unsolicited data
as far as was negotiated, answers R2Ts and pings, follows text and login that come in pieces. It also *judges*: what a
target must not do raises ViolationError. ``raw`` sends anything at all. ``socket_initiator`` is the same over TCP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from iscsi_ovs import pdu
from iscsi_ovs.login import text
from iscsi_ovs.login.keys import Parameters
from iscsi_ovs.testing.chap import Chap
from iscsi_ovs.testing.login import LoginPhase
from iscsi_ovs.testing.results import Received, Result, ViolationError, parse_pairs
from iscsi_ovs.testing.stream import Buffer, Stream, encode

__all__ = ["Buffer", "Initiator", "Received", "Result", "ViolationError", "encode", "parse_pairs"]


class Initiator:
    """One session on one connection. All lengths in bytes.

    ``parameters`` is what was negotiated, ``answers`` what the target said during login, ``received`` every PDU it
    ever sent. ``answer_r2t`` and ``answer_pings`` may be switched off for tests that keep the target waiting.
    """

    def __init__(
        self,
        name: str = "iqn.2016-01.com.openvstorage.testing:initiator",
        isid: bytes = b"\x80\x12\x34\x56\x00\x01",
        cid: int = 0,
        first_cmd_sn: int = 1,
    ) -> None:
        self.name = name
        self.isid = isid
        self.cid = cid
        self.tsih = 0
        self.cmd_sn = first_cmd_sn
        self.exp_stat_sn = 0
        self.exp_cmd_sn = first_cmd_sn
        self.max_cmd_sn = first_cmd_sn
        self.parameters = Parameters(initiator_name=name, isid=isid, cid=cid)
        self.answers: dict[str, str] = {}
        self.results: dict[int, Result] = {}
        self.received: list[Received] = []
        self.login_status: tuple[int, int] | None = None  # Status-Class, Status-Detail of the last Login Response
        self.is_logged_in = False
        self.is_logged_out = False
        self.answer_r2t = True
        self.answer_pings = True
        self.stream = Stream()
        self._itt = 0
        self._waiting: deque[tuple[pdu.Pdu, bytes, bytes, list[bytes]]] = deque()  # for the command window
        self._login = LoginPhase(self)
        self._stat_sn_known = False
        self._outstanding_r2ts: dict[int, set[int]] = {}  # by task tag: the transfer tags we have not answered

    # ------------------------------------------------------------------ bytes

    def to_send(self) -> bytes:
        """What is to go to the target now."""
        return self.stream.take()

    def raw(self, header: Buffer | pdu.Pdu, data: Buffer = b"", pad: bool = True) -> None:
        """Send these very bytes: nothing is checked, numbered or filled in."""
        put = self.stream.put
        put(header.pack() if isinstance(header, pdu.Pdu) else header)
        put(data)
        if pad:
            put(bytes(pdu.pad_bytes(len(data))))

    def feed(self, data: Buffer) -> list[Received]:
        """Take what the target sent, in pieces of any size; return the PDUs that it completed."""
        arrived = []
        for received in self.stream.feed(data):
            arrived.append(received)
            self.received.append(received)
            self._dispatch(received)
        return arrived

    # ------------------------------------------------------------------ login

    def login(
        self,
        target: str | None,
        *,
        security: bool = True,
        identity: dict[str, str | None] | None = None,
        tsih: int = 0,
        chap: Chap | None = None,
        **overrides: str | None,
    ) -> int:
        """Begin a login: to a target, or for discovery (None). ``feed`` carries it on to ``is_logged_in``.

        ``overrides`` change the operational keys by name (None leaves one out; others are added); ``identity`` those
        of the first request. ``security=False`` starts in the operational stage. ``chap`` is how we prove ourselves.
        """
        self.tsih = tsih
        self.set(is_discovery=target is None, target_name=target)
        self._login = LoginPhase(self)
        return self._login.begin(self._new_task_tag(), target, security, identity or {}, chap, overrides)

    def login_pdu(self, flags: int, data: Buffer = b"", **fields: Any) -> None:
        """Send one Login Request of your own making."""
        header = pdu.LoginRequest(
            flags=flags, isid=self.isid, tsih=self.tsih, cid=self.cid, cmd_sn=self.cmd_sn,
            exp_stat_sn=self.exp_stat_sn, initiator_task_tag=self._login.task_tag,
        )  # fmt: skip
        for name, value in fields.items():
            setattr(header, name, value)
        self.stream.put(encode(header, data))

    def _login_response(self, header: pdu.Pdu, data: bytes) -> None:
        self._login.received(header, data)

    def set(self, **values: Any) -> None:
        """Change what holds for this session."""
        fields = {name: getattr(self.parameters, name) for name in Parameters.__slots__}
        self.parameters = Parameters(**{**fields, **values})

    # ------------------------------------------------------------------ requests

    def command(
        self,
        cdb: bytes,
        *,
        read: int = 0,
        write: Buffer = b"",
        lun: int = 0,
        immediate: bool = False,
        expected_bytes: int | None = None,
        attribute: int = pdu.ATTRIBUTE_SIMPLE,
        immediate_data: int | None = None,
        unsolicited_data: bool = True,
    ) -> int:
        """Send a SCSI command; return its task tag. ``write`` is its data-out, ``read`` its room for data-in.

        ``lun`` is a number (peripheral addressing) below 256, else the whole 64-bit field. ``immediate_data`` limits
        the immediate bytes, ``unsolicited_data=False`` leaves the rest to R2Ts. ``expected_bytes`` lies about EDTL.
        """
        result = self._open(lun, immediate)
        result.read_bytes, result.write_data = read, memoryview(write)
        first = self._unsolicited_bytes(result.write_data, unsolicited_data)
        now = min(first, self._immediate_bytes(result.write_data, immediate_data))
        if not unsolicited_data or self.parameters.initial_r2t:
            first = now
        flags = attribute | (pdu.READ if read else 0) | (pdu.WRITE if len(write) else 0)
        if first <= now:
            flags |= pdu.FINAL
        header = pdu.ScsiCommand(
            opcode=pdu.ScsiCommand.OPCODE | (pdu.IMMEDIATE if immediate else 0),
            flags=flags,
            lun=result.lun,
            initiator_task_tag=result.initiator_task_tag,
            expected_data_transfer_length=(read or len(write)) if expected_bytes is None else expected_bytes,
            cmd_sn=result.cmd_sn,
            cdb=cdb[:16].ljust(16, b"\0"),
        )
        ahs = b""
        if len(cdb) > 16:  # section 11.2.2.3: the length counts what follows the first three bytes
            ahs = pdu.AdditionalHeader(ahs_length=len(cdb) - 15, ahs_type=pdu.AHS_EXTENDED_CDB).pack() + cdb[16:]
        following = self._data_out_pdus(result, pdu.RESERVED_TAG, now, first - now)
        self._queue(header, bytes(result.write_data[:now]), ahs, following)
        return result.initiator_task_tag

    def _immediate_bytes(self, data: memoryview, limit: int | None) -> int:
        if not self.parameters.immediate_data:
            return 0
        room = min(len(data), self.parameters.target_max_recv_data_segment_length)
        return room if limit is None else min(room, limit)

    def _unsolicited_bytes(self, data: memoryview, wanted: bool) -> int:
        parameters = self.parameters
        if parameters.initial_r2t and not parameters.immediate_data:
            return 0
        return min(len(data), parameters.first_burst_length)

    def _data_out_pdus(self, result: Result, transfer_tag: int, offset: int, length: int) -> list[bytes]:
        """One sequence of Data-Out PDUs (section 11.7), cut by what the target declared."""
        page = self.parameters.target_max_recv_data_segment_length
        end, pdus, data_sn = offset + length, [], 0
        while offset < end:
            piece = result.write_data[offset : min(end, offset + page)]
            last = offset + len(piece) == end
            header = pdu.DataOut(
                flags=pdu.FINAL if last else 0, lun=result.lun, initiator_task_tag=result.initiator_task_tag,
                target_transfer_tag=transfer_tag, exp_stat_sn=self.exp_stat_sn, data_sn=data_sn, buffer_offset=offset,
            )  # fmt: skip
            pdus.append(self.stream.encode(header, piece))
            offset += len(piece)
            data_sn += 1
        return pdus

    def data_out(
        self, itt: int, data: Buffer, *, offset: int = 0, transfer_tag: int = pdu.RESERVED_TAG,
        data_sn: int = 0, final: bool = True, lun: int = 0,
    ) -> None:  # fmt: skip
        """Send one Data-Out PDU of your own making."""
        header = pdu.DataOut(
            flags=pdu.FINAL if final else 0, lun=_lun_field(lun), initiator_task_tag=itt, data_sn=data_sn,
            target_transfer_tag=transfer_tag, exp_stat_sn=self.exp_stat_sn, buffer_offset=offset,
        )  # fmt: skip
        self.stream.put(self.stream.encode(header, data))

    def tmf(
        self,
        function: int,
        *,
        lun: int = 0,
        referenced_task_tag: int = pdu.RESERVED_TAG,
        ref_cmd_sn: int | None = None,
        immediate: bool = True,
    ) -> int:
        """Send a task management request; return its task tag."""
        result = self._open(lun, immediate)
        if ref_cmd_sn is None:
            referenced = self.results.get(referenced_task_tag)
            ref_cmd_sn = referenced.cmd_sn if referenced else 0
        header = pdu.TaskManagementRequest(
            opcode=pdu.TaskManagementRequest.OPCODE | (pdu.IMMEDIATE if immediate else 0),
            flags=pdu.FINAL | function, lun=result.lun, initiator_task_tag=result.initiator_task_tag,
            referenced_task_tag=referenced_task_tag, cmd_sn=result.cmd_sn, ref_cmd_sn=ref_cmd_sn,
        )  # fmt: skip
        self._queue(header)
        return result.initiator_task_tag

    def nop_out(self, data: Buffer = b"", *, immediate: bool = True) -> int:
        """Ping the target; the echo is in the result's data."""
        result = self._open(0, immediate)
        header = pdu.NopOut(
            opcode=pdu.NopOut.OPCODE | (pdu.IMMEDIATE if immediate else 0),
            initiator_task_tag=result.initiator_task_tag, cmd_sn=result.cmd_sn,
        )  # fmt: skip
        self._queue(header, bytes(data))
        return result.initiator_task_tag

    def text(self, pairs: Iterable[tuple[str, str]] | Buffer, *, immediate: bool = False) -> int:
        """Begin a text negotiation; the answers, all pieces of them, are in the result's data."""
        result = self._open(0, immediate)
        data = bytes(pairs) if isinstance(pairs, (bytes, bytearray, memoryview)) else text.join(pairs)
        result.write_data = memoryview(data)
        self._text_request(result, pdu.RESERVED_TAG)
        return result.initiator_task_tag

    def send_targets(self, value: str = "All") -> int:
        return self.text([("SendTargets", value)])

    def _text_request(self, result: Result, transfer_tag: int) -> None:
        page = self.parameters.target_max_recv_data_segment_length
        piece, result.write_data = result.write_data[:page], result.write_data[page:]
        header = pdu.TextRequest(
            flags=pdu.CONTINUE if result.write_data else pdu.FINAL, initiator_task_tag=result.initiator_task_tag,
            target_transfer_tag=transfer_tag, cmd_sn=result.cmd_sn,
        )  # fmt: skip
        self._queue(header, bytes(piece))

    def logout(self, reason: int = pdu.CLOSE_SESSION, *, cid: int | None = None, immediate: bool = False) -> int:
        """Ask to leave; the result's ``response`` is 0 when the target agrees."""
        result = self._open(0, immediate)
        header = pdu.LogoutRequest(
            opcode=pdu.LogoutRequest.OPCODE | (pdu.IMMEDIATE if immediate else 0),
            flags=pdu.FINAL | reason, initiator_task_tag=result.initiator_task_tag,
            cid=self.cid if cid is None else cid, cmd_sn=result.cmd_sn,
        )  # fmt: skip
        self._queue(header)
        return result.initiator_task_tag

    def _new_task_tag(self) -> int:
        self._itt = (self._itt + 1) % pdu.RESERVED_TAG
        return self._itt

    def _open(self, lun: int, immediate: bool) -> Result:
        result = Result(self._new_task_tag(), lun=_lun_field(lun), cmd_sn=self._number(immediate))
        self.results[result.initiator_task_tag] = result
        return result

    def _number(self, immediate: bool) -> int:
        """Section 4.2.2.1: an immediate command carries the next CmdSN but does not use it up."""
        cmd_sn = self.cmd_sn
        if not immediate:
            self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        return cmd_sn

    def _queue(
        self, header: pdu.Pdu, data: bytes = b"", ahs: bytes = b"", following: list[bytes] | None = None
    ) -> None:
        self._waiting.append((header, data, ahs, following or []))
        self._drain_window()

    def _drain_window(self) -> None:
        while self._waiting:
            header, data, ahs, following = self._waiting[0]
            if not header.opcode & pdu.IMMEDIATE and (self.max_cmd_sn - header.cmd_sn) & 0xFFFFFFFF >= 0x80000000:
                return
            self._waiting.popleft()
            header.exp_stat_sn = self.exp_stat_sn
            self.stream.put(self.stream.encode(header, data, ahs))
            for piece in following:
                self.stream.put(piece)

    # ------------------------------------------------------------------ what the target says

    def _dispatch(self, received: Received) -> None:
        header = received.header
        handler = _HANDLERS.get(type(header))
        if handler is None:
            raise ViolationError(f"a target does not send {type(header).__name__}")
        self._take_numbers(header)
        handler(self, header, received.data)
        self._drain_window()

    def _take_numbers(self, header: pdu.Pdu) -> None:
        if isinstance(header, pdu.LoginResponse) and header.status_class:
            return  # section 11.13.4: then they mean nothing
        if (header.max_cmd_sn - self.max_cmd_sn) & 0xFFFFFFFF < 0x80000000:
            self.max_cmd_sn = header.max_cmd_sn
        if (header.exp_cmd_sn - self.exp_cmd_sn) & 0xFFFFFFFF < 0x80000000:
            self.exp_cmd_sn = header.exp_cmd_sn
        if not _bears_status(header):
            return
        if not self._stat_sn_known:
            self._stat_sn_known = True
            self.exp_stat_sn = header.stat_sn
        self._check(header.stat_sn == self.exp_stat_sn, f"StatSN {header.stat_sn}, expected {self.exp_stat_sn}")
        self.exp_stat_sn = (header.stat_sn + 1) & 0xFFFFFFFF

    def _result(self, header: pdu.Pdu) -> Result:
        result = self.results.get(header.initiator_task_tag)
        if result is None or result.is_complete:
            raise ViolationError(f"{header!r} answers no request of ours")
        return result

    def _complete(self, header: pdu.Pdu) -> Result:
        result = self._result(header)
        result.header = header
        result.is_complete = True
        self._outstanding_r2ts.pop(result.initiator_task_tag, None)
        return result

    def _data_in(self, header: pdu.Pdu, data: bytes) -> None:
        result = self._result(header)
        self._check(len(data) <= self.parameters.max_recv_data_segment_length, "Data-In beyond what we declared")
        self._check(header.data_sn == result.data_in_pdus, f"DataSN {header.data_sn} is not {result.data_in_pdus}")
        self._check(header.buffer_offset == len(result.data), "Data-In out of order")
        result.data_in_pdus += 1
        result.data += data
        self._check(len(result.data) <= result.read_bytes, "more data-in than was asked for")
        if header.flags & pdu.STATUS:
            self._check(bool(header.flags & pdu.FINAL), "status without F")
            self._complete(header)
            result.status, result.response = header.status, pdu.COMPLETED_AT_TARGET
            self._residual(result, header)

    def _scsi_response(self, header: pdu.Pdu, data: bytes) -> None:
        result = self._complete(header)
        result.response, result.status = header.response, header.status
        if len(data) >= 2:
            length = int.from_bytes(data[:2], "big")
            self._check(length <= len(data) - 2, "a sense length beyond the data segment")
            result.sense = data[2 : 2 + length]
        self._residual(result, header)

    def _residual(self, result: Result, header: pdu.Pdu) -> None:
        result.overflow = bool(header.flags & pdu.OVERFLOW)
        result.underflow = bool(header.flags & pdu.UNDERFLOW)
        self._check(not (result.overflow and result.underflow), "overflow and underflow together")
        if result.overflow or result.underflow:
            result.residual_count = header.residual_count

    def _ready_to_transfer(self, header: pdu.Pdu, _: bytes) -> None:
        result = self._result(header)
        offset, length = header.buffer_offset, header.desired_data_transfer_length
        self._check(header.r2t_sn == result.r2ts, f"R2TSN {header.r2t_sn} is not {result.r2ts}")
        self._check(0 < length <= self.parameters.max_burst_length, f"an R2T for {length} bytes")
        self._check(offset + length <= len(result.write_data), "an R2T beyond our data")
        self._check(header.target_transfer_tag != pdu.RESERVED_TAG, "an R2T without a target transfer tag")
        outstanding = self._outstanding_r2ts.setdefault(result.initiator_task_tag, set())
        outstanding.add(header.target_transfer_tag)
        self._check(len(outstanding) <= self.parameters.max_outstanding_r2t, "more R2Ts than were negotiated")
        result.r2ts += 1
        if self.answer_r2t:
            self.answer(header)

    def answer(self, r2t: pdu.Pdu) -> None:
        """Answer an R2T with the whole sequence that it asks for."""
        result = self._result(r2t)
        self._outstanding_r2ts.get(result.initiator_task_tag, set()).discard(r2t.target_transfer_tag)
        for piece in self._data_out_pdus(
            result, r2t.target_transfer_tag, r2t.buffer_offset, r2t.desired_data_transfer_length
        ):
            self.stream.put(piece)

    def _task_management_response(self, header: pdu.Pdu, _: bytes) -> None:
        self._complete(header).response = header.response

    def _logout_response(self, header: pdu.Pdu, _: bytes) -> None:
        self._complete(header).response = header.response
        self.is_logged_out = header.response == pdu.LOGOUT_SUCCESS

    def _nop_in(self, header: pdu.Pdu, data: bytes) -> None:
        if header.initiator_task_tag != pdu.RESERVED_TAG:
            self._complete(header).data += data
        if header.target_transfer_tag == pdu.RESERVED_TAG or not self.answer_pings:
            return
        answer = pdu.NopOut(
            opcode=pdu.NopOut.OPCODE | pdu.IMMEDIATE, lun=header.lun, initiator_task_tag=pdu.RESERVED_TAG,
            target_transfer_tag=header.target_transfer_tag, cmd_sn=self.cmd_sn, exp_stat_sn=self.exp_stat_sn,
        )  # fmt: skip
        self.stream.put(self.stream.encode(answer))

    def _text_response(self, header: pdu.Pdu, data: bytes) -> None:
        result = self._result(header)
        final, goes_on = bool(header.flags & pdu.FINAL), bool(header.flags & pdu.CONTINUE)
        self._check(not (final and goes_on), "F and C together")
        self._check(final == (header.target_transfer_tag == pdu.RESERVED_TAG), "F does not fit the transfer tag")
        self._check(len(data) <= self.parameters.max_recv_data_segment_length, "text beyond what we declared")
        result.data += data
        if final:
            self._check(not result.write_data, "F before our text was over")
            self._complete(header)
            return
        result.cmd_sn = self._number(immediate=False)
        self._text_request(result, header.target_transfer_tag)

    def _reject(self, header: pdu.Pdu, data: bytes) -> None:
        """Section 11.17: the data segment is the header of what was refused."""
        self._check(len(data) >= pdu.BHS_BYTES, "a Reject without the rejected header")
        rejected = pdu.Header.unpack_from(data)
        result = self.results.get(rejected.initiator_task_tag)
        if result is None or result.is_complete:
            return
        result.header = header
        result.reject_reason = header.reason
        # Section 7.3: a task that is active is never ended by a Reject; its response is still to come.
        is_data = rejected.opcode == pdu.DataOut.OPCODE or (
            rejected.opcode & pdu.OPCODE_MASK == pdu.ScsiCommand.OPCODE
            and header.reason == pdu.REJECT_DATA_DIGEST_ERROR
        )
        result.is_complete = not is_data

    def _asynchronous_message(self, header: pdu.Pdu, data: bytes) -> None:
        """Left to the test: it is in ``received``."""

    def _check(self, holds: bool, message: str) -> None:
        if not holds:
            raise ViolationError(message)


def _lun_field(lun: int) -> int:
    """The 64-bit field for a small LUN number; a larger one is taken as it is."""
    return lun << 48 if lun < 256 else lun


def _bears_status(header: pdu.Pdu) -> bool:
    """Does this PDU use up a StatSN?"""
    if isinstance(header, pdu.DataIn):
        return bool(header.flags & pdu.STATUS)
    if isinstance(header, pdu.NopIn):
        return bool(header.initiator_task_tag != pdu.RESERVED_TAG)
    return not isinstance(header, pdu.ReadyToTransfer)


_HANDLERS: dict[type[pdu.Pdu], Any] = {
    pdu.LoginResponse: Initiator._login_response,
    pdu.ScsiResponse: Initiator._scsi_response,
    pdu.DataIn: Initiator._data_in,
    pdu.ReadyToTransfer: Initiator._ready_to_transfer,
    pdu.TaskManagementResponse: Initiator._task_management_response,
    pdu.LogoutResponse: Initiator._logout_response,
    pdu.NopIn: Initiator._nop_in,
    pdu.TextResponse: Initiator._text_response,
    pdu.Reject: Initiator._reject,
    pdu.AsynchronousMessage: Initiator._asynchronous_message,
}
