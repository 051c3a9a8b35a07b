"""Registrations and the persistent reservation of one unit: a value, what makes the next one of it, and its bytes.

SPC-4 5.13: an I_T nexus registers a key; registered ones may reserve, release, preempt. Each action is a function from
the present state to a Change, or None where the standard says RESERVATION CONFLICT; nothing here is changed in place,
so that a state that never became durable never was. The bytes are the volume's record "reservations" (CONTRACTS 6):
every target process that serves the volume has the same, and hears in it which unit attentions the last change brought.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from iscsi_ovs import scsi
from iscsi_ovs.commands import sense
from iscsi_ovs.scsi import (
    REGISTRATIONS_PREEMPTED,
    RESERVATIONS_PREEMPTED,
    RESERVATIONS_RELEASED,
    CheckCondition,
    Code,
    FieldPointer,
)

FORMAT = 1  # of the record
# A change may name everybody who was registered before and everybody who is now: together they fit a record of 64 KiB.
MAX_STATE_BYTES = 28 << 10


class Type(enum.IntEnum):
    """SPC-4 table 204. The scope is always the logical unit."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8

    @property
    def is_for_registrants(self) -> bool:
        """Whoever is registered has access."""
        return self >= Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY

    @property
    def is_held_by_all(self) -> bool:
        """Every registered I_T nexus is a holder."""
        return self >= Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS

    @property
    def refuses(self) -> scsi.Conflict:
        """What it refuses to those who have no access."""
        if self in (1, 5, 7):
            return scsi.Conflict.WRITE_EXCLUSIVE
        return scsi.Conflict.EXCLUSIVE_ACCESS


class Registrant(NamedTuple):
    """An I_T nexus by name: initiator port and target port. It outlives sessions, and processes."""

    initiator_name: str
    isid: bytes
    target_name: str
    portal_group_tag: int
    relative_port: int

    @classmethod
    def of(cls, nexus: scsi.Nexus) -> Registrant:
        return cls(
            nexus.initiator_name.lower(),
            nexus.isid,
            nexus.target_name,
            nexus.portal_group_tag,
            nexus.relative_port,
        )


Attention = tuple[Registrant, Code]


@dataclass(frozen=True, slots=True)
class Registrations:
    """The state. ``holder`` is None where nobody, or everybody who is registered, holds the reservation."""

    generation: int = 0
    keys: Mapping[Registrant, int] = field(default_factory=lambda: MappingProxyType({}))  # in order of registration
    type: Type | None = None
    holder: Registrant | None = None
    aptpl: bool = False  # "activate persist through power loss"

    def holds(self, who: Registrant) -> bool:
        """``who`` is a persistent reservation holder."""
        return self.type is not None and (who == self.holder or (self.type.is_held_by_all and who in self.keys))

    def has_access(self, who: Registrant) -> bool:
        """No command of ``who`` is refused because of the reservation."""
        return self.type is None or who == self.holder or (self.type.is_for_registrants and who in self.keys)

    def after_power_loss(self) -> Registrations:
        """What is left of it, and "the PRGENERATION value shall be set to zero by a power on"."""
        return replace(self, generation=0) if self.aptpl else Registrations()

    @property
    def holder_key(self) -> int:
        """The key that READ RESERVATION shows: zero where all registrants hold it."""
        return 0 if self.holder is None else self.keys[self.holder]


@dataclass(frozen=True, slots=True)
class Change:
    """The next state, who hears of it, and whose registrations were preempted."""

    state: Registrations
    attentions: tuple[Attention, ...] = ()
    preempted: frozenset[Registrant] = frozenset()


def _next(state: Registrations, **changes: object) -> Registrations:
    """One generation on: "The PRGENERATION field … shall be incremented by …" all actions but RESERVE and RELEASE."""
    return replace(state, generation=(state.generation + 1) & 0xFFFFFFFF, **changes)  # type: ignore[arg-type]


def _without(state: Registrations, gone: Iterable[Registrant]) -> Registrations:
    """Registrations removed, and with them a reservation that nobody is left to hold."""
    gone = frozenset(gone)
    keys = {who: key for who, key in state.keys.items() if who not in gone}
    is_held = state.type is not None and (keys if state.type.is_held_by_all else state.holder in keys)
    if is_held:
        return replace(state, keys=keys)
    return replace(state, keys=keys, type=None, holder=None)


def _tell(who: Iterable[Registrant], code: Code, but: Container[Registrant]) -> tuple[Attention, ...]:
    return tuple((registrant, code) for registrant in who if registrant not in but)


# The actions of PERSISTENT RESERVE OUT; the checks of its parameter list are done ----------------------------------


def register(
    state: Registrations,
    who: Sequence[Registrant],
    key: int | None,
    new_key: int,
    *,
    others: Iterable[Registrant] = (),
    aptpl: bool,
) -> Change | None:
    """REGISTER (SPC-4 table 47), and REGISTER AND IGNORE EXISTING KEY with ``key`` None.

    ``who`` asks, through one target port or, with ALL_TG_PT, "as if the same registration request had been received
    individually through each target port". ``others`` get the same key where they have none (SPEC_I_PT). ``new_key``
    zero: unregister.
    """
    if key is not None and any(state.keys.get(asking, 0) != key for asking in who):
        return None
    if new_key:
        keys = {**state.keys, **dict.fromkeys(who, new_key)}
        for other in others:
            keys.setdefault(other, new_key)
        return _if_it_fits(Change(_next(state, keys=keys, aptpl=aptpl)))
    if not any(asking in state.keys for asking in who):
        return Change(state)  # "Do nothing except return GOOD status."
    after = _next(_without(state, who), aptpl=aptpl)
    was_for_registrants = state.type is not None and state.type.is_for_registrants
    released = after.keys if was_for_registrants and after.type is None else ()
    return Change(after, _tell(released, RESERVATIONS_RELEASED, who))


def reserve(state: Registrations, who: Registrant, key: int, wanted: Type) -> Change | None:
    """RESERVE (SPC-4 5.13.9). A holder may ask again for what it has."""
    if state.keys.get(who) != key:
        return None
    if state.type is None:
        return Change(replace(state, type=wanted, holder=None if wanted.is_held_by_all else who))
    return Change(state) if state.holds(who) and state.type is wanted else None


def release(state: Registrations, who: Registrant, key: int, wanted: int) -> Change | None:
    """RELEASE (SPC-4 5.13.11.2). ``wanted``: scope and type as one byte."""
    if state.keys.get(who) != key:
        return None
    if not state.holds(who):
        return Change(state)  # GOOD, and nothing is changed
    assert state.type is not None
    if wanted != state.type:
        raise CheckCondition(sense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
    released = state.keys if state.type.is_for_registrants else ()
    after = replace(state, type=None, holder=None)
    return Change(after, _tell(released, RESERVATIONS_RELEASED, [who]))


def clear(state: Registrations, who: Registrant, key: int) -> Change | None:
    """CLEAR (SPC-4 5.13.11.6): no reservation, no registration."""
    if state.keys.get(who) != key:
        return None
    after = _next(state, keys={}, type=None, holder=None)
    return Change(after, _tell(state.keys, RESERVATIONS_PREEMPTED, [who]))


def preempt(state: Registrations, who: Registrant, key: int, victim_key: int, wanted: Type) -> Change | None:
    """PREEMPT (SPC-4 5.13.11.4): the registrations with ``victim_key`` go, and the reservation where they hold it."""
    if state.keys.get(who) != key:
        return None
    is_held_by_all = state.type is not None and state.type.is_held_by_all
    if not victim_key:
        if not is_held_by_all:
            raise CheckCondition(sense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(8, is_cdb=False))
        named = frozenset(state.keys)
    else:
        named = frozenset(registrant for registrant, known in state.keys.items() if known == victim_key)
        if not named:
            return None
    takes_over = not victim_key or (state.holder is not None and state.holder in named)
    lost = named - {who}
    after = _next(_without(state, lost))
    attentions = _tell(sorted(lost), REGISTRATIONS_PREEMPTED, ())
    if takes_over:
        after = replace(after, type=wanted, holder=None if wanted.is_held_by_all else who)
        if wanted is not state.type:
            attentions += _tell(after.keys, RESERVATIONS_RELEASED, [who])
    return Change(after, attentions, lost | {who} if victim_key == key else lost)


def move(
    state: Registrations, who: Registrant, key: int, new_key: int, to: Registrant, *, unregister: bool, aptpl: bool
) -> Change | None:
    """REGISTER AND MOVE (SPC-4 5.13.8): the reservation goes to ``to``, registered with ``new_key``."""
    if state.keys.get(who) != key or state.holder != who:
        return None  # nobody, or somebody else, or all registrants hold it
    keys = {**state.keys, to: new_key}
    if unregister:
        del keys[who]
    return _if_it_fits(Change(_next(state, keys=keys, holder=to, aptpl=aptpl)))


def _if_it_fits(change: Change) -> Change:
    if len(encode(replace(change, attentions=()), "")) > MAX_STATE_BYTES:
        raise CheckCondition(sense.INSUFFICIENT_REGISTRATION_RESOURCES)
    return change


# The record --------------------------------------------------------------------------------------------------------


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    power_on: str  # of the process, or processes, that know what needn't persist
    generation: int
    aptpl: bool
    registered: list[tuple[Registrant, int]]
    type: int
    holder: int  # index into ``registered``; -1
    attentions: list[tuple[Registrant, Code]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Record)


def encode(change: Change, power_on: str) -> bytes:
    """The record after a change."""
    state = change.state
    holder = -1 if state.holder is None else list(state.keys).index(state.holder)
    registered = list(state.keys.items())
    kind = int(state.type or 0)
    return _encoder.encode(
        _Record(FORMAT, power_on, state.generation, state.aptpl, registered, kind, holder, list(change.attentions))
    )


def decode(data: bytes, power_on: str | None) -> Change:
    """What a record says. ValueError: it is none of ours.

    ``power_on`` is given where a unit begins: another one than the record's means that there was a power loss between.
    """
    if not data:
        return Change(Registrations())
    try:
        record = _decoder.decode(data)
        if record.format != FORMAT:
            raise ValueError(f"format {record.format}, this target knows {FORMAT}")
        state = _checked(record)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    if power_on is not None and record.power_on != power_on:
        state = state.after_power_loss()
    return Change(state, tuple(record.attentions))


def _checked(record: _Record) -> Registrations:
    keys = dict(record.registered)
    if len(keys) != len(record.registered) or not -1 <= record.holder < len(keys) or 0 in keys.values():
        raise ValueError("registrations that can't be")
    kind = Type(record.type) if record.type else None
    holder = record.registered[record.holder][0] if record.holder >= 0 else None
    must_have_holder = kind is not None and not kind.is_held_by_all
    if (holder is not None) != must_have_holder or (kind is not None and not keys):
        raise ValueError("a reservation that can't be")
    return Registrations(record.generation, keys, kind, holder, record.aptpl)
