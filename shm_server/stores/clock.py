"""What may be thrown away and had again: at most so much of it is kept, and what was used lately stays.

An approximation of "least recently used" that costs the users one store of an attribute and no lock (the clock, or
second chance): when there is too much, the hand goes round, clears the marks, and throws away what had none.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol


class Kept(Protocol):
    was_used: bool

    def throw_away(self) -> None:
        """Forget it. Whoever uses it at this moment has a reference of its own."""


class Clock:
    """Any thread may add; ``limit`` counts things."""

    def __init__(self, limit: int) -> None:
        self._limit = max(limit, 1)
        self._things: deque[Kept] = deque()
        self._lock = threading.Lock()

    def add(self, thing: Kept) -> None:
        with self._lock:
            things = self._things
            things.append(thing)
            while len(things) > self._limit:
                oldest = things.popleft()
                if oldest.was_used:
                    oldest.was_used = False
                    things.append(oldest)
                else:
                    oldest.throw_away()

    def discard(self, gone: set[Kept]) -> None:
        """Their user has gone."""
        with self._lock:
            self._things = deque(thing for thing in self._things if thing not in gone)
