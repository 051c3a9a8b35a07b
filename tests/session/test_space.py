"""The slots of a target: who waits is served in order, and what windows keep is never somebody else's."""

from __future__ import annotations

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
    assert len(space._waiters) < 1000
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
