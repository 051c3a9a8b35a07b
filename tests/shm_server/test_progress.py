"""Progress: told now and then, and the way in which work ends that nobody waits for."""

from __future__ import annotations

import errno

import pytest

from shm_server.progress import TELL_S, Progress


def test_it_is_told_first_now_and_then_and_at_the_end() -> None:
    """The first step is told, then one each TELL_S, and the last one whenever it comes."""
    now = 0.0
    told: list[tuple[int, int]] = []
    progress = Progress(lambda: now, lambda *state: told.append(state), lambda: True)
    for done in range(1, 11):
        progress.tell(done, 10)
        now += TELL_S / 4
    assert told == [(1, 10), (5, 10), (9, 10), (10, 10)]


def test_nobody_is_worked_for_who_does_not_wait() -> None:
    """ECANCELED, and nothing is sent."""
    told: list[tuple[int, int]] = []
    progress = Progress(lambda: 0.0, lambda *state: told.append(state), lambda: False)
    for act in (progress.check, lambda: progress.tell(10, 10)):
        with pytest.raises(OSError, match="nobody") as caught:
            act()
        assert caught.value.errno == errno.ECANCELED
    assert not told
