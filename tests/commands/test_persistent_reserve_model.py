"""PERSISTENT RESERVE held against a naive model: three initiators on two ports each do what they like, in any order.

The model knows lists and sentences of the standard, and nothing of how it is done: after every step the keys, the
reservation, who may read and write, and every unit attention must be the same; and so after a restart from the record.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from iscsi_ovs import scsi
from iscsi_ovs.commands import registrations
from tests.commands.sharing import (
    CLEAR,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE,
    RELEASE,
    RESERVE,
    TYPES,
    UNREG,
    Cluster,
    id_of,
    move_list,
)

WHO = st.sampled_from(["a1", "a2", "b1", "b2", "c1", "c2"])
KEYS = st.sampled_from([0, 1, 2, 3])
KINDS = st.sampled_from(TYPES)
PREEMPTED, RELEASED, REGISTRATION_PREEMPTED = (0x2A, 3), (0x2A, 4), (0x2A, 5)
CONFLICT, GOOD, CHECK = "conflict", "good", "check"


class Model:
    """What SPC-4 says, said naively."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, int]] = []
        self.kind: int | None = None
        self.holder: str | None = None
        self.generation = 0
        self.told: list[tuple[str, tuple[int, int]]] = []
        self.aborted: list[str] = []

    def key(self, who: str) -> int | None:
        return dict(self.keys).get(who)

    @property
    def for_all(self) -> bool:
        return self.kind in (7, 8)

    def holds(self, who: str) -> bool:
        return self.kind is not None and (self.key(who) is not None if self.for_all else self.holder == who)

    def may(self, who: str, writes: bool) -> bool:
        if self.kind is None or self.holds(who):
            return True
        if self.kind in (5, 6, 7, 8) and self.key(who) is not None:
            return True
        return self.kind in (1, 5, 7) and not writes

    def drop(self, gone: list[str]) -> None:
        self.keys = [(who, key) for who, key in self.keys if who not in gone]
        if self.holder in gone or (self.for_all and not self.keys):
            self.kind = self.holder = None

    def tell(self, code: tuple[int, int], but: str, whom: list[str] | None = None) -> None:
        self.told += [(who, code) for who in (whom or [who for who, _ in self.keys]) if who != but]

    def take(self, who: str, kind: int) -> None:
        self.kind, self.holder = kind, None if kind in (7, 8) else who

    def register(self, who: str, key: int | None, new: int) -> str:
        present = self.key(who)
        if key is not None and key != (present or 0):
            return CONFLICT
        if new:
            if present is None:
                self.keys.append((who, new))
            else:
                self.keys = [(name, new if name == who else known) for name, known in self.keys]
        elif present is None:
            return GOOD
        else:
            kind, was_held = self.kind, self.holds(who)
            self.drop([who])
            if was_held and kind in (5, 6, 7, 8) and self.kind is None and self.keys:
                self.tell(RELEASED, who)
        self.generation += 1
        return GOOD

    def reserve(self, who: str, key: int, kind: int) -> str:
        if self.key(who) != key or (self.kind is not None and (not self.holds(who) or self.kind != kind)):
            return CONFLICT
        if self.kind is None:
            self.take(who, kind)
        return GOOD

    def release(self, who: str, key: int, kind: int) -> str:
        if self.key(who) != key:
            return CONFLICT
        if not self.holds(who):
            return GOOD
        if self.kind != kind:
            return CHECK
        if kind >= 5:
            self.tell(RELEASED, who)
        self.kind = self.holder = None
        return GOOD

    def clear(self, who: str, key: int) -> str:
        if self.key(who) != key:
            return CONFLICT
        self.tell(PREEMPTED, who)
        self.keys, self.kind, self.holder = [], None, None
        self.generation += 1
        return GOOD

    def preempt(self, who: str, key: int, victim: int, kind: int, aborts: bool) -> str:
        if self.key(who) != key:
            return CONFLICT
        if victim == 0 and not self.for_all:
            return CHECK
        victims = [name for name, known in self.keys if victim in (0, known)]
        if not victims:
            return CONFLICT
        takes = victim == 0 or self.holder in victims
        changes = takes and kind != self.kind
        lost = [name for name in victims if name != who]
        self.drop(lost)
        if takes:
            self.take(who, kind)
        if lost:
            self.tell(REGISTRATION_PREEMPTED, who, lost)
        if changes:
            self.tell(RELEASED, who, [name for name, _ in self.keys])
        if aborts:
            self.aborted += [name for name in victims if name != who or victim == key]
        self.generation += 1
        return GOOD

    def move(self, who: str, key: int, new: int, to: str, leaves: bool) -> str:
        if self.key(who) != key or self.for_all or self.holder != who:
            return CONFLICT
        if new == 0 or to == who:
            return CHECK
        kind = self.kind
        self.keys = [(name, new if name == to else known) for name, known in self.keys]
        if self.key(to) is None:
            self.keys.append((to, new))
        if leaves:
            self.keys = [(name, known) for name, known in self.keys if name != who]
        self.kind, self.holder = kind, to
        self.generation += 1
        return GOOD


class Sharing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.model = Model()

    def both(self, outcome: scsi.Outcome, said: str) -> None:
        status = {GOOD: scsi.GOOD, CONFLICT: scsi.RESERVATION_CONFLICT, CHECK: scsi.CHECK_CONDITION}[said]
        assert outcome.status == status, (outcome, said)

    @rule(who=WHO, key=KEYS, new=KEYS)
    def register(self, who: str, key: int, new: int) -> None:
        self.both(self.cluster.out(who, REGISTER, key, new), self.model.register(who, key, new))

    @rule(who=WHO, key=KEYS, new=KEYS)
    def register_and_ignore(self, who: str, key: int, new: int) -> None:
        self.both(self.cluster.out(who, REGISTER_AND_IGNORE, key, new), self.model.register(who, None, new))

    @rule(who=WHO, key=KEYS, kind=KINDS)
    def reserve(self, who: str, key: int, kind: int) -> None:
        key = self.model.key(who) or key
        self.both(self.cluster.out(who, RESERVE, key, kind=kind), self.model.reserve(who, key, kind))

    @rule(who=WHO, key=KEYS, kind=KINDS, same=st.booleans())
    def release(self, who: str, key: int, kind: int, same: bool) -> None:
        kind = self.model.kind if same and self.model.kind else kind
        key = self.model.key(who) or key
        self.both(self.cluster.out(who, RELEASE, key, kind=kind), self.model.release(who, key, kind))

    @rule(who=WHO, key=KEYS)
    def clear(self, who: str, key: int) -> None:
        self.both(self.cluster.out(who, CLEAR, key), self.model.clear(who, key))

    @rule(who=WHO, key=KEYS, victim=KEYS, kind=KINDS, aborts=st.booleans())
    def preempt(self, who: str, key: int, victim: int, kind: int, aborts: bool) -> None:
        key = self.model.key(who) or key
        action = PREEMPT_AND_ABORT if aborts else PREEMPT
        outcome = self.cluster.out(who, action, key, victim, kind=kind)
        self.both(outcome, self.model.preempt(who, key, victim, kind, aborts))

    @rule(who=WHO, to=WHO, key=KEYS, new=KEYS, leaves=st.booleans())
    def move(self, who: str, to: str, key: int, new: int, leaves: bool) -> None:
        key = self.model.key(who) or key
        data = move_list(key, new, id_of(f"iqn.test:{to[0]}"), int(to[1]), UNREG if leaves else 0)
        self.both(self.cluster.send(who, REGISTER_AND_MOVE, data), self.model.move(who, key, new, to, leaves))

    @invariant()
    def they_agree(self) -> None:
        cluster, model = self.cluster, self.model
        heard = [(who, code) for who in cluster.nexuses for code in cluster.attentions(who)]
        told, model.told = model.told, []
        assert sorted(heard) == sorted(told)
        names = {id(nexus): who for who, nexus in cluster.nexuses.items()}
        aborted = [names[id(nexus)] for nexus in cluster.disk.aborted]
        assert sorted(aborted) == sorted(model.aborted)
        cluster.disk.aborted.clear()
        model.aborted.clear()
        assert cluster.keys() == [key for _, key in model.keys]
        assert cluster.generation == model.generation
        held = None if model.kind is None else (model.key(model.holder) if model.holder else 0, model.kind)
        assert cluster.reservation() == held
        for who in cluster.nexuses:
            assert cluster.can_read(who) is model.may(who, False)
            assert cluster.can_write(who) is model.may(who, True)

    @invariant()
    def the_record_says_the_same(self) -> None:
        record = self.cluster.disk.records.get("reservations")
        if record is not None:
            state: Any = self.cluster.disk.unit.reservations.state
            kept = registrations.decode(record, None).state
            assert kept == state
            assert list(kept.keys) == list(state.keys)


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
