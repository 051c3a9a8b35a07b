"""Timers and locks of the server's loop."""

from __future__ import annotations

from shm_server.runtime import Job, NamedLocks, Runtime, Wait


def test_what_a_timer_begins_is_for_the_next_turn() -> None:
    """Who is woken and waits again, for no time at all, does not keep the loop: the rings have their turn between."""
    runtime = Runtime(lambda: 5.0)
    fired: list[int] = []

    def again() -> None:
        fired.append(len(fired))
        runtime.after(0.0, again)

    again()
    for turn in range(2, 5):
        runtime.fire_timers()
        assert len(fired) == turn


def test_locks_by_name() -> None:
    """Who wants one name waits for nobody at another; of a name that nobody wants any more nothing is left."""
    locks, gate, trace = NamedLocks(), Wait[None](), []

    async def work(name: str, number: int, until: Wait[None]) -> None:
        async with locks.have(name):
            trace.append((name, number))
            await until

    over: Wait[None] = Wait()
    over.set()
    for name, number, until in (("a", 1, gate), ("a", 2, over), ("b", 3, over)):
        Job(work(name, number, until), lambda _value, _error: None).start()
    assert trace == [("a", 1), ("b", 3)]
    assert [(locks.is_free(name), locks.is_awaited(name)) for name in "ab"] == [(False, True), (True, False)]
    gate.set()
    assert trace == [("a", 1), ("b", 3), ("a", 2)]
    assert locks._locks == {}
