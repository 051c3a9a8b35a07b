"""Snapshots, rollback, clones: what they do to a volume that may be in use, and what is done behind them.

A snapshot is a new, empty layer on top. The catalogue has it before the first write goes into it (a crash in between
finds it empty); then, while nobody reads or writes, the volume's store gets it, and I/O goes on while the layer below
is made durable; only then the snapshot has a name, and the reply is sent. The volume's size does not matter to it.

Layers that no snapshot names any more are merged with the one above in the background, in steps, and files that nobody
needs are removed; what a crash leaves of that is taken up at the next start.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from shm_server.abi import names
from shm_server.abi.control import VolumeInfo
from shm_server.manager import Manager
from shm_server.runtime import Call, Job, Lane, Runtime
from shm_server.stores.base import Findings, LayerChecks, LayerFile, Stores, no_layers
from shm_server.under_way import MERGING
from shm_server.volumes import labels
from shm_server.volumes.catalog import Record
from shm_server.volumes.handle import Handle
from shm_server.volumes.lineage import Merge, Snapshot

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_RETRY_S = 30.0  # of a merge that failed; then twice as long each time
MAX_RETRY_S = 3600.0

_NAME = re.compile(names.SNAPSHOT_RULE)
NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Snapshots:
    def __init__(
        self,
        runtime: Runtime,
        stores: Stores,
        manager: Manager,
        changed: Callable[[VolumeInfo, list[Handle]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``changed`` is told of volumes that were rolled back; ``clock`` says what time it is."""
        self._runtime = runtime
        self._stores = stores
        self._manager = manager
        self._lineage = manager.lineage
        self._changed = changed
        self._clock = clock
        self._merge_lane = Lane(1)
        self._unsound: set[int] = set()  # bases that are not what their checksums say
        self._is_tidying = False
        self._must_tidy = False
        self._must_look = False  # at all layers
        self._nameless: set[int] = set()  # layers that something is to be merged into, now or when it can be
        self._retry_s = FIRST_RETRY_S
        self.after_merges: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]] = _nothing  # promoting.py
        self.tidy()

    # What can be asked for ------------------------------------------------------------------------------------------

    async def create(
        self, name: str, snapshot: str, words: Mapping[str, str] = NO_LABELS, metadata: bytes = b""
    ) -> Snapshot:
        """ENOENT; EEXIST; EINVAL (name, labels); E2BIG (labels); EBUSY: it is being sanitized; EROFS: a template has
        none; EOPNOTSUPP: not in this store."""
        if not _NAME.fullmatch(snapshot):
            raise OSError(errno.EINVAL, f"{snapshot!r} is no name of a snapshot: {names.SNAPSHOT_RULE}")
        labels.check(words, metadata)
        async with self._manager.locked(name):
            record = self._check_changeable(name)
            await self._manager.on_thread(lambda: self._lineage.check_new(record.uuid, snapshot))
            made: list[Snapshot] = []

            def keep(layer: int, created_s: float) -> None:
                identity = secrets.token_hex(16)
                kept = labels.encode(words), metadata
                made.append(Snapshot(snapshot, layer, record.size_bytes, created_s, identity, *kept))
                self._lineage.seal(record.uuid, made[0])

            await self._push(record, keep)
            log.info("volume %s: snapshot %s", name, snapshot)
            await self._manager.tell_created(name, snapshot)
            return made[0]

    async def find(self, name: str, snapshot: str) -> Snapshot:
        """ENOENT."""
        uuid = self._manager.record(name).uuid
        found: Snapshot = await self._manager.on_thread(lambda: self._lineage.snapshot(uuid, snapshot))
        return found

    async def label(
        self, name: str, snapshot: str, changes: Mapping[str, str | None], metadata: bytes | None
    ) -> Snapshot:
        """Other labels (None: no more) and, unless None, metadata, durably. ENOENT; EINVAL, E2BIG."""
        uuid = self._manager.record(name).uuid
        found: Snapshot = await self._manager.on_thread(lambda: self._lineage.label(uuid, snapshot, changes, metadata))
        return found

    async def find_all(self, name: str, after: str, limit: int) -> list[Snapshot]:
        """By name, behind ``after``. ENOENT."""
        uuid = self._manager.record(name).uuid
        found: list[Snapshot] = await self._manager.on_thread(lambda: self._lineage.snapshots(uuid, after, limit))
        return found

    async def remove(self, name: str, snapshot: str) -> None:
        """ENOENT; ENOTEMPTY: clones stand on it; EBUSY: it is open. Its space comes back in the background."""
        async with self._manager.locked(name):
            record = self._check_changeable(name)
            await self._manager.vacate([names.join(name, snapshot)])
            gone: Snapshot = await self._manager.on_thread(lambda: self._lineage.remove_snapshot(record.uuid, snapshot))
            log.info("volume %s: snapshot %s removed", name, snapshot)
            self._manager.tell_removed(name, snapshot, gone.identity)
            try:
                if not await self._manager.on_thread(lambda: self._lineage.stands_alone(record.uuid)):
                    await self.push(record)  # what is being written can't be merged
            except OSError as error:
                log.warning("volume %s: the space of snapshot %s comes back later: %s", name, snapshot, error)
        self.tidy(gone.layer)

    async def rollback(self, name: str, snapshot: str, *, force: bool = False) -> VolumeInfo:
        """The volume is what it was then, its size too; later snapshots go. ENOENT; EBUSY: it or one of those is held,
        with ``force`` only if they don't let go in time, or it is being sanitized; ENOTEMPTY: clones stand on later
        ones."""
        async with self._manager.locked(name):
            record = self._check_changeable(name)
            found: Snapshot = await self._manager.on_thread(lambda: self._lineage.snapshot(record.uuid, snapshot))
            going: list[Snapshot] = await self._manager.on_thread(
                lambda: self._lineage.later_snapshots(record.uuid, snapshot)
            )
            holdable = [name, *(names.join(name, other.name) for other in going)]
            await self._manager.vacate(holdable, force=force)
            await self._forget_atomic_write(record)

            def roll_back() -> Record:
                layer = self._create_layer(record.uuid, found.size_bytes)
                return self._or_discard(layer, lambda: self._lineage.rollback(record, snapshot, layer))

            self._manager.change_record(await self._manager.on_thread(roll_back))
            await self._look_again(record)
            log.info("volume %s: rolled back to %s", name, snapshot)
            for other in going:
                self._manager.tell_removed(name, other.name, other.identity)
            info = self._manager.stat(name)
            self._changed(info, [])
        self.tidy()
        return info

    async def _forget_atomic_write(self, record: Record) -> None:
        """What a crash left to be written again is not to come when the volume is another. For who has its lock."""
        manager = self._manager
        try:
            await manager.opened(record.name)
            manager.close_unheld(record.name)
        except OSError as error:  # what is damaged is to go, perhaps
            log.warning("volume %s can't be opened, and is rolled back all the same: %s", record.name, error)
            await manager.on_thread(lambda: self._stores.drop_atomic_write(record.files))

    async def clone(self, name: str, snapshot: str, new_name: str) -> VolumeInfo:
        """A volume of its own, with an identity of its own, that begins as the snapshot, or without a name as the
        template is. ENOENT; EINVAL: no template; EEXIST, EINVAL, ENOSPC as for a new volume."""
        source = self._check(name)
        size_bytes = (await self.find(name, snapshot)).size_bytes if snapshot else source.size_bytes

        def make(record: Record) -> None:
            layer = self._create_layer(record.uuid, record.size_bytes)
            self._or_discard(layer, lambda: self._lineage.clone(source.uuid, snapshot, record, layer))
            self._manager.layers[new_name] = {layer.number: layer}

        info = await self._manager.add(new_name, size_bytes, make)
        log.info("volume %s: a clone of %s", new_name, f"{name}@{snapshot}" if snapshot else f"template {name}")
        return info

    async def make_template(self, name: str) -> VolumeInfo:
        """What the volume is now it is for ever, to be read and to be cloned; its snapshots go. Nothing happens where
        it is one. ENOENT; EBUSY: it or a snapshot is held, or it is being sanitized; ENOTEMPTY: clones stand on its
        snapshots; EOPNOTSUPP."""
        async with self._manager.locked(name):
            record = self._check(name)
            if record.is_template:
                return self._manager.stat(name)
            await self._manager.vacate([name, *self._manager.open_snapshots(name)])
            await self._manager.on_thread(lambda: self._lineage.check_childless(record.uuid))
            going: list[Snapshot] = await self._manager.on_thread(lambda: self._lineage.snapshots(record.uuid))
            await self._push(record, lambda _layer, _created_s: self._lineage.make_template(record.uuid))
            self._manager.change_record(replace(record, is_template=True))
            log.info("volume %s: a template", name)
            for other in going:
                self._manager.tell_removed(name, other.name, other.identity)
            info = self._manager.stat(name)
            self._changed(info, [])
        self.tidy()
        return info

    def _check_changeable(self, name: str) -> Record:
        self._manager.check_changeable(name)
        return self._check(name)

    def _check(self, name: str) -> Record:
        record = self._manager.record(name)
        if not self._stores.can_layer:
            raise no_layers()
        self._manager.check_not_sanitizing(name)
        return record

    # Layers ---------------------------------------------------------------------------------------------------------

    async def push(self, record: Record) -> None:
        """What is written next is in a layer of its own, and all below is sealed. For who has the volume's lock."""
        await self._push(record, lambda _layer, _created_s: self._lineage.seal(record.uuid))

    async def _push(self, record: Record, keep: Callable[[int, float], None]) -> None:
        """A new layer on top, then all below it durable, then ``keep`` notes that in the catalogue: it gets the layer
        below and the time when it was the top no longer. For who has the volume's lock."""
        volume = await self._manager.opened(record.name)
        volume.check_write(0, 0)  # EIO: it failed

        top = self._stores.top_number(volume.store)

        def put_on_top() -> list[LayerFile]:
            layer = self._create_layer(record.uuid, record.size_bytes)
            base = self._stores.base_name(record.files)
            self._or_discard(layer, lambda: self._lineage.push(record.uuid, layer, base))
            return self._lineage.above(record.uuid, top)

        new: list[LayerFile] = await self._manager.on_thread(put_on_top)
        layers = self._manager.layers.setdefault(record.name, {})
        layers[new[-1].number] = new[-1]  # the volume has it, even if its store can't get it now
        created_s = self._clock()
        await volume.change_store(lambda store: self._stores.push(store, new))
        await volume.flush()
        below = new[-2].number if len(new) > 1 else top
        await self._manager.on_thread(lambda: keep(below, created_s))
        self._stores.seal(volume.store)
        for number in {top, *(layer.number for layer in new[:-1])} - {0}:
            if number in layers:  # no base is
                layers[number] = replace(layers[number], is_sealed=True)
            self._manager.on_sealed(number)

    def _create_layer(self, uuid: str, size_bytes: int) -> LayerFile:
        layer = self._lineage.begin_layer(uuid)
        self._or_discard(layer, lambda: self._stores.create_layer(layer, size_bytes))
        return layer

    def _or_discard(self, layer: LayerFile, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError:
            self._lineage.discard(layer)
            raise

    async def _look_again(self, record: Record) -> None:
        """Which layers a volume has."""
        layers: list[LayerFile] = await self._manager.on_thread(lambda: self._lineage.layers_of(record.uuid))
        self._manager.layers[record.name] = {layer.number: layer for layer in layers}

    # In the background ----------------------------------------------------------------------------------------------

    def tidy(self, nameless: int = 0) -> None:
        """Remove what nobody needs, merge what can be merged: into this layer, of which a snapshot's name was taken,
        or, without one, wherever that can be. What fails is tried again later."""
        if not self._stores.can_layer:
            return  # a pool whose I/O is dropped for a measurement keeps its layers as they are
        if nameless:
            self._nameless.add(nameless)
        else:
            self._must_look = True
        self._must_tidy = True
        if not self._is_tidying:
            self._is_tidying = True
            Job(self._tidy(), self._tidied).start()

    def _tidied(self, _value: None, error: BaseException | None) -> None:
        self._is_tidying = False
        if error is not None:
            log.error("merging layers failed: %s", error, exc_info=not isinstance(error, OSError))

    async def _tidy(self) -> None:
        manager, lineage = self._manager, self._lineage
        while self._must_tidy:
            self._must_tidy = False
            if self._must_look:
                self._must_look = False
                self._nameless.update(await manager.on_thread(lineage.all_mergeable))
                await self._settle()
            await self._collect_garbage()
            for lower in sorted(self._nameless):  # the oldest first: or what was merged once would be merged again
                await self._merge_into(lower)
            for name, merge in await manager.on_thread(lineage.collapsible):
                try:
                    await self._collapse(name, merge)
                except OSError as error:
                    self._try_later(merge, error)  # and the others, and promotions, have their turn
            await self._collect_garbage()
            await self.after_merges(lambda: self._must_tidy)

    async def _settle(self) -> None:
        """Volumes that were open when a server was killed: all that was acknowledged is with the kernel, and would be
        believed as long as that runs. So that it is behind the next start of the machine, too, they are closed."""
        manager = self._manager
        for name in list(manager.layers):
            async with manager.locked(name):
                if not manager.has(name) or manager.is_held(name):
                    continue
                record = manager.record(name)
                try:
                    if await manager.on_thread(lambda: self._stores.is_in_use(record.files, record.uuid)):  # noqa: B023
                        await manager.opened(name)
                        manager.close_unheld(name)
                except OSError as error:
                    log.error("volume %s can't be opened: %s", name, error)

    async def _merge_into(self, lower: int) -> None:
        """All that can be."""
        on_thread, lineage = self._manager.on_thread, self._lineage
        while (merge := await on_thread(lambda: lineage.mergeable(lower))) is not None:
            try:
                await self._merge(merge)
            except OSError as error:
                if await on_thread(lambda: lineage.mergeable(lower)) == merge:
                    self._try_later(merge, error)
                    return
                # else the two went with their volume meanwhile
        if not await on_thread(lambda: lineage.is_nameless(lower)):
            self._nameless.discard(lower)

    def _try_later(self, merge: Merge, error: OSError) -> None:
        """Nothing is lost, and nothing is gained: on a full disk, say, which somebody may make room on."""
        upper, lower = merge.upper.number, merge.lower.number
        log.error("merging layer %d into layer %d, again in %d s: %s", upper, lower, self._retry_s, error)
        self._runtime.after(self._retry_s, lambda: self.tidy(lower))
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)

    async def _collapse(self, name: str, merge: Merge) -> None:
        """A volume that nobody holds and that has no snapshots any more is a plain store again. Whoever wants to have
        it meanwhile goes before: until the catalogue says so nothing is different."""
        manager = self._manager
        async with manager.locked(name):
            if manager.is_held(name) or (name, merge) not in await manager.on_thread(self._lineage.collapsible):
                return
            await manager.opened(name)  # which makes its map durable, whatever a crash has left
            manager.close_unheld(name)
            checks = self._stores.layer_checks
            assert checks is not None, "there are layers"
            if not await self._is_sound(name, merge.lower, checks):
                return
            steps = self._stores.merge(merge.upper, merge.lower)
            with manager.under_way.doing(MERGING, merge.upper.uuid):
                while await Call(self._runtime, self._merge_lane, lambda: _step(steps)):
                    if manager.is_awaited(name):
                        await Call(self._runtime, self._merge_lane, steps.close)
                        manager.on_sealed(merge.lower.number)  # which has lost checksums
                        return
                    await self._runtime.pause
            files = manager.record(name).files
            await manager.on_thread(lambda: self._stores.adopt(merge.lower, files))
            if await manager.on_thread(lambda: self._lineage.collapsed(merge)):
                manager.layers.pop(name, None)
                await manager.on_thread(lambda: checks.remove([merge.lower.number]))  # a crash here: the next start
                self._stores.made_plain(manager.record(name).files)
                log.info("volume %s has no layers any more", name)

    async def _is_sound(self, name: str, base: LayerFile, checks: LayerChecks) -> bool:
        """A base loses its checksums when it is a plain store again: so it must be what they say, or it stays one."""
        found = Findings()
        steps = checks.scrub(base, found)
        while base.number not in self._unsound and await Call(self._runtime, self._merge_lane, lambda: _step(steps)):
            if self._manager.is_awaited(name):
                return False
            await self._runtime.pause
        if not found.is_clean:
            log.error("volume %s keeps its layers: %s is damaged (iscsi-ovs volume check %s)", name, base.name, name)
            self._unsound.add(base.number)
        return base.number not in self._unsound

    async def _merge(self, merge: Merge) -> None:
        steps = self._stores.merge(merge.upper, merge.lower)
        try:
            with self._manager.under_way.doing(MERGING, merge.upper.uuid):
                while await Call(self._runtime, self._merge_lane, lambda: _step(steps)):
                    await self._runtime.pause
        finally:
            self._manager.on_sealed(merge.lower.number)  # whose checksums are others, even where it came to nothing
        if not await self._manager.on_thread(lambda: self._lineage.merged(merge)):
            return
        log.info("layer %d is merged into layer %d", merge.upper.number, merge.lower.number)
        for volume in self._manager.open_volumes():
            self._stores.merged(volume.store, merge.upper.number)
        for layers in list(self._manager.layers.values()):  # a clone comes from a thread
            layers.pop(merge.upper.number, None)
        self._retry_s = FIRST_RETRY_S
        await self._manager.on_thread(lambda: self._remove([merge.upper]))

    async def _collect_garbage(self) -> None:
        try:
            await self._manager.on_thread(self._remove_garbage)
        except OSError as error:
            log.error("files of layers that nobody needs are left for now: %s", error)

    def _remove_garbage(self) -> None:
        if garbage := self._lineage.garbage():
            self._remove(garbage)

    def _remove(self, garbage: list[LayerFile]) -> None:
        self._stores.remove_layers(garbage)
        self._lineage.forget(garbage)


async def _nothing(_must_yield: Callable[[], bool]) -> None:
    """Nobody promotes."""


def _step(steps: Iterator[object]) -> bool:
    """False: it was the last."""
    return next(steps, _END) is not _END


_END = object()
