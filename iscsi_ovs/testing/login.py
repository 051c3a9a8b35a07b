"""The login phase of a testing initiator: stages, texts in pieces, CHAP, and what the target may answer (RFC 7143
sections 6.2, 6.3, 11.12, 11.13).

It asks for the next stage with each request, except where CHAP still has to be done, and takes what was agreed on into
the initiator's ``parameters``. Wrong answers raise ViolationError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from iscsi_ovs import pdu
from iscsi_ovs.login import text
from iscsi_ovs.login.keys import parse_number
from iscsi_ovs.testing.chap import Chap
from iscsi_ovs.testing.results import ViolationError, parse_pairs

if TYPE_CHECKING:
    from iscsi_ovs.testing.initiator import Initiator

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
_DIGESTS: dict[str, str] = {"HeaderDigest": "header_digest", "DataDigest": "data_digest"}
_SEGMENT_BYTES = 8192  # MaxRecvDataSegmentLength during login


class LoginPhase:
    """Where the login of one initiator stands."""

    def __init__(self, initiator: Initiator) -> None:
        self.task_tag = 0
        self._initiator = initiator
        self._stage = 0
        self._chap: Chap | None = None
        self._is_proving = False  # CHAP is under way
        self._operational: dict[str, str] = {}
        self._pending = b""  # of our text, not yet sent
        self._is_sending = False  # our last request had the C bit
        self._answers = bytearray()
        self._refusals = 0  # of the transit that we asked for

    def begin(
        self,
        task_tag: int,
        target: str | None,
        security: bool,
        identity: Mapping[str, str | None],
        chap: Chap | None,
        overrides: Mapping[str, str | None],
    ) -> int:
        """Send the first request; return its task tag."""
        self.task_tag = task_tag
        self._stage = 0 if security else 1
        self._chap = chap
        self._is_proving = security and chap is not None
        method = "None" if chap is None else chap.method
        first: dict[str, str | None] = {
            "InitiatorName": self._initiator.name,
            "SessionType": "Normal" if target else "Discovery",
            "TargetName": target,
            "AuthMethod": method if security else None,
            **identity,
        }
        operational = {**OPERATIONAL_KEYS, **overrides}
        self._operational = {key: value for key, value in operational.items() if value is not None}
        identified = {key: value for key, value in first.items() if value is not None}
        self._send(identified if security else {**identified, **self._operational})
        return task_tag

    def received(self, header: pdu.Pdu, data: bytes) -> None:
        """A Login Response."""
        initiator = self._initiator
        initiator.login_status = header.status_class, header.status_detail
        if header.status_class:
            return
        _check(header.initiator_task_tag == self.task_tag, "a Login Response with another task tag")
        _check(header.isid == initiator.isid, "a Login Response with another ISID")
        _check(header.flags >> pdu.CSG_SHIFT & pdu.STAGE_MASK == self._stage, "CSG is not the current stage")
        _check(len(data) <= _SEGMENT_BYTES, "a Login Response of more than 8192 bytes")
        transit, goes_on = bool(header.flags & pdu.TRANSIT), bool(header.flags & pdu.CONTINUE)
        _check(not (transit and goes_on), "T and C together")
        if self._is_sending:
            _check(not transit and not data, "an answer to half a text")
            self._continue()
            return
        self._answers += data
        if goes_on:
            self._continue()
            return
        pairs = parse_pairs(bytes(self._answers))
        self._answers.clear()
        proposals = self._take_answers(pairs)
        if self._is_proving and self._prove(dict(pairs), transit):
            return
        if not transit:
            self._refusals += 1
            _check(self._refusals < 10, "the target never lets us into the next stage")
            self._send(proposals)
            return
        _check(not proposals, "T beside a key that waits for our answer")
        _check(header.flags & pdu.STAGE_MASK == self._next_stage, "NSG is not what we asked for")
        if self._next_stage == 3:
            self._finish(header)
            return
        self._stage = self._next_stage
        self._send(self._operational)

    def _finish(self, header: pdu.Pdu) -> None:
        initiator = self._initiator
        _check(header.tsih != 0, "the last Login Response has no TSIH")
        initiator.tsih = header.tsih
        initiator.set(max_recv_data_segment_length=int(self._operational.get("MaxRecvDataSegmentLength", "8192"), 0))
        initiator.stream.header_digest = initiator.parameters.header_digest
        initiator.stream.data_digest = initiator.parameters.data_digest
        initiator.is_logged_in = True

    def _prove(self, said: dict[str, str], transit: bool) -> bool:
        """The next step of CHAP. False: nothing of it is left to be sent."""
        assert self._chap is not None
        if said.get("AuthMethod", "CHAP") != "CHAP":
            self._is_proving = False
            return False
        values = self._chap.answer(said)
        if values is None:
            self._is_proving = False
            return False
        _check(not transit, "the next stage before we have proved ourselves")
        self._send(values)
        return True

    # ------------------------------------------------------------------ texts

    @property
    def _next_stage(self) -> int:
        return 1 if self._stage == 0 else 3

    def _send(self, pairs: Mapping[str, str]) -> None:
        self._pending = text.join(pairs.items())
        self._continue()

    def _continue(self) -> None:
        """The next piece of our text; the last asks for the next stage."""
        piece, self._pending = self._pending[:_SEGMENT_BYTES], self._pending[_SEGMENT_BYTES:]
        flags = self._stage << pdu.CSG_SHIFT
        self._is_sending = bool(self._pending)
        flags |= pdu.CONTINUE if self._is_sending else pdu.TRANSIT | self._next_stage
        self._initiator.login_pdu(flags, piece)

    def _take_answers(self, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Take the target's answers; return our answers to what it brought up itself."""
        answers = self._initiator.answers
        proposals: dict[str, str] = {}
        for key, value in pairs:
            _check(key not in answers or key == "TargetAddress", f"{key} a second time")
            answers[key] = value
            if key in ("FirstBurstLength", "ImmediateData") and key not in self._operational:
                proposals[key] = value
            self._take_answer(key, value)
        return proposals

    def _take_answer(self, key: str, value: str) -> None:
        initiator = self._initiator
        if key in _NUMBERS:
            number = parse_number(value, 0, 2**32)
            if number is not None:
                initiator.set(**{_NUMBERS[key]: number})
        elif key in _BOOLEANS and value in ("Yes", "No"):
            initiator.set(**{_BOOLEANS[key]: value == "Yes"})
        elif key == "MaxRecvDataSegmentLength":
            initiator.set(target_max_recv_data_segment_length=int(value, 0))
        elif key == "TargetPortalGroupTag":
            initiator.set(portal_group_tag=int(value, 0))
        elif key in _DIGESTS and key in self._operational:
            offered = self._operational[key].split(",")
            _check(value in (*offered, "Reject"), f"{key}={value} was not offered")
            initiator.set(**{_DIGESTS[key]: value == "CRC32C"})


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ViolationError(message)
