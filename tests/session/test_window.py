"""The command window: serial numbers around 2**32, places that are paid for, MaxCmdSN that never goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.session import serial
from iscsi_ovs.session.space import Space
from iscsi_ovs.session.window import MAX_PLACES, CommandWindow
from iscsi_ovs.storage.slots import SlotPool
from iscsi_ovs.testing.memory_device import MemoryPool

numbers = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(-300, 300).map(lambda n: n & 0xFFFFFFFF))


def space_of(slots: int) -> Space:
    space = Space()
    space.attach(MemoryPool(slots, 64), [])
    return space


@given(numbers, st.integers(-2, 200))
def test_the_window_is_the_same_everywhere_on_the_circle(first: int, ahead: int) -> None:
    """CmdSN − ExpCmdSN decides, wherever on the 32-bit circle (section 4.2.2.1)."""
    window = CommandWindow(space_of(4096), first, 1)
    places = window.open_places
    assert window.max_cmd_sn == serial.add(first, places - 1)
    assert window.accepts(serial.add(first, ahead)) == (0 <= ahead < places)


@given(numbers, st.integers(1, 8), st.integers(16, 4096), st.lists(st.booleans(), max_size=400))
def test_max_cmd_sn_never_goes_back_and_what_is_open_is_paid(
    first: int, slots_a_place: int, slots: int, steps: list[bool]
) -> None:
    """Whatever comes and goes: open and taken places together stand on a grant, or none of them does."""
    space = space_of(slots)
    window = CommandWindow(space, first, slots_a_place)
    taken = 0
    highest = window.max_cmd_sn
    for is_take in steps:
        if is_take and window.open_places:
            assert window.accepts(window.exp_cmd_sn)
            window.take()
            taken += 1
        elif taken:
            window.reopen()
            taken -= 1
        assert serial.distance(highest, window.max_cmd_sn) >= 0
        highest = window.max_cmd_sn
        assert serial.distance(window.exp_cmd_sn, highest) + 1 == window.open_places
        assert window.open_places + taken <= MAX_PLACES
        assert window.granted_slots in (0, (window.open_places + taken) * slots_a_place)
    window.close()
    assert space.granted_slots == 0
    assert space.pool is not None
    assert space.pool.reserved_slots == 0


def test_a_closed_window_takes_nothing() -> None:
    """With every place taken nothing is accepted, not even ExpCmdSN."""
    window = CommandWindow(space_of(16), 0xFFFFFFFF, 8)
    assert window.open_places == 1
    window.take()
    assert window.open_places == 0
    assert not any(window.accepts(serial.add(window.exp_cmd_sn, step)) for step in (-2, -1, 0, 1, 2))
    window.reopen()
    assert window.accepts(0)


def test_a_window_that_was_opened_unpaid_pays_for_all_of_it_when_it_grows() -> None:
    """One place paid and one not would let two commands draw on one place's slots: on those of another session."""
    space = space_of(64)
    pool = space.pool
    assert isinstance(pool, SlotPool)
    blocker = pool.allocate(62 * 64)
    assert blocker is not None
    window = CommandWindow(space, 1, 4)
    assert (window.open_places, window.granted_slots) == (1, 0)
    blocker.release()
    window.take()
    assert window.open_places == 1
    assert window.granted_slots == 8


def test_a_window_that_closes_after_the_segment_it_was_paid_from_takes_nothing_from_the_next() -> None:
    """A grant belongs to its pool."""
    space = space_of(64)
    old = CommandWindow(space, 1, 2)
    assert old.granted_slots
    space.detach()
    space.attach(MemoryPool(64, 64), [])
    new = CommandWindow(space, 1, 2)
    reserved = new.granted_slots
    old.close()
    assert space.pool is not None
    assert (space.granted_slots, space.pool.reserved_slots) == (reserved, reserved)


def test_a_window_that_the_next_segment_has_no_room_for_lives_on_unpaid() -> None:
    """Its places stay open, for MaxCmdSN never goes back; when it closes it has nothing to give back."""
    space = space_of(1024)
    window = CommandWindow(space, 1, 8)
    places, granted = window.open_places, window.granted_slots
    assert granted == 8 * places > 8
    space.detach()
    pool = MemoryPool(16, 64)
    space.attach(pool, [window])
    assert (window.open_places, window.granted_slots) == (places, 0)
    window.close()
    assert (space.granted_slots, pool.reserved_slots) == (0, 0)
