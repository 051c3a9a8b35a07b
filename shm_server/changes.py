"""ListChanges: what a volume or snapshot has otherwise than a snapshot of its past, to a client that has both open.

The maps are looked at on a thread, a millisecond at a time, and an answer has what was found in a quarter of a
second; whoever wants more asks on. Both handles keep what they have open until that is over.
"""

from __future__ import annotations

import errno

from shm_server.runtime import Call, Lane, Runtime
from shm_server.stores.changes import Change, Changes
from shm_server.volumes.handle import Handle

ANSWER_S = 0.25
MAX_CHANGES = 100_000  # in one answer, about


class _Looking:
    """In flight on both handles."""

    is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ChangeLists:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lane = Lane(1)

    async def find(self, handle: Handle, base: Handle, offset: int) -> tuple[list[Change], int]:
        """From ``offset`` on, and how far that is. EINVAL: no past in common; ECANCELED: one of the two is closed."""
        if not base.volume.is_read_only:
            raise OSError(errno.EINVAL, f"{base.volume.name} is no snapshot")
        changes = Changes(handle.volume.store, base.volume.store, self._runtime.clock)
        end = handle.volume.size_bytes
        if offset < 0 or offset % 4096:
            raise OSError(errno.EINVAL, f"changes from {offset} on: there are whole pages only")
        looking = _Looking()
        handle.tasks.add(looking)
        base.tasks.add(looking)
        try:
            found: list[Change] = []
            deadline = self._runtime.clock() + ANSWER_S
            at = min(offset, end)
            while at < end and len(found) < MAX_CHANGES and self._runtime.clock() < deadline:
                more, at = await Call(
                    self._runtime,
                    self._lane,
                    lambda start=at: changes.find(start, end, MAX_CHANGES),  # type: ignore[misc]
                )
                found += more
                if looking.is_cancelled:
                    raise OSError(errno.ECANCELED, "what was looked at is closed")
                await self._runtime.pause
            return found, at
        finally:
            handle.end_task(looking)
            base.end_task(looking)
