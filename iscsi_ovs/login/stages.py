"""The login phase of one connection: stages, transit, the C bit (RFC 7143 sections 6.3, 11.12, 11.13).

Login Requests in, Steps out: a Step is the flags byte and the text of one Login Response. The stage graph is data
(``TRANSITS``); what the texts mean is ``negotiation``'s. Every refusal is an errors.LoginError that carries its
Status-Class and Status-Detail. Sequence numbers, TSIH, admission and the login timeout are the session layer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iscsi_ovs import pdu
from iscsi_ovs.login.authentication import Authentication, sort_out
from iscsi_ovs.login.keys import DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH, Offer, Parameters, Stage
from iscsi_ovs.login.negotiation import (
    INITIATOR_ERROR,
    MISSING_PARAMETER,
    OUT_OF_RESOURCES,
    SERVICE_UNAVAILABLE,
    SESSION_DOES_NOT_EXIST,
    UNSUPPORTED_VERSION,
    Negotiation,
    refuse,
)
from iscsi_ovs.login.policy import NONE, OPEN, Policy
from iscsi_ovs.login.text import Accumulator, Pager, Pair, TextError, TextLimits, join, split

SECURITY_NEGOTIATION = 0
LOGIN_OPERATIONAL_NEGOTIATION = 1
FULL_FEATURE_PHASE = 3

# Section 11.12.3: from each current stage, the next stages that an initiator may ask for.
TRANSITS: dict[int, frozenset[int]] = {
    SECURITY_NEGOTIATION: frozenset({LOGIN_OPERATIONAL_NEGOTIATION, FULL_FEATURE_PHASE}),
    LOGIN_OPERATIONAL_NEGOTIATION: frozenset({FULL_FEATURE_PHASE}),
}
_KEY_STAGE = {SECURITY_NEGOTIATION: Stage.SECURITY, LOGIN_OPERATIONAL_NEGOTIATION: Stage.OPERATIONAL}

VERSION = 0  # section 11.12.4: the only one


@dataclass(frozen=True, slots=True)
class Step:
    """One Login Response: its flags byte (T, C, CSG, NSG) and its text.

    ``finished`` is set where this response ends the login (T=1, NSG=full feature phase): the session layer asks its
    owner for admission first, then sends it with a TSIH.
    """

    flags: int
    text: bytes = b""
    finished: Parameters | None = None


class Login:
    """One connection's login phase.

    ``check_target`` is called as soon as a normal session has named its target, and once more when it is to be let in;
    it raises LoginError (02/03) for one that isn't there. ``check_session`` is called if the first request carries a
    TSIH: is that a session whose connection this may be in place of? It may raise what fits (such as 02/06, too many
    connections); where it says no, or isn't set, the login is refused with 02/0A. ``policy`` says how this initiator
    must prove itself to this target (None: discovery), at the same two times; it may refuse with LoginError, too.
    """

    def __init__(self, portal_group_tag: int, offer: Offer | None = None, limits: TextLimits | None = None) -> None:
        self._portal_group_tag = portal_group_tag
        self._offer = offer or Offer()
        self._limits = limits or TextLimits()
        self._negotiation = Negotiation(self._offer)
        self._accumulator = Accumulator(self._limits)
        self._pager = Pager()
        self._first: pdu.LoginRequest | None = None
        self._stage = SECURITY_NEGOTIATION
        self._requests = 0
        self._text_bytes = 0
        self._keys = 0
        self._identity: tuple[str | None, bool, str | None] | None = None  # who it is, and whom it wants
        self._identified_by = 0  # the request that said so
        self._policy: Policy | None = None
        self._authentication: Authentication | None = None
        self._is_finished = False
        self.check_target: Callable[[str], None] | None = None
        self.check_session: Callable[[pdu.LoginRequest], bool] | None = None
        self.policy: Callable[[str, str | None], Policy] = lambda initiator_name, target_name: OPEN
        self.random_bytes: Callable[[int], bytes] = _no_chance

    @property
    def stage(self) -> int:
        """The stage that the next request must name as its current one."""
        return self._stage

    def receive(self, request: pdu.LoginRequest, data: bytes | memoryview) -> Step:
        """Take one Login Request with its data segment. Raises errors.LoginError; the login is over then."""
        assert not self._is_finished, "the login phase is over"
        self._check_header(request)
        self._check_flags(request.flags)
        if len(data) > self._limits.data_segment_bytes:
            raise refuse(INITIATOR_ERROR, f"a Login Request with {len(data)} bytes of text")
        self._text_bytes += len(data)
        if self._text_bytes > self._limits.text_bytes:
            raise refuse(INITIATOR_ERROR, f"more than {self._limits.text_bytes} bytes of text in one login")
        try:
            return self._receive_text(request.flags, data)
        except TextError as error:
            raise refuse(INITIATOR_ERROR, str(error)) from error

    # ------------------------------------------------------------------ checks

    def _check_header(self, request: pdu.LoginRequest) -> None:
        self._requests += 1
        if self._requests > self._limits.requests:
            raise refuse(INITIATOR_ERROR, f"more than {self._limits.requests} Login Requests")
        first = self._first
        if first is None:
            if request.version_min > VERSION:
                raise refuse(UNSUPPORTED_VERSION, f"version {request.version_min} at least; we speak {VERSION}")
            if request.tsih and (self.check_session is None or not self.check_session(request)):
                raise refuse(SESSION_DOES_NOT_EXIST, f"no session has TSIH {request.tsih:#06x}")
            self._first = request
            self._stage = request.flags >> pdu.CSG_SHIFT & pdu.STAGE_MASK
            return
        for field in ("initiator_task_tag", "isid", "tsih", "cid"):
            # Section 11.12: they are the same in all requests of one login.
            if getattr(request, field) != getattr(first, field):
                raise refuse(INITIATOR_ERROR, f"{field} changed during login")
        if request.version_max != first.version_max or request.version_min != first.version_min:
            raise refuse(INITIATOR_ERROR, "the versions changed during login")

    def _check_flags(self, flags: int) -> None:
        current, following = flags >> pdu.CSG_SHIFT & pdu.STAGE_MASK, flags & pdu.STAGE_MASK
        if current not in TRANSITS:
            raise refuse(INITIATOR_ERROR, f"CSG={current} is no stage of the login phase")
        if current != self._stage:
            raise refuse(INITIATOR_ERROR, f"CSG={current} in stage {self._stage}")
        if not flags & pdu.TRANSIT:
            return  # section 11.12.3: NSG means something only when T is set
        if flags & pdu.CONTINUE:
            # Section 11.12.2: "A Login Request with the C bit set to 1 MUST have the T bit set to 0."
            raise refuse(INITIATOR_ERROR, "T and C together")
        if following not in TRANSITS[current]:
            raise refuse(INITIATOR_ERROR, f"no transit from stage {current} to {following}")

    # ------------------------------------------------------------------ text

    def _receive_text(self, flags: int, data: bytes | memoryview) -> Step:
        if self._pager:
            # Section 11.13.2: a response with the C bit is answered by a request without text, until the last has come.
            if len(data) or flags & pdu.CONTINUE:
                raise refuse(INITIATOR_ERROR, "text in the middle of a response")
            return self._step(flags)
        self._accumulator.add(data)
        if flags & pdu.CONTINUE:
            return Step(self._stage << pdu.CSG_SHIFT)
        pairs = split(self._accumulator.take(), self._limits)
        self._keys += len(pairs)
        if self._keys > self._limits.keys:
            raise refuse(INITIATOR_ERROR, f"more than {self._limits.keys} keys in one login")
        security: dict[str, str] = {}
        if self._stage == SECURITY_NEGOTIATION:
            pairs, security = sort_out(pairs)
        answers = self._negotiation.receive(pairs, _KEY_STAGE[self._stage])
        if self._negotiation.is_waiting:
            raise refuse(INITIATOR_ERROR, "a key that we brought up was not answered")
        authentication = self._identify()
        if self._stage == SECURITY_NEGOTIATION:
            answers += authentication.receive(security, bool(flags & pdu.TRANSIT))
        else:
            authentication.require_none()  # satisfied long ago, unless the login began in this stage
        answers += self._statements()
        if flags & pdu.TRANSIT and flags & pdu.STAGE_MASK == FULL_FEATURE_PHASE:
            answers += self._proposals()
        self._pager = Pager(join(answers))
        return self._step(flags)

    def _statements(self) -> list[Pair]:
        """What we state unasked. open-iscsi takes nothing but these in each stage."""
        negotiation = self._negotiation
        stated: list[Pair] = []
        if not negotiation.is_discovery and not negotiation.has_stated("TargetPortalGroupTag"):
            # Section 13.9: the tag goes with the first Login Response of the session's leading connection.
            stated.append(negotiation.state("TargetPortalGroupTag", self._portal_group_tag))
            if self._offer.target_alias:
                stated.append(negotiation.state("TargetAlias", self._offer.target_alias))
        if self._stage == LOGIN_OPERATIONAL_NEGOTIATION and not negotiation.has_stated("MaxRecvDataSegmentLength"):
            length = self._offer.max_recv_data_segment_length
            stated.append(negotiation.state("MaxRecvDataSegmentLength", length))
        return stated

    def _identify(self) -> Authentication:
        """Section 6.3: the leading request says who it is and whom it wants, and nothing after it says otherwise."""
        negotiation = self._negotiation
        identity = negotiation.initiator_name, negotiation.is_discovery, negotiation.target_name
        if self._authentication is not None:
            if identity != self._identity:
                raise refuse(INITIATOR_ERROR, "who it is and whom it wants came too late")
            return self._authentication
        if negotiation.initiator_name is None:
            raise refuse(MISSING_PARAMETER, "InitiatorName is missing")
        target = None if negotiation.is_discovery else negotiation.target_name
        if target is None and not negotiation.is_discovery:
            raise refuse(MISSING_PARAMETER, "TargetName is missing in a normal session")
        self._policy = self._ask(negotiation.initiator_name, target)
        self._authentication = Authentication(self._policy, self.random_bytes, negotiation.initiator_name)
        self._identity, self._identified_by = identity, self._requests
        return self._authentication

    def _proposals(self) -> list[Pair]:
        proposals = self._negotiation.proposals()
        if proposals and self._stage != LOGIN_OPERATIONAL_NEGOTIATION:
            # The initiator skips the stage in which we could have lowered what the defaults promise.
            raise refuse(OUT_OF_RESOURCES, "no room for the defaults of " + ", ".join(name for name, _ in proposals))
        return proposals

    def _step(self, flags: int) -> Step:
        text = self._pager.page(DEFAULT_MAX_RECV_DATA_SEGMENT_LENGTH)
        answer = self._stage << pdu.CSG_SHIFT
        if self._pager:
            return Step(answer | pdu.CONTINUE, text)
        if not flags & pdu.TRANSIT or self._negotiation.is_waiting:
            return Step(answer, text)
        assert self._authentication is not None, "a text that ends the stage has said who it is"
        if not self._authentication.is_satisfied:
            return Step(answer, text)
        self._stage = flags & pdu.STAGE_MASK
        answer |= pdu.TRANSIT | self._stage
        if self._stage != FULL_FEATURE_PHASE:
            return Step(answer, text)
        if self._requests > self._identified_by:
            self._confirm()
        self._is_finished = True
        return Step(answer, text, self._parameters())

    def _confirm(self) -> None:
        """A login may take its time, and who is let in stays: what was right at its first text must still be."""
        assert self._identity is not None
        name, is_discovery, target = self._identity
        assert name is not None
        policy = self._ask(name, None if is_discovery else target)
        if policy != self._policy:
            raise refuse(SERVICE_UNAVAILABLE, f"{name}: how it must prove itself has changed during its login")

    def _ask(self, initiator_name: str, target_name: str | None) -> Policy:
        if target_name is not None and self.check_target is not None:
            self.check_target(target_name)
        return self.policy(initiator_name, target_name)

    def _parameters(self) -> Parameters:
        first, authentication = self._first, self._authentication
        assert first is not None
        assert authentication is not None
        return self._negotiation.parameters(
            isid=first.isid,
            cid=first.cid,
            portal_group_tag=self._portal_group_tag,
            auth_method=authentication.method or NONE,
            account=authentication.account,
        )


def _no_chance(count: int) -> bytes:
    raise AssertionError("a challenge is needed, and nobody gave this login a source of random bytes")
