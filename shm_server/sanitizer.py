"""Sanitize operations: who may start one, how it is kept, taken up again at a start of the server, and how it ends.

While one runs, and after one that failed, every data operation of every handle on the volume is refused with EBUSY,
reads too. That holds across restarts, for the operation stands in the catalogue before it begins. After a failure
there are two ways out: another sanitize operation, and ``leave`` where the failed one allowed that (SBC-3 calls it
EXIT FAILURE MODE and the permission AUSE). The work itself is volumes/sanitizing.py's.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import replace

from shm_server.abi.control import VolumeInfo
from shm_server.manager import Manager
from shm_server.runtime import Job, Runtime
from shm_server.volumes import sanitizing
from shm_server.volumes.handle import Handle
from shm_server.volumes.sanitizing import Sanitizing

log = logging.getLogger(__name__)

TELL_S = 0.5  # progress is told no more often


class Sanitizer:
    def __init__(
        self,
        runtime: Runtime,
        manager: Manager,
        changed: Callable[[VolumeInfo, list[Handle]], None],
        bytes_per_s: int | None = None,
    ) -> None:
        """``changed`` is told of each beginning, end, and of progress now and then. ``bytes_per_s`` None: no pace."""
        self._runtime = runtime
        self._manager = manager
        self._changed = changed
        self._bytes_per_s = bytes_per_s
        self._running: set[str] = set()  # names
        for name, order in manager.sanitizing.items():
            if not order.failure:
                log.warning("volume %s: its %s goes on", name, order.kind)
                self._running.add(name)
                self._go_on(name)

    async def start(self, name: str, order: Sanitizing, is_ours: Callable[[Handle], bool]) -> VolumeInfo:
        """Begin; returns when that is durable. EBUSY: one runs, or somebody holds the volume whose handle ``is_ours``
        does not know; EPERM: one without the right to exit failed, and this one would have it."""
        order.check()
        self._check_start(name, order, is_ours)
        self._running.add(name)
        try:
            handle = await self._hold(name)
            try:
                async with self._manager.locked(name):  # no snapshot is being made, and none will be from here on
                    self._check_layers(name)
                    await self._manager.keep_sanitizing(name, replace(order, size_bytes=handle.volume.size_bytes))
            except OSError:
                self._manager.close(handle)
                raise
        except OSError:
            self._running.discard(name)
            raise
        log.info("volume %s: %s begins", name, order.kind)
        self._tell(name)
        Job(self._work(name, handle), lambda _value, error: self._ended(name, handle, error)).start()
        return self._manager.stat(name)

    def _check_start(self, name: str, order: Sanitizing, is_ours: Callable[[Handle], bool]) -> None:
        self._manager.check_changeable(name)
        previous = self._manager.sanitizing.get(name)
        if name in self._running:
            raise OSError(errno.EBUSY, f"volume {name} is being sanitized")
        self._check_layers(name)
        # SBC-3 4.11: what failed in the restricted mode can't be made an unrestricted one.
        if previous is not None and order.may_exit and not previous.may_exit:
            raise OSError(errno.EPERM, f"a sanitize of {name} failed that may not be exited: nor may the next")
        for handle in self._manager.writers(name):
            if not is_ours(handle):
                raise OSError(errno.EBUSY, f"volume {name} is held by {handle.words}")

    def _check_layers(self, name: str) -> None:
        if self._manager.layers.get(name):
            raise OSError(errno.EOPNOTSUPP, f"volume {name} has layers: what it was stays in them")

    async def leave(self, name: str) -> VolumeInfo:
        """After a failure: use the volume as it is; without one nothing happens. EPERM: that one does not allow it."""
        order = self._manager.sanitizing.get(name)
        if name in self._running:
            raise OSError(errno.EBUSY, f"volume {name} is being sanitized")
        if order is None:
            return self._manager.stat(name)  # or ENOENT
        if not order.may_exit:
            raise OSError(errno.EPERM, f"the sanitize of {name} that failed may not be exited: sanitize it again")
        await self._manager.keep_sanitizing(name, None)
        log.warning("volume %s: used again after a failed %s", name, order.kind)
        self._tell(name)
        return self._manager.stat(name)

    # The work -------------------------------------------------------------------------------------------------------

    def _go_on(self, name: str) -> None:
        async def go_on() -> None:
            handle = await self._hold(name)
            Job(self._work(name, handle), lambda _value, error: self._ended(name, handle, error)).start()

        Job(go_on(), lambda _value, error: self._ended(name, None, error) if error is not None else None).start()

    async def _hold(self, name: str) -> Handle:
        """A handle of ours keeps the volume open; it is no writer's."""
        return await self._manager.open(name, "r", "", "a sanitize operation", os.getpid(), 0, lambda: True)

    async def _work(self, name: str, handle: Handle) -> None:
        manager, clock = self._manager, self._runtime.clock
        told = clock()

        async def checkpoint(done_bytes: int) -> None:
            nonlocal told
            await manager.keep_sanitizing(name, replace(manager.sanitizing[name], done_bytes=done_bytes))
            if clock() - told >= TELL_S:
                told = clock()
                self._tell(name)

        order = manager.sanitizing[name]
        await manager.shut(handle.volume, order)  # until what was under way is over
        await sanitizing.work(handle.volume, order, checkpoint, self._bytes_per_s)
        await manager.scrub(handle.volume)
        await manager.keep_sanitizing(name, None)

    def _ended(self, name: str, handle: Handle | None, error: BaseException | None) -> None:
        if error is None:
            log.info("volume %s is sanitized", name)
            self._finish(name, handle)
            return
        number = (error.errno if isinstance(error, OSError) else None) or errno.EIO
        log.error("volume %s: sanitizing it failed: %s", name, error, exc_info=not isinstance(error, OSError))
        failed = replace(self._manager.sanitizing[name], failure=number)
        keep = self._manager.keep_sanitizing(name, failed)

        def kept(_value: None, problem: BaseException | None) -> None:
            if problem is not None:
                log.error("volume %s: that could not be noted: %s", name, problem)  # the next start tries again
            self._finish(name, handle)

        Job(keep, kept).start()

    def _finish(self, name: str, handle: Handle | None) -> None:
        self._running.discard(name)
        if handle is not None:
            self._manager.close(handle)
        self._tell(name)

    def _tell(self, name: str) -> None:
        self._changed(self._manager.stat(name), self._manager.holders(name))
