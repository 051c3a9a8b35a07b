"""The slots of a target: who waits is served in order, and what windows keep is never somebody else's."""

from __future__ import annotations

from typing import Any

from iscsi_ovs import pdu
from iscsi_ovs.session.space import Space
from iscsi_ovs.testing.memory_device import MemoryPool
from tests.session.conversation import Conversation


def space_of(slots: int) -> Space:
    space = Space()
    space.attach(MemoryPool(slots, 64), [])
    return space


def test_who_waits_is_served_in_order_of_arrival() -> None:
    """A small wish behind a large one waits, though there would be room for it."""
    space = space_of(8)
    pool = space.pool
    assert pool is not None
    held = pool.allocate(6 * 64)
    assert held is not None
    served: list[str] = []

    def wish(name: str, slots: int) -> bool:
        buffer = pool.allocate(slots * 64)
        if buffer is None:
            return False
        served.append(name)
        return True

    assert space.wait(lambda: wish("large", 4)) is not None
    assert space.wait(lambda: wish("small", 1)) is not None
    space.serve()
    assert served == []
    held.release()
    space.serve()
    assert served == ["large", "small"]
    assert not space.has_waiters


def test_what_buffers_hold_is_not_offered() -> None:
    """Half of the segment is for windows, but only as far as it is free now."""
    space = space_of(1024)
    pool = space.pool
    assert pool is not None
    assert (space.first_burst_bytes(16 * 64), space.first_places(2), space.growth_places(2, 100)) == (16 * 64, 8, 64)
    assert pool.allocate(1008 * 64) is not None
    assert (space.first_burst_bytes(16 * 64), space.first_places(2), space.growth_places(2, 100)) == (0, 1, 2)


class Session:
    """Somebody who holds so many slots."""

    def __init__(self, pool: MemoryPool, space: Space, name: str, served: list[str]) -> None:
        self.pool = pool
        self.space = space
        self.name = name
        self.served = served
        self.buffers: list[Any] = []

    def held_slots(self) -> int:
        return sum(self.pool.slots_for(buffer.length_bytes) for buffer in self.buffers)

    def want(self, slots: int) -> bool:
        """True: it has them at once."""

        def grab() -> bool:
            buffer = self.pool.allocate(slots * self.pool.slot_bytes)
            if buffer is None:
                return False
            self.buffers.append(buffer)
            self.served.append(self.name)
            return True

        return self.space.wait(grab, slots, self) is None

    def finish(self) -> None:
        self.buffers.pop(0).release()
        self.space.serve()


def sessions_of(slots: int, names: str) -> tuple[Space, list[Session], list[str]]:
    space = Space()
    pool = MemoryPool(slots, 1 << 20)
    space.attach(pool, [])
    served: list[str] = []
    return space, [Session(pool, space, name, served) for name in names], served


def test_a_greedy_session_leaves_the_reserve_to_others() -> None:
    """However much it asks for: another one's wish is fulfilled while it stalls with all that it has."""
    space, (greedy, modest), served = sessions_of(64, "gm")
    for _ in range(100):
        greedy.want(8)
    assert greedy.held_slots() == 56, "8 MiB are kept from it"
    assert not modest.want(8), "behind those that wait"
    space.serve()
    assert served[-1] == "m"
    modest.finish()
    assert served[-1] == "m", "what comes back to the reserve is not the greedy one's"
    greedy.finish()
    assert served[-1] == "g"


def test_sessions_that_wait_are_served_in_turn() -> None:
    """Each in its own order of arrival; nobody has two turns while another one waits."""
    space, sessions, served = sessions_of(16, "abc")
    for session in sessions:
        for _ in range(4):
            session.want(8)
    by_name = {session.name: session for session in sessions}
    done = 0
    while done < len(served):  # the oldest first
        by_name[served[done]].finish()
        done += 1
    assert "".join(served) == "aabcabcabcbc", "the first had no competitor yet"
    assert not space.has_waiters


def test_a_wish_for_all_is_fulfilled_in_the_end() -> None:
    """Small wishes of others do not overtake it for ever."""
    space, (large, *small), served = sessions_of(16, "labcd")
    for session in small:
        session.want(4)
    assert not large.want(8)
    for round_ in range(50):
        session = small[round_ % 4]
        session.finish()
        session.want(4)
        space.serve()
        if "l" in served:
            return
    raise AssertionError(served)


def test_who_has_cancelled_holds_up_nobody() -> None:
    """A cancelled wish at the head is passed over, and is not kept for ever behind one that waits."""
    space = space_of(8)
    served: list[int] = []
    first = space.wait(lambda: False)
    assert first is not None
    for _ in range(10_000):
        waiter = space.wait(lambda: False)
        assert waiter is not None
        waiter.cancel()
    assert sum(map(len, space._queues.values())) < 1000
    second = space.wait(lambda: not served.append(2))
    assert second is not None
    first.cancel()
    space.serve()
    assert served == [2]


def test_a_discovery_session_keeps_no_slots() -> None:
    """It moves no data: a thousand of them must not eat the segment."""
    talk = Conversation()
    initiator = talk.initiator
    initiator.login(None)
    talk.run()
    assert talk.session is not None
    assert talk.session.window.granted_slots == 0
    assert talk.space.granted_slots == 0
    tag = initiator.send_targets()
    talk.run()
    assert initiator.results[tag].pairs[0][0] == "TargetName"
    initiator.logout()
    talk.run()
    assert initiator.is_logged_out


def test_a_discovery_session_takes_no_scsi() -> None:
    """Section 4.3: all requests but SendTargets and Logout are rejected there; the session goes on."""
    talk = Conversation()
    initiator = talk.initiator
    initiator.login(None)
    talk.run()
    read = initiator.command(bytes(6), read=512)
    write = initiator.command(bytes(6), write=bytes(4096))
    reset = initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    talk.run()
    for tag in (read, write, reset):
        assert initiator.results[tag].reject_reason == pdu.REJECT_COMMAND_NOT_SUPPORTED
    assert not talk.commands
    tag = initiator.send_targets()
    talk.run()
    assert initiator.results[tag].is_complete
