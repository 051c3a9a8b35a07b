"""Time, for those who are handed it: monotonic seconds, and calls that are due later."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable


def wall_ms() -> int:
    """Milliseconds since 1970: for people and initiators, never for deadlines."""
    return time.time_ns() // 1_000_000


class Clock:
    """Now, and what is due. A test hands in its own ``now``."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.next_due = float("inf")  # on the same clock as now()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back once, ``delay_s`` seconds from now, in the loop."""
        heapq.heappush(self._due, (self.now() + delay_s, next(self._order), callback))
        self.next_due = self._due[0][0]

    def until_next(self, limit_s: float) -> float:
        """Seconds until something is due, at most ``limit_s``."""
        if not self._due:
            return limit_s
        return min(limit_s, max(0.0, self._due[0][0] - self.now()))

    def run_due(self) -> None:
        """Call what is due."""
        while self._due and self._due[0][0] <= self.now():
            callback = heapq.heappop(self._due)[2]
            self.next_due = self._due[0][0] if self._due else float("inf")
            callback()
