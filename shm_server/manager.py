"""Volumes by name: create, remove, resize, stat, list, open, close. Who may hold what (CONTRACTS 5).

A snapshot is opened as VOLUME@SNAPSHOT, to be read: then it is one more open volume, with an identity of its own, under
the lock of the volume that it was made of. While somebody holds it neither the two nor what it stands on can go.

Every method that may take time is a coroutine; what blocks runs on one management thread. Everything durable is
durable before it returns. Errors are OSError with an errno and words for people. Events to clients are the caller's
business: it is told by ``Watcher``. This file knows neither sockets nor rings.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from shm_server.abi import names
from shm_server.abi.control import VolumeInfo
from shm_server.runtime import Call, Lane, NamedLocks, Runtime, Wait
from shm_server.stores.base import LayerFile, Store, Stores
from shm_server.under_way import UnderWay
from shm_server.volumes.catalog import Catalog, Record
from shm_server.volumes.handle import Handle
from shm_server.volumes.lineage import Lineage
from shm_server.volumes.sanitizing import Sanitizing
from shm_server.volumes.volume import Volume

log = logging.getLogger(__name__)

_NAME = re.compile(names.VOLUME_RULE)

SIZE_STEP_BYTES = 4096  # sizes are rounded up to this (Open vStorage rounds up to a cluster)
MAX_VOLUMES = 4096  # so that a list fits one control message
LOOKED_AT_ONCE = 16  # of them, before others have their turn
ACCESSES = ("r", "w", "rw")
RELEASE_LIMIT_S = 5.0
ACK_LIMIT_S = 2.0


class Watcher(Protocol):
    """Whoever wants to know. Called on the loop's thread, after the change is durable."""

    def volume_created(self, info: VolumeInfo) -> None: ...

    def volume_removed(self, name: str, uuid: str) -> None: ...

    def volume_resized(self, info: VolumeInfo, holders: list[Handle], by: object) -> Wait[None]:
        """Tell the holders; the result is set when they all have acted on it."""
        ...

    def release_requested(self, name: str, uuid: str, holders: list[Handle]) -> None: ...


@dataclass(slots=True)
class _Open:
    """An open volume, who holds it, and who waits for holders to go."""

    volume: Volume
    handles: list[Handle]
    waiters: list[Wait[None]]


class Manager:
    def __init__(
        self, runtime: Runtime, stores: Stores, catalog: Catalog, max_volume_size: int, watcher: Watcher
    ) -> None:
        self._runtime = runtime
        self._stores = stores
        self._catalog = catalog
        self._max_volume_size = max_volume_size
        self._watcher = watcher
        self._lane = Lane(1)
        self.lineage = Lineage(catalog)
        # Made for each volume that is no plain store, by its name and their numbers.
        self.layers: dict[str, dict[int, LayerFile]] = {}
        self.on_sealed: Callable[[int], None] = lambda number: None  # told of a layer, which may have been before
        self.under_way = UnderWay()
        self._locks = NamedLocks()
        self._open: dict[str, _Open] = {}
        self._closing: dict[str, Wait[None]] = {}
        self._failed: set[str] = set()
        for record in catalog.unfinished():
            log.warning("volume %s was half created or half removed when the server died: removing it", record.name)
            stores.remove(record.files)
            self._forget(record)
        self.lineage.recover()
        self._records = {record.name: record for record in catalog.load()}
        for record in self._records.values():
            if layers := self.lineage.layers_of(record.uuid):
                self.layers[record.name] = {layer.number: layer for layer in layers}
        self.sanitizing = catalog.sanitizing()  # by name: what runs, or has failed (sanitizer.py)

    # Looking --------------------------------------------------------------------------------------------------------

    async def look(self, name: str) -> VolumeInfo:
        """stat() of a volume or of a snapshot. ENOENT."""
        if not names.is_snapshot(name):
            await self._measure([name])
            return self.stat(name)
        seen: VolumeInfo = await self.on_thread(lambda: self._stat_snapshot(self._snapshot_record(name)))
        return seen

    def _stat_snapshot(self, record: Record) -> VolumeInfo:
        """On a thread."""
        volume, snapshot = names.split(record.name)
        layer = self.lineage.layer_of_snapshot(self.record(volume).uuid, snapshot)
        return VolumeInfo(
            name=record.name,
            uuid=record.uuid,
            size_bytes=record.size_bytes,
            allocated_bytes=self._stores.allocated_bytes(record.name, [layer]),  # its own; what is below is shared
            generation=record.generation,
            can_discard=False,
            failed=record.name in self._failed,
            is_read_only=True,
        )

    def stat(self, name: str) -> VolumeInfo:
        record = self.record(name)
        held = self._open.get(name)
        writer = next((handle for handle in held.handles if handle.can_write), None) if held else None
        order = self.sanitizing.get(name)
        layers = self.layers.get(name, {}).values()
        return VolumeInfo(
            name=name,
            uuid=record.uuid,
            size_bytes=record.size_bytes,
            allocated_bytes=self._stores.allocated_bytes(record.files, layers),
            footprint_bytes=self._stores.footprint_bytes(record.files, layers),
            generation=record.generation,
            can_discard=True,
            failed=name in self._failed,
            held=writer.words if writer else None,
            max_atomic_write_bytes=self._stores.max_atomic_write_bytes,
            sanitize=order.progress if order and not order.failure else None,
            sanitize_failed=bool(order and order.failure),
            can_exit_sanitize=bool(order and order.failure and order.may_exit),
            is_read_only=record.is_template,
            is_template=record.is_template,
            promotion=self.under_way.promoted_share(record.uuid),
            under_way=self.under_way.of(record.uuid),
        )

    async def look_all(self) -> list[VolumeInfo]:
        """As stat_all(), but others have their turn between some: a thousand volumes are three thousand files."""
        await self._measure(list(self.layers))
        found = []
        for number, name in enumerate(sorted(self._records), 1):
            if name in self._records:  # it may have gone meanwhile
                found.append(self.stat(name))
            if number % LOOKED_AT_ONCE == 0:
                await self._runtime.pause
        return found

    async def _measure(self, wanted: Iterable[str]) -> None:
        """Have the stores know what these volumes' layers take, before stat() asks. What was not asked for yet of
        thousands of snapshots are thousands of files, and everybody else would wait."""
        layered = [
            (record.files, tuple(layers.values()))
            for name in wanted  # a clone that is being made has layers first
            if (layers := self.layers.get(name)) and (record := self._records.get(name))
        ]
        if layered:
            await self.on_thread(lambda: [self._stores.footprint_bytes(*each) for each in layered])

    def stat_all(self) -> list[VolumeInfo]:
        return [self.stat(name) for name in sorted(self._records)]

    def handles(self) -> list[Handle]:
        """Every open handle."""
        return [handle for held in self._open.values() for handle in held.handles]

    # Changing -------------------------------------------------------------------------------------------------------

    async def create(self, name: str, size_bytes: int, *, is_whole: bool = True) -> VolumeInfo:
        """A new volume of zeros; unless it ``is_whole`` it is gone after the next start, until finish(). EEXIST, EINVAL
        (name, size), EFBIG (max_volume_size), ENOSPC."""
        size_bytes = self._round_size(size_bytes)
        return await self.add(name, size_bytes, partial(self._create, is_whole=is_whole))

    async def finish(self, name: str) -> None:
        """ENOENT."""
        async with self.locked(name):
            self.record(name)
            await self.on_thread(lambda: self._catalog.finish_create(name))

    async def add(self, name: str, size_bytes: int, make: Callable[[Record], None]) -> VolumeInfo:
        """A new volume that ``make`` makes, on a thread. EEXIST, EINVAL (name), ENOSPC."""
        self.check_name(name)
        async with self.locked(name):
            if name in self._records:
                raise OSError(errno.EEXIST, f"volume {name} exists")
            if len(self._records) >= MAX_VOLUMES:
                raise OSError(errno.ENOSPC, f"the pool has {MAX_VOLUMES} volumes, which is the most it can have")
            record = Record(name, uuid := secrets.token_hex(16), size_bytes, 1, stem=self._free_stem(name, uuid))
            await self.on_thread(lambda: make(record))
            self.change_record(record)
            info = self.stat(name)
            log.info("volume %s created: %d bytes, uuid %s", name, size_bytes, record.uuid)
            self._watcher.volume_created(info)
            return info

    def _create(self, record: Record, *, is_whole: bool) -> None:
        self._catalog.begin_create(record)
        try:
            self._stores.create(record.files, record.size_bytes)
        except OSError:
            self._catalog.forget(record.name)
            raise
        if is_whole:
            self._catalog.finish_create(record.name)

    async def remove(self, name: str, *, force: bool = False, uuid: str = "") -> None:
        """``uuid``: only the one that has it. ENOENT; ENOTEMPTY while clones stand on it; EBUSY while somebody holds
        it, with ``force`` only if they don't let go in time. Its snapshots go with it."""
        async with self.locked(name):
            record = self.record(name)
            if uuid not in ("", record.uuid):
                raise OSError(errno.ENOENT, f"volume {name} is another")
            await self.vacate([name, *self.open_snapshots(name)], force=force)
            await self.on_thread(lambda: self._remove(record))
            del self._records[name]  # not before: where it stays, nobody has got the names of its files meanwhile
            self._failed.discard(name)
            self.sanitizing.pop(name, None)
            self.layers.pop(name, None)
            log.info("volume %s removed", name)
            self._watcher.volume_removed(name, record.uuid)

    def _remove(self, record: Record) -> None:
        self._catalog.begin_remove(record.name)
        try:
            self._stores.remove(record.files)
        except OSError:
            self._catalog.finish_create(record.name)  # it stays, and is used: the next start must not remove it
            raise
        self._forget(record)

    def _forget(self, record: Record) -> None:
        """Its store is gone: so is all else of it, now or, where a layer's file resists, at the next start."""
        layers, numbers = self.lineage.layers_of(record.uuid), self.lineage.numbers_of(record.uuid)
        self._catalog.forget(record.name)
        if (checks := self._stores.layer_checks) is not None:
            checks.remove(numbers)
        if layers:
            try:
                self._stores.remove_layers(layers)
                self.lineage.forget(layers)
            except OSError as error:
                log.error("layers of volume %s are left: %s", record.name, error)

    async def resize(self, name: str, size_bytes: int, by: object = None) -> VolumeInfo:
        """Grow. EPERM to shrink, EFBIG over max_volume_size. Waits (bounded) until the holders know."""
        size_bytes = self._round_size(size_bytes)
        async with self.locked(name):
            record = self.record(name)
            if size_bytes < record.size_bytes:
                raise OSError(errno.EPERM, f"volume {name} has {record.size_bytes} bytes: a volume can't shrink")
            if size_bytes == record.size_bytes:
                return self.stat(name)
            self.check_changeable(name)
            self.check_not_sanitizing(name)
            held = self._open.get(name)
            if held is None:
                held = await self._open_volume(record)
                held_by_us = True
            else:
                held_by_us = False
            grown = replace(record, size_bytes=size_bytes, generation=record.generation + 1)
            try:
                await held.volume.grow(size_bytes)
                await self.on_thread(lambda: self._catalog.resize(name, size_bytes, grown.generation))
                self._records[name] = grown
                held.volume.set_size(size_bytes, grown.generation)
            finally:
                if held_by_us or not held.handles:
                    self._close_volume(held)
            info = self.stat(name)
            log.info("volume %s resized: %d bytes", name, size_bytes)
            holders = [handle for handle in held.handles if not handle.is_closing]
            known = self._watcher.volume_resized(info, holders, by)
            if not await self._runtime.wait(known, ACK_LIMIT_S):
                log.warning("volume %s: a holder did not acknowledge its new size within %g s", name, ACK_LIMIT_S)
            return info

    # Sanitize operations, as sanitizer.py needs them -----------------------------------------------------------------

    async def keep_sanitizing(self, name: str, order: Sanitizing | None) -> None:
        """Make durable how a sanitize operation stands, or that it is over and the volume can be used."""
        uuid = self.record(name).uuid
        held = self._open.get(name)
        if order is not None:
            await self.on_thread(lambda: self._catalog.put_sanitizing(order))
            self.sanitizing[name] = order
            if held is not None:
                self.shut(held.volume, order)
        else:
            await self.on_thread(lambda: self._catalog.end_sanitizing(uuid))
            del self.sanitizing[name]
            if held is not None:
                held.volume.ranges.open()

    def scrub(self, volume: Volume) -> Call:
        """Await: no copy of the volume's data is kept beside it any more."""
        return self.on_thread(volume.store.scrub)

    def shut(self, volume: Volume, order: Sanitizing) -> Wait[None]:
        """No data operation any more but the sanitizing itself; the result is set when nothing is under way."""
        return volume.ranges.shut(OSError(errno.EBUSY, f"{order.kind} of {volume.name}: no data operations"))

    # Holding --------------------------------------------------------------------------------------------------------

    async def open(
        self, name: str, access: str, owner: str, words: str, pid: int, number: int, is_wanted: Callable[[], bool]
    ) -> Handle:
        """A handle. EBUSY where another owner writes. Waits for the last operations of a holder that has gone.
        ``name`` may be a snapshot's: EROFS unless it is only to be read, as for a template.

        ``is_wanted`` is asked before the handle is made: whoever asked may have gone meanwhile.
        """
        if access not in ACCESSES:
            raise OSError(errno.EINVAL, f"access {access!r}: it is one of {', '.join(ACCESSES)}")
        volume, snapshot = names.split(name)
        if snapshot and "w" in access:
            raise OSError(errno.EROFS, f"{name} is a snapshot: it can't be opened for writing")
        async with self.locked(volume):
            record = await self.on_thread(lambda: self._snapshot_record(name)) if snapshot else self.record(name)
            if "w" in access:
                self.check_changeable(name)
                await self._until(partial(self._has_no_dying, name), name, None)
                for handle in self.writers(name):
                    if not owner or handle.owner != owner:
                        raise self._busy(name, handle)
            held = self._open.get(name)
            if held is None:
                held = await self._open_volume(record)
            if not is_wanted():
                if not held.handles:
                    self._close_volume(held)
                raise OSError(errno.ECONNRESET, "the client has gone")
            handle = Handle(number, held.volume, access, owner, words, pid)
            held.handles.append(handle)
            return handle

    def close(self, handle: Handle) -> Wait[None]:
        """Discard what has not started; the result is set when what has is over and the volume is free."""
        closed: Wait[None] = Wait()
        handle.close(lambda: self._closed(handle, closed))
        return closed

    def _closed(self, handle: Handle, closed: Wait[None]) -> None:
        held = self._open.get(handle.volume.name)
        if held is not None and handle in held.handles:
            held.handles.remove(handle)
            if not held.handles and self._locks.is_free(handle.volume.name):
                self._close_volume(held)
            waiters, held.waiters = held.waiters, []
            for waiter in waiters:
                waiter.set()
        closed.set()

    async def _open_volume(self, record: Record) -> _Open:
        if (closing := self._closing.pop(record.name, None)) is not None:
            await closing  # two stores on the same files would not know of each other's records
        store = await self.on_thread(lambda: self._open_store(record))
        volume = Volume(self._runtime, store, record.name, record.uuid, record.size_bytes, record.generation)
        volume.is_read_only = record.is_template or names.is_snapshot(record.name)
        held = _Open(volume, [], [])
        volume.on_failure = lambda: self._volume_failed(held)
        volume.ranges.on_guard = lambda: _refresh(held)
        self._open[record.name] = held
        self._failed.discard(record.name)
        if record.name in self.sanitizing:
            self.shut(volume, self.sanitizing[record.name])
        return held

    def _open_store(self, record: Record) -> Store:
        # In one go on the manager's thread, so that no layer of the chain is merged or removed in between.
        volume, snapshot = names.split(record.name)
        if snapshot:
            sealed = self.lineage.snapshot_chain(self.record(volume).uuid, snapshot)
            return self._stores.open_sealed(record.name, sealed)
        chain = self.lineage.chain(record.uuid) if self._stores.can_layer else ()
        return self._stores.open(record.files, record.size_bytes, record.uuid, chain)

    # For renaming.py ------------------------------------------------------------------------------------------------

    def check_name(self, name: str) -> None:
        """EINVAL."""
        if not _NAME.fullmatch(name):
            raise OSError(errno.EINVAL, f"{name!r} is no volume name: {names.VOLUME_RULE}")

    def _free_stem(self, name: str, uuid: str) -> str | None:
        """For the files of a new volume: another one that was called so has perhaps kept its own. No volume's name has
        a "~"."""
        return f"{name}~{uuid[:8]}" if any(record.files == name for record in self._records.values()) else None

    def name_of(self, uuid: str) -> str | None:
        return next((record.name for record in self._records.values() if record.uuid == uuid), None)

    def has(self, name: str) -> bool:
        return name in self._records

    async def check_unwritten(self, name: str) -> None:
        """For who has the volume's lock: EBUSY where somebody has it open to write. Who has gone is waited for."""
        await self._until(partial(self._has_no_dying, name), name, None)
        if writers := self.writers(name):
            raise self._busy(name, writers[0])

    async def take_name(self, name: str, renamed: Record) -> None:
        """For who has the locks of both names: ``renamed`` is what the volume is now."""
        if (closing := self._closing.pop(name, None)) is not None:
            await closing
        await self.on_thread(lambda: self._catalog.rename(renamed))
        del self._records[name]
        self.change_record(renamed)
        if name in self.layers:
            self.layers[renamed.name] = self.layers.pop(name)
        for old in [name, *self.open_snapshots(name)]:
            new = renamed.name + old.removeprefix(name)
            if old in self._failed:
                self._failed.discard(old)
                self._failed.add(new)
            if (held := self._open.pop(old, None)) is not None:
                held.volume.name = new
                self._open[new] = held

    # For snapshots.py -----------------------------------------------------------------------------------------------

    async def opened(self, name: str) -> Volume:
        """For who has the volume's lock: it is open until the lock is let go, or longer where somebody holds it."""
        return (self._open.get(name) or await self._open_volume(self.record(name))).volume

    def open_snapshots(self, volume: str) -> list[str]:
        """The snapshots of a volume that are open, by the names that they are opened by."""
        return [name for name in self._open if name.startswith(f"{volume}{names.SEPARATOR}")]

    async def tell_created(self, volume: str, snapshot: str) -> None:
        self._watcher.volume_created(await self.look(names.join(volume, snapshot)))

    def tell_removed(self, volume: str, snapshot: str, identity: str) -> None:
        self._watcher.volume_removed(names.join(volume, snapshot), identity)

    async def vacate(self, held_names: Sequence[str], *, force: bool = False) -> None:
        """For who has the volume's lock: nobody holds it, or these snapshots of it, or EBUSY. Operations that are the
        last of who has gone are waited for; with ``force`` who is there is asked to go, and waited for, too."""
        for name in held_names if force else ():
            if living := self.holders(name):
                self._watcher.release_requested(name, living[0].volume.uuid, living)
        deadline = self._runtime.clock() + RELEASE_LIMIT_S
        for name in held_names:
            if force:
                left_s = max(0.0, deadline - self._runtime.clock())
                await self._until(partial(self._is_closed, name), name, left_s)
            else:
                await self._until(partial(self._has_no_dying, name), name, None)
            self._sweep(name)  # who has gone while we looked at others
            if held := self._open.get(name):
                raise self._busy(name, held.handles[0])

    def _is_closed(self, name: str) -> bool:
        return name not in self._open

    def is_held(self, name: str) -> bool:
        held = self._open.get(name)
        return held is not None and bool(held.handles)

    def is_awaited(self, name: str) -> bool:
        """For who has the volume's lock: somebody else waits for it."""
        return self._locks.is_awaited(name)

    def open_volumes(self) -> list[Volume]:
        return [held.volume for held in self._open.values()]

    def close_unheld(self, name: str) -> None:
        """For who has the volume's lock: EBUSY where somebody holds it, else it is closed."""
        if (held := self._open.get(name)) is not None:
            if held.handles:
                raise self._busy(name, held.handles[0])
            self._close_volume(held)

    def check_not_sanitizing(self, name: str) -> None:
        if name in self.sanitizing:
            raise OSError(errno.EBUSY, f"volume {name} is being sanitized, or that failed")

    def check_changeable(self, name: str) -> None:
        """EROFS: it is a template."""
        if self.record(name).is_template:
            raise OSError(errno.EROFS, f"volume {name} is a template: what it is stays so")

    def change_record(self, record: Record) -> None:
        """A volume is there, or is another than before; that is durable."""
        self._records[record.name] = record

    def _close_volume(self, held: _Open) -> None:
        if self._open.get(held.volume.name) is held:
            name = held.volume.name
            del self._open[name]
            closed = held.volume.close()
            if not closed.is_done:
                self._closing[name] = closed

    def _volume_failed(self, held: _Open) -> None:
        self._failed.add(held.volume.name)
        _refresh(held)

    # Helpers --------------------------------------------------------------------------------------------------------

    def record(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None:
            hint = ": what has an @ is a snapshot, and a volume is asked for" if names.is_snapshot(name) else ""
            raise OSError(errno.ENOENT, f"there is no volume {name}{hint}")
        return record

    def identity(self, name: str) -> str:
        """The UUID of a volume, or a snapshot's own: on a thread. ENOENT."""
        return (self._snapshot_record(name) if names.is_snapshot(name) else self.record(name)).uuid

    def _snapshot_record(self, name: str) -> Record:
        """A snapshot as what is opened; on a thread. ENOENT."""
        volume, snapshot = names.split(name)
        found = self.lineage.snapshot(self.record(volume).uuid, snapshot)
        return Record(name, found.identity, found.size_bytes, 1)

    def _round_size(self, size_bytes: int) -> int:
        if size_bytes <= 0:
            raise OSError(errno.EINVAL, f"a volume of {size_bytes} bytes: it needs at least one")
        rounded = -(-size_bytes // SIZE_STEP_BYTES) * SIZE_STEP_BYTES
        if rounded > self._max_volume_size:
            raise OSError(
                errno.EFBIG, f"{size_bytes} bytes are more than volume_manager.max_volume_size, {self._max_volume_size}"
            )
        return rounded

    def writers(self, name: str) -> list[Handle]:
        held = self._open.get(name)
        return [handle for handle in held.handles if handle.can_write] if held else []

    def holders(self, name: str) -> list[Handle]:
        """Every handle on the volume that is not closing."""
        held = self._open.get(name)
        return [handle for handle in held.handles if not handle.is_closing] if held else []

    def _has_no_dying(self, name: str) -> bool:
        """No holder has gone whose writes are still in flight."""
        held = self._open.get(name)
        return held is None or not any(handle.is_closing for handle in held.handles)

    def _busy(self, name: str, handle: Handle) -> OSError:
        noun = "snapshot" if names.is_snapshot(name) else "volume"
        return OSError(errno.EBUSY, f"{noun} {name} is held by {handle.words}")

    async def _until(self, condition: Callable[[], bool], name: str, limit_s: float | None) -> None:
        """Wait until ``condition``, looked at whenever a handle on ``name`` goes."""
        deadline = None if limit_s is None else self._runtime.clock() + limit_s
        while not condition():
            held = self._open.get(name)
            if held is None:
                return
            gone: Wait[None] = Wait()
            held.waiters.append(gone)
            if deadline is None:
                await gone
            elif not await self._runtime.wait(gone, max(0.0, deadline - self._runtime.clock())):
                return
            self._sweep(name)

    def _sweep(self, name: str) -> None:
        """Close a volume whose last holder has gone while we waited."""
        held = self._open.get(name)
        if held is not None and not held.handles:
            self._close_volume(held)

    def on_thread(self, function: Callable[[], object]) -> Call:
        return Call(self._runtime, self._lane, function)

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[None]:
        """One change of a volume at a time; looking needs no lock."""
        async with self._locks.have(name):
            self._sweep(name)
            try:
                yield
            finally:
                self._sweep(name)  # before the lock is handed over


def _refresh(held: _Open) -> None:
    """What the volume lets its handles do has changed."""
    for handle in held.handles:
        handle.refresh()
