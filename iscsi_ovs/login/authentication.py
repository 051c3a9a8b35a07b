"""The security keys of a login: AuthMethod, and the steps of the method that was chosen (RFC 7143 sections 9.2, 12.1).

``Authentication`` obeys the Policy that the owner gave for this pair of names. It takes the security keys out of each
text of the SecurityNegotiation stage, answers them, and says whether the stage may be left. How CHAP itself works is
``chap``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from iscsi_ovs import errors
from iscsi_ovs.login import keys
from iscsi_ovs.login.chap import Exchange
from iscsi_ovs.login.keys import Rule
from iscsi_ovs.login.negotiation import AUTHENTICATION_FAILURE, INITIATOR_ERROR, refuse
from iscsi_ovs.login.policy import CHAP, NONE, Policy
from iscsi_ovs.login.text import Pair

METHOD_KEY = "AuthMethod"
STEP_KEYS = frozenset(row.name for row in keys.KEYS.values() if row.rule is Rule.STEP)


def sort_out(pairs: Iterable[Pair]) -> tuple[list[Pair], dict[str, str]]:
    """The pairs that are negotiated in the usual way, and the security keys."""
    usual: list[Pair] = []
    security: dict[str, str] = {}
    for name, value in pairs:
        if name == METHOD_KEY or name in STEP_KEYS:
            security[name] = value
        else:
            usual.append((name, value))
    return usual, security


class Authentication:
    """How one initiator proves itself."""

    def __init__(self, policy: Policy, random_bytes: Callable[[int], bytes], initiator_name: str) -> None:
        self._policy = policy
        self._random_bytes = random_bytes
        self._initiator_name = initiator_name
        self._exchange: Exchange | None = None
        self.method: str | None = None  # as answered

    @property
    def account(self) -> str | None:
        """The account of an initiator that has proved itself by CHAP."""
        return None if self._exchange is None else self._exchange.account

    @property
    def is_satisfied(self) -> bool:
        """May the SecurityNegotiation stage be left?"""
        if self.method is None:
            return NONE in self._policy.methods
        return self._exchange is None or self._exchange.is_done

    def receive(self, values: dict[str, str], wants_transit: bool) -> list[Pair]:
        """Take the security keys of one text; return the answers. Raises LoginError."""
        if METHOD_KEY in values:
            return self._choose(values)
        if self._exchange is not None:
            return self._exchange.receive(values)
        if values:
            raise self._refuse(INITIATOR_ERROR, f"{min(values)} without AuthMethod=CHAP")
        if wants_transit:
            self.require_none()
        return []

    def require_none(self) -> None:
        """The initiator would go on unauthenticated. Raises LoginError where it may not."""
        if not self.is_satisfied:
            raise self._refuse(AUTHENTICATION_FAILURE, "it must authenticate, and does not offer to")

    def _choose(self, values: dict[str, str]) -> list[Pair]:
        """Section 6.2.1: "the first value that it supports (and is allowed to use for the specific originator)".

        What we prefer is what is allowed to an initiator that offers it: one that could prove itself does.
        """
        if self.method is not None:
            raise self._refuse(INITIATOR_ERROR, f"{METHOD_KEY} a second time")
        if len(values) > 1:
            raise self._refuse(INITIATOR_ERROR, f"{min(values.keys() - {METHOD_KEY})} beside {METHOD_KEY}")
        text = values[METHOD_KEY]
        is_short = len(text.encode()) <= keys.KEYS[METHOD_KEY].value_bytes
        offered = (keys.parse_list(text) if is_short else None) or []
        self.method = next((method for method in self._policy.methods if method in offered), None)
        if self.method is None:
            ours = ",".join(self._policy.methods)
            raise self._refuse(AUTHENTICATION_FAILURE, f"it offers {METHOD_KEY}={text[:63]!r}; we take {ours}")
        if self.method == CHAP:
            self._exchange = Exchange(self._policy, self._random_bytes, self._initiator_name)
        return [(METHOD_KEY, self.method)]

    def _refuse(self, status: tuple[int, int], cause: str) -> errors.LoginError:
        return refuse(status, f"{self._initiator_name}: {cause}")
