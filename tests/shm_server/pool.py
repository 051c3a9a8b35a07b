"""A pool without a server: manager and snapshots on a runtime that is driven by hand."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shm_server.abi.control import VolumeInfo
from shm_server.manager import Manager
from shm_server.progress import Progress
from shm_server.promoting import Promoter
from shm_server.records import Records
from shm_server.runtime import Job, Runtime, Wait
from shm_server.sanitizer import Sanitizer
from shm_server.scrubbing import Checked, Scrubber
from shm_server.snapshots import Snapshots
from shm_server.stores import Stores, open_stores
from shm_server.volumes.catalog import Catalog
from shm_server.volumes.handle import Handle
from shm_server.volumes.volume import Volume


class Nobody:
    """Watches, and says that everybody knows."""

    def __init__(self) -> None:
        self.rolled_back: list[VolumeInfo] = []

    def volume_created(self, info: VolumeInfo) -> None: ...

    def volume_removed(self, name: str, uuid: str) -> None: ...

    def volume_resized(self, info: VolumeInfo, holders: list[Handle], by: object) -> Wait[None]:
        return _known()

    def record_changed(self, *_: object) -> Wait[None]:
        return _known()

    def release_requested(self, name: str, uuid: str, holders: list[Handle]) -> None: ...


def _known() -> Wait[None]:
    known: Wait[None] = Wait()
    known.set()
    return known


class Pool:
    def __init__(
        self,
        directory: Path,
        kind: str = "file",
        catalog: Catalog | None = None,
        runtime: Runtime | None = None,
        **options: Any,
    ) -> None:
        """``catalog``: another one, which stays open. ``runtime``: another one, too."""
        self.directory = directory
        self._options = {"kind": kind, **options}
        self.runtime = runtime or Runtime()
        self.stores: Stores = open_stores(kind, directory, **options)
        self._is_catalog_ours = catalog is None
        self.catalog = catalog or self._open_catalog()
        self.watcher = Nobody()
        self.manager = Manager(self.runtime, self.stores, self.catalog, 64 << 40, self.watcher)
        self.records = Records(self.runtime, self.catalog, self.manager, self.watcher)
        self.snapshots = Snapshots(
            self.runtime, self.stores, self.manager, lambda info, _: self.watcher.rolled_back.append(info)
        )
        self.sanitizer = Sanitizer(self.runtime, self.manager, lambda _info, _holders: None)
        self.promoter = Promoter(
            *(self.runtime, self.stores, self.manager, self.snapshots, self.catalog), lambda _info, _holders: None
        )
        checks = self.stores.layer_checks if self.stores.can_layer else None
        self.scrubber = Scrubber(self.runtime, checks, self.manager, bytes_per_s=1 << 60)

    def _open_catalog(self) -> Catalog:
        return Catalog(self.directory / "catalogue.sqlite" if self.stores.is_persistent else None)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """To its end, as the server's loop would."""
        results: list[tuple[Any, BaseException | None]] = []
        Job(coroutine, lambda value, error: results.append((value, error))).start()
        while not results:
            self.turn()
        value, error = results[0]
        if error is not None:
            raise error
        return value

    def turn(self) -> None:
        runtime = self.runtime
        if not runtime.ready and not runtime.finished:
            os.set_blocking(runtime.wake_fd, True)
            os.eventfd_read(runtime.wake_fd)
        runtime.fire_timers()
        runtime.collect()
        runtime.step()

    def settle(self) -> None:
        """Until merging, making checksums and closing are over."""
        while (
            self.snapshots._is_tidying
            or self.scrubber.is_working
            or any(not closed.is_done for closed in self.manager._closing.values())
        ):
            self.turn()

    def check(self, name: str, *, renew: bool = False) -> Checked:
        """Hold what the volume stands on against its checksums."""
        progress = Progress(lambda: 0.0, lambda done, total: None, lambda: True)
        checked: Checked = self.run(self.scrubber.check(name, progress, renew=renew))
        return checked

    def hold(self, name: str, access: str = "rw") -> Handle:
        handle: Handle = self.run(self.manager.open(name, access, "test", "a test", 0, 1, lambda: True))
        return handle

    def let_go(self, handle: Handle) -> None:
        async def wait() -> None:
            await self.manager.close(handle)

        self.run(wait())

    @contextmanager
    def volume(self, name: str, access: str = "rw") -> Iterator[Volume]:
        handle = self.hold(name, access)
        try:
            yield handle.volume
        finally:
            self.let_go(handle)

    def write(self, volume: Volume, offset: int, data: bytes, *, is_durable: bool = False) -> None:
        assert self.run(volume.write([memoryview(data)], offset, len(data), is_durable=is_durable)) == len(data)

    def read(self, volume: Volume, offset: int, length: int) -> bytes:
        buffer = bytearray(b"\xee" * length)
        done = self.run(volume.read([memoryview(buffer)], offset, length))
        return bytes(buffer[:done])

    def restart(self) -> None:
        """An orderly end, and a start."""
        self.close()
        Pool.__init__(self, self.directory, **self._options)

    def close(self) -> None:
        """Orderly: the last handles have gone."""
        self.settle()
        self.runtime.close()
        if self._is_catalog_ours:
            self.catalog.close()
        self.stores.close()
