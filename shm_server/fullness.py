"""How full the pool's file system is, and whether that has passed the soft threshold.

Looked at once a second, which is one statfs(2) of a local file system. Passing the threshold is told once, and so is
coming back below it, a little lower than where it was passed, so that a pool at the very threshold does not chatter.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from shm_server.abi.control import PoolInfo
from shm_server.runtime import Runtime

log = logging.getLogger(__name__)

DEFAULT_SOFT_THRESHOLD_PERCENT = 80
LOOK_S = 1.0
BACK_PERCENT = 2  # below the threshold


class Fullness:
    """Belongs to the loop's thread."""

    def __init__(
        self, runtime: Runtime, pool: Path | None, soft_threshold_percent: int, changed: Callable[[PoolInfo], None]
    ) -> None:
        """``pool`` None: nothing there is to be full; 0 percent: no threshold."""
        self._runtime = runtime
        self._pool = pool
        self._percent = soft_threshold_percent
        self._changed = changed
        self._is_reached = False
        if pool is not None and soft_threshold_percent:
            self._look()

    def info(self) -> PoolInfo:
        """As it is now; of no size where there is nothing to be full."""
        size_bytes, available_bytes = (0, 0) if self._pool is None else _space(self._pool)
        return PoolInfo(size_bytes, available_bytes, self._percent, self._is_reached)

    def _look(self) -> None:
        self._runtime.after(LOOK_S, self._look)
        assert self._pool is not None
        try:
            size_bytes, available_bytes = _space(self._pool)
        except OSError as error:
            log.warning("how full %s is can't be told: %s", self._pool, error.strerror)
            return
        used_percent = 100 * (size_bytes - available_bytes) / max(size_bytes, 1)
        limit_percent = self._percent - (BACK_PERCENT if self._is_reached else 0)
        if (used_percent >= limit_percent) is not self._is_reached:
            self._is_reached = not self._is_reached
            log.warning(
                "pool %s is %.1f %% full, %s its soft threshold of %d %%",
                *(self._pool, used_percent, "above" if self._is_reached else "below", self._percent),
            )
            self._changed(self.info())


def _space(pool: Path) -> tuple[int, int]:
    """What all of it is that may be used, and what is left of that; as df(1) counts."""
    found = os.statvfs(pool)
    used = found.f_blocks - found.f_bfree
    return (used + found.f_bavail) * found.f_frsize, found.f_bavail * found.f_frsize
