"""How far a long request has come, told to the client that asked for it, but not too often.

Whoever works looks here between two steps: a client that has left is not worked for any more, nor is anybody once the
server stops. So the one call does both, ``tell``, and it raises where the work is to end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

TELL_S = 0.25


class Progress:
    """Of one request. Belongs to the loop's thread."""

    def __init__(
        self, clock: Callable[[], float], send: Callable[[int, int], None], is_wanted: Callable[[], bool]
    ) -> None:
        """``send``: done, total."""
        self._clock = clock
        self._send = send
        self._is_wanted = is_wanted
        self._told_s = float("-inf")

    def check(self) -> None:
        """ECANCELED: nobody waits for it any more."""
        if not self._is_wanted():
            raise OSError(errno.ECANCELED, "nobody waits for it any more")

    def tell(self, done: int, total: int) -> None:
        """At once the first time, and when all is done. ECANCELED: nobody waits for it any more."""
        self.check()
        now = self._clock()
        if now - self._told_s >= TELL_S or done >= total:
            self._told_s = now
            self._send(done, total)
