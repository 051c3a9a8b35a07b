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
from dataclasses import dataclass, field
from typing import Any

from iscsi_ovs import pdu
from iscsi_ovs.login import text
from iscsi_ovs.login.keys import Parameters, parse_number

Buffer = bytes | bytearray | memoryview

# What a modern initiator proposes (open-iscsi's defaults, with more R2Ts).
OPERATIONAL_KEYS: dict[str, str] = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "DefaultTime2Wait": "2",
    "DefaultTime2Retain": "0",
    "ErrorRecoveryLevel": "0",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxBurstLength": "16776192",
    "FirstBurstLength": "262144",
    "MaxOutstandingR2T": "4",
    "MaxConnections": "1",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "MaxRecvDataSegmentLength": "262144",
}
_NUMBERS: dict[str, str] = {
    "MaxBurstLength": "max_burst_length",
    "FirstBurstLength": "first_burst_length",
    "MaxOutstandingR2T": "max_outstanding_r2t",
    "MaxConnections": "max_connections",
    "DefaultTime2Wait": "default_time2wait",
    "DefaultTime2Retain": "default_time2retain",
    "ErrorRecoveryLevel": "error_recovery_level",
}
_BOOLEANS: dict[str, str] = {"InitialR2T": "initial_r2t", "ImmediateData": "immediate_data"}
_LOGIN_SEGMENT_BYTES = 8192


class ViolationError(AssertionError):
    """The target did what RFC 7143 forbids."""


@dataclass(frozen=True, slots=True)
class Received:
    """One PDU from the target."""

    header: pdu.Pdu
    data: bytes = b""
    ahs: bytes = b""


@dataclass(slots=True)
class Result:
    """What became of one request. ``is_complete`` once the target has answered for good."""

    initiator_task_tag: int
    read_bytes: int = 0
    write_data: memoryview = field(default_factory=lambda: memoryview(b""))
    lun: int = 0
    cmd_sn: int = 0
    is_complete: bool = False
    status: int | None = None  # SCSI status
    response: int | None = None  # the response code of a SCSI, task management or logout response
    sense: bytes = b""
    data: bytearray = field(default_factory=bytearray)  # data-in, ping data or text
    data_in_pdus: int = 0
    r2ts: int = 0
    overflow: bool = False
    underflow: bool = False
    residual_count: int = 0
    header: pdu.Pdu | None = None  # of the final response
    reject_reason: int | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The answers of a text request, in order; keys may repeat."""
        return parse_pairs(bytes(self.data))

    @property
    def sense_key(self) -> int | None:
        """Of fixed (70h) or descriptor (72h) sense data."""
        if len(self.sense) < 4:
            return None
        return self.sense[2] & 0x0F if self.sense[0] & 0x7F < 0x72 else self.sense[1] & 0x0F

    @property
    def additional_sense(self) -> tuple[int, int] | None:
        """ASC and ASCQ."""
        if self.sense and self.sense[0] & 0x7F >= 0x72:
            return (self.sense[2], self.sense[3]) if len(self.sense) >= 4 else None
        return (self.sense[12], self.sense[13]) if len(self.sense) >= 14 else None


def parse_pairs(data: bytes) -> list[tuple[str, str]]:
    """Text to pairs, repeated keys and all."""
    pairs = []
    for piece in data.split(b"\0"):
        if piece:
            key, _, value = piece.decode().partition("=")
            pairs.append((key, value))
    return pairs


def encode(header: pdu.Pdu, data: Buffer = b"", ahs: bytes = b"") -> bytes:
    """A PDU as it goes over the wire: lengths filled in, segments padded, no digests."""
    header.data_segment_length = len(data)
    header.total_ahs_length = (len(ahs) + 3) // 4
    return b"".join(
        (header.pack(), ahs, bytes(pdu.pad_bytes(len(ahs))), data, bytes(pdu.pad_bytes(len(data))))
    )  # fmt: skip


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
        self._out = bytearray()
        self._in = bytearray()
        self._itt = 0
        self._waiting: deque[tuple[pdu.Pdu, bytes, bytes, list[bytes]]] = deque()  # for the command window
        self._login = _LoginPlan()
        self._stat_sn_known = False
        self._outstanding_r2ts: dict[int, set[int]] = {}  # by task tag: the transfer tags we have not answered

    # ------------------------------------------------------------------ bytes

    def to_send(self) -> bytes:
        """What is to go to the target now."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def raw(self, header: Buffer | pdu.Pdu, data: Buffer = b"", pad: bool = True) -> None:
        """Send these very bytes: nothing is checked, numbered or filled in."""
        self._out += header.pack() if isinstance(header, pdu.Pdu) else header
        self._out += data
        if pad:
            self._out += bytes(pdu.pad_bytes(len(data)))

    def feed(self, data: Buffer) -> list[Received]:
        """Take what the target sent, in pieces of any size; return the PDUs that it completed."""
        self._in += data
        arrived = []
        while (received := self._next_pdu()) is not None:
            arrived.append(received)
            self.received.append(received)
            self._dispatch(received)
        return arrived

    def _next_pdu(self) -> Received | None:
        if len(self._in) < pdu.BHS_BYTES:
            return None
        try:
            header = pdu.decode(self._in)
        except KeyError:
            raise ViolationError(f"no such opcode: {self._in[0]:#04x}") from None
        ahs_bytes, data_bytes = header.total_ahs_length * 4, header.data_segment_length
        total = pdu.BHS_BYTES + ahs_bytes + data_bytes + pdu.pad_bytes(data_bytes)
        if len(self._in) < total:
            return None
        start = pdu.BHS_BYTES + ahs_bytes
        ahs, data = bytes(self._in[pdu.BHS_BYTES : start]), bytes(self._in[start : start + data_bytes])
        del self._in[:total]
        return Received(header, data, ahs)

    # ------------------------------------------------------------------ login

    def login(
        self,
        target: str | None,
        *,
        security: bool = True,
        identity: dict[str, str | None] | None = None,
        tsih: int = 0,
        **overrides: str | None,
    ) -> int:
        """Begin a login: to a target, or for discovery (None). ``feed`` carries it on to ``is_logged_in``.

        ``overrides`` change the operational keys by name (None leaves one out; others are added); ``identity`` those
        of the first request. ``security=False`` starts in the operational stage.
        """
        first: dict[str, str | None] = {
            "InitiatorName": self.name,
            "SessionType": "Normal" if target else "Discovery",
            "TargetName": target,
            "AuthMethod": "None" if security else None,
            **(identity or {}),
        }
        operational = {**OPERATIONAL_KEYS, **overrides}
        plan = self._login = _LoginPlan(stage=0 if security else 1, task_tag=self._new_task_tag())
        plan.operational = {key: value for key, value in operational.items() if value is not None}
        identified = {key: value for key, value in first.items() if value is not None}
        self.tsih = tsih
        self._set(is_discovery=target is None, target_name=target)
        self._login_text(identified if security else {**identified, **plan.operational})
        return plan.task_tag

    def login_pdu(self, flags: int, data: Buffer = b"", **fields: Any) -> None:
        """Send one Login Request of your own making."""
        header = pdu.LoginRequest(
            flags=flags, isid=self.isid, tsih=self.tsih, cid=self.cid, cmd_sn=self.cmd_sn,
            exp_stat_sn=self.exp_stat_sn, initiator_task_tag=self._login.task_tag,
        )  # fmt: skip
        for name, value in fields.items():
            setattr(header, name, value)
        self._out += encode(header, data)

    def _login_text(self, pairs: dict[str, str]) -> None:
        self._login.pending = text.join(pairs.items())
        self._login_continue()

    def _login_continue(self) -> None:
        """The next piece of our text; the last asks for the next stage."""
        plan = self._login
        piece, plan.pending = plan.pending[:_LOGIN_SEGMENT_BYTES], plan.pending[_LOGIN_SEGMENT_BYTES:]
        flags = plan.stage << pdu.CSG_SHIFT
        plan.is_sending = bool(plan.pending)
        flags |= pdu.CONTINUE if plan.is_sending else pdu.TRANSIT | plan.next_stage
        self.login_pdu(flags, piece)

    def _login_response(self, header: pdu.Pdu, data: bytes) -> None:
        plan = self._login
        self.login_status = header.status_class, header.status_detail
        if header.status_class:
            return
        self._check(header.initiator_task_tag == plan.task_tag, "a Login Response with another task tag")
        self._check(header.isid == self.isid, "a Login Response with another ISID")
        self._check(header.flags >> pdu.CSG_SHIFT & pdu.STAGE_MASK == plan.stage, "CSG is not the current stage")
        self._check(len(data) <= _LOGIN_SEGMENT_BYTES, "a Login Response of more than 8192 bytes")
        transit, goes_on = bool(header.flags & pdu.TRANSIT), bool(header.flags & pdu.CONTINUE)
        self._check(not (transit and goes_on), "T and C together")
        if plan.is_sending:
            self._check(not transit and not data, "an answer to half a text")
            self._login_continue()
            return
        plan.answers += data
        if goes_on:
            self._login_continue()
            return
        proposals = self._login_answers(parse_pairs(bytes(plan.answers)))
        plan.answers.clear()
        if not transit:
            plan.refusals += 1
            self._check(plan.refusals < 10, "the target never lets us into the next stage")
            self._login_text(proposals)
            return
        self._check(not proposals, "T beside a key that waits for our answer")
        self._check(header.flags & pdu.STAGE_MASK == plan.next_stage, "NSG is not what we asked for")
        if plan.next_stage == 3:
            self._check(header.tsih != 0, "the last Login Response has no TSIH")
            self.tsih = header.tsih
            self._set(max_recv_data_segment_length=int(plan.operational.get("MaxRecvDataSegmentLength", "8192"), 0))
            self.is_logged_in = True
            return
        plan.stage = plan.next_stage
        self._login_text(plan.operational)

    def _login_answers(self, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Take the target's answers; return our answers to what it brought up itself."""
        proposals: dict[str, str] = {}
        for key, value in pairs:
            self._check(key not in self.answers or key == "TargetAddress", f"{key} a second time")
            self.answers[key] = value
            if key in ("FirstBurstLength", "ImmediateData") and key not in self._login.operational:
                proposals[key] = value
            self._take_answer(key, value)
        return proposals

    def _take_answer(self, key: str, value: str) -> None:
        ours = self._login.operational.get(key)
        if key in _NUMBERS:
            number = parse_number(value, 0, 2**32)
            if number is not None:
                self._set(**{_NUMBERS[key]: number})
        elif key in _BOOLEANS and value in ("Yes", "No"):
            self._set(**{_BOOLEANS[key]: value == "Yes"})
        elif key == "MaxRecvDataSegmentLength":
            self._set(target_max_recv_data_segment_length=int(value, 0))
        elif key == "TargetPortalGroupTag":
            self._set(portal_group_tag=int(value, 0))
        elif key in ("HeaderDigest", "DataDigest") and ours is not None:
            self._check(value in (*ours.split(","), "Reject"), f"{key}={value} was not offered")

    def _set(self, **values: Any) -> None:
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
            pdus.append(encode(header, piece))
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
        self._out += encode(header, data)

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
            self._out += encode(header, data, ahs)
            for piece in following:
                self._out += piece

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
            self._out += piece

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
        self._out += encode(answer)

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
        itt = pdu.Header.unpack_from(data).initiator_task_tag
        result = self.results.get(itt)
        if result is not None and not result.is_complete:
            result.is_complete = True
            result.header = header
            result.reject_reason = header.reason

    def _asynchronous_message(self, header: pdu.Pdu, data: bytes) -> None:
        """Left to the test: it is in ``received``."""

    def _check(self, holds: bool, message: str) -> None:
        if not holds:
            raise ViolationError(message)


@dataclass(slots=True)
class _LoginPlan:
    """Where a login stands."""

    stage: int = 0
    task_tag: int = 0
    operational: dict[str, str] = field(default_factory=dict)
    pending: bytes = b""  # of our text, not yet sent
    is_sending: bool = False  # our last request had the C bit
    answers: bytearray = field(default_factory=bytearray)
    refusals: int = 0  # of the transit that we asked for

    @property
    def next_stage(self) -> int:
        return 1 if self.stage == 0 else 3


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
