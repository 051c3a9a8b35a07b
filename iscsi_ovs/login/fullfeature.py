"""Text requests in full feature phase: SendTargets and the few keys that may still change (RFC 7143 sections 11.10,
11.11, 13 and Appendix C).

One exchange is one initiator task tag, from a request with the reserved target transfer tag to the response with F=1.
Requests may come in pieces and answers may leave in pieces (C bit both ways); each response that is not the last hands
out a new target transfer tag. What breaks the rules is refused with errors.PduError (a Reject; the connection goes on)
and ends the exchange. Who may see which target is the caller's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iscsi_ovs import errors, pdu
from iscsi_ovs.login import keys
from iscsi_ovs.login.keys import Parameters, Rule, Sender, Use
from iscsi_ovs.login.text import Accumulator, Pager, Pair, TextError, TextLimits, join, split

# Names with their TargetAddress values, each "host:port,portal-group-tag".
Targets = Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class TextStep:
    """One Text Response: its flags byte (F, C), its text and its target transfer tag.

    ``parameters`` is set where this exchange changed them (a new MaxRecvDataSegmentLength): they hold from the PDU
    after this response on.
    """

    flags: int
    text: bytes
    target_transfer_tag: int
    parameters: Parameters | None = None


class TextExchange:
    """The text requests of one connection, one exchange at a time (section 11.10.3: there is at most one)."""

    def __init__(
        self, parameters: Parameters, targets: Callable[[], Targets], limits: TextLimits | None = None
    ) -> None:
        self.parameters = parameters
        self._targets = targets
        self._limits = limits or TextLimits()
        self._accumulator = Accumulator(self._limits)
        self._pager = Pager()
        self._task_tag: int | None = None  # of the exchange under way
        self._transfer_tag = 0  # the last one handed out
        self._received: set[str] = set()  # keys of this exchange
        self._changes: dict[str, int] = {}
        self._continuations = 0

    @property
    def is_open(self) -> bool:
        """Is an exchange under way?"""
        return self._task_tag is not None

    def reset(self) -> None:
        """Forget the exchange under way. An initiator starts over by the reserved transfer tag."""
        self._accumulator.clear()
        self._pager = Pager()
        self._task_tag = None
        self._received.clear()
        self._changes.clear()
        self._continuations = 0

    def receive(self, request: pdu.TextRequest, data: bytes | memoryview) -> TextStep:
        """Take one Text Request with its data segment. Raises errors.PduError; the exchange is over then."""
        try:
            return self._receive(request, data)
        except TextError as error:
            self.reset()
            raise errors.PduError(pdu.REJECT_PROTOCOL_ERROR, str(error)) from error
        except errors.PduError:
            self.reset()
            raise

    def _receive(self, request: pdu.TextRequest, data: bytes | memoryview) -> TextStep:
        flags = request.flags
        if request.initiator_task_tag == pdu.RESERVED_TAG:
            raise errors.PduError(pdu.REJECT_INVALID_PDU_FIELD, "a Text Request without an initiator task tag")
        if request.target_transfer_tag == pdu.RESERVED_TAG:
            # Section 11.10.4: the reserved value says that this is a new negotiation; it ends an older one.
            self.reset()
            self._task_tag = request.initiator_task_tag
        elif self._task_tag != request.initiator_task_tag or self._transfer_tag != request.target_transfer_tag:
            raise errors.PduError(pdu.REJECT_INVALID_PDU_FIELD, "a target transfer tag that we did not hand out")
        if flags & pdu.FINAL and flags & pdu.CONTINUE:
            raise errors.PduError(pdu.REJECT_PROTOCOL_ERROR, "F and C together")
        if self._pager:
            if len(data) or flags & pdu.CONTINUE:
                raise errors.PduError(pdu.REJECT_PROTOCOL_ERROR, "text in the middle of a response")
            return self._step(flags)
        self._continuations += 1
        if self._continuations > self._limits.requests:
            raise errors.PduError(pdu.REJECT_PROTOCOL_ERROR, f"more than {self._limits.requests} Text Requests")
        self._accumulator.add(data)
        if flags & pdu.CONTINUE:
            return TextStep(0, b"", self._next_transfer_tag())
        pairs = split(self._accumulator.take(), self._limits)
        answers: list[Pair] = []
        for name, text in pairs:
            answers += self._answer(name, text)
        self._pager = Pager(join(answers))
        return self._step(flags)

    def _step(self, flags: int) -> TextStep:
        text = self._pager.page(self.parameters.max_recv_data_segment_length)
        if self._pager:
            return TextStep(pdu.CONTINUE, text, self._next_transfer_tag())
        if not flags & pdu.FINAL:
            return TextStep(0, text, self._next_transfer_tag())
        changed = None
        if self._changes:
            changed = self.parameters = dataclasses.replace(
                self.parameters, max_recv_data_segment_length=self._changes["max_recv_data_segment_length"]
            )
        self.reset()
        return TextStep(pdu.FINAL, text, pdu.RESERVED_TAG, changed)

    def _next_transfer_tag(self) -> int:
        self._transfer_tag = (self._transfer_tag + 1) % pdu.RESERVED_TAG
        return self._transfer_tag

    # ------------------------------------------------------------------ keys

    def _answer(self, name: str, text: str) -> list[Pair]:
        if name in self._received:
            raise errors.PduError(pdu.REJECT_PROTOCOL_ERROR, f"{name} a second time")
        self._received.add(name)
        row = keys.KEYS.get(name)
        if row is None:
            return [] if text in keys.RESERVED_ANSWERS else [(name, keys.NOT_UNDERSTOOD)]
        if Sender.TARGET in row.sender and text in keys.RESERVED_ANSWERS:
            return []  # the initiator says that it can do nothing with what we stated
        if len(text.encode()) > row.value_bytes:
            return [(name, keys.REJECT)]
        if name == "SendTargets":
            return self._send_targets(text)
        if name == "MaxRecvDataSegmentLength":
            number = keys.parse_number(text, row.low, row.high)
            if number is None:
                return [(name, keys.REJECT)]
            self._changes["max_recv_data_segment_length"] = number
            return []
        if row.rule is Rule.DECLARATIVE and row.use is Use.ALL and Sender.INITIATOR in row.sender:
            return []  # InitiatorAlias: for the eyes of administrators
        return [(name, keys.REJECT)]

    def _send_targets(self, text: str) -> list[Pair]:
        """Appendix C: ``All`` in discovery sessions only, nothing in normal ones only, a name in both."""
        if self.parameters.is_discovery:
            if not text:
                return [("SendTargets", keys.REJECT)]
            wanted = None if text == "All" else text
        else:
            if text == "All":
                return [("SendTargets", keys.REJECT)]
            wanted = text or self.parameters.target_name
        answers: list[Pair] = []
        for name, addresses in self._targets():
            if wanted is None or name == wanted:
                answers.append(("TargetName", name))
                answers += [("TargetAddress", address) for address in addresses]
        return answers
