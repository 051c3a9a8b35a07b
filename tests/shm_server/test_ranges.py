"""Claims on byte ranges: who waits for whom, in which order, and that nobody waits for ever."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm_server.runtime import Job, Runtime
from shm_server.volumes.ranges import _BESIDE, Claim, RangeClaim, Ranges


class Holder:
    """A job that claims at once, holds once it is granted, and lets go when it is told to."""

    def __init__(self, ranges: Ranges, kind: Claim, offset: int, length: int, owner: object = None) -> None:
        self.claim: RangeClaim = ranges.claim(kind, offset, length, owner)
        self.is_holding = False
        self.error: BaseException | None = None
        self._ranges = ranges
        self.job = Job(self._hold(), self._ended)
        self.job.start()

    async def _hold(self) -> None:
        await self.claim
        self.is_holding = True

    def _ended(self, _value: object, error: BaseException | None) -> None:
        self.error = error
        if error is not None:
            self.let_go()

    def let_go(self) -> None:
        self.is_holding = False
        self._ranges.release(self.claim)


@pytest.fixture
def ranges(runtime: Runtime) -> Ranges:
    return Ranges(runtime)


@pytest.mark.parametrize("first", Claim)
@pytest.mark.parametrize("second", Claim)
def test_who_may_stand_beside_whom(runtime: Runtime, ranges: Ranges, first: Claim, second: Claim) -> None:
    """Plain ones beside plain ones, readers beside stable, nobody beside exclusive."""
    one = Holder(ranges, first, 0, 10)
    two = Holder(ranges, second, 9, 10)
    plain = {Claim.READ, Claim.WRITE}
    still = {Claim.READ, Claim.STABLE}
    assert two.is_holding == ({first, second} <= plain or {first, second} <= still)
    one.let_go()
    runtime.step()
    assert two.is_holding


def test_a_neighbour_is_not_in_the_way(ranges: Ranges) -> None:
    """Ranges that touch do not overlap."""
    assert Holder(ranges, Claim.EXCLUSIVE, 0, 10).is_holding
    assert Holder(ranges, Claim.EXCLUSIVE, 10, 10).is_holding


def test_first_come_first_served(runtime: Runtime, ranges: Ranges) -> None:
    """A stream of plain writes does not starve an exclusive claim: those that come later wait behind it."""
    writes = [Holder(ranges, Claim.WRITE, 0, 10) for _ in range(2)]
    exclusive = Holder(ranges, Claim.EXCLUSIVE, 5, 1)
    later = Holder(ranges, Claim.WRITE, 0, 10)
    for write in writes:
        assert not exclusive.is_holding
        write.let_go()
    runtime.step()
    assert (exclusive.is_holding, later.is_holding) == (True, False)
    exclusive.let_go()
    runtime.step()
    assert later.is_holding


def test_the_guard_is_up_only_while_something_could_be_disturbed(runtime: Runtime, ranges: Ranges) -> None:
    """Plain claims do not raise it; it is told once up, once down."""
    told: list[bool] = []
    ranges.on_guard = lambda: told.append(ranges.is_guarded)
    plain = Holder(ranges, Claim.WRITE, 0, 10)
    assert told == []
    atomic = [Holder(ranges, Claim.EXCLUSIVE, 0, 10), Holder(ranges, Claim.STABLE, 0, 10)]
    assert told == [True]
    plain.let_go()
    for holder in atomic:
        runtime.step()
        assert holder.is_holding
        holder.let_go()
    assert told == [True, False]


def test_claims_of_one_owner_are_not_in_each_others_way(ranges: Ranges) -> None:
    """A COPY inside one volume, from a range to one that overlaps it."""
    owner = object()
    assert Holder(ranges, Claim.STABLE, 0, 10, owner).is_holding
    assert Holder(ranges, Claim.EXCLUSIVE, 5, 10, owner).is_holding
    assert not Holder(ranges, Claim.READ, 14, 1).is_holding


def test_whoever_waits_can_be_cancelled(runtime: Runtime, ranges: Ranges) -> None:
    """It leaves the line, and those behind it move up."""
    first = Holder(ranges, Claim.READ, 0, 10)
    waiting = Holder(ranges, Claim.EXCLUSIVE, 0, 10)
    behind = Holder(ranges, Claim.READ, 0, 10)
    waiting.job.cancel(OSError(errno.ECANCELED, "fenced"))
    assert isinstance(waiting.error, OSError)
    runtime.step()
    assert behind.is_holding
    assert not ranges.is_guarded
    first.let_go()


def test_a_long_line_is_no_deep_stack(runtime: Runtime, ranges: Ranges) -> None:
    """Two thousand that wait for one and the same range get it one after the other."""
    served: list[int] = []

    async def work(number: int) -> None:
        with ranges.claim(Claim.EXCLUSIVE, 0, 1) as claim:
            await claim
            served.append(number)

    first = Holder(ranges, Claim.EXCLUSIVE, 0, 1)
    for number in range(2000):
        Job(work(number), lambda _value, error: None).start()
    first.let_go()
    while runtime.ready:
        runtime.step()
    assert served == list(range(2000))


def test_shut_and_open(runtime: Runtime, ranges: Ranges) -> None:
    """Whoever waits and whoever comes is refused; the result comes with the last that was there."""
    error = OSError(errno.EBUSY, "sanitizing")
    one, two = Holder(ranges, Claim.EXCLUSIVE, 0, 10), Holder(ranges, Claim.WRITE, 20, 10)
    waiting = Holder(ranges, Claim.READ, 0, 10)
    emptied = ranges.shut(error)
    assert ranges.is_guarded
    runtime.step()
    assert waiting.error is error
    assert Holder(ranges, Claim.READ, 100, 1).error is error
    one.let_go()
    assert not emptied.is_done
    two.let_go()
    assert emptied.is_done
    ranges.open()
    assert not ranges.is_guarded
    assert Holder(ranges, Claim.READ, 0, 10).is_holding
    ranges.shut(error)
    ranges.open()


def test_shut_with_nobody_there(ranges: Ranges) -> None:
    """Then there is nothing to wait for."""
    assert ranges.shut(OSError(errno.EBUSY, "sanitizing")).is_done


claims = st.tuples(st.sampled_from(list(Claim)), st.integers(0, 12), st.integers(1, 6))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), claims),
        st.tuples(st.just("let go"), st.integers(0, 40)),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
    ),
    max_size=40,
)


@given(script=steps)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_script_against_the_rule(runtime: Runtime, script: Any) -> None:
    """A claim holds exactly when no earlier one that is still there overlaps it and can't stand beside it."""
    ranges = Ranges(runtime)
    there: list[Holder] = []

    def must_hold(holder: Holder) -> bool:
        mine = holder.claim
        return not any(
            other.claim.start_offset < mine.end
            and mine.start_offset < other.claim.end
            and other.claim.kind not in _BESIDE[mine.kind]
            for other in there[: there.index(holder)]
        )

    for action, value in script:
        if action == "claim":
            there.append(Holder(ranges, *value))
        elif there:
            holder = there[value % len(there)]
            if action == "let go" and holder.is_holding:
                holder.let_go()
                there.remove(holder)
            elif action == "cancel" and not holder.is_holding:
                holder.job.cancel(OSError(errno.ECANCELED, "fenced"))
                there.remove(holder)
        while runtime.ready:
            runtime.step()
        for holder in there:
            assert holder.is_holding == must_hold(holder)
        assert ranges.is_guarded == any(holder.claim.kind in (Claim.STABLE, Claim.EXCLUSIVE) for holder in there)
