"""One client's right to a volume: access, owner token, epoch, counters, and what is in flight on it.

From push to completion a slot belongs to the server; so a handle that is closed, or whose client died, lives on until
the last started operation has come back (CONTRACTS 2), and so does the volume's writer's right.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from shm_server.abi import layout
from shm_server.stores.base import Views
from shm_server.volumes.volume import Volume

FIRST_EPOCH = 1
Now = Callable[[Views, int], int]


class Task(Protocol):
    """An operation in flight, as a handle sees it."""

    def cancel(self) -> None: ...


class Handle:
    """``read_now`` and ``write_now`` are the store's, or None where this handle may not (now), or the volume failed."""

    __slots__ = (
        "access",
        "can_read",
        "can_write",
        "epoch",
        "fences",
        "is_closing",
        "number",
        "on_idle",
        "owner",
        "pid",
        "read_bytes",
        "read_now",
        "reads",
        "tasks",
        "volume",
        "words",
        "write_now",
        "writes",
        "written_bytes",
    )

    def __init__(self, number: int, volume: Volume, access: str, owner: str, words: str, pid: int) -> None:
        self.number = number
        self.volume = volume
        self.access = access
        self.owner = owner
        self.words = words
        self.pid = pid
        self.can_read = "r" in access
        self.can_write = "w" in access
        self.epoch = FIRST_EPOCH
        self.tasks: set[Task] = set()
        self.fences: list[tuple[set[Task], Callable[[], None]]] = []
        self.is_closing = False
        self.on_idle: list[Callable[[], None]] = []
        self.read_bytes = self.written_bytes = self.reads = self.writes = 0
        self.read_now: Now | None
        self.write_now: Now | None
        self.refresh()

    def refresh(self) -> None:
        """Look again at what the volume lets us do."""
        # A write through a store with a dirty budget may have to start a sync: that is the volume's to see.
        store = self.volume.store
        is_guarded = self.volume.ranges.is_guarded  # something is under way that plain operations could disturb
        self.read_now = store.read_now if self.can_read and not is_guarded else None
        self.write_now = store.write_now if self.can_write and not self.volume.failure and not is_guarded else None

    def fence(self, epoch: int, done: Callable[[], None]) -> None:
        """Discard what has not started, call ``done`` when what has is over. Raises EINVAL for an epoch not newer."""
        if not 0 < (epoch - self.epoch) & layout.INDEX_MASK < 1 << 31:
            raise OSError(errno.EINVAL, f"a fence to epoch {epoch}, the handle is at {self.epoch}")
        self.epoch = epoch
        started = set(self.tasks)
        for task in started:
            task.cancel()
        started &= self.tasks
        if started:
            self.fences.append((started, done))
        else:
            done()

    def end_task(self, task: Task) -> None:
        """``task`` has completed."""
        self.tasks.discard(task)
        if self.fences:
            over = []
            for fence in self.fences:
                fence[0].discard(task)
                if not fence[0]:
                    over.append(fence)
            for fence in over:
                self.fences.remove(fence)
                fence[1]()
        if self.is_closing and not self.tasks:
            self._become_idle()

    def close(self, done: Callable[[], None]) -> None:
        """Discard what has not started; ``done`` when what has is over, at once if that is nothing."""
        self.on_idle.append(done)
        if self.is_closing:
            return
        self.is_closing = True
        for task in list(self.tasks):
            task.cancel()
        if not self.tasks:
            self._become_idle()

    def _become_idle(self) -> None:
        actions, self.on_idle = self.on_idle, []
        for action in actions:
            action()
