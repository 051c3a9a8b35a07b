"""What is being done to volumes in the background, for whoever asks how they are.

Several rooms work by and by on what the manager keeps: each says here that it does, and for how long; none of it holds
anything up. A volume is known by its UUID, for it may be renamed meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MERGING, CHECKING = "merging", "checking"


class UnderWay:
    """Belongs to the loop's thread."""

    def __init__(self) -> None:
        self.promoted_share: Callable[[str], int | None] = lambda _uuid: None  # promoting.py
        self._work: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def doing(self, what: str, uuid: str) -> Iterator[None]:
        """As long as this is open."""
        self._work[what, uuid] += 1
        try:
            yield
        finally:
            self._work[what, uuid] -= 1
            self._work = +self._work  # those that are over go

    def of(self, uuid: str) -> tuple[str, ...]:
        """What is; a promotion, which tells how far it has come, is not among it."""
        return tuple(what for what in (MERGING, CHECKING) if (what, uuid) in self._work)
