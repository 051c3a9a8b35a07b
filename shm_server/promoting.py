"""Promotions: clones that become volumes of their own, in the background, while they are used.

The lowest layer of the clone's own gets a copy of all that it has of others (stores/promoting.py); then one commit
makes it a base, and whoever has the clone open finds everything there. Snapshots of the clone, and clones of it, stand
on that layer, so they too are free of the others. What is asked for stands in the catalogue: a server that starts anew
goes on where it was. One is done at a time, after the merges that are due; no merge goes into the layer meanwhile.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial

from shm_server.abi.control import VolumeInfo
from shm_server.manager import Manager
from shm_server.progress import Progress
from shm_server.runtime import Call, Lane, Runtime, Wait
from shm_server.snapshots import Snapshots
from shm_server.stores.base import LayerFile, Stores
from shm_server.volumes.catalog import Catalog
from shm_server.volumes.handle import Handle
from shm_server.volumes.promotions import Promotion, Promotions, own_lowest

log = logging.getLogger(__name__)

LOOK_S = 0.25  # how often whoever waits for one is told


@dataclass(slots=True)
class _State:
    """Of one that runs, or waits for its turn."""

    total_bytes: int
    done_bytes: int = 0
    is_cancelled: bool = False
    waiting: list[Wait[None]] = field(default_factory=list)

    def end(self, error: OSError | None) -> None:
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.set(None, error)


class Promoter:
    def __init__(
        self,
        runtime: Runtime,
        stores: Stores,
        manager: Manager,
        snapshots: Snapshots,
        catalog: Catalog,
        changed: Callable[[VolumeInfo, list[Handle]], None],
    ) -> None:
        """``changed`` is told of beginnings and ends."""
        self._runtime = runtime
        self._stores = stores
        self._manager = manager
        self._snapshots = snapshots
        self._promotions = Promotions(catalog)
        self._changed = changed
        self._lane = Lane(1)
        self._states = {
            promotion.uuid: _State(manager.record(name).size_bytes, promotion.done_bytes)
            for promotion in self._promotions.all()
            if (name := manager.name_of(promotion.uuid)) is not None
        }
        manager.under_way.promoted_share = self._share
        snapshots.after_merges = self._work
        if self._states:
            snapshots.tidy()

    def _share(self, uuid: str) -> int | None:
        """How far one has come, of 65535."""
        state = self._states.get(uuid)
        return None if state is None else min(state.done_bytes * 65535 // state.total_bytes, 65535)

    # What can be asked for ------------------------------------------------------------------------------------------

    async def promote(self, name: str, progress: Progress) -> VolumeInfo:
        """Returns when the volume stands on nothing of others. It goes on where nobody waits for it any more: then it
        is ECANCELED here. ENOENT; EBUSY: it is being sanitized; EIO: a page can't be read; ENOSPC; ECANCELED."""
        manager = self._manager
        async with manager.locked(name):
            record = manager.record(name)
            manager.check_not_sanitizing(name)
            layer = own_lowest(await self._chain(record.uuid), record.uuid)
            if layer is None:
                return manager.stat(name)
            if not layer.is_sealed:
                await self._snapshots.push(record)
            await manager.on_thread(lambda: self._promotions.begin(record.uuid, layer.number))
            state = self._states.setdefault(record.uuid, _State(record.size_bytes))  # whose row is there: see _work()
        log.info("volume %s is being promoted", name)
        self._tell(record.uuid)
        ended: Wait[None] = Wait()
        state.waiting.append(ended)
        self._snapshots.tidy()
        while not ended.is_done:
            look: Wait[None] = Wait()  # a wait that was in vain is over, too: the end is none of those
            ended.start(partial(_wake, look))
            if not await self._runtime.wait(look, LOOK_S):
                progress.tell(state.done_bytes, max(state.total_bytes, state.done_bytes + 1))
        await ended  # raises what it ended by
        return manager.stat(self._name(record.uuid) or name)

    async def cancel(self, name: str) -> VolumeInfo:
        """The volume stays a clone, and what was copied is given back. Nothing happens where none runs. ENOENT."""
        record = self._manager.record(name)
        if (state := self._states.get(record.uuid)) is not None:
            ended: Wait[None] = Wait()
            over: Wait[None] = Wait()
            ended.start(lambda _value, _error: over.set())
            state.is_cancelled = True
            state.waiting.append(ended)
            self._snapshots.tidy()
            await over
        return self._manager.stat(name)

    # The work, as a part of what snapshots.py does in the background -------------------------------------------------

    async def _work(self, must_yield: Callable[[], bool]) -> None:
        """Until there is nothing to do, or something else comes first."""
        manager = self._manager
        while not must_yield():
            known = set(self._states)  # before we ask: one that begins meanwhile is not there yet, and not gone
            promotions: list[Promotion] = await manager.on_thread(self._promotions.all)
            for uuid in known - {promotion.uuid for promotion in promotions}:
                self._ended(uuid, OSError(errno.ENOENT, "the volume is not there any more"))
            promotions = [promotion for promotion in promotions if promotion.uuid in self._states]
            if not promotions:
                return
            promotion = promotions[0]
            try:
                if not await self._go_on(promotion, must_yield):
                    return
            except OSError as error:
                await self._failed(promotion, error)

    async def _go_on(self, promotion: Promotion, must_yield: Callable[[], bool]) -> bool:
        """False: to be gone on with later."""
        manager, state = self._manager, self._states[promotion.uuid]
        chain = _up_to(await self._chain(promotion.uuid), promotion.layer)
        steps = self._stores.promote(chain, promotion.done_bytes)
        while (step := await self._step(steps)) is not None:
            state.done_bytes, is_durable = step
            if is_durable:
                promotion = promotion._replace(done_bytes=state.done_bytes)
                await manager.on_thread(partial(self._promotions.keep, promotion))
            if state.is_cancelled or must_yield():
                await Call(self._runtime, self._lane, steps.close)
                if state.is_cancelled:
                    raise OSError(errno.ECANCELED, "the promotion was cancelled")
                return False
            await self._runtime.pause
        if await manager.on_thread(lambda: self._promotions.finish(promotion)):
            for volume in manager.open_volumes():
                self._stores.promoted(volume.store, promotion.layer)
            manager.on_sealed(promotion.layer)  # whose checksums are to be made
            log.info("volume %s stands on nothing of others", self._name(promotion.uuid))
            self._ended(promotion.uuid, None)
            self._snapshots.tidy()  # others' layers may be merged now
        return True

    async def _failed(self, promotion: Promotion, error: OSError) -> None:
        """It is not to be: what was copied is given back. One that is asked for meanwhile is another."""
        manager, name = self._manager, self._name(promotion.uuid)
        state = self._states.pop(promotion.uuid, None)
        try:
            if await manager.on_thread(lambda: self._promotions.end(promotion.uuid)) and name:
                log.error("volume %s was not promoted: %s", name, error.strerror or error)
                await self._give_up(promotion)
        except OSError as problem:
            log.error("volume %s: what was copied keeps its space: %s", name, problem.strerror or problem)
        self._tell(promotion.uuid)
        if state is not None:
            state.end(error)

    async def _give_up(self, promotion: Promotion) -> None:
        chain = _up_to(await self._chain(promotion.uuid), promotion.layer)
        steps = self._stores.give_up(chain)
        try:
            while await self._step(steps) is not None:
                await self._runtime.pause
        finally:
            self._manager.on_sealed(promotion.layer)  # which has lost checksums

    def _step(self, steps: Generator[tuple[int, bool], None, None]) -> Call:
        return Call(self._runtime, self._lane, lambda: next(steps, None))

    def _ended(self, uuid: str, error: OSError | None) -> None:
        state = self._states.pop(uuid, None)
        self._tell(uuid)
        if state is not None:
            state.end(error)

    # Helpers --------------------------------------------------------------------------------------------------------

    async def _chain(self, uuid: str) -> list[LayerFile]:
        chain: list[LayerFile] = await self._manager.on_thread(lambda: self._manager.lineage.chain(uuid))
        return chain

    def _name(self, uuid: str) -> str | None:
        return self._manager.name_of(uuid)

    def _tell(self, uuid: str) -> None:
        if (name := self._name(uuid)) is not None:
            self._changed(self._manager.stat(name), self._manager.holders(name))


def _wake(look: Wait[None], _value: object, _error: BaseException | None) -> None:
    look.set()


def _up_to(chain: list[LayerFile], number: int) -> list[LayerFile]:
    """ENOENT: it is not in the chain any more."""
    numbers = [layer.number for layer in chain]
    if number not in numbers:
        raise OSError(errno.ENOENT, "the volume is not there any more")
    return chain[: numbers.index(number) + 1]
