"""Timers of the server's loop."""

from __future__ import annotations

from shm_server.runtime import Runtime


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
